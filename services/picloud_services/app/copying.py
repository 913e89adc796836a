"""``python -m picloud_services backup|restore``: one JSON object on standard output says how it ended."""

import errno
import json
import os
import sys
from collections.abc import Sequence

from picloud_jupyter.protocol.errors import (
    CloudException,
    DiskFull,
    PlatformError,
    error_to_wire,
)
from picloud_jupyter.transport.paths import ServicePaths
from picloud_services.app.backup import back_up
from picloud_services.app.restore import restore

INTERRUPTED = 130


def run_copying(word: str, paths: ServicePaths, options: Sequence[str]) -> int:
    """Make or restore the backup named by the last of ``options``; return the exit code."""
    mask = os.umask(0o077)
    try:
        if word == "backup":
            found = back_up(paths, options[-1], secrets="--secrets" in options)
        else:
            found = restore(paths, options[-1])
    except (CloudException, OSError, ValueError) as exc:
        sys.stdout.write(json.dumps(error_to_wire(_in_words(exc))))
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        os.umask(mask)
    sys.stdout.write(json.dumps(found))
    return 0


def _in_words(error: CloudException | OSError | ValueError) -> CloudException:
    if isinstance(error, CloudException):
        return error
    if isinstance(error, ValueError):
        return PlatformError(str(error))
    name = error.filename or "the backup or the home"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(
            f"the disk is full ({name})", hint="free some space, or use another disk"
        )
    return PlatformError(f"{error.strerror or error}: {name}")
