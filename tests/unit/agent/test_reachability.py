import pytest

from picloud_services.agent.reachability import refusal


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.9.10",
        "::1",
        "::ffff:127.0.0.1",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "0.0.0.0",
        "0.1.2.3",
        "::",
        "169.254.169.254",
        "::ffff:169.254.169.254",
        "169.254.170.2",
        "fd00:ec2::254",
        "fd20:ce::254",
        "fe80::1",
        "fe80::a9fe:a9fe",
        "100.100.100.200",
        "168.63.129.16",
        "224.0.0.1",
        "ff02::1",
        "255.255.255.255",
    ],
)
def test_refusal_when_address_is_forbidden_then_says_why(address):
    assert address in refusal(address)


@pytest.mark.parametrize(
    "address",
    ["93.184.216.34", "10.1.2.3", "192.168.0.7", "2606:2800::1", "fd12::1", "100.64.0.1"],
)
def test_refusal_when_address_is_another_machine_then_is_empty(address):
    assert refusal(address) == ""


def test_refusal_when_not_an_address_then_raises():
    with pytest.raises(ValueError):
        refusal("localhost")
