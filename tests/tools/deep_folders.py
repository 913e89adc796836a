"""Folders nested deeper than any path may be long."""

import os
from pathlib import Path


def make_deep(top: Path, count: int) -> None:
    """Make ``count`` folders below ``top``, each in the one before and called d."""
    place = os.open(top, os.O_RDONLY)
    for _ in range(count):
        os.mkdir("d", dir_fd=place)
        inner = os.open("d", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = inner
    os.close(place)
