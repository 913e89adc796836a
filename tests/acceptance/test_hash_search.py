"""The example of docs/examples/hash_search: its commands, run as its page writes them."""

import re
import sys
from pathlib import Path

import pytest

from picloud_jupyter import cloud
from tests.tools.service_under_test import eventually

pytestmark = pytest.mark.isolation

FOLDER = Path(__file__).parents[2] / "docs" / "examples" / "hash_search"
LINE = re.compile(rb"(\d+) bits off after ([\d,]+) attempts: [0-9a-f]{16}-\d+")


def commands():
    """The page's lines that make jobs, as words."""
    lines = re.findall(r"^\$ picloud (.*)$", (FOLDER / "README.md").read_text(), re.MULTILINE)
    return [line.split() for line in lines if re.match("(map)?exec ", line)]


@pytest.fixture
def searches(service):
    endless, threshold, limited, several = commands()
    return {
        "service": service,
        "endless": endless,
        "threshold": threshold,
        "limited": limited,
        "several": several,
    }


def run(searches, form, **replaced):
    words = [replaced.get(f"_{word}", word) for word in searches[form]]
    return searches["service"].cli(*words, cwd=FOLDER).stdout


def found(data):
    return [int(match[1]) for match in LINE.finditer(data)]


def test_it_runs_for_ever_and_prints_its_best_so_far(searches):
    jid = int(run(searches, "endless"))
    try:
        seen = eventually(
            lambda: found(cloud.info(jid, ["stdout"])[jid]["stdout"].encode())[2:]
        )
        assert cloud.status(jid) == "processing"
        more = found(searches["service"].cli("logs", str(jid)).stdout.encode())
        assert more == sorted(set(more), reverse=True)
        assert more[2:][: len(seen)] == seen
    finally:
        cloud.kill(jid)


def test_with_a_threshold_it_is_silent_until_one_is_closer(searches):
    jid = int(run(searches, "threshold", _210="230"))
    try:
        seen = eventually(lambda: found(cloud.info(jid, ["stdout"])[jid]["stdout"].encode()))
        assert max(seen) < 230
        assert cloud.status(jid) == "processing"
    finally:
        cloud.kill(jid)


def test_with_a_limit_it_stops(searches):
    jid = int(run(searches, "limited", _200000="20000"))
    best = found(cloud.result(jid))
    assert best
    assert max(best) < 250
    assert best == sorted(best, reverse=True)


def test_several_search_among_texts_of_their_own(searches):
    first, last = map(int, run(searches, "several", _200000="2000").split("-"))
    assert last - first == 7
    results = cloud.result(range(first, last + 1))
    assert all(found(data) for data in results)
    assert len(set(results)) == 8


def test_the_program_runs_by_itself():
    import subprocess

    done = subprocess.run(
        [sys.executable, str(FOLDER / "hash_search.py"), "300", "100"],
        check=True,
        capture_output=True,
        timeout=60,
    )
    assert found(done.stdout)
