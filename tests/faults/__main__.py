"""Try each fault and print the table: ``python -m tests.faults [--seed N] [--seconds S] [WORDS ...]``."""

import argparse
import secrets
import sys
import time

from tests.faults.catalog import FAULTS, Fault, Trial
from tests.faults.rows import load_rows


def main() -> int:
    """Run the rows; return 1 if anything was not as promised."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("words", nargs="*", help="only rows whose name has one of these words")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument("--seconds", type=float, default=3600.0, help="for all rows together")
    parser.add_argument("--ci", action="store_true", help="the counts of CI")
    options = parser.parse_args()
    load_rows()
    rows = [f for f in FAULTS if not options.words or any(w in f.name for w in options.words)]
    if not rows:
        parser.error("no row has such a word; the rows: " + "; ".join(f.name for f in FAULTS))
    print(f"seed {options.seed}, {len(rows)} rows, at most {options.seconds:.0f} s", flush=True)
    print(
        f"\n| {'fault':60} | count | violations | seconds |\n|{'-' * 62}|------:|-----------:|--------:|"
    )
    end = time.monotonic() + options.seconds
    trials = []
    for number, row in enumerate(rows):
        begun = time.monotonic()
        share = (end - begun) / (len(rows) - number)
        trial = run(row, options.seed, ci=options.ci, seconds=share)
        trials.append(trial)
        seconds = time.monotonic() - begun
        print(
            f"| {row.name:60} | {trial.count:5} | {len(trial.violations):10} | {seconds:7.0f} |",
            *(f"\n    {name}: {text}" for name, text in trial.figures.items()),
            *(f"\n    {violation}" for violation in trial.violations[:40]),
            flush=True,
        )
    count, broken = sum(t.count for t in trials), sum(len(t.violations) for t in trials)
    print(f"\n{count} faults, {broken} violations; seed {options.seed}")
    return 1 if broken else 0


def run(row: Fault, seed: int, *, ci: bool, seconds: float = float("inf")) -> Trial:
    """Try one row; what it raises itself is its own violation, so that the others go on."""
    trial = Trial(
        seed=hash_of(row.name, seed),
        wanted=row.ci if ci else row.soak,
        until=time.monotonic() + seconds,
    )
    row.try_it(trial)
    return trial


def hash_of(name: str, seed: int) -> int:
    """Return the seed of one row, the same in every process."""
    import hashlib

    return int.from_bytes(hashlib.sha256(f"{name}:{seed}".encode()).digest()[:8], "big")


if __name__ == "__main__":
    sys.exit(main())
