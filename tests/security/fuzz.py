"""Fuzzes one decoder with coverage: ``python -m tests.security.fuzz NAME SECONDS``.

Needs atheris (the extra ``fuzz``), which exists for Python 3.11 to 3.13. The bytes that break a decoder
are written beside it as crash-...; they belong into its bombs in `test_requests_decoders`.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["picloud_jupyter", "picloud_services"]):
    from tests.security.decoders import DECODERS


def main() -> None:
    """Read the command line and fuzz; libFuzzer ends the process."""
    if len(sys.argv) != 3 or sys.argv[1] not in DECODERS:
        sys.exit(
            f"usage: python -m tests.security.fuzz NAME SECONDS; NAME is one of {list(DECODERS)}"
        )
    decoder, seconds = DECODERS[sys.argv[1]], int(sys.argv[2])

    def once(data: bytes) -> None:
        try:
            decoder.read(data)
        except decoder.refused:
            return

    with tempfile.TemporaryDirectory(prefix="picloud-fuzz-") as corpus:
        for number, seed in enumerate(decoder.seeds):
            Path(corpus, str(number)).write_bytes(seed)
        options = [f"-max_total_time={seconds}", "-rss_limit_mb=2048"]
        atheris.Setup([sys.argv[0], *options, corpus], once)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
