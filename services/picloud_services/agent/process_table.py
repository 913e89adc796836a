"""The processes of this machine, as far as ending a whole tree of them needs it."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProcessLine:
    """A line of the table: its parent, its state's letter, its start in ticks since boot."""

    parent: int
    state: str
    start_ticks: int


Table = Mapping[int, ProcessLine]


def parse_stat(text: bytes) -> ProcessLine:
    """Return what /proc/PID/stat says; the name in it may hold any letter.

    >>> parse_stat(b"7 (a ) b) S 1 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4242 0")
    ProcessLine(parent=1, state='S', start_ticks=4242)
    """
    fields = text[text.rindex(b")") + 2 :].split()
    return ProcessLine(int(fields[1]), fields[0].decode(), int(fields[19]))


def read_process(pid: int) -> ProcessLine | None:
    """Return the process ``pid``, None if there is none that we may see."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return parse_stat(file.read())
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None  # the last where /proc hides the processes of others (hidepid=1)


def read_table() -> Table:
    """Return all processes that are visible to us."""
    return {pid: found for pid in list_pids() if (found := read_process(pid)) is not None}


def list_pids() -> list[int]:
    """Return the processes that are visible to us."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def descendants(table: Table, roots: Iterable[int]) -> set[int]:
    """Return ``roots`` with all their children's children, those in ``table``. Pure."""
    children: dict[int, list[int]] = {}
    for pid, process in table.items():
        children.setdefault(process.parent, []).append(pid)
    found: set[int] = set()
    waiting = [pid for pid in roots if pid in table]
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting += children.get(pid, ())
    return found


def marked(table: Table, *marks: str) -> set[int]:
    """Return the processes that were started with one of ``marks`` ("NAME=value") in their environment."""
    found, wanted = set(), {mark.encode() for mark in marks}
    for pid in table:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
            if not wanted.isdisjoint(file.read().split(b"\0")):
                found.add(pid)
    return found


def end_all(find: Callable[[Table], set[int]], *, within_seconds: float) -> bool:
    """Kill the processes that ``find`` names until there are none; return whether that worked.

    They are stopped first, all of them, before one is killed: so none can start another meanwhile.
    """
    end_at = time.monotonic() + within_seconds
    stopped: set[int] = set()
    while True:
        table = read_table()
        alive = {pid for pid in find(table) if table[pid].state not in "ZX"}
        if not alive:
            return True
        late = time.monotonic() > end_at
        if alive - stopped:
            _signal(alive - stopped, signal.SIGSTOP)
        if late or not alive - stopped:
            _signal(alive, signal.SIGKILL)
            time.sleep(0.001)  # they die on their own processors; the next look is the check
        if late:
            return False
        stopped |= alive


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
