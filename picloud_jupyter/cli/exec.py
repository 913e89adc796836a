"""`picloud exec`."""

import argparse
import contextlib
import os
import sys
import threading
from typing import Any

from picloud_jupyter.cli import job_options
from picloud_jupyter.cli.command import Command
from picloud_jupyter.cli.exit_codes import REFUSED, ExitWith
from picloud_jupyter.cli.logs import read_log
from picloud_jupyter.cli.output import Raw
from picloud_jupyter.cli.result import present
from picloud_jupyter.cloud import results, shell
from picloud_jupyter.cloud.session import running_on_cloud
from picloud_jupyter.protocol.errors import CloudException, JobFailed

_OUT, _ERR = 1, 2


def _configure(parser: argparse.ArgumentParser) -> None:
    job_options.add_command(parser)
    job_options.add_data(parser)
    parser.add_argument(
        "-f",
        "--follow",
        action="store_true",
        help="show what it writes until it ends; a failure is exit code 3",
    )
    job_options.add_job_options(parser)


def _run(arguments: argparse.Namespace) -> Any:  # noqa: ANN401  # the jid, or nothing more
    values = job_options.one_of_each(arguments.data, "-d")
    command = job_options.command_of(arguments)
    keywords = job_options.keywords_of(arguments)
    with job_options.plain_words():
        jid = int(shell.execute(command, values, **keywords))
    if not arguments.follow:
        return (
            present([jid], results.result([jid]), arguments.output)
            if arguments.simulate
            else jid
        )
    print(f"picloud: job {jid}", file=sys.stderr, flush=True)
    try:
        return _follow(jid, arguments)
    except KeyboardInterrupt:
        print(
            f"picloud: job {jid} goes on: picloud logs -f {jid} shows it, picloud kill {jid} ends it",
            file=sys.stderr,
        )
        raise


def _follow(jid: int, arguments: argparse.Namespace) -> Any:  # noqa: ANN401  # what to print
    """Show both streams live; stdout of the job goes to ours only where it is the result."""
    is_json = arguments.output == "json"
    is_result = arguments.return_file is None and not is_json
    if (
        running_on_cloud()
    ):  # who waits for a job gives it the cores; who reads its output does not
        threading.Thread(target=_give_way, args=(jid,), daemon=True).start()
    other = _Copying(jid, "stderr", _ERR)
    other.start()
    _copy(jid, "stdout", _OUT if is_result else _ERR)
    other.finish()
    try:
        if is_result:
            results.join(jid)
            return None
        value = results.result(jid)
    except JobFailed as exc:
        if exc.reason != "exit_code" or is_json:
            raise
        # its stderr was shown already
        print(f"picloud: {str(exc.parameter).splitlines()[0]}", file=sys.stderr)
        return ExitWith(REFUSED, None)
    return {"jid": jid, "result": value} if is_json else Raw(value, None)


def _give_way(jid: int) -> None:
    with contextlib.suppress(
        CloudException
    ):  # who reads the output meets the same, and says it
        results.join(jid, ignore_errors=True)


class _Copying(threading.Thread):
    """Shows a stream beside another one; `finish` raises here what went wrong there."""

    def __init__(self, jid: int, stream: str, target: int) -> None:
        super().__init__(daemon=True)
        self._what = jid, stream, target
        self._error: Exception | None = None

    def run(self) -> None:
        """Copy until the stream ends."""
        try:
            _copy(*self._what)
        except Exception as exc:  # noqa: BLE001  # raised again by `finish`
            self._error = exc

    def finish(self) -> None:
        """Wait for the end of the stream."""
        self.join()
        if self._error is not None:
            raise self._error


def _copy(jid: int, stream: str, target: int) -> None:
    for data in read_log(jid, stream, follow=True):
        view = memoryview(data)
        while view:
            view = view[os.write(target, view) :]


COMMAND = Command(
    "exec",
    "run a shell command as a job, and print its jid",
    (
        "picloud exec hostname                               print the new job's jid",
        "picloud exec -f make -j2                            show its output until it ends",
        "picloud exec -d n=5 'seq {n} | shuf'                with a value",
        "picloud exec -d in=@photo.jpg -r small.jpg 'convert {in} -resize 50% small.jpg'",
        "picloud exec -t f2 -c 4 -m 30 -l search ./search    four f2 cores, at most half an hour",
    ),
    _run,
    _configure,
)
