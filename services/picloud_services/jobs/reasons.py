"""The closed list of end reasons in words: what happened, why, and what to do next. Pure."""

from dataclasses import dataclass

from picloud_jupyter.protocol.jobs import GIB, EndReason, Status

MIB = 1024**2


@dataclass(frozen=True, slots=True)
class ReasonText:
    """One reason. ``what`` may hold {names} of `Facts`; ``status`` is what the job ends as."""

    status: Status
    what: str
    next_step: str
    rerun: str = "never by itself"


@dataclass(frozen=True, slots=True)
class Facts:
    """Figures for messages; what is unknown is left out of the words."""

    memory_limit_bytes: int = 0
    memory_peak_bytes: int = 0
    max_runtime_seconds: float | None = None
    exit_text: str = ""
    detail: str = ""
    node: str = ""
    losses: int = 0
    loss: str = ""


_R = EndReason
_S = Status
_RETRY = "as often as `_retries` says"
_FREE = "by itself, free of charge, if restartable"
LOSS = "it was killed (SIGKILL), by neither us nor its memory limit"

REASONS: dict[EndReason, ReasonText] = {
    _R.DONE: ReasonText(_S.DONE, "The function returned.", "Fetch the result."),
    _R.ERROR: ReasonText(
        _S.ERROR,
        "The function raised an exception; its traceback is shown.",
        "Mend the function and call it again.",
        _RETRY,
    ),
    _R.EXIT_CODE: ReasonText(
        _S.ERROR,
        "The command ended with {exit_text}.",
        "Read its stderr (picloud logs --stderr JID).",
        _RETRY,
    ),
    _R.OOM: ReasonText(
        _S.ERROR,
        "It ran out of memory: its memory reached {memory}.",
        "Ask for more with _cores or _type='m1', or work on smaller pieces.",
        "once in a fresh interpreter if its own was used before and it is restartable; then "
        + _RETRY,
    ),
    _R.DISK_FULL: ReasonText(
        _S.ERROR,
        "It could not write: the space for its files is full{detail}.",
        "Write less, return results instead of files, or free space on the machine.",
        _RETRY + ", if `_retries` names it",
    ),
    _R.TIMEOUT: ReasonText(
        _S.KILLED,
        "It ran longer than its max_runtime of {max_runtime} and was ended.",
        "Give it a larger _max_runtime (minutes), or none.",
        _RETRY,
    ),
    _R.KILLED: ReasonText(
        _S.KILLED, "It was killed by request.", "Call it again if you want it."
    ),
    _R.LOST_WORKER: ReasonText(
        _S.STALLED,
        "Its container was lost: {loss}. It may not be started a second time (_restartable=False).",
        "Check what it has done already and what ended it (its stderr, the machine's log), then call it "
        "again.",
        _FREE + ", at most twice",
    ),
    _R.NODE_LOST: ReasonText(
        _S.STALLED,
        "The machine{node} that ran it, or its container there, was lost, and it may not be started a "
        "second time (_restartable=False).",
        "Check what it has done already, then call it again.",
        _FREE,
    ),
    _R.SPOT_RECLAIMED: ReasonText(
        _S.STALLED,
        "The machine{node} that ran it was taken back by its provider, and it may not be started a "
        "second time (_restartable=False).",
        "Check what it has done already, then call it again.",
        _FREE,
    ),
    _R.ENV_MISSING: ReasonText(
        _S.STALLED,
        "The software that it needs is not on the machine{node}{detail}.",
        "Call it again from a Python installation that exists, or save an environment.",
    ),
    _R.ENV_BUILD_FAILED: ReasonText(
        _S.STALLED,
        "Its environment could not be built{detail}.",
        "Read the log of the environment and save it again.",
    ),
    _R.INPUT_UNDESERIALIZABLE: ReasonText(
        _S.ERROR,
        "The function or its arguments could not be loaded where it ran; versions of Python and "
        "packages on both sides are shown.",
        "Use the same versions on both sides, or pass simpler values.",
    ),
    _R.RESULT_UNSERIALIZABLE: ReasonText(
        _S.ERROR,
        "The function returned something that cannot be sent back; its place in the result is shown.",
        "Return plain data, or the part that is needed.",
    ),
    _R.RESULT_TOO_LARGE: ReasonText(
        _S.ERROR,
        "The result is larger than allowed{detail}.",
        "Return less, or raise the limit with cloud.config.max_transmit_data.",
    ),
    _R.POISON: ReasonText(
        _S.ERROR,
        "Its container was lost {losses} times while it ran, so it is not started again. The last time: "
        "{loss}.",
        "Look for what ends it (memory of the whole machine, os.kill, code that writes to descriptors "
        "that it did not open), then call it again.",
    ),
    _R.NEVER_SCHEDULED: ReasonText(
        _S.STALLED,
        "No machine here can ever hold it{detail}.",
        "Ask for fewer cores or another _type.",
    ),
    _R.DEPENDENCY_FAILED: ReasonText(
        _S.STALLED,
        "A job that it depends on did not end well{detail}.",
        "Mend that job, or use _depends_on_errors='ignore'.",
    ),
    _R.CRASHED: ReasonText(
        _S.ERROR,
        "Its Python process ended by itself: {exit_text}.",
        "Look at the end of its stderr; native code or os._exit does this.",
        "once in a fresh interpreter if its own was used before and it is restartable; then "
        + _RETRY,
    ),
    _R.ABANDONED: ReasonText(
        _S.STALLED,
        "The client that was sending this map went silent before its end.",
        "Call cloud.map again.",
    ),
    _R.INCOMPATIBLE: ReasonText(
        _S.ERROR,
        "Client and container do not understand each other{detail}.",
        "Run picloud up --replace, then call it again.",
    ),
    _R.CAP_REACHED: ReasonText(
        _S.STALLED,
        "Your quota is reached{detail}.",
        "Delete what you do not need, or have the quota raised (picloud user quota), then call it again.",
    ),
    _R.START_FAILED: ReasonText(
        _S.STALLED,
        "Its container could not be started{detail}.",
        "Run picloud doctor: it names what is wrong and the line that mends it.",
        "twice, a few seconds later: nothing of it had run. A start that was lost (what starts "
        "containers, or the container itself, was killed before the job began) is free of charge, and "
        "tried anew until twelve in a row were lost, over four minutes",
    ),
    _R.SECRET_MISSING: ReasonText(
        _S.STALLED,
        "A secret that it uses was deleted before it began{detail}.",
        "Set it again (picloud secret set NAME), then call it again.",
    ),
}


