"""Where the control plane is: inside a job, at an address, the system's, or this user's own."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urlsplit

from picloud_jupyter.protocol.errors import InvalidRequest, Unreachable
from picloud_jupyter.transport.inside import current_job
from picloud_jupyter.transport.paths import (
    ServicePaths,
    is_set_up,
    service_paths,
    system_paths,
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One control plane: a unix socket (``socket_path``) or ``host`` and ``port``, with its key.

    ``embedded`` holds the folders of a service that may be started when nothing answers; ``system``:
    the one that root started for everybody on this machine.
    """

    socket_path: str = ""
    host: str = ""
    port: int = 0
    tls: bool = False
    base_path: str = ""
    key: str = field(default="", repr=False)
    embedded: ServicePaths | None = None
    system: bool = False

    @property
    def local(self) -> bool:
        """Whether jobs see the folders of this machine, and files may be handed over by path."""
        return self.embedded is not None or self.system

    @property
    def address(self) -> str:
        """The address as a person writes it."""
        if self.socket_path:
            return f"unix://{self.socket_path}"
        return f"{'https' if self.tls else 'http'}://{self.authority}{self.base_path}"

    @property
    def authority(self) -> str:
        """Host and port as they stand in an address; "" for a unix socket."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" if host else ""


def find_endpoint(
    url: str = "", key: str = "", *, environment: Mapping[str, str] | None = None
) -> Endpoint:
    """Return the control plane to talk to.

    In this order: ``url`` and ``key`` if given, the job that this code runs in, $PICLOUD_URL with
    $PICLOUD_API_KEY, the embedded service in $PICLOUD_HOME, the system service if root set one up
    (also while it restarts: no job goes elsewhere meanwhile), the embedded service of this user.
    Nothing is connected or started.

    Raises:
        InvalidRequest: the address is none, or a key would cross the network in clear.
        Unreachable: nothing is named, and this system cannot run a service of its own.
    """
    values: Mapping[str, Any] = os.environ if environment is None else environment
    if url:
        return parse_url(url, key or values.get("PICLOUD_API_KEY", ""))
    job = current_job()
    if job is not None:
        return Endpoint(socket_path=str(job.api_socket), key=job.key)
    if values.get("PICLOUD_URL"):
        return parse_url(values["PICLOUD_URL"], key or values.get("PICLOUD_API_KEY", ""))
    if not sys.platform.startswith("linux"):
        raise Unreachable(
            "jobs run on Linux only, and no other control plane is named",
            hint="set PICLOUD_URL and PICLOUD_API_KEY to those of a control plane on a Linux machine",
        )
    system = system_paths()
    if not values.get("PICLOUD_HOME") and is_set_up(system):
        return Endpoint(socket_path=str(system.api_socket), system=True)
    paths = service_paths()
    return Endpoint(socket_path=str(paths.api_socket), embedded=paths)


def parse_url(url: str, key: str) -> Endpoint:
    """Return the endpoint that ``url`` names: https://…, unix:///…, or http:// to this machine.

    Raises:
        InvalidRequest: another scheme, no host, http:// to another machine, or no address or key at all.
    """
    if not _is_one_word(key):
        raise InvalidRequest(
            "the API key holds a blank, a line end or a letter that no key has",
            hint="give it just as it was shown, in PICLOUD_API_KEY",
        )
    parts = _split(url)
    if parts.scheme == "unix" and parts.path:
        return Endpoint(socket_path=parts.path, key=key)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidRequest(
            f"{url!r} is not the address of a control plane",
            hint="write https://host[:port], http://127.0.0.1:port or unix:///path/of/api.sock",
        )
    tls = parts.scheme == "https"
    if not tls and not _is_this_machine(parts.hostname):
        raise InvalidRequest(
            f"{url!r} would send your key over the network in clear",
            hint="use https://, or an ssh tunnel that ends at http://127.0.0.1:port",
        )
    return Endpoint(
        host=parts.hostname,
        port=_port(parts, url) or (443 if tls else 80),
        tls=tls,
        base_path=parts.path.rstrip("/"),
        key=key,
    )


def _is_one_word(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
    except ValueError as exc:
        raise InvalidRequest(f"{url!r} is not the address of a control plane: {exc}") from exc
    if parts.scheme != "unix" and not _is_one_word(url):
        raise InvalidRequest(
            f"{url!r} holds a character that no address has",
            hint="write it as a browser's address bar has it, blanks as %20",
        )
    return parts


def _port(parts: SplitResult, url: str) -> int | None:
    try:
        return parts.port
    except ValueError as exc:
        raise InvalidRequest(f"{url!r} has no valid port: {exc}") from exc


def _is_this_machine(host: str) -> bool:
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
