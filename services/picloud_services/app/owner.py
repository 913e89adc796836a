"""A service that ends with the process that it serves, and leaves nothing: for `cloud.mp` and simulators."""

import asyncio
import os
import shutil
import time
from collections.abc import Callable

from picloud_jupyter.transport.paths import ServicePaths
from picloud_services.agent.processes import Process, find_process

AGENT_SECONDS = 10.0  # it ends its containers first
_LOOK_SECONDS = 0.02


def parse_owner(text: str) -> Process | None:
    """Return the process that the setting `owner_process` names; "" names none.

    Raises:
        ValueError: it is not of the form PID:START_TIME.
    """
    if not text:
        return None
    pid, _, start_time = text.partition(":")
    if not (pid.isdecimal() and start_time.isdecimal()):
        raise ValueError(f"owner_process must be PID:START_TIME, got {text!r}")
    return Process(int(pid), int(start_time))


def at_end_of(owner: Process, action: Callable[[], object]) -> None:
    """Have ``action`` called by the running event loop once ``owner`` has ended."""
    loop = asyncio.get_running_loop()
    try:
        descriptor = owner.open_pidfd()
    except ProcessLookupError:
        loop.call_soon(action)
        return

    def ended() -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        action()

    loop.add_reader(descriptor, ended)


def remove_all(paths: ServicePaths, agent_process_id: int) -> None:
    """Remove the state of a service whose owner has gone, once its agent has left."""
    end_at = time.monotonic() + AGENT_SECONDS
    while agent_process_id and find_process(agent_process_id) and time.monotonic() < end_at:
        time.sleep(_LOOK_SECONDS)  # it is not our child for sure: there is nothing to wait on
    for folder in (paths.home, paths.run):
        for inner, _, _ in os.walk(folder):
            os.chmod(inner, 0o700)  # bundles are read-only, and jobs leave what they like
        shutil.rmtree(folder, ignore_errors=True)
