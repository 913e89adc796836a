"""Local modules that go with a function: found, and sent once."""

import sys
import threading

from picloud_jupyter.cloud.session import Session, show_warnings, whitelist
from picloud_jupyter.cloud.settings import config
from picloud_jupyter.protocol import routes
from picloud_jupyter.protocol.errors import NotFound
from picloud_jupyter.serialize.dependencies import DependencyFinder
from picloud_jupyter.serialize.pickler import References

_finder = DependencyFinder()
_lock = threading.Lock()


def code_version(session: Session, func: object, references: References) -> str:
    """Return the version of the local code that goes with ``func``, which the service has then.

    "" where there is none, or `cloud.config.automatic_dependency_transfer` is off.
    """
    if not config.automatic_dependency_transfer:
        return ""
    module = getattr(func, "__module__", None)
    if isinstance(module, str):
        references.modules.add(module)
    with _lock:
        shipment = _current_finder().ship(references, main=sys.modules.get("__main__"))
    if shipment.warnings:
        show_warnings(shipment.warnings)
    if shipment.digest and shipment.digest not in session.codes:
        _send(session, shipment.digest, shipment.data)
        session.codes.add(shipment.digest)
    return shipment.digest


def _current_finder() -> DependencyFinder:
    global _finder  # noqa: PLW0603  # its memory of read files serves all calls
    listed = whitelist()
    wanted = None if listed is None else frozenset(listed)
    if _finder.whitelist != wanted:
        _finder = DependencyFinder(wanted)
    return _finder


def _send(session: Session, digest: str, data: bytes) -> None:
    route = routes.CODE.format(digest=digest)
    try:
        session.client.get(route)
    except NotFound:
        session.client.put_bytes(route, (data,))
