"""Which control plane the functions of `cloud` talk to, and what is remembered about it."""

import os
import threading
import warnings
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

from picloud_jupyter.cloud.settings import config, config_folder
from picloud_jupyter.protocol import routes
from picloud_jupyter.protocol.jobs import ContainerKind, HostPython
from picloud_jupyter.transport.client import Client
from picloud_jupyter.transport.endpoint import Endpoint, find_endpoint
from picloud_jupyter.transport.inside import CurrentJob, current_job
from picloud_jupyter.transport.paths import ServicePaths
from picloud_jupyter.transport.retry import RetryLimits

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(slots=True)
class Session:
    """A connection's memory. ``codes`` are the code versions that the control plane has."""

    client: Client
    job: CurrentJob | None
    local: bool  # this user's own service on this machine serves it
    codes: set[str] = field(default_factory=set)
    # where this job's own submits run, see `submission`
    place: tuple[HostPython, str, str | None] | None = None


def show_warnings(texts: Iterable[str]) -> None:
    """Show each of ``texts`` once in the life of this process."""
    for text in texts:
        if text not in _shown_warnings:
            _shown_warnings.add(text)
            warnings.warn(text, UserWarning, stacklevel=6)


@dataclass(slots=True)
class _Choice:
    """What `setkey` said, and the modules that may be shipped."""

    key: str = ""
    url: str = ""
    immutable: bool = False
    whitelist: tuple[str, ...] | None = None


