"""Negative tests 31 to 35: what hostile code in a container cannot see, ask for or reach.

Once for each kind that isolates. A probe is code inside that raises OSError where it is refused.
"""

import ast
import errno
import os
import platform
import socket
import tempfile

import pytest

from picloud_services.agent import syscall_rules
from picloud_services.agent.container import ContainerError
from tests.tools.container_harness import Lab
from tests.tools.probes import PRELUDE, probe

pytestmark = [pytest.mark.isolation, pytest.mark.root]
X86 = platform.machine() == "x86_64"


# -------------------------------------------------------------------------- 31: files and processes
HIDDEN_FILES = {
    "kernel memory": "read('/proc/kcore')",
    "kernel messages": "read('/proc/kmsg')",
    "memory": "os.open('/dev/mem', os.O_RDONLY)",
    "kernel log device": "os.open('/dev/kmsg', os.O_RDWR)",
    "first disk": "os.open('/dev/vda', os.O_RDONLY)",
    "loop devices": "os.open('/dev/loop-control', os.O_RDWR)",
    "fuse": "os.open('/dev/fuse', os.O_RDWR)",
    "tun": "os.open('/dev/net/tun', os.O_RDWR)",
    "kvm": "os.open('/dev/kvm', os.O_RDWR)",
    "shadow": "read('/etc/shadow')",
    "ssh keys of the machine": "read('/etc/ssh/ssh_host_ed25519_key')",
    "docker": "os.stat('/run/docker.sock')",
    "docker by var": "os.stat('/var/run/docker.sock')",
    "podman": "os.stat('/run/podman/podman.sock')",
    "containerd": "os.stat('/run/containerd/containerd.sock')",
    "dbus": "os.stat('/run/dbus/system_bus_socket')",
    "systemd": "os.stat('/run/systemd/private')",
    "user services": "os.stat('/run/user')",
    "system service": "os.stat('/run/picloud/private')",
    "cgroups": "os.listdir('/sys/fs/cgroup')",
    "kernel objects": "os.listdir('/sys/kernel')",
    "modules": "os.listdir('/sys/module')",
    "firmware": "os.listdir('/sys/firmware')",
    "block devices": "os.listdir('/sys/block')",
    "network devices": "os.listdir('/sys/class/net')",
    "aws": "os.listdir('/root/.aws')",
    "gcloud": "os.listdir('/root/.config/gcloud')",
    "kubernetes": "os.listdir('/root/.kube')",
    "ssh of root": "os.listdir('/root/.ssh')",
    "kubernetes token": "os.listdir('/var/run/secrets')",
}
SWITCHES = {
    "sysrq": "write('/proc/sysrq-trigger', 'h')",
    "core pattern": "write('/proc/sys/kernel/core_pattern', '|/tmp/x')",
    "modprobe": "write('/proc/sys/kernel/modprobe', '/tmp/x')",
    "hostname": "write('/proc/sys/kernel/hostname', 'x')",
    "panic": "write('/proc/sys/kernel/panic', '1')",
    "address layout": "write('/proc/sys/kernel/randomize_va_space', '0')",
    "forwarding": "write('/proc/sys/net/ipv4/ip_forward', '1')",
    "drop caches": "write('/proc/sys/vm/drop_caches', '1')",
    "own uid map": "write('/proc/self/uid_map', '0 0 1')",
    "own memory score": "write('/proc/1/oom_score_adj', '-1000')",
    "processor off": "write('/sys/devices/system/cpu/cpu1/online', '0')",
    "frequency": "write('/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor', 'x')",
    "binary formats": "write('/proc/sys/fs/binfmt_misc/register', ':x:M::x::/tmp/x:')",
    "interrupts": "write('/proc/irq/default_smp_affinity', '1')",
    "remount": "write('/sys/kernel/security/apparmor/.remove', 'x')",
}


@pytest.mark.parametrize("group", ["hidden", "switches"])
def test_31_files_of_the_machine_are_not_there_and_its_switches_are_not_to_be_touched(
    lab: Lab, group: str
) -> None:
    sources = HIDDEN_FILES if group == "hidden" else SWITCHES
    found = probe(lab, sources)
    assert {name for name, (word, _) in found.items() if word == "done"} == set()


