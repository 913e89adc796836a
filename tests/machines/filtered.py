"""Become the program of the command line under a seccomp filter that refuses namespaces and mounts.

It is the filter of our own containers, which is about what other containers have by default.
"""

import ctypes
import os
import struct
import sys

from picloud_services.agent.seccomp import program

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2


def main() -> None:
    code = program(os.uname().machine)
    libc = ctypes.CDLL(None, use_errno=True)
    instructions = ctypes.create_string_buffer(code, len(code))
    filtered = struct.pack(
        "HP", len(code) // 8, ctypes.addressof(instructions)
    )  # struct sock_fprog
    assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    result = libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, filtered, 0, 0)
    assert result == 0, os.strerror(ctypes.get_errno())
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
