"""The identity of a Python installation that jobs run in. Pure."""

import hashlib

from picloud_jupyter.protocol.codec import to_wire
from picloud_jupyter.protocol.frames import encode_json
from picloud_jupyter.protocol.jobs import HostPython

BASE = "host-1"  # the base filesystem: the host's own, shown read-only


def environment_id(host_python: HostPython, *, base: str = BASE) -> str:
    """Return 32 hex digits that are equal for the same base and the same packages at the same paths."""
    wire = to_wire(host_python)
    ordered = {key: wire[key] for key in sorted(wire)}
    return hashlib.sha256(encode_json([base, ordered])).hexdigest()[:32]
