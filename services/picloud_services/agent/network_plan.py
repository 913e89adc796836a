"""Decides how a container's network is set up: addresses, pasta's arguments, resolver. Pure."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address

PROXY_PORT = 3128
INTERFACE = "eth0"
MTU_BYTES = 65520  # between pasta and the container no wire is involved

# Rarely used on real networks: the ranges for documentation and for tests of network devices.
_CANDIDATES = tuple(
    IPv4Network(text)
    for text in ("198.18.255.240/29", "203.0.113.240/29", "198.51.100.240/29", "192.0.2.240/29")
)
_GATEWAY_6 = "fd70:6963:6c6f:7564::1"
_ADDRESS_6 = "fd70:6963:6c6f:7564::2"
_RESOLVER_6 = "fd70:6963:6c6f:7564::3"


class NetworkMode(StrEnum):
    """How the policy `internet` is kept on a node."""

    PASTA = "pasta"  # a network stack in user space: every protocol
    PROXY = "proxy"  # HTTP and HTTPS through the agent, by the proxy variables
    HOST = "host"  # plain kind: the machine's own network, not isolated
    NONE = "none"  # loopback only


@dataclass(frozen=True, slots=True)
class HostNetwork:
    """What this machine's network looks like now.

    ``interfaces`` leave out loopback; ``global_ipv6`` is whether it has a global IPv6 address.
    """

    networks: tuple[IPv4Network, ...]
    default_route: bool
    interfaces: tuple[str, ...]
    global_ipv6: bool
    nameservers: tuple[str, ...]
    resolver_options: tuple[str, ...]


def read_host_network(
    route: str, if_inet6: str, resolv_conf: str, interfaces: Iterable[str]
) -> HostNetwork:
    """Return the facts in /proc/net/route, /proc/net/if_inet6, resolv.conf and /sys/class/net."""
    networks = [_route_network(line) for line in route.splitlines()[1:] if line.strip()]
    lines = [line.split() for line in resolv_conf.splitlines()]
    servers = [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"]
    return HostNetwork(
        networks=tuple(n for n in networks if n.prefixlen),
        default_route=any(n.prefixlen == 0 for n in networks),
        interfaces=tuple(name for name in interfaces if name != "lo"),
        global_ipv6=any(re.match("[23]", line) for line in if_inet6.splitlines()),
        nameservers=tuple(s for s in servers if _is_address(s)),
        resolver_options=tuple(
            " ".join(words)
            for words in lines
            if words and words[0] in {"search", "domain", "options"}
        ),
    )


def _route_network(line: str) -> IPv4Network:
    words = line.split()
    destination, mask = (int.from_bytes(bytes.fromhex(words[i]), "little") for i in (1, 7))
    return IPv4Network((destination & mask, mask.bit_count()))


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:  # with a scope like fe80::1%eth0: link-local, of no use to a job
        return False
    return "%" not in text


@dataclass(frozen=True, slots=True)
class PastaPlan:
    """What pasta is told, and what the container's /etc/resolv.conf says."""

    arguments: tuple[str, ...]
    resolv_conf: str


def plan_pasta(host: HostNetwork) -> PastaPlan | str:
    """Return how to start pasta on this machine, or why that is impossible.

    The container gets addresses of its own, so that services on any non-loopback address of this
    machine are reached as from another machine. Names are resolved by this machine's first
    resolver, reached through an address of pasta's, which also works for a resolver on loopback.
    """
    if not host.default_route and not host.interfaces:
        return "this machine has no network interface besides loopback"
    subnet = _free_subnet(host.networks)
    gateway, address, resolver = (str(subnet[i]) for i in (1, 2, 3))
    arguments = [
        *("--quiet", "--config-net", "--no-map-gw"),
        *("-t", "none", "-u", "none", "-T", "none", "-U", "none"),
        *("-I", INTERFACE, "-m", str(MTU_BYTES)),
        *("-a", address, "-n", str(subnet.netmask), "-g", gateway),
    ]
    if not host.default_route:
        arguments += ["-i", host.interfaces[0]]
    chosen = _first_nameserver(host.nameservers)
    with_6 = host.global_ipv6 or isinstance(chosen, IPv6Address)
    arguments += ["-a", _ADDRESS_6, "-g", _GATEWAY_6] if with_6 else ["-4"]
    lines = list(host.resolver_options)
    if chosen is not None:
        seen_as = resolver if isinstance(chosen, IPv4Address) else _RESOLVER_6
        arguments += ["--dns-forward", seen_as]
        lines.insert(0, f"nameserver {seen_as}")
    return PastaPlan(tuple(arguments), "".join(f"{line}\n" for line in lines))


def _free_subnet(networks: Iterable[IPv4Network]) -> IPv4Network:
    taken = list(networks)
    for candidate in _CANDIDATES:
        if not any(candidate.overlaps(network) for network in taken):
            return candidate
    # Eight addresses that a job cannot reach are better than no network at all.
    return _CANDIDATES[0]


def _first_nameserver(texts: Iterable[str]) -> IPv4Address | IPv6Address | None:
    found = [ip_address(text) for text in texts]
    return next((ip for ip in found if ip.version == 4), found[0] if found else None)


NO_RESOLVER = (
    "# Names are resolved outside of this container, by its HTTP proxy, or not at all.\n"
)


def proxy_variables() -> dict[str, str]:
    """Return the environment variables that send a program's HTTP and HTTPS through the proxy."""
    url = f"http://127.0.0.1:{PROXY_PORT}"
    direct = "localhost,127.0.0.1,::1"
    names = ("http_proxy", "https_proxy", "all_proxy")
    variables = dict.fromkeys((*names, *(name.upper() for name in names)), url)
    return variables | {"no_proxy": direct, "NO_PROXY": direct}
