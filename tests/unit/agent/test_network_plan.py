from ipaddress import IPv4Network

from picloud_services.agent.network_plan import (
    HostNetwork,
    PastaPlan,
    plan_pasta,
    proxy_variables,
    read_host_network,
)

ROUTE = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
"""
IPV6 = """\
00000000000000000000000000000001 01 80 10 80       lo
fe8000000000000000fc00fffe000001 04 40 20 80     eth0
"""
HOST = HostNetwork((), True, ("eth0",), False, ("10.0.0.53",), ())


def plan(host: HostNetwork) -> PastaPlan:
    found = plan_pasta(host)
    assert isinstance(found, PastaPlan)
    return found


def test_read_when_given_the_kernels_texts_then_finds_routes_and_resolvers():
    text = "# comment\nnameserver 127.0.0.53\nnameserver fe80::1%eth0\nnameserver x\nsearch lab.org\n"
    host = read_host_network(ROUTE, IPV6, text, ["lo", "eth0"])
    assert host == HostNetwork(
        (IPv4Network("192.0.2.0/24"),),
        True,
        ("eth0",),
        False,
        ("127.0.0.53",),
        ("search lab.org",),
    )


def test_read_when_a_global_ipv6_address_exists_then_says_so():
    global_address = "20010db8000000000000000000000002 02 40 00 80     eth0\n"
    assert read_host_network(ROUTE, IPV6 + global_address, "", []).global_ipv6


def test_plan_when_ordinary_then_nothing_is_forwarded_inwards_nor_mapped_to_loopback():
    arguments = plan(HOST).arguments
    text = " ".join(arguments)
    assert "-t none -u none -T none -U none" in text
    assert "--no-map-gw" in arguments
    assert "-4" in arguments
    assert "-i" not in arguments


def test_plan_when_resolver_is_on_loopback_then_it_is_seen_at_an_address_of_pastas():
    found = plan(HostNetwork((), True, ("eth0",), False, ("127.0.0.53",), ("options edns0",)))
    assert "--dns-forward 198.18.255.243" in " ".join(found.arguments)
    assert found.resolv_conf == "nameserver 198.18.255.243\noptions edns0\n"


def test_plan_when_resolver_is_ipv6_only_then_ipv6_is_on():
    found = plan(HostNetwork((), True, ("eth0",), False, ("2001:db8::53",), ()))
    assert "-4" not in found.arguments
    assert found.resolv_conf.startswith("nameserver fd70:")


def test_plan_when_a_network_is_taken_then_another_is_chosen():
    host = HostNetwork((IPv4Network("198.18.0.0/15"),), True, ("eth0",), False, (), ())
    assert "203.0.113.242" in plan(host).arguments


def test_plan_when_all_candidates_are_taken_then_still_plans():
    everything = (IPv4Network("128.0.0.0/1"),)
    assert plan(HostNetwork(everything, True, ("eth0",), False, (), ())).arguments


def test_plan_when_offline_then_uses_any_interface():
    arguments = plan(HostNetwork((), False, ("wlan0",), False, (), ())).arguments
    assert arguments[arguments.index("-i") + 1] == "wlan0"


def test_plan_when_there_is_no_interface_then_says_why_not():
    assert "interface" in str(plan_pasta(HostNetwork((), False, (), False, (), ())))


def test_proxy_variables_when_read_by_any_program_then_loopback_stays_direct():
    variables = proxy_variables()
    assert variables["https_proxy"] == variables["HTTPS_PROXY"] == "http://127.0.0.1:3128"
    assert "127.0.0.1" in variables["no_proxy"]
