"""What code in a container may not ask of the kernel: data of the seccomp filter, no logic.

What is not named here is allowed up to ``HIGHEST``; a younger call is answered "not implemented",
for which every program has an older way. Numbers are the kernel's, per architecture.
"""

from typing import Final

X86_64: Final = 0xC000003E  # AUDIT_ARCH_*
AARCH64: Final = 0xC00000B7
ARCHITECTURES: Final = {"x86_64": X86_64, "aarch64": AARCH64}

HIGHEST: Final = 466  # removexattrat, the last one that was looked at; one table since 424

# Refused with EPERM. name -> (x86_64, aarch64); None: does not exist there.
REFUSED: Final[dict[str, tuple[int | None, int | None]]] = {
    # mounts and the root folder
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    # other namespaces
    "setns": (308, 268),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    # large attack surfaces that computing does not need
    "bpf": (321, 280),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "kcmp": (312, 272),
    "lookup_dcookie": (212, 18),
    "modify_ldt": (154, None),
    # the machine itself
    "acct": (163, 89),
    "syslog": (103, 116),
    "reboot": (169, 142),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "create_module": (174, None),
    "get_kernel_syms": (177, None),
    "query_module": (178, None),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "iopl": (172, None),
    "ioperm": (173, None),
    "vhangup": (153, 58),
    "nfsservctl": (180, 42),
    "uselib": (134, None),
    "ustat": (136, None),
    "sysfs": (139, None),
    "_sysctl": (156, None),
}
# Refused with ENOSYS: callers fall back to an older call. The flags of clone3 are in a structure
# that a filter cannot read.
NOT_IMPLEMENTED: Final = {
    "clone3": (435, 435),
    "statmount": (457, 457),
    "listmount": (458, 458),
}

# Allowed only by their arguments.
CLONE: Final = (56, 220)
UNSHARE: Final = (272, 97)
SOCKET: Final = (41, 198)
SOCKETPAIR: Final = (53, 199)
IOCTL: Final = (16, 29)
PERSONALITY: Final = (135, 92)
SETSOCKOPT: Final = (54, 208)

NEW_NAMESPACES: Final = 0x7E020000  # CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID, NET
NEW_TIME_NAMESPACE: Final = 0x80  # of unshare; for clone these bits are a signal's number
SOCKET_FAMILIES: Final = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6
NETLINK: Final = 16  # AF_NETLINK: C libraries list addresses with protocol 0, NETLINK_ROUTE
TERMINAL_TRICKS: Final = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: type into somebody's terminal
# level -> options that name a device: the kernel sends what has one on its way even where rules and
# routes say that there is no way, to metadata services too.
DEVICE_OPTIONS: Final[dict[int, tuple[int, ...]]] = {
    1: (25, 62),  # SOL_SOCKET: SO_BINDTODEVICE, SO_BINDTOIFINDEX
    0: (50,),  # IPPROTO_IP: IP_UNICAST_IF
    41: (76,),  # IPPROTO_IPV6: IPV6_UNICAST_IF
}
PERSONALITIES: Final = (
    0x0,
    0x0008,
    0x20000,
    0x20008,
    0x40000,
    0xFFFFFFFF,
)  # debuggers' among them