def test_31_no_process_of_the_machine_is_seen_or_signalled(lab: Lab) -> None:
    found = probe(
        lab,
        {
            "seen": "sorted(int(n) for n in os.listdir('/proc') if n.isdecimal())",
            "signalled": f"os.kill({os.getpid()}, 0)",
            "first": "read('/proc/1/environ')",
            "ours": f"read('/proc/{os.getpid()}/cmdline')",
        },
    )
    assert found["seen"] == ["done", "[1, 2]"]
    assert found["signalled"] == ["refused", "ESRCH"]
    assert found["first"] in (["done", "b''"], ["refused", "EACCES"], ["refused", "EPERM"])
    assert found["ours"] == ["refused", "ENOENT"]


def test_31_another_jobs_files_and_the_machines_temporary_ones_are_not_there(lab: Lab) -> None:
    with tempfile.NamedTemporaryFile(prefix="of-the-machine-") as file:
        os.chmod(file.name, 0o644)
        sources = {"file": f"read({file.name!r})", "layers": f"os.listdir({str(lab.folder)!r})"}
        found = probe(lab, sources)
    assert {word for word, _ in found.values()} == {"refused"}


def test_31_a_unix_socket_in_the_shown_folder_is_seen_but_nobody_answers(lab: Lab) -> None:
    """The folder is an overlay: its sockets are copies of names, not ways to those who listen."""
    work = lab.folder / "with-socket"
    work.mkdir()
    work.chmod(0o755)
    os.chown(work, lab.uid, -1)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(work / "agent.sock"))
        os.chmod(work / "agent.sock", 0o777)
        server.listen()
        source = "socket.socket(socket.AF_UNIX).connect('agent.sock')"
        found = probe(lab, {"name": "os.stat('agent.sock')", "it": source}, folder=str(work))
    assert found["name"][0] == "done"
    assert found["it"] == ["refused", "ECONNREFUSED"]


# --------------------------------------------------------------------------------- 32: the kernel
def test_32_every_call_on_the_list_is_refused_by_the_kernel_itself(lab: Lab) -> None:
    column = 0 if X86 else 1
    numbers = {
        name: pair[column]
        for name, pair in syscall_rules.REFUSED.items()
        if pair[column] is not None
    }
    sources = {name: f"call({number}, 0, 0, 0, 0, 0)" for name, number in numbers.items()}
    found = probe(lab, sources)
    assert found == {name: ["refused", "EPERM"] for name in numbers}


# What Docker's default profile (moby 27) allows only to those who have a capability, and refuses the
# others; jobs have none.
DOCKER_REFUSES = [
    "acct",
    "add_key",
    "bpf",
    "chroot",
    "clock_adjtime",
    "clock_settime",
    "create_module",
    "delete_module",
    "fanotify_init",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "get_kernel_syms",
    "init_module",
    "ioperm",
    "iopl",
    "kcmp",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "mount",
    "mount_setattr",
    "move_mount",
    "nfsservctl",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "pivot_root",
    "query_module",
    "quotactl",
    "quotactl_fd",
    "reboot",
    "request_key",
    "setdomainname",
    "sethostname",
    "setns",
    "settimeofday",
    "swapoff",
    "swapon",
    "_sysctl",
    "sysfs",
    "syslog",
    "umount2",
    "uselib",
    "userfaultfd",
    "ustat",
    "vhangup",
]
# It refuses these, and they are of use to debuggers and numeric libraries, or harm nobody here:
# NUMA hints are for one's own memory, and ptrace reaches no further than the container.
ALLOWED_BESIDE_DOCKER = [
    "get_mempolicy",
    "mbind",
    "move_pages",
    "set_mempolicy",
    "process_vm_readv",
    "process_vm_writev",
    "ptrace",
    "personality",
    "unshare",
    "clone",
    "migrate_pages",
]


def test_32_the_list_holds_all_that_dockers_default_refuses() -> None:
    assert set(DOCKER_REFUSES) - set(syscall_rules.REFUSED) == set()
    ours_alone = set(syscall_rules.REFUSED) - set(DOCKER_REFUSES)
    assert {"io_uring_setup", "name_to_handle_at", "modify_ldt", "adjtimex"} <= ours_alone
    assert not set(ALLOWED_BESIDE_DOCKER) & set(syscall_rules.REFUSED)


