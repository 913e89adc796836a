"""Searches for a text whose SHA-512 differs from a goal in as few bits as possible.

    python hash_search.py [threshold [attempts]]

Alone it runs for ever and prints the best so far. With a threshold it prints nothing until a hash is closer to
the goal than so many bits. With a number of attempts it stops after those.
"""

import hashlib
import itertools
import secrets
import sys
from collections.abc import Iterator

GOAL = hashlib.sha512(b"picloud").digest()
BITS = 512


def search(
    threshold: int, attempts: int | None, prefix: bytes
) -> Iterator[tuple[int, bytes, int]]:
    """Yield (bits off, text, attempts so far) of each hash that is closer than all before."""
    goal = int.from_bytes(GOAL, "big")
    start = hashlib.sha512(prefix)
    best = threshold
    for number in itertools.count() if attempts is None else range(attempts):
        attempt = start.copy()
        attempt.update(b"%d" % number)
        off = (int.from_bytes(attempt.digest(), "big") ^ goal).bit_count()
        if off < best:
            best = off
            yield off, prefix + b"%d" % number, number + 1


def main() -> None:
    """Search as the command line says, every run among texts of its own."""
    threshold = int(sys.argv[1]) if len(sys.argv) > 1 else BITS + 1
    attempts = int(sys.argv[2]) if len(sys.argv) > 2 else None
    for off, text, count in search(threshold, attempts, secrets.token_hex(8).encode() + b"-"):
        print(f"{off} bits off after {count:,} attempts: {text.decode()}", flush=True)


if __name__ == "__main__":
    main()
