"""One command of the shell: its files, its process, its output, and nothing of it left behind."""

import os
import random
import signal
import stat
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NoReturn

from picloud_jupyter.protocol.shell import (
    ADDED_DIGITS,
    CommandFailed,
    ShellCommand,
    UploadedFile,
    Value,
)
from picloud_kernels.runner.descendants import Descendants
from picloud_kernels.runner.pump import Pump
from picloud_kernels.runner.result_file import Collector, ResultFile, take_copy
from picloud_kernels.runner.words import ElementEnded, failure_body, scrub_cut

SHELL = "/bin/bash"
STDERR_TAIL_BYTES = 8_000  # as much as a failure on the wire holds well; the log has all of it


@dataclass(frozen=True, slots=True)
class _Ended:
    exit_code: int
    stderr: bytes  # its end
    is_cut: bool  # there was more of it


def run(command: ShellCommand, values: Mapping[str, Value]) -> bytes | ResultFile:
    """Return what ``command`` wrote to stdout, or what its return file holds.

    Raises:
        ElementEnded: it ended with a code other than 0 that counts.
        OSError: its folder, a file of it or its return file cannot be used.
    """
    folder = os.path.abspath(command.cwd) if command.cwd else os.getcwd()
    _check_folder(folder)
    with uploaded(folder, {**dict(command.common), **values}) as texts:
        collector = None if command.return_file else Collector()
        try:
            ended = _execute(command.fill(texts), folder, collector)
            if ended.exit_code:
                _judge(command, ended)
            if collector is not None:
                return collector.finish()
        except BaseException:
            if collector is not None:
                collector.discard()
            raise
        return _read_back(folder, command.return_file or "")


def _check_folder(folder: str) -> None:
    if not os.access(SHELL, os.X_OK):
        raise FileNotFoundError(f"commands need {SHELL}, which is not there where the job runs")
    if not os.path.isdir(folder):
        raise NotADirectoryError(
            f"the command cannot run in {folder}: there is no such folder where the job runs"
        )


# ------------------------------------------------------------------------------ uploaded files
@contextmanager
def uploaded(folder: str, values: Mapping[str, Value]) -> Iterator[dict[str, str]]:
    """Give the values as texts; files lie in ``folder`` meanwhile, and their text is the name there.

    Those that the command did not change are removed: the next job here may bring one of that name.
    """
    texts: dict[str, str] = {}
    made: dict[str, os.stat_result] = {}
    try:
        for name, value in values.items():
            if isinstance(value, UploadedFile):
                path = _write_file(folder, value)
                made[path] = os.stat(path)
                texts[name] = os.path.basename(path)
            else:
                texts[name] = value
        yield texts
    finally:
        for path, before in made.items():
            with suppress(OSError):  # moved or removed by the command itself
                if _same(os.lstat(path), before):
                    os.unlink(path)


def _write_file(folder: str, file: UploadedFile) -> str:
    path, descriptor = _create(folder, file.name)
    try:
        with open(descriptor, "wb", buffering=0) as opened:
            os.fchmod(descriptor, 0o777)
            left = memoryview(file.data)
            while left:
                left = left[opened.write(left) :]
    except OSError:
        os.unlink(path)
        raise
    return path


def _create(folder: str, name: str) -> tuple[str, int]:
    """A new file of that name; where there is one, with random digits before its suffix.

    The suffix stays, as compilers and readers of data go by it.
    """
    stem, suffix = os.path.splitext(name)
    path = os.path.join(folder, name)
    while True:
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            return path, os.open(path, flags, 0o777)
        except FileExistsError:
            digits = random.SystemRandom().randrange(10**ADDED_DIGITS)
            path = os.path.join(folder, f"{stem}-{digits}{suffix}")


def _same(now: os.stat_result, before: os.stat_result) -> bool:
    return (now.st_ino, now.st_size, now.st_mtime_ns) == (
        before.st_ino,
        before.st_size,
        before.st_mtime_ns,
    )


# ---------------------------------------------------------------------------------- the process
def _execute(text: str, folder: str, collector: Collector | None) -> _Ended:
    with Descendants() as descendants:
        process = subprocess.Popen(
            # not -i: interactive shells complain that there is no terminal, expand aliases, and read
            # start files, which a job's own HOME does not have
            [SHELL, "-c", text.encode("utf-8", "surrogateescape")],
            cwd=folder,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=None if collector is None else subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # `kill 0` in a script means the script
        )
        tail = _Tail()
        pumps = [Pump(process.stderr, 2, tail.write, process.kill)]
        if collector is not None:
            pumps.append(Pump(process.stdout, 1, collector.write, process.kill))
        try:
            code = process.wait()
        finally:  # with them gone the pipes end
            descendants.end()
            process.wait()
        for pump in pumps:
            pump.finish()
    return _Ended(128 - code if code < 0 else code, bytes(tail.data), tail.is_cut)


def _environment() -> dict[str, str]:
    """The job's own, with PiCloud's home on PYTHONPATH; Python programs print at once."""
    variables = dict(os.environ)
    home = variables.get("PICLOUD_HOME_DIR", "")
    path = variables.get("PYTHONPATH")
    variables["PYTHONPATH"] = f"{path}:{home}" if path else home
    variables.setdefault("PYTHONUNBUFFERED", "1")
    return variables


class _Tail:
    """The last bytes of what was written."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.is_cut = False

    def write(self, data: bytes) -> None:
        self.data += data
        self.is_cut |= len(self.data) > STDERR_TAIL_BYTES
        del self.data[:-STDERR_TAIL_BYTES]


# -------------------------------------------------------------------------------------- the end
def _judge(command: ShellCommand, ended: _Ended) -> None:
    """Return if the exit code is to be ignored, which is noted on stderr."""
    words = _code_in_words(ended.exit_code)
    if not command.ignore_exit_status:
        _fail(command, ended, words)
    os.write(2, f"picloud: the command ended with {words}, which is ignored\n".encode())


def _fail(command: ShellCommand, ended: _Ended, words: str) -> NoReturn:
    name = command.name
    shown = name if len(name) <= 200 else f"{name[:200]}..."
    stderr = scrub_cut(ended.stderr, is_cut=ended.is_cut)
    tail = stderr.decode("utf-8", "backslashreplace").rstrip()
    message = f"the command ended with {words}: {shown}\n" + (
        f"the end of its stderr:\n{tail}" if tail else "it wrote nothing to stderr"
    )
    error = CommandFailed(message, ended.exit_code, stderr)
    body = failure_body(error, message)
    raise ElementEnded("exit_code", body, {"exit": ended.exit_code})


def _code_in_words(code: int) -> str:
    """Return ``exit code 127 (command not found)`` and the like."""
    if code in (126, 127):
        return f"exit code {code} (command not {'found' if code == 127 else 'executable'})"
    if code == 128 + signal.SIGKILL:
        return f"exit code {code} (SIGKILL; by the system if it needed more memory than the job has)"
    with suppress(ValueError):
        return f"exit code {code} ({signal.Signals(code - 128).name})"
    return f"exit code {code}"


def _read_back(folder: str, name: str) -> bytes | ResultFile:
    path = os.path.join(folder, name)
    try:
        kind = os.stat(path).st_mode
    except FileNotFoundError:
        raise FileNotFoundError(
            f"the command ended, but there is no return file {path}"
        ) from None
    if not stat.S_ISREG(kind):
        raise OSError(f"the return file {path} is not a regular file; pack a folder with tar")
    with open(path, "rb") as file:
        return take_copy(file)