def test_32_no_rights_are_held_and_none_can_be_had(lab: Lab) -> None:
    found = probe(
        lab,
        {
            "status": "dict(l.rstrip().split(':\\t') for l in open('/proc/self/status') if l[:3] in ('Cap', 'NoN', 'Sec'))",
            "root": "os.setuid(0)",
            "group": "os.setgid(0)",
            "groups": "os.setgroups([0])",
            "nice": "os.nice(-1)",
            "node": "os.mknod('/tmp/disk', 0o600 | 0o060000, os.makedev(254, 0))",
            "char": "os.mknod('/tmp/mem', 0o600 | 0o020000, os.makedev(1, 1))",
            "owner": "os.chown(os.getcwd(), 0, 0)",
            "raw socket": "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
            "packet socket": "socket.socket(17, socket.SOCK_RAW)",
            "device option": "socket.socket().setsockopt(1, 25, b'lo')",
            "schedule": "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))",
            "lock limit": "resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 40, 1 << 40))",
            "keep rights": "check(libc.prctl(8, 1, 0, 0, 0)) or os.setuid(0)",
            "loosen": "check(libc.prctl(38, 0, 0, 0, 0))",
            "attribute": "os.setxattr('/tmp', 'security.capability', b'x' * 20)",
            "trusted attribute": "os.setxattr('/tmp', 'trusted.overlay.opaque', b'y')",
        },
    )
    word, status = found.pop("status")
    assert word == "done"
    assert status.count("'0000000000000000'") == 5, "five capability sets, all empty"
    assert "'NoNewPrivs': '1'" in status
    assert "'Seccomp': '2'" in status
    assert {name for name, (said, _) in found.items() if said == "done"} == set()


def test_32_the_first_process_has_no_more_rights_than_those_who_may_write_to_its_memory(
    lab: Lab,
) -> None:
    source = "[l.rstrip() for l in open('/proc/{}/status') if l[:3] in ('Cap', 'NoN', 'Sec', 'Uid', 'Gid')]"
    found = probe(lab, {who: source.format(who) for who in ("1", "self")})
    assert found["1"] == found["self"]
    assert "0000000000000000" in found["1"][1]


def test_32_a_call_of_another_architecture_ends_the_caller(lab: Lab) -> None:
    if not X86:
        pytest.skip("32-bit calls are x86's")
    code = f"""{PRELUDE}
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(bytes.fromhex("b814000000cd80c3"))  # getpid by int 0x80
run = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
pid = os.fork()
if pid == 0:
    run()
    os._exit(0)
x32 = libc.syscall(0x40000000 + 39)
print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), x32, ctypes.get_errno()]))"""
    ended, x32, error = lab.run(code).words
    assert ended < 0, "a signal"
    assert (x32, error) == (-1, errno.ENOSYS)


# -------------------------------------------------------------- 33: the proofs of known escapes
def test_33_no_descriptor_of_the_makers_is_left_open(lab: Lab) -> None:
    source = "sorted((int(f), os.readlink(f'/proc/self/fd/{f}').split(':')[0]) for f in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{f}'))"
    word, value = probe(lab, {"open": source})["open"]
    assert word == "done"
    assert [number for number, _ in ast.literal_eval(value)] == [0, 1, 2]


@pytest.mark.parametrize(
    "folder", ["/proc/self/fd/7", "/proc/self/cwd", "/proc/1/root", "/dev/fd/5"]
)
def test_33_a_working_folder_that_is_a_descriptor_shows_nothing_of_the_machine(
    lab: Lab, folder: str
) -> None:
    code = f"{PRELUDE}\nprint(json.dumps([os.getcwd(), attempt(\"os.listdir('/root/.ssh')\")]))"

    def work() -> list[str]:
        try:
            return ["ran", *lab.run(code, folder=folder).words]
        except (
            ContainerError,
            AssertionError,
        ) as exc:  # it could not be made, or did not begin
            return ["refused", str(exc), ""]

    word, place, keys = work()
    if word == "ran":
        assert not place.startswith("/proc/")
        assert keys[0] == "refused"


