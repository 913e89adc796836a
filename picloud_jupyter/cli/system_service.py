"""The service of the whole system: started by root, under systemd where that runs."""

import os
import subprocess
import sys
import time
from pathlib import Path

from picloud_jupyter.protocol.errors import InvalidRequest, NotAllowed, Unreachable
from picloud_jupyter.transport.embedded import (
    START_SECONDS,
    ensure_running,
    listens,
    remove_run,
    service_environment,
    start_command,
    stop,
)
from picloud_jupyter.transport.paths import SYSTEM_FOLDER, SYSTEM_HOME, ServicePaths, is_set_up

UNIT = "picloud.service"
UNIT_FILE = Path("/etc/systemd/system") / UNIT
_BOOTED = Path("/run/systemd/system")  # sd_booted(3)
_UNIT_TEXT = """\
# Written by `picloud up --system`, removed by `picloud down --system`.
[Unit]
Description=PiCloud: jobs of every user of this machine
After=local-fs.target remote-fs.target nss-user-lookup.target network.target

[Service]
Type=exec
ExecStart={start}
ExecStop={stop}
{environment}UMask=0077
Restart=on-failure
RestartSec=1
# Jobs outlive a restart of the control plane: only the end of `picloud down` ends them.
KillMode=process
# A job that is over its memory is that job's end, and not the service's.
OOMPolicy=continue
Delegate=yes
TasksMax=infinity
LimitNOFILE=16384:524288

[Install]
WantedBy=multi-user.target
"""


def require_root(word: str) -> None:
    """Return if this process is root's.

    Raises:
        NotAllowed: it is not.
    """
    if os.geteuid() != 0:
        raise NotAllowed(
            f"`picloud {word} --system` is for root: that service runs jobs of every user",
            hint=f"sudo picloud {word} --system",
        )


def unit_text(paths: ServicePaths) -> str:
    """Return the systemd unit that runs the service in ``paths`` with this Python."""
    folders = service_environment().get("PYTHONPATH", "")
    down = [
        sys.executable,
        "-P",
        "-m",
        "picloud_jupyter.cli",
        "down",
        "--system",
        "--keep-unit",
    ]
    return _UNIT_TEXT.format(
        start=_line(start_command(paths)),
        stop=_line(down),
        environment=f"Environment={_quoted('PYTHONPATH=' + folders)}\n" if folders else "",
    )


def uses_systemd(paths: ServicePaths) -> bool:
    """Say whether systemd looks after the service: where it runs, and the folders are the usual ones."""
    usual = (paths.home, paths.public) == (Path(SYSTEM_HOME), Path(SYSTEM_FOLDER))
    return usual and _BOOTED.is_dir()


def start_system(paths: ServicePaths, *, replace: bool) -> str:
    """Start the service and return what was done; it listens then.

    With ``replace`` a fresh control plane takes the place of the one that runs; jobs go on.

    Raises:
        InvalidRequest: there is no service to replace.
        Unreachable: it did not come up in time, or systemd refused.
        CloudException: it refused to start; the words are its own.
    """
    if replace and not is_set_up(paths):
        raise InvalidRequest(
            "there is no service of every user on this machine that could be replaced",
            hint="`sudo picloud up --system` starts one",
        )
    replaced = replace and stop(paths, kill_jobs=False)
    started = not listens(paths)
    if not uses_systemd(paths):
        ensure_running(paths)
    else:
        _install(unit_text(paths))
        if started:
            systemctl("enable", UNIT)
            systemctl("restart" if replaced else "start", UNIT)
            _wait_until_it_listens(paths)
    return "replaced" if replaced else "started" if started else "runs already"


def stop_system(paths: ServicePaths, *, purge: bool, keep_unit: bool) -> bool:
    """Stop the service, jobs included, for good; return whether it ran.

    ``keep_unit`` leaves the unit in place: it starts again with the machine.
    """
    ran = stop(paths, kill_jobs=True, purge=purge)
    remove_run(paths)
    if not keep_unit and UNIT_FILE.exists() and uses_systemd(paths):
        systemctl("disable", "--now", UNIT)
        UNIT_FILE.unlink()
        systemctl("daemon-reload")
    return ran


def systemctl(*words: str) -> None:
    """Run systemctl.

    Raises:
        Unreachable: it refused; the message has its words.
    """
    done = subprocess.run(
        ["systemctl", *words],  # wherever the distribution has it
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Unreachable(
            f"`systemctl {' '.join(words)}` failed: {done.stderr.strip() or done.stdout.strip()}",
            hint=f"see `journalctl -u {UNIT}`",
            retry=False,
        )


def _install(text: str) -> None:
    if not UNIT_FILE.exists() or UNIT_FILE.read_text() != text:
        UNIT_FILE.write_text(text)
        systemctl("daemon-reload")


def _wait_until_it_listens(paths: ServicePaths) -> None:
    deadline_at = time.monotonic() + START_SECONDS
    while not listens(paths):
        if time.monotonic() > deadline_at:
            raise Unreachable(
                f"the service did not listen on {paths.api_socket} within {START_SECONDS:.0f} seconds",
                hint=f"see `journalctl -u {UNIT}` and {paths.home / 'service.log'}",
            )
        time.sleep(0.02)


def _line(words: list[str]) -> str:
    return " ".join(_quoted(word).replace("$", "$$") for word in words)


def _quoted(word: str) -> str:
    """``word`` as systemd.syntax(7) reads it back."""
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{word}"'
