"""The seccomp filter of every container, as a program for the kernel's classic BPF. Pure.

Built here from `syscall_rules`, so that neither a library nor a binary file is needed.
"""

import errno
import functools
import struct
from collections.abc import Sequence

from picloud_services.agent import syscall_rules as rules
from picloud_services.agent.container import ContainerError

_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06  # BPF_LD|W|ABS, BPF_ALU|AND|K, BPF_RET|K
_EQUAL, _GREATER, _BITS = 0x15, 0x25, 0x45  # BPF_JMP | JEQ, JGT, JSET |K
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


@functools.cache
def program(machine: str) -> bytes:
    """Return the filter for ``machine`` (os.uname().machine) as an array of struct sock_filter.

    Raises:
        ContainerError: there are no rules for it.
    """
    if machine not in rules.ARCHITECTURES:
        known = " and ".join(rules.ARCHITECTURES)
        raise ContainerError(f"jobs are isolated on {known} only; this machine is {machine}")
    column = list(rules.ARCHITECTURES).index(machine)
    code: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, rules.ARCHITECTURES[machine]),
        (_RETURN, 0, 0, _KILL),  # another architecture's numbers would mean other calls
        (_LOAD, 0, 0, _NUMBER),
        *_return_if((_GREATER, rules.HIGHEST), errno.ENOSYS),
    ]
    for numbers in rules.NOT_IMPLEMENTED.values():
        code += _return_if((_EQUAL, numbers[column]), errno.ENOSYS)
    for block in _argument_rules(column):
        code += block
    refused = [
        number for pair in rules.REFUSED.values() if (number := pair[column]) is not None
    ]
    code += _refuse_all(sorted(refused))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _answer(number: int) -> Instruction:
    return (_RETURN, 0, 0, _ERRNO | number if number else _ALLOW)


def _return_if(test: tuple[int, int], number: int) -> list[Instruction]:
    return [(test[0], 0, 1, test[1]), _answer(number)]


def _refuse_all(numbers: Sequence[int]) -> list[Instruction]:
    """One comparison per number, all to one answer at the end."""
    last = len(numbers)
    tests = [(_EQUAL, last - i, 0, number) for i, number in enumerate(numbers)]
    return [*tests, _answer(0), _answer(errno.EPERM)]


def _argument_rules(column: int) -> list[list[Instruction]]:
    """Calls that are judged by the low half of an argument; each block ends with an answer."""
    new = rules.NEW_NAMESPACES
    netlink = [
        (_EQUAL, 0, 3, rules.NETLINK),
        _load(2),
        *_return_if((_EQUAL, 0), 0),
        _answer(errno.EAFNOSUPPORT),
    ]
    socket = [_load(0), *_allow(rules.SOCKET_FAMILIES), *netlink, _answer(errno.EAFNOSUPPORT)]
    options = [_load(1)]
    for level, names in rules.DEVICE_OPTIONS.items():
        options += _only(level, [_load(2), *_refuse_all(names)])
    return [
        _only(rules.CLONE[column], [_load(0), *_refuse_bits(new)]),
        _only(rules.UNSHARE[column], [_load(0), *_refuse_bits(new | rules.NEW_TIME_NAMESPACE)]),
        _only(rules.SOCKET[column], socket),
        _only(
            rules.SOCKETPAIR[column],
            [
                _load(0),
                *_return_if((_EQUAL, rules.SOCKET_FAMILIES[0]), 0),
                _answer(errno.EAFNOSUPPORT),
            ],
        ),
        _only(rules.SETSOCKOPT[column], [*options, _answer(0)]),
        _only(rules.IOCTL[column], [_load(1), *_refuse_all(rules.TERMINAL_TRICKS)]),
        _only(
            rules.PERSONALITY[column],
            [_load(0), *_allow(rules.PERSONALITIES), _answer(errno.EPERM)],
        ),
    ]


def _only(number: int, block: list[Instruction]) -> list[Instruction]:
    return [(_EQUAL, 0, len(block), number), *block]


def _load(argument: int) -> Instruction:
    return (_LOAD, 0, 0, _ARGUMENTS + 8 * argument)  # both architectures are little-endian


def _allow(values: Sequence[int]) -> list[Instruction]:
    return [step for value in values for step in _return_if((_EQUAL, value), 0)]


def _refuse_bits(mask: int) -> list[Instruction]:
    return [*_return_if((_BITS, mask), errno.EPERM), _answer(0)]
