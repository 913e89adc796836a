"""Each row of the fault table with its count of CI; `python -m tests.faults` runs them at length."""

import os

import pytest

from tests.faults.__main__ import run
from tests.faults.catalog import FAULTS
from tests.faults.rows import load_rows

load_rows()
SEED = int(os.environ.get("SEED", "1"))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("fault", [f for f in FAULTS if f.ci], ids=lambda fault: fault.name)
def test_nothing_is_lost(fault):
    if fault.needs_root and os.geteuid():
        pytest.skip("needs root: mounts, namespaces or another user's rights")
    row = run(fault, SEED, ci=True)
    assert [str(violation) for violation in row.violations] == []
    assert row.count >= fault.ci
