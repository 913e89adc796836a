"""Settings of the control plane and the agent: plain values, light to import.

`picloud_services.config.load` fills them from file, environment and command line. The control
plane exports them all into its environment, so that the processes it starts (the agent, and through
it a restarted control plane) run with the same values without reading the file.
"""

import dataclasses
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from picloud_jupyter.transport.paths import ServicePaths

GB = 1000**3
MIB = 1024**2
ENVIRONMENT_PREFIX = "PICLOUD_"
Value = int | float | str | bool


def _setting(default: Value, explanation: str, *choices: str) -> Any:  # noqa: ANN401  # as dataclasses.field
    return field(default=default, metadata={"help": explanation, "choices": choices})


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting of one embedded service. Sizes are bytes, durations seconds or as named."""

    paths: ServicePaths

    container_kind: str = _setting(
        "",
        "Container kind to use: root, rootless or plain. Empty: the best one that works.",
        *("", "root", "rootless", "plain"),
    )
    network: str = _setting(
        "",
        "How containers reach the network: pasta, proxy or none. Empty: the best one that works.",
        *("", "pasta", "proxy", "none"),
    )
    cores: int = _setting(
        0, "Cores that jobs may use together. 0: all that this process may use."
    )
    cores_ledger: str = _setting(
        "/tmp/picloud-cores",  # noqa: S108  # meant for all users; nothing in it is read
        "Folder in which the services of this machine see which cores the others use. Services with "
        "different folders use the same cores at the same time. Empty: use them whatever others do.",
    )
    memory_bytes: int = _setting(
        0, "Memory that jobs may use together. 0: 80 % of what the machine has."
    )
    gpu_devices: str = _setting(
        "/dev", "Folder of the device files nvidia0, nvidiactl ... Empty: jobs get no GPU."
    )
    runner_idle_seconds: float = _setting(
        600.0, "How long a runner without work is kept warm for the next job."
    )
    orphan_seconds: float = _setting(
        3600.0, "How long a container goes on while no agent can be reached; then it is ended."
    )
    database_url: str = _setting(
        "",
        "Database of jobs, as postgresql://… (needs the extra `postgres`). Empty: the SQLite file "
        "store.db in the home folder.",
    )
    retention_days: float = _setting(
        30.0,
        "Results and logs are kept this long after a job's end; unread ones at least a day.",
    )
    retention_bytes: int = _setting(
        20 * GB,
        "Above this size of results and logs the oldest finished ones are removed first.",
    )
    row_days: float = _setting(365.0, "How long the row of a finished job is kept.")
    metrics_days: float = _setting(7.0, "How long resource samples are kept.")
    metrics_bytes: int = _setting(500_000_000, "How much space resource samples may take.")
    abandoned_seconds: float = _setting(
        600.0, "A map whose client went silent before its end is given up after this long."
    )
    user_cores: float = _setting(
        0.0,
        "Cores that the jobs of one user may use at a time, where the user has no quota of their own. "
        "0: no limit.",
    )
    user_memory_bytes: int = _setting(
        0, "Memory that the jobs of one user may use at a time. 0: no limit."
    )
    user_disk_bytes: int = _setting(
        0,
        "Space that arguments, results, output and files of one user's jobs may take; then no more "
        "are taken or started. 0: no limit.",
    )
    cost_cap: float = _setting(
        0.0,
        "What the jobs of one user may cost in all; then no more are taken or started. 0: no limit.",
    )
    max_transmit_bytes: int = _setting(
        256 * 1024 * 1024,
        "Arguments larger than this are refused by the client unless it raises its own guard.",
    )
    max_upload_bytes: int = _setting(64 * GB, "Largest payload that the service takes.")
    max_code_bytes: int = _setting(256_000_000, "Largest archive of local modules.")
    disk_floor_bytes: int = _setting(
        64 * MIB, "With less free space than this no new jobs and uploads are taken."
    )
    layer_bytes: int = _setting(
        0,
        "Space that the files of one container may take; more ends its job as disk_full. 0: as much as "
        "leaves twice disk_floor_bytes free.",
    )
    log_level: str = _setting(
        "INFO", "Least severe level written to service.log and agent.log."
    )
    log_bytes: int = _setting(8 * MIB, "Size at which service.log is rotated; three are kept.")
    owner_process: str = _setting(
        "",
        "PID:START_TIME of a process: when it ends, the service ends all jobs, leaves, and removes its home.",
    )
    restart: bool = _setting(
        True,  # noqa: FBT003  # a default like the others
        "Whether control plane and agent start each other again after a crash.",
    )

    @property
    def home(self) -> Path:
        """The folder that keeps state."""
        return self.paths.home

    @property
    def run(self) -> Path:
        """The folder that holds sockets."""
        return self.paths.run

    def exported(self) -> dict[str, str]:
        """Return the environment variables that carry every setting.

        Also those with their default: another value in our own environment may have been overruled.
        """
        return {
            environment_name(setting.name): _to_text(getattr(self, setting.name))
            for setting in list_settings()
        }


@dataclass(frozen=True, slots=True)
class Setting:
    """One field of `Settings` that a user may set. Its kind is that of its default.

    ``choices`` are the only values that it may have, if there are any.
    """

    name: str
    default: Value
    explanation: str
    choices: tuple[str, ...] = ()


def list_settings() -> list[Setting]:
    """Return what a user may set."""
    return [
        Setting(f.name, f.default, f.metadata["help"], f.metadata["choices"])
        for f in dataclasses.fields(Settings)
        if "help" in f.metadata and isinstance(f.default, int | float | str)
    ]


def environment_name(name: str) -> str:
    """Return the variable of setting ``name``.

    >>> environment_name("cost_cap")
    'PICLOUD_COST_CAP'
    """
    return ENVIRONMENT_PREFIX + name.upper()


def from_environment(
    paths: ServicePaths, environment: Mapping[str, str] | None = None
) -> Settings:
    """Return the settings that PICLOUD_* variables hold; the others have their defaults.

    Raises:
        ValueError: a variable does not hold a value of its setting's kind; the message names it.
    """
    source = os.environ if environment is None else environment
    found: dict[str, Any] = {
        setting.name: parse_value(setting, source[name], name)
        for setting in list_settings()
        if (name := environment_name(setting.name)) in source
    }
    return Settings(paths, **found)


def parse_value(setting: Setting, text: str, name: str) -> Value:
    """Return ``text`` as a value of ``setting``; ``name`` is what the user calls it.

    Raises:
        ValueError: it is not one.
    """
    kind = type(setting.default)
    if kind is bool:
        words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
        if text.lower() not in words:
            raise ValueError(f"{name} must be true or false, got {text!r}")
        return words[text.lower()]
    try:
        value: Value = kind(text)
    except ValueError:
        raise ValueError(f"{name} must be of the kind {kind.__name__}, got {text!r}") from None
    return check_value(setting, value, name)


def check_value(setting: Setting, value: Value, name: str) -> Value:
    """Return ``value`` if ``setting`` may have it; ``name`` is what the user calls it.

    Raises:
        ValueError: it may not.
    """
    if isinstance(value, int | float) and not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be a finite number, 0 or more, got {value!r}")
    if setting.choices and value not in setting.choices:
        words = ", ".join(choice or "empty" for choice in setting.choices)
        raise ValueError(f"{name} must be one of {words}, got {value!r}")
    return value


def command(role: str, paths: ServicePaths) -> list[str]:
    """Return the command that starts ``role`` ("control" or "agent") of the service at ``paths``."""
    return [
        *(sys.executable, "-m", "picloud_services", role),
        *("--home", str(paths.home), "--run", str(paths.run)),
        *(("--public", str(paths.public)) if paths.public else ()),
    ]


def _to_text(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
