"""All rows: importing a module enters its faults into the catalog."""

import importlib

MODULES = (
    "kills",
    "crowds",
    "links",
    "clocks",
    "greed",
    "disks",
    "syscalls",
    "power",
    "versions",
    "damage",
    "neighbours",
)


def load_rows() -> None:
    """Enter every fault."""
    for name in MODULES:
        importlib.import_module(f"tests.faults.{name}")