class Service:
    """A control plane as this process uses it; one session at a time, made when first needed.

    ``find`` says where it is, ``start`` starts it if it is embedded and nothing listens there.
    """

    def __init__(
        self, find: Callable[[], Endpoint], start: Callable[[ServicePaths], object]
    ) -> None:
        self.find = find
        self.start = start
        self.private = False  # ends with this process: see `private_service`
        self.lock = threading.RLock()
        self._current: Session | None = None
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    @property
    def opened(self) -> Session | None:
        """The session in use, if there is one."""
        return self._current

    def session(self) -> Session:
        """Return the session in use; see the function `session`."""
        job = current_job()
        found = self._current
        if found is not None and found.job == job:
            return found
        return self._renew(job)

    def _renew(self, job: CurrentJob | None) -> Session:
        with self.lock:
            if self._current is not None and self._current.job == job:
                return self._current
            if self._current is not None:
                self._current.client.close()
            endpoint = self.find()
            self._current = Session(self._make_client(endpoint), job, endpoint.local)
            return self._current

    def _make_client(self, endpoint: Endpoint) -> Client:
        limits = RetryLimits(attempts=config.retry_attempts)
        paths = endpoint.embedded
        if paths is None:
            return Client(endpoint, limits=limits)
        return Client(endpoint, revive=lambda: self.start(paths), limits=limits)

    def close(self) -> bool:
        """Close all connections; return whether there were any."""
        with self.lock:
            found, self._current = self._current, None
            if found is None:
                return False
            for action in _on_close:
                action(self)
            found.client.close()
            return True

    def run(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return what ``function`` returns while `session` is this one's."""
        token = _in_use.set(self)
        try:
            return function(*args, **kwargs)
        finally:
            _in_use.reset(token)

    def _after_fork(self) -> None:
        self.lock = threading.RLock()  # another thread may have held the parent's


def _endpoint() -> Endpoint:
    if _choice.url:
        return find_endpoint(_choice.url, _choice.key)
    if current_job() is None and not os.environ.get("PICLOUD_URL") and config.url:
        return find_endpoint(config.url, _choice.key or config.api_key)
    return find_endpoint(key=_choice.key)


def _start_embedded(paths: ServicePaths) -> object:
    from picloud_jupyter.transport.embedded import ensure_running

    return ensure_running(paths)


_shown_warnings: set[str] = set()
_choice = _Choice()
_on_close: list[Callable[[Service], object]] = []
DEFAULT = Service(_endpoint, _start_embedded)  # that of `cloud` itself
_in_use: ContextVar[Service] = ContextVar("picloud_service", default=DEFAULT)


def service() -> Service:
    """Return the service that the function that runs now was called for."""
    return _in_use.get()


def session() -> Session:
    """Return the session in use, made when first needed; nothing is sent yet.

    Inside a job each job has a session of its own, with that job's key.

    Raises:
        InvalidRequest: the address of the control plane is wrong.
        Unreachable: none is named and this system cannot run one.
    """
    return _in_use.get().session()


def whitelist() -> tuple[str, ...] | None:
    """Return the modules that may be shipped; None = all."""
    return _choice.whitelist


def close() -> bool:
    """Close all connections; return True, or False if there were none. The next call opens anew.

    Jobs go on. Callbacks that were not called yet never are, and who waits for a future of an executor or
    awaits a job gets a `CloudException`.
    """
    return service().close()


def on_close(action: Callable[[Service], object]) -> None:
    """Have ``action`` called with the service whenever a session is closed."""
    _on_close.append(action)


def setkey(
    api_key: str | int,
    api_secretkey: str | None = None,
    server_url: str | None = None,
    restart: bool = False,  # noqa: FBT001, FBT002  # PiCloud's signature
    immutable: bool = False,  # noqa: FBT001, FBT002
) -> None:
    """Use the control plane at ``server_url`` (default: the one named before) with this key.

    ``restart`` reconnects in any case; ``immutable`` makes every later `setkey` and `start_simulator` do
    nothing. It ends a simulation. Where no address is named anywhere the service of this machine is used,
    which needs no key.
    """
    with DEFAULT.lock:
        if _choice.immutable:
            return
        key = f"{api_key}:{api_secretkey}" if api_secretkey else str(api_key)
        url = server_url or _choice.url or os.environ.get("PICLOUD_URL") or config.url
        if url:
            find_endpoint(url, key)  # refuses a wrong address now, and changes nothing
        elif current_job() is None:
            warnings.warn(
                "no address of a control plane is given, so the service of this machine is used, which knows "
                "you without a key; give server_url, or set PICLOUD_URL",
                stacklevel=2,
            )
        changed = DEFAULT.private or (key, url) != (_choice.key, _choice.url)
        _choice.key, _choice.url, _choice.immutable = key, url, immutable
        _choice.whitelist = None
        if changed or restart:
            DEFAULT.close()
        DEFAULT.find, DEFAULT.start, DEFAULT.private = _endpoint, _start_embedded, False


def simulate(by: Service) -> None:
    """Have the functions of `cloud` use the service ``by``; nothing where `setkey` was immutable."""
    with DEFAULT.lock:
        if not _choice.immutable:
            DEFAULT.close()
            DEFAULT.find, DEFAULT.start, DEFAULT.private = by.find, by.start, True


def set_dependency_whitelist(whitelist: Any) -> None:  # noqa: ANN401  # checked here
    """Ship no local modules but these (``package`` or ``package.*`` = all of it); None = any.

    Raises:
        TypeError: not a list of strings.
    """
    if whitelist is None:
        _choice.whitelist = None
        return
    if not isinstance(whitelist, list | tuple | set) or not all(
        isinstance(name, str) for name in whitelist
    ):
        raise TypeError(f"the whitelist must be a list of module names, got {whitelist!r}")
    _choice.whitelist = tuple(name.removesuffix(".*") for name in whitelist)


def connection_info() -> dict[str, object]:
    """Return what is connected to what, and whether jobs are isolated from this account.

    Keys: ``opened``, ``connection_type`` (UNIX, HTTP, HTTPS), ``server_url``, ``api_key``,
    ``api_secretkey``, and ``isolated`` (None while nothing is open).
    """
    current = service()
    found = current.opened
    endpoint = found.client.endpoint if found is not None else current.find()
    key, _, secret = endpoint.key.partition(":")
    isolated = None
    if found is not None:
        isolated = found.client.get(routes.SERVICE).get("container_kind") != ContainerKind.PLAIN
    return {
        "opened": found is not None,
        "connection_type": "UNIX"
        if endpoint.socket_path
        else endpoint.address.partition(":")[0].upper(),
        "server_url": endpoint.address,
        "api_key": key or None,
        "api_secretkey": secret or None,
        "isolated": isolated,
    }


def is_simulated() -> bool:
    """Return whether jobs run in a service that ends with this program: after `start_simulator`."""
    return service().private


def running_on_cloud() -> bool:
    """Return whether this code runs inside a job."""
    return current_job() is not None


def getconfigpath() -> str:
    """Return the folder of the client's configuration."""
    return str(config_folder())


def _forget() -> None:
    _choice.key = _choice.url = ""
    _choice.whitelist = None
    DEFAULT.close()


config.on_commit(_forget)
