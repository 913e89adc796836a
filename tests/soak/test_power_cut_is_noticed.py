"""The row of power cuts can fail: a store that does not wait for the disk loses what it acknowledged."""

import os

import pytest

from tests.faults import power
from tests.faults.catalog import Trial

pytestmark = [pytest.mark.soak, pytest.mark.root]

CARELESS = """
import sys
if "picloud_services" in sys.argv or "control" in sys.orig_argv:
    from picloud_services.base import connections
    connections._WRITER_PRAGMAS = tuple(
        "PRAGMA synchronous=NORMAL" if "synchronous" in word else word
        for word in connections._WRITER_PRAGMAS
    )
"""


@pytest.mark.timeout(280)
def test_store_that_does_not_wait_for_the_disk_is_caught(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(CARELESS)
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    trial = Trial(seed=1, wanted=2)
    power.cut_again_and_again(trial)
    assert "I1" in {violation.invariant for violation in trial.violations}
