"""A file that is removed when the disk is full, so that the failure itself can be recorded."""

import logging
import os
from pathlib import Path

from picloud_services.base.filesystem import disk_space

BALLAST_BYTES = 4 * 1024 * 1024
_log = logging.getLogger(__name__)


def ballast_of(store: Path) -> Path:
    """Return where the ballast of the SQLite file ``store`` lies."""
    return store.with_name(f"{store.name}.ballast")


def fill_ballast(path: Path) -> bool:
    """Make the file whole if there is room for it and as much again; return whether it is there."""
    try:
        if path.exists() and path.stat().st_size == BALLAST_BYTES:
            return True
        path.unlink(missing_ok=True)  # a kill cut it short
        free_bytes = disk_space(path.parent).free_bytes
        if free_bytes >= 2 * BALLAST_BYTES:
            # zeros would take no room on a file system that compresses
            path.write_bytes(os.urandom(BALLAST_BYTES))
            return True
        why = f"{free_bytes} bytes are free"
    except OSError as exc:
        path.unlink(missing_ok=True)
        why = str(exc)
    _log.warning("no room for the reserve of %d bytes: %s", BALLAST_BYTES, why)
    return False