def test_33_programs_of_the_machine_cannot_be_replaced_through_proc(lab: Lab) -> None:
    found = probe(
        lab,
        {
            "own program": "os.open('/proc/self/exe', os.O_WRONLY)",
            "first program": "os.open('/proc/1/exe', os.O_WRONLY)",
            "its root": "os.listdir('/proc/1/root/root/.ssh')",
            "its folder": "os.listdir('/proc/1/cwd/root/.ssh')",
            "its descriptors": "os.listdir('/proc/1/fd')[0]",
            "python": "os.open(sys.executable, os.O_WRONLY)",
            "bwrap": "os.unlink('/usr/bin/env')",
            "libc": "os.open('/etc/ld.so.preload', os.O_WRONLY | os.O_CREAT)",
            "bundle": "os.open('/run/picloud/bundle/main.py', os.O_WRONLY)",
            "runner folder": "os.mkdir('/run/picloud/x')",
        },
    )
    allowed = {name for name, (word, _) in found.items() if word == "done"}
    assert allowed <= {"its descriptors"}, found


def test_33_a_working_folder_that_was_deleted_is_a_failed_call_and_no_more(lab: Lab) -> None:
    found = probe(
        lab,
        {
            "made": "os.mkdir('/tmp/d') or os.chdir('/tmp/d') or os.rmdir('/tmp/d')",
            "where": "os.getcwd()",
            "made there": "os.mkdir('x')",
            "around": "sorted(set(os.listdir('..')) - {'hsperfdata_root'})",
        },
    )
    assert found["where"] == found["made there"] == ["refused", "ENOENT"]
    assert found["around"] == ["done", "[]"], "the container's own /tmp"


# --------------------------------------------------------------------------- 34, 35: the network
REACHED = {
    "AWS": "socket.create_connection(('169.254.169.254', 80), 1)",
    "AWS by IPv6": "socket.create_connection(('fd00:ec2::254', 80), 1)",
    "ECS": "socket.create_connection(('169.254.170.2', 80), 1)",
    "Alibaba": "socket.create_connection(('100.100.100.200', 80), 1)",
    "Azure": "socket.create_connection(('168.63.129.16', 80), 1)",
    "mapped": "socket.create_connection(('::ffff:169.254.169.254', 80), 1)",
    "loopback": "socket.create_connection(('127.0.0.1', {port}), 1)",
    "loopback by another name": "socket.create_connection(('127.9.9.9', {port}), 1)",
    "nowhere": "socket.create_connection(('0.0.0.0', {port}), 1)",
    "loopback by IPv6": "socket.create_connection(('::1', {port}), 1)",
    "abstract socket": "socket.socket(socket.AF_UNIX).connect({name!r})",
    "datagram": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('169.254.169.254', 80))",
}


def test_34_neither_metadata_nor_the_machine_is_reached(lab: Lab) -> None:
    with socket.socket() as server, socket.socket(socket.AF_UNIX) as named:
        server.bind(("127.0.0.1", 0))
        server.listen()
        name = b"\0picloud-security-" + os.urandom(8).hex().encode()
        named.bind(name)
        named.listen()
        port = server.getsockname()[1]
        found = probe(
            lab, {what: how.format(port=port, name=name) for what, how in REACHED.items()}
        )
    assert {word for word, _ in found.values()} == {"refused"}, found


def test_35_neighbours_cannot_be_deceived_for_there_is_no_wire_between_them(lab: Lab) -> None:
    found = probe(
        lab,
        {
            "devices": "sorted(l.split(':')[0].strip() for l in open('/proc/net/dev').readlines()[2:])",
            "ARP": "socket.socket(17, socket.SOCK_RAW, socket.htons(0x0806))",
            "router advertisement": "socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58)",
            "address": "fcntl.ioctl(socket.socket(), 0x8916, struct.pack('16sH22x', b'lo', 2))",
            "hardware address": "fcntl.ioctl(socket.socket(), 0x8924, struct.pack('16sH22x', b'lo', 1))",
            "rules": "answer(struct.pack('=IHHII8BI', 28, 32, 0x605, 1, 0, 2, 0, 0, 0, 0, 0, 0, 7, 0))",
            "routes": "answer(struct.pack('=IHHII8BI', 28, 24, 0x605, 1, 0, 2, 0, 0, 0, 254, 4, 0, 7, 0))",
        },
    )
    assert found.pop("devices") == ["done", "['lo']"]
    assert {word for word, _ in found.values()} == {"refused"}