def message(reason: EndReason, facts: Facts) -> str:
    """Return what happened, why, and what to do next, with the figures of ``facts``.

    >>> message(EndReason.OOM, Facts(memory_limit_bytes=2 * GIB, memory_peak_bytes=2 * GIB))
    "It ran out of memory: its memory reached 2.0 of 2.0 GiB. Ask for more with _cores or _type='m1', or work on smaller pieces."
    """
    text = REASONS[reason]
    what = text.what.format(
        memory=_memory(facts),
        max_runtime=_minutes(facts.max_runtime_seconds),
        exit_text=facts.exit_text or "an unknown exit",
        detail=f": {facts.detail}" if facts.detail else "",
        node=f" {facts.node}" if facts.node else "",
        losses=facts.losses,
        loss=facts.loss or LOSS,
    )
    return f"{what} {text.next_step}".replace("\0", "")  # PostgreSQL stores none


def _memory(facts: Facts) -> str:
    if not facts.memory_limit_bytes:
        return "its limit"
    unit, name = (GIB, "GiB") if facts.memory_limit_bytes >= GIB else (MIB, "MiB")
    limit = f"{facts.memory_limit_bytes / unit:.1f} {name}"
    if not facts.memory_peak_bytes:
        return f"the limit of {limit}"
    return f"{facts.memory_peak_bytes / unit:.1f} of {limit}"


def _minutes(seconds: float | None) -> str:
    if seconds is None:
        return "its limit"
    return f"{seconds / 60:g} minutes"


def end_reasons_markdown() -> str:
    """Return docs/end-reasons.md: every reason with its status, its words and whether it is re-run."""
    lines = [
        "# Why jobs end",
        "",
        "Every job ends with one of these reasons (`cloud.info(jid, 'reason')`). Generated from",
        "`picloud_services/jobs/reasons.py`; words in braces are filled with figures.",
        "",
        "| reason | status | what happened | what to do next | run again |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| `{reason}` | {text.status} | {text.what} | {text.next_step} | {text.rerun} |"
        for reason, text in REASONS.items()
    ]
    lines += [
        "",
        f"`{{loss}}` is: {LOSS}; or how its runner left what was agreed with it (it closed its link, it did",
        "not come back, somebody spoke in its name), so that we had to end it; or that the",
        "machine did not take its result.",
    ]
    return "\n".join(lines) + "\n"
