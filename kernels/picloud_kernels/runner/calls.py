"""The element loop: one chunk's calls, each with its own outcome."""

import json
import os
import pickle
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from picloud_jupyter.protocol.frames import PREFIX, Buffer, pack_raw
from picloud_jupyter.protocol.ids import iterate_ranges
from picloud_jupyter.serialize.payload import OUT_OF_BAND_BYTES, dump, load_call
from picloud_jupyter.transport.inside import (
    JID_VARIABLE,
    LEASE_VARIABLES,
    SECRETS_VARIABLE,
    SOCKET_NAME,
    CurrentJob,
    set_current_job,
)
from picloud_kernels.runner.chunk import Chunk
from picloud_kernels.runner.functions import Function, load_failure_body, map_file
from picloud_kernels.runner.output import Output
from picloud_kernels.runner.reset import (
    Baseline,
    count_leftover_children,
    count_leftover_threads,
    sibling_pids,
)
from picloud_kernels.runner.result_file import ResultFile
from picloud_kernels.runner.startup import RunnerConfig
from picloud_kernels.runner.words import (
    ElementEnded,
    describe_raised,
    failure_body,
    keep_secret,
)
from picloud_kernels.runner.written import LAYER_NAME, WrittenFiles

INLINE_BYTES = OUT_OF_BAND_BYTES  # larger results go to a file
_CHILDREN_SECONDS = 0.0005  # a child process cannot come and go within less
MAX_PROFILE_CHARACTERS = 256 * 1024  # each may become six bytes of a header
_RESULT = b'{"t":"result","p":%d,"r":"%s","at":%.6f,"s":%.6f,"u":%.6f,"y":%.6f%s}'
_END = b'{"t":"end","lease":"%s","rss_bytes":%d,"threads":%d,"children":%d%s}'
_JID = JID_VARIABLE.encode()
_SECRETS = SECRETS_VARIABLE.encode()
_LEASE_VARIABLES = tuple(name.encode() for name in LEASE_VARIABLES)


@dataclass(slots=True)
class Outcome:
    """How an element ended: ``parts`` are the body, ``extra`` further fields of the frame."""

    reason: str
    parts: list[Buffer]
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wire:
    """``send`` writes bytes to the supervisor, ``take_token`` says whether one more may start.

    ``take_all_tokens`` returns how many were still to start: none of them does then.
    """

    send: Callable[[Buffer], None]
    take_token: Callable[[], bool]
    take_all_tokens: Callable[[], int]
    rss_bytes: Callable[[], int]


