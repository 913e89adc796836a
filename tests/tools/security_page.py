"""Counts the negative tests by their number and writes the table into docs/security.md.

``python -m tests.tools.security_page`` after tests were added. The number stands in a test's name.
"""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "security.md"
BEGIN, END = "<!-- negative tests -->\n", "<!-- end -->\n"
_NUMBER = re.compile(r"::test_(\d+)_")

SUBJECTS = {
    1: "payloads that run a command in whoever loads them, on every path",
    2: "listing, describing and completing hostile jobs",
    3: "bombs: nesting, numbers, archives, names without end",
    4: "lengths that lie, requests that never end",
    5: "names with markup, newlines, NUL, a megabyte",
    6: "output that steers a terminal or a page",
    7: "keys: none, wrong, foreign, expired, in the wrong place",
    9: "what the time of an answer tells",
    10: "keys and passwords in what is stored",
    11: "what was revoked, tried again",
    12: "jobs of one that look for another's",
    13: "secrets in words, processes and files",
    14: "another user's numbers, on every route",
    15: "guessed numbers",
    16: "a job's key for what a job may not",
    17: "fields that are not the client's to set",
    18: "leases that are over, or another's",
    19: "users who lost their right",
    28: "requests within requests",
    31: "files and processes of the machine, from a job",
    32: "calls to the kernel that are not for jobs",
    33: "the proofs of known escapes",
    34: "addresses that are not for jobs",
    35: "neighbours on the network",
    36: "processes, files, memory and output without end",
    40: "results, files and archives that lie",
    44: "more jobs than anybody may have",
    46: "a service that is open to the network",
}


def count_cases() -> dict[int, int]:
    """Return how many cases each number has, as pytest collects them."""
    words = ["-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "tests/security"]
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if done.returncode:
        raise RuntimeError(f"the tests cannot be collected: {done.stdout[-2000:]}{done.stderr}")
    found = Counter(int(number) for number in _NUMBER.findall(done.stdout))
    return dict(sorted(found.items()))


def table(cases: dict[int, int]) -> str:
    """Return the table in Markdown."""
    rows = [f"| {number} | {SUBJECTS[number]} | {count} |" for number, count in cases.items()]
    head = [
        f"{len(cases)} classes, {sum(cases.values())} cases, 0 passed through.",
        "",
        "| class | what is tried | cases |",
        "|---|---|---|",
    ]
    return "\n".join([*head, *rows, ""])


def with_table(page: str, cases: dict[int, int]) -> str:
    """Return ``page`` with the table between its marks."""
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + table(cases) + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(
        with_table(PAGE.read_text(encoding="utf-8"), count_cases()), encoding="utf-8"
    )
