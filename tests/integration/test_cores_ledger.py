import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from picloud_services.base.cores_ledger import PATIENT_CLAIMS, CoresLedger


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cores"


def test_claim_when_nobody_else_is_there_then_all_that_is_wanted_is_granted(folder):
    ledger = CoresLedger(4, folder)
    assert ledger.claim(2.2) == 3
    assert ledger.claim(100) == 4
    assert ledger.claim(1) == 1
    ledger.close()
    assert ledger.held == 0


def test_claim_when_another_has_some_then_the_rest_is_granted(folder):
    first, second = CoresLedger(4, folder), CoresLedger(4, folder)
    assert first.claim(3) == 3
    assert second.claim(4) == 1
    first.close()
    assert second.claim(4) == 4
    second.close()


def test_claim_when_another_has_none_then_one_goes_down_to_half(folder):
    first, second = CoresLedger(4, folder), CoresLedger(4, folder)
    assert first.claim(4) == 4
    assert second.claim(4) == 0
    assert first.claim(4) == 2
    assert second.claim(4) == 2
    assert first.claim(4) == 2, "nobody is hungry now, and nothing is free"
    second.close()
    assert first.claim(4) == 4
    first.close()


def test_claim_when_there_is_one_core_then_two_services_take_turns(folder):
    first, second = CoresLedger(1, folder), CoresLedger(1, folder)
    grants = []
    assert first.claim(1) == 1
    for _ in range(3):
        grants += [second.claim(1), first.claim(1)]
    assert 1 in grants[::2]
    assert 1 in grants[1::2]
    assert all(a + b <= 1 for a, b in itertools.pairwise(grants))
    first.close()
    second.close()


def test_claim_when_nothing_becomes_free_then_one_core_is_used_all_the_same(folder):
    busy = [CoresLedger(2, folder), CoresLedger(2, folder)]
    assert [ledger.claim(1) for ledger in busy] == [1, 1]
    third = CoresLedger(2, folder)
    grants = [third.claim(2) for _ in range(PATIENT_CLAIMS + 2)]
    assert grants[:PATIENT_CLAIMS] == [0] * PATIENT_CLAIMS
    assert grants[-1] == 1
    busy[0].close()
    assert third.claim(2) == 1
    assert third.held == 1
    for ledger in (*busy, third):
        ledger.close()


def test_claim_when_small_jobs_come_one_by_one_then_only_the_first_waits_so_long(folder):
    busy, small = CoresLedger(1, folder), CoresLedger(1, folder)
    assert busy.claim(1) == 1
    for _ in range(PATIENT_CLAIMS):
        assert small.claim(1) == 0
    for _ in range(3):
        assert small.claim(1) == 1
        assert small.claim(0) == 0
    busy.close()
    assert small.claim(1) == 1
    assert busy.claim(1) == 0
    assert small.claim(0) == 0
    assert busy.claim(1) == 1
    assert small.claim(1) == 0, "it had a core in between, and is patient again"
    busy.close()
    small.close()


def test_claim_when_a_job_needs_more_than_others_leave_then_it_is_begun_all_the_same(folder):
    """Or it would keep a core idle that others want, and wait for one that they keep."""
    busy, wide = CoresLedger(2, folder), CoresLedger(2, folder)
    assert busy.claim(1) == 1
    grants = [wide.claim(2, 2) for _ in range(PATIENT_CLAIMS + 2)]
    assert grants == [1] * PATIENT_CLAIMS + [2, 2]
    assert wide.claim(2) == 1, "what runs goes on; nothing more is begun"
    busy.close()
    assert wide.claim(2, 2) == 2
    wide.close()


def test_claim_when_the_other_process_is_killed_then_its_cores_are_free(folder):
    script = (
        "import sys; from pathlib import Path\n"
        "from picloud_services.base.cores_ledger import CoresLedger\n"
        "ledger = CoresLedger(2, Path(sys.argv[1])); print(ledger.claim(2), flush=True)\n"
        "sys.stdin.read()"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", script, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": f"{root}:{root}/services"},
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "2\n"
        ledger = CoresLedger(2, folder)
        assert ledger.claim(2) == 0
        other.kill()
        other.wait(20)
    assert ledger.claim(2) == 2
    ledger.close()


def test_claim_when_the_folder_is_a_file_then_everything_is_granted(folder):
    folder.write_text("in the way")
    assert CoresLedger(2, folder).claim(2) == 2


def test_claim_when_a_link_is_planted_then_it_is_not_followed(folder, tmp_path):
    target = tmp_path / "target"
    ledger = CoresLedger(1, folder)
    (folder / "core-0").symlink_to(target)
    assert ledger.claim(1) == 0
    assert not target.exists()