class CallRunner:
    """Runs chunks of calls."""

    def __init__(
        self,
        config: RunnerConfig,
        wire: Wire,
        output: Output,
        baseline: Baseline,
    ) -> None:
        self._wire = wire
        self._output = output
        self._baseline = baseline
        self._out_dir = config.out_dir
        layer = os.path.join(config.run_dir, LAYER_NAME) if config.isolated else ""
        self._written = WrittenFiles(config.folder, layer, config.out_dir)
        self._api_socket = os.path.join(config.run_dir, SOCKET_NAME)
        self._pid = os.getpid()
        self._children = resource.getrusage(resource.RUSAGE_CHILDREN)
        self._siblings = sibling_pids()
        self._had_children = False  # in this chunk: they may have left some of their own

    def adopt_secrets(self, secrets: dict[str, str]) -> None:
        """Give this chunk's jobs their secrets; before its function is loaded, which may need them.

        Every chunk that this runner gets names the same variables: they are part of its sandbox.
        """
        keep_secret(secrets)
        for variable, value in secrets.items():
            self._baseline.set_variable(variable.encode(), value.encode())
        if secrets:
            self._baseline.set_variable(_SECRETS, ",".join(sorted(secrets)).encode())

    def run(self, chunk: Chunk, function: Function) -> None:
        """Run the elements of ``chunk`` that tokens allow, then report the chunk's end."""
        self._enter_chunk(chunk)
        last = len(chunk.arguments) - 1
        position = -1
        usage = resource.getrusage(resource.RUSAGE_SELF)
        for position, jid in self._allowed(chunk):
            self._enter_element(chunk, jid)
            at = time.time()
            begun = time.perf_counter()
            outcome = self._outcome(chunk, function, position)
            seconds = time.perf_counter() - begun
            if os.getpid() != self._pid:
                self._end_forked_child()
            before, usage = usage, resource.getrusage(resource.RUSAGE_SELF)
            user = usage.ru_utime - before.ru_utime
            system = usage.ru_stime - before.ru_stime
            if seconds > _CHILDREN_SECONDS:
                user, system = self._add_children(user, system)
            self._output.end_element()
            self._baseline.restore_after_element()
            outcome.extra.update(self._written.take())
            frame = _result_frame(position, outcome, (at, seconds, user, system))
            if position == last:
                frame += self._end_frame(chunk.lease)
            else:  # just before the result: the supervisor wakes up once for all
                self._output.mark_end()
            self._wire.send(frame)
            if self._is_spent():
                break
        if position != last:
            self._wire.send(self._end_frame(chunk.lease))
        set_current_job(None)
        for descriptor in chunk.files.values():
            os.close(descriptor)
        self._baseline.restore_after_chunk()  # while the supervisor reads

    def _allowed(self, chunk: Chunk) -> Iterator[tuple[int, int]]:
        for position, jid in enumerate(iterate_ranges(chunk.jids)):
            if not self._wire.take_token():
                return
            yield position, jid

    def _enter_chunk(self, chunk: Chunk) -> None:
        values = (str(chunk.attempt), chunk.lease, str(chunk.user_id), chunk.lease_key)
        for name, value in zip(_LEASE_VARIABLES, values, strict=True):
            self._baseline.set_variable(name, value.encode())

    def _enter_element(self, chunk: Chunk, jid: int) -> None:
        self._baseline.set_variable(_JID, b"%d" % jid)
        set_current_job(
            CurrentJob(
                jid,
                chunk.attempt,
                chunk.lease,
                chunk.user_id,
                chunk.lease_key,
                self._api_socket,
            )
        )

    def _outcome(self, chunk: Chunk, function: Function, position: int) -> Outcome:
        call = function.call
        if call is None:
            return Outcome("input_undeserializable", [function.failure])
        try:
            load = getattr(call, "load_call", load_call)  # cells have a way of their own
            args, kwargs = load(self._record(chunk, position))
        except BaseException as exc:  # noqa: BLE001  # loading user values may raise anything
            failure = load_failure_body(exc, "The arguments", function.header)
            return Outcome("input_undeserializable", [failure])
        extra: dict[str, Any] = {}
        try:
            if chunk.profile:
                value = _profiled(call, args, kwargs, extra)
            else:
                value = call(*args, **kwargs)
        except ElementEnded as exc:
            return Outcome(exc.reason, [exc.body], {**extra, **exc.extra})
        except BaseException as exc:  # noqa: BLE001  # a job may raise anything, SystemExit too
            reason, body = describe_raised(exc)
            return Outcome(reason, [body], extra)
        return self._result(value, chunk, extra)

    def _record(self, chunk: Chunk, position: int) -> Any:  # noqa: ANN401  # a buffer
        descriptor = chunk.files.pop(position, None)
        return chunk.arguments[position] if descriptor is None else map_file(descriptor)

    def _result(self, value: object, chunk: Chunk, extra: dict[str, Any]) -> Outcome:
        if isinstance(value, ResultFile):
            return _file_outcome(value, chunk, extra)
        try:
            parts = dump(value, fast=chunk.fast, root="result")
        except pickle.PicklingError as exc:
            text = f"the job's result cannot be sent back: {exc}"
            return Outcome(
                "result_unserializable", [failure_body(exc, text, message=text)], extra
            )
        except BaseException as exc:  # noqa: BLE001  # out of memory, or a signal in the middle
            reason, body = describe_raised(exc)
            return Outcome(reason, [body], extra)
        size = _total_bytes(parts)
        if chunk.max_result_bytes and size > chunk.max_result_bytes:
            return _too_large(size, chunk.max_result_bytes, extra)
        if size > INLINE_BYTES:
            return self._result_file(parts, size, extra)
        return Outcome("done", parts, extra)

    def _result_file(self, parts: list[Buffer], size: int, extra: dict[str, Any]) -> Outcome:
        name = os.urandom(16).hex()
        path = os.path.join(self._out_dir, name)
        try:
            digest = _write_parts(path, parts)
        except OSError as exc:
            if os.path.exists(path):
                os.unlink(path)
            reason, body = describe_raised(exc)
            return Outcome(reason, [body], extra)
        return Outcome("done", [], {**extra, "file": name, "size": size, "digest": digest})

    def _add_children(self, user: float, system: float) -> tuple[float, float]:
        """Return the CPU seconds with those of child processes that were waited for since."""
        before, now = self._children, resource.getrusage(resource.RUSAGE_CHILDREN)
        self._children = now
        self._had_children |= now != before
        return (
            user + now.ru_utime - before.ru_utime,
            system + now.ru_stime - before.ru_stime,
        )

    def _end_frame(self, lease: str) -> bytes:
        threads, children = count_leftover_threads(), self._count_leftover_processes()
        spent = b',"spent":%d' % self._wire.take_all_tokens() if self._is_spent() else b""
        figures = (lease.encode(), self._wire.rss_bytes(), threads, children, spent)
        return pack_raw(_END % figures)

    def _count_leftover_processes(self) -> int:
        """Children, and orphans: what was put into the background is nobody's child any more."""
        children = count_leftover_children()
        if children or not self._had_children:
            return children
        self._had_children = False
        return len(sibling_pids() - self._siblings)

    def _is_spent(self) -> bool:
        """Return whether an element changed what only a new container brings back."""
        return self._written.is_spent or self._baseline.is_spent

    def _end_forked_child(self) -> None:
        """End a process that the element forked and that came back here: its parent reports."""
        try:
            self._output.flush()
        finally:
            os._exit(0)


