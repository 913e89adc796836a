"""What happened to a job, told step by step: the answer of GET /v1/jobs/J/why. Pure."""

import datetime
from dataclasses import dataclass

from picloud_jupyter.protocol.terminal import one_line

STORE, LOG, NOW = "store", "log", "now"  # where a step is known from


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happened. ``at`` is None where only that it happened is known, not when."""

    at: float | None
    text: str
    source: str = STORE
    lease: str = ""
    attempt: int = 0
    node: str = ""
    container: str = ""


@dataclass(frozen=True, slots=True)
class Story:
    """The life of one job. ``str`` of it is what `picloud why` prints.

    ``summary`` says how it stands and why, ``next_step`` what to do, ``not_known`` what neither the store
    nor the logs tell any more.
    """

    jid: int
    status: str
    reason: str | None
    function: str
    label: str | None
    attempt: int
    summary: str
    next_step: str = ""
    steps: tuple[Step, ...] = ()
    not_known: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the story for people; times are UTC, as in the logs."""
        name = f"{self.function}, {self.label}" if self.label else self.function
        lines = [f"job {self.jid} ({one_line(name)}): {self.status}", one_line(self.summary)]
        if self.next_step:
            lines.append(f"next: {self.next_step}")
        lines.append("")
        began_at = next((step.at for step in self.steps if step.at is not None), None)
        lines += [_line(step, began_at) for step in self.steps]
        lines += [f"not known: {text}" for text in self.not_known]
        return "\n".join(lines)


def _line(step: Step, began_at: float | None) -> str:
    when, after = "", ""
    if step.at is not None and began_at is not None:
        moment = datetime.datetime.fromtimestamp(step.at, tz=datetime.UTC)
        when = f"{moment:%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03d}Z"
        after = f"+{step.at - began_at:.3f}"
    ids = [f"lease {step.lease}"] if step.lease else []
    ids += [f"container {step.container}"] if step.container else []
    mark = "| " if step.source == LOG else ""
    tail = f"  [{', '.join(ids)}]" if ids else ""
    return f"{when:<25}{after:>12}  {mark}{one_line(step.text)}{tail}"
