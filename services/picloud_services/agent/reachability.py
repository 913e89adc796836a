"""Decides which addresses a job may reach. Pure.

A job reaches what another machine in its place would reach, and never: this machine's loopback,
link-local addresses, or the metadata services that hand cloud credentials to whoever asks.
"""

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

BLOCKED_NETWORKS = tuple(
    ip_network(text)
    for text in (
        "169.254.0.0/16",  # link-local: metadata of AWS, Azure, GCP, OpenStack, ECS and EKS
        "100.100.100.200/32",  # metadata of Alibaba Cloud
        "168.63.129.16/32",  # the Azure host agent
        "fd00:ec2::/32",  # metadata and helpers of AWS
        "fd20:ce::254/128",  # metadata of GCP
        "fe80::/10",  # link-local: metadata of OpenStack, and the neighbours of this machine
    )
)


def refusal(address: str | IPv4Address | IPv6Address) -> str:
    """Return why a job must not reach ``address``, or "" if it may.

    >>> refusal("127.0.0.1")
    "127.0.0.1 is this machine's loopback"
    >>> refusal("93.184.216.34")
    ''

    Raises:
        ValueError: ``address`` is not an IP address.
    """
    ip = _unwrap(ip_address(address))
    if ip.is_loopback:
        return f"{address} is this machine's loopback"
    if ip.is_unspecified or (isinstance(ip, IPv4Address) and ip.packed[0] == 0):
        return f"{address} is not the address of a machine"
    if any(ip.version == net.version and ip in net for net in BLOCKED_NETWORKS):
        return f"{address} belongs to a metadata service or is link-local"
    if ip.is_link_local:
        return f"{address} is link-local"
    if ip.is_multicast or ip == IPv4Address("255.255.255.255"):
        return f"{address} is not the address of one machine"
    return ""


_NAT64 = IPv6Network("64:ff9b::/96")


def _unwrap(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    # An IPv4 address in IPv6 dress goes where the IPv4 address goes.
    if isinstance(ip, IPv6Address):
        if ip.ipv4_mapped is not None:
            return ip.ipv4_mapped
        if ip.sixtofour is not None:
            return ip.sixtofour
        if ip in _NAT64 or (ip.packed[:12] == bytes(12) and int(ip) > 1):
            return IPv4Address(ip.packed[12:])
    return ip