def _file_outcome(value: ResultFile, chunk: Chunk, extra: dict[str, Any]) -> Outcome:
    """The outcome of a result that lies in the folder of large results already."""
    size, limit = value.size_bytes, chunk.max_result_bytes
    if limit and size > limit:
        value.remove()
        return _too_large(size, limit, extra)
    return Outcome(
        "done", [], {**extra, "file": value.name, "size": size, "digest": value.digest()}
    )


def _too_large(size: int, limit: int, extra: dict[str, Any]) -> Outcome:
    text = (
        f"the job's result has {size:,} bytes, more than the {limit:,} allowed; "
        "return less, or write it to a volume"
    )
    return Outcome("result_too_large", [failure_body(ValueError(text), text)], extra)


def _profiled(
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    extra: dict[str, Any],
) -> object:
    import cProfile
    import io
    import pstats

    profile = cProfile.Profile()
    try:
        return profile.runcall(call, *args, **kwargs)
    finally:
        text = io.StringIO()
        pstats.Stats(profile, stream=text).sort_stats("cumulative").print_stats(200)
        extra["profile"] = text.getvalue()[:MAX_PROFILE_CHARACTERS]


def _total_bytes(parts: list[Buffer]) -> int:
    if len(parts) == 1:  # nearly always
        return len(parts[0])
    return sum(part.nbytes if isinstance(part, memoryview) else len(part) for part in parts)


def _write_parts(path: str, parts: list[Buffer]) -> str:
    """Write ``parts`` to a new file without joining them; return the sha256 in hex."""
    import hashlib

    total = hashlib.sha256()
    with open(path, "xb", buffering=0) as file:
        for part in parts:
            view = memoryview(part).cast("B")
            total.update(view)
            while view:
                view = view[file.write(view) :]
    return total.hexdigest()


def _result_frame(
    position: int, outcome: Outcome, figures: tuple[float, float, float, float]
) -> bytes:
    """Return the frame of one result; by hand, as it is made for each element."""
    extra = f",{json.dumps(outcome.extra)[1:-1]}" if outcome.extra else ""
    header = _RESULT % (position, outcome.reason.encode(), *figures, extra.encode())
    return b"".join(
        (PREFIX.pack(len(header), _total_bytes(outcome.parts)), header, *outcome.parts)
    )
