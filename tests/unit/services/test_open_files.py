"""The limit of open files is raised as far as it may be, and never lowered."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource
from picloud_services.base.open_files import allow_open_files
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
allow_open_files()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("soft", "hard", "found"),
    [(256, 300, "300 300"), (300, 300, "300 300"), (16_500, 17_000, "16500 17000")],
)
def test_allow_open_files(soft, hard, found):
    program = PROGRAM.format(soft=soft, hard=hard)
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert said.stdout.decode().strip() == found
