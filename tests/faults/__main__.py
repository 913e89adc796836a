"""Try each fault and print the table: ``python -m tests.faults [--seed N] [--seconds S] [WORDS ...]``."""

import argparse
import hashlib
import os
import secrets
import sys
import time
import traceback

from tests.faults.catalog import FAULTS, Fault, Trial
from tests.faults.invariants import Violation
from tests.faults.rows import load_rows
from tests.faults.table import Row, as_markdown, sums, write_pages


def main() -> int:
    """Run the rows; return 1 if anything was not as promised."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("words", nargs="*", help="only rows whose name has one of these words")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument("--seconds", type=float, default=3600.0, help="for all rows together")
    parser.add_argument("--ci", action="store_true", help="the counts of CI")
    parser.add_argument("--list", action="store_true", help="name the rows and leave")
    parser.add_argument(
        "--page",
        action="store_true",
        help="write the table into docs/reliability.md and README",
    )
    options = parser.parse_args()
    load_rows()
    faults = [f for f in FAULTS if not options.words or any(w in f.name for w in options.words)]
    faults.sort(key=lambda fault: not fault.whole)  # the others share what is left of the time
    if options.list:
        print(*(f"{f.name} (CI {f.ci}, soak {f.soak})" for f in faults), sep="\n")
        return 0
    if not faults:
        parser.error("no row has such a word; see --list")
    print(
        f"seed {options.seed}, {len(faults)} rows, at most {options.seconds:.0f} s", flush=True
    )
    begun = time.monotonic()
    rows = []
    for number, fault in enumerate(faults):
        left = options.seconds - (time.monotonic() - begun)
        share = left / (len(faults) - number)
        rows.append(run(fault, options.seed, ci=options.ci, seconds=share))
        show(rows[-1])
    print(f"\n{as_markdown(rows)}\n\n{sums(rows)} Seed {options.seed}.")
    if options.page:
        write_pages(rows, seed=options.seed, seconds=time.monotonic() - begun)
    return 1 if any(row.violations for row in rows) else 0


def run(fault: Fault, seed: int, *, ci: bool, seconds: float = float("inf")) -> Row:
    """Try one row; what it raises itself counts as a violation, so that the others go on."""
    begun = time.monotonic()
    trial = Trial(
        seed=seed_of(fault.name, seed),
        wanted=fault.ci if ci else fault.soak,
        until=float("inf") if fault.whole else begun + seconds,
    )
    if fault.needs_root and os.geteuid():
        return Row(fault.name, 0, [], {"skipped:": "it needs root"})
    try:
        fault.try_it(trial)
    except Exception:  # whatever it is, it is told, and counts
        trial.violations.append(Violation("row", traceback.format_exc()))
    if trial.wanted and not trial.count and not trial.violations:
        if time.monotonic() < trial.until:
            trial.violations.append(Violation("row", "it found nothing to strike"))
        else:
            trial.figures["not tried:"] = "there was no time left"
    seconds = time.monotonic() - begun
    return Row(fault.name, trial.count, trial.violations, trial.figures, seconds)


def show(row: Row) -> None:
    """Print what came of a row as soon as it is known."""
    verdict = f"{len(row.violations)} violations" if row.violations else "ok"
    print(f"{row.name:60} {row.count:5} {row.seconds:5.0f} s  {verdict}", flush=True)
    for name, text in row.figures.items():
        print(f"    {name} {text}")
    for violation in row.violations[:40]:
        print(f"    {violation}", flush=True)


def seed_of(name: str, seed: int) -> int:
    """Return the seed of one row, the same in every process."""
    return int.from_bytes(hashlib.sha256(f"{name}:{seed}".encode()).digest()[:8], "big")


if __name__ == "__main__":
    sys.exit(main())
