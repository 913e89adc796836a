"""The filter, run by a small machine of our own that knows classic BPF."""

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picloud_services.agent import seccomp
from picloud_services.agent import syscall_rules as rules
from picloud_services.agent.container import ContainerError

ALLOW, KILL = 0x7FFF0000, 0x80000000
MACHINES = ["x86_64", "aarch64"]
NUMBER = st.integers(0, 2**32 - 1)


def answer(machine: str, number: int, *arguments: int, architecture: int | None = None) -> int:
    """Return what the kernel would do: ALLOW, KILL or an error number."""
    found = rules.ARCHITECTURES[machine] if architecture is None else architecture
    padded = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    data = struct.pack(
        "=iIQ6Q", struct.unpack("=i", struct.pack("=I", number))[0], found, 0, *padded
    )
    code = list(struct.iter_unpack("=HBBI", seccomp.program(machine)))
    at, accumulator = 0, 0
    while True:
        operation, yes, no, operand = code[at]
        at += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, operand)
        elif operation == 0x06:
            return int(operand & 0xFFFF if operand >> 16 == 5 else operand)
        else:
            tests = {
                0x15: accumulator == operand,
                0x25: accumulator > operand,
                0x45: bool(accumulator & operand),
            }
            at += yes if tests[operation] else no


@pytest.mark.parametrize("machine", MACHINES)
def test_filter_when_a_call_is_refused_then_each_of_them_is(machine: str) -> None:
    column = MACHINES.index(machine)
    for name, pair in rules.REFUSED.items():
        number = pair[column]
        if number is not None:
            assert answer(machine, number) == errno.EPERM, name
    for name, pair in rules.NOT_IMPLEMENTED.items():
        assert answer(machine, pair[column]) == errno.ENOSYS, name


@pytest.mark.parametrize("machine", MACHINES)
def test_filter_when_the_architecture_is_another_then_it_kills(machine: str) -> None:
    assert answer(machine, 1, architecture=0x40000003) == KILL


@given(st.sampled_from(MACHINES), NUMBER)
def test_filter_when_a_number_is_named_nowhere_then_it_is_allowed_or_unknown(
    machine: str, number: int
) -> None:
    column = MACHINES.index(machine)
    named = {
        pair[column] for pair in (*rules.REFUSED.values(), *rules.NOT_IMPLEMENTED.values())
    }
    named |= {pair[column] for pair in (rules.SOCKET, rules.SOCKETPAIR, rules.PERSONALITY)}
    if number > rules.HIGHEST:
        assert answer(machine, number) == errno.ENOSYS
    elif number not in named:
        assert answer(machine, number) == ALLOW


@given(st.sampled_from(MACHINES), NUMBER, st.integers(0, 2**32 - 1))
def test_filter_when_clone_and_unshare_make_namespaces_then_they_are_refused(
    machine: str, flags: int, high: int
) -> None:
    column = MACHINES.index(machine)
    value = flags | high << 32
    refused = bool(flags & 0x7E020000)
    assert (answer(machine, rules.CLONE[column], value) == errno.EPERM) is refused
    refused |= bool(flags & 0x80)
    assert (answer(machine, rules.UNSHARE[column], value) == errno.EPERM) is refused


@given(st.sampled_from(MACHINES), st.integers(0, 50), st.integers(0, 20))
def test_filter_when_a_socket_is_made_then_the_family_decides(
    machine: str, family: int, protocol: int
) -> None:
    column = MACHINES.index(machine)
    allowed = family in (1, 2, 10) or (family == 16 and protocol == 0)
    found = answer(machine, rules.SOCKET[column], family, 3, protocol)
    assert found == (ALLOW if allowed else errno.EAFNOSUPPORT)
    pair = answer(machine, rules.SOCKETPAIR[column], family, 1, 0)
    assert pair == (ALLOW if family == 1 else errno.EAFNOSUPPORT)


@pytest.mark.parametrize("machine", MACHINES)
def test_filter_when_a_terminal_is_typed_into_then_it_is_refused_whatever_the_high_half(
    machine: str,
) -> None:
    ioctl = rules.IOCTL[MACHINES.index(machine)]
    for command in (0x5412, 0x541C):
        assert answer(machine, ioctl, 0, command) == errno.EPERM
        assert answer(machine, ioctl, 0, command | 1 << 40) == errno.EPERM
    assert answer(machine, ioctl, 0, 0x5401) == ALLOW


@pytest.mark.parametrize("machine", MACHINES)
def test_filter_when_a_socket_is_bound_to_a_device_then_it_is_refused(machine: str) -> None:
    number = rules.SETSOCKOPT[MACHINES.index(machine)]
    for level, option in ((1, 25), (1, 62), (0, 50), (41, 76)):
        assert answer(machine, number, 3, level, option) == errno.EPERM
        assert answer(machine, number, 3, level | 1 << 32, option | 1 << 32) == errno.EPERM
    for level, option in ((1, 2), (6, 1), (0, 25), (41, 26), (6, 25)):
        assert answer(machine, number, 3, level, option) == ALLOW


def test_program_when_the_machine_is_unknown_then_it_says_so() -> None:
    with pytest.raises(ContainerError, match="riscv64"):
        seccomp.program("riscv64")
