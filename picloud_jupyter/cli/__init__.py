"""The `picloud` command: one file per word. `picloud --help` lists them."""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0 = done; 1 = something unexpected (with a traceback); 2 = wrong usage; 3 = the service or the job
    said no, in words on stderr.
    """
    from picloud_jupyter.cli.run import run

    return run(sys.argv[1:] if arguments is None else list(arguments))
