"""What root has to change on a machine so that its users can make containers: decided here. Pure."""

from dataclasses import dataclass

WRITTEN_BY = "# Written by `picloud host-setup`; `picloud host-setup --remove` removes it.\n"
PROFILE_FILE = "etc/apparmor.d/picloud-bwrap"
SYSCTL_FILE = "etc/sysctl.d/60-picloud.conf"
DELEGATION_FILE = "etc/systemd/system/user@.service.d/50-picloud.conf"
CONTROLLERS = ("cpu", "memory", "pids")


@dataclass(frozen=True, slots=True)
class HostState:
    """What a machine is like. None: it has no such setting.

    ``programs`` are the bwrap programs that containers may be made with; ``profiled`` those among
    them that another AppArmor profile speaks for. ``delegated`` are the controllers that systemd
    gives to its users (None: no systemd here, or control groups of version 1). ``written`` are the
    files of ours that exist, with their content.
    """

    restricted: bool = False
    programs: tuple[str, ...] = ()
    profiled: tuple[str, ...] = ()
    user_namespaces: int | None = None
    cloning: int | None = None
    delegated: frozenset[str] | None = None
    written: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """One change: the file ``path`` (below the root folder) gets ``content``; None removes it.

    The command ``before`` is run first, ``after`` last; ``why`` is for people.
    """

    path: str
    content: str | None
    why: str
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps to do, and ``notes``: what was found to be in order, or cannot be changed from here."""

    steps: tuple[Step, ...]
    notes: tuple[str, ...]


def make_plan(state: HostState) -> Plan:
    """Return what is to be done; steps that were done before are not among it."""
    steps: list[Step] = []
    notes: list[str] = []
    for part in (_namespaces, _profile, _delegation):
        step, note = part(state)
        if step is not None:
            if (step.path, step.content) in state.written:
                note = f"{step.path} is in place: {step.why}"
            else:
                steps.append(step)
        if note:
            notes.append(note)
    return Plan(tuple(steps), tuple(notes))


def make_removal(state: HostState) -> Plan:
    """Return what takes back all that `make_plan` may have done."""
    before = {PROFILE_FILE: ("apparmor_parser", "-R", f"/{PROFILE_FILE}")}
    after = {DELEGATION_FILE: ("systemctl", "daemon-reload")}
    why = {
        PROFILE_FILE: "bwrap may then do no more than any program; containers of users stop working here",
        SYSCTL_FILE: "the settings of namespaces are the machine's own again after its next start",
        DELEGATION_FILE: "limits of users' services are then watched where systemd gives them less",
    }
    steps = [
        Step(path, None, why[path], before.get(path, ()), after.get(path, ()))
        for path, _ in state.written
    ]
    return Plan(tuple(steps), () if steps else ("nothing of host-setup is here",))


def _namespaces(state: HostState) -> tuple[Step | None, str]:
    lines = []
    if state.user_namespaces == 0:
        lines.append("user.max_user_namespaces = 15000")
    if state.cloning == 0:
        lines.append("kernel.unprivileged_userns_clone = 1")
    kept = dict(state.written).get(SYSCTL_FILE)
    if not lines:
        return None, f"{SYSCTL_FILE} is in place" if kept else "users may make namespaces"
    return Step(
        SYSCTL_FILE,
        WRITTEN_BY + "\n".join(lines) + "\n",
        "the kernel lets no user make a user namespace, and each container of a user is one",
        after=("sysctl", "-p", f"/{SYSCTL_FILE}"),
    ), ""


def _profile(state: HostState) -> tuple[Step | None, str]:
    if not state.restricted:
        return None, "AppArmor does not restrict user namespaces here"
    if not state.programs:
        return None, (
            "AppArmor restricts user namespaces, and there is no bwrap program to allow them to: "
            "run `apt install bubblewrap`, or name one with --program, then do this again"
        )
    ours = tuple(program for program in state.programs if program not in state.profiled)
    if not ours:
        return None, f"another AppArmor profile speaks for {', '.join(state.profiled)}"
    return Step(
        PROFILE_FILE,
        profile_text(ours),
        "Ubuntu 23.10 and newer forbid user namespaces to every program without a profile; "
        f"this one allows them to {', '.join(ours)}, for every user, and nothing else",
        after=("apparmor_parser", "-r", f"/{PROFILE_FILE}"),
    ), ""


def profile_text(programs: tuple[str, ...]) -> str:
    """Return the AppArmor profile that lets ``programs`` make user namespaces.

    It confines nothing: bwrap itself takes from a container what it must not do.
    Source: apparmor.d(5), and Ubuntu's own profiles for programs with sandboxes.
    """
    quoted = [f'"{program}"' for program in programs]
    profiles = [
        f"profile picloud-bwrap{number or ''} {program} flags=(unconfined) {{\n  userns,\n}}\n"
        for number, program in enumerate(quoted)
    ]
    return f"{WRITTEN_BY}abi <abi/4.0>,\ninclude <tunables/global>\n\n" + "\n".join(profiles)


def _delegation(state: HostState) -> tuple[Step | None, str]:
    if state.delegated is None:
        return None, (
            "control groups cannot be given to users here (that needs systemd and control groups of "
            "version 2): limits of users' own services are watched; those of `up --system` are enforced"
        )
    missing = [name for name in CONTROLLERS if name not in state.delegated]
    if not missing and DELEGATION_FILE not in dict(state.written):
        return None, "systemd gives users the control groups that limits need"
    return Step(
        DELEGATION_FILE,
        f"{WRITTEN_BY}[Service]\nDelegate=cpu memory pids io\n",
        f"systemd gives users no control over {', '.join(missing) or 'what this file names'}, so the limits "
        "of their jobs would be watched and not enforced; it counts from each user's next login",
        after=("systemctl", "daemon-reload"),
    ), ""
