"""Negative tests 1, 2, 6, 13 and 36 with real jobs: payloads that bite, what jobs print, secrets.

`test_containers` has what a container keeps from its code, `test_jobs_lies` what its word is worth.
"""

import contextlib
import io
import os
import re
import secrets
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from picloud_jupyter import cloud
from picloud_jupyter.cloud.session import session
from picloud_jupyter.protocol import routes
from picloud_jupyter.protocol.errors import CloudException
from picloud_jupyter.protocol.jobs import EndReason
from tests.security.conftest import Attacked
from tests.tools.on_a_terminal import on_a_terminal
from tests.tools.service_under_test import eventually

pytestmark = pytest.mark.isolation
CLOSED_LIST = {reason.value for reason in EndReason}


class Bites:
    """Runs a command in whoever unpickles it."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, ...]]:
        return os.system, (f"echo bitten >> {self.mark}",)


class BitesAsError(Exception):
    """An error that is one of those."""

    def __init__(self, mark: str) -> None:
        super().__init__("look at me")
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, ...]]:
        return os.system, (f"echo bitten >> {self.mark}",)


@pytest.fixture
def mark() -> Iterator[Path]:
    """A file that nothing may make; where everybody may write, jobs see a folder of their own."""
    path = Path("/var/tmp", f"bitten-{secrets.token_hex(6)}")
    yield path
    path.unlink(missing_ok=True)


# --------------------------------------------------------------------- 1, 2: payloads that bite
def all_ways_to_look(attacked: Attacked, jid: cloud.Jid) -> str:
    """Return what all that lists and describes says of a job; none of it may unpickle."""
    everything = cloud.info(jid, "all")
    seen = [repr(cloud.jobs()), cloud.jobs()._repr_html_(), cloud.status(jid), repr(jid)]
    seen += [jid._repr_html_(), dir(jid), repr(everything), list(everything[jid])]
    fields = "status,reason,exception,stdout,stderr,function"
    for words in (
        *(("jobs",), ("-o", "json", "jobs"), ("top", "--once"), ("status",)),
        *(("info", str(jid), "-o", fields), ("logs", str(jid)), ("join", str(jid))),
    ):
        done = attacked.service.cli(*words, check=False)
        seen.append(done.stdout + done.stderr)
    for route in (routes.FUNCTION, routes.ARGUMENTS, routes.RESULT):
        with contextlib.suppress(CloudException):  # some jobs have no result
            session().client.exchange("GET", route.format(jid=jid)).answer()
    return "\n".join(map(str, seen))


@pytest.mark.parametrize("where", ["argument", "result", "error", "closure"])
def test_1_a_payload_bites_nobody_but_who_asks_for_it(
    attacked: Attacked, mark: Path, where: str
) -> None:
    """Submitting, running, listing, describing, killing and deleting unpickle nothing outside the job."""
    bites = Bites(mark)

    def with_it(_value: object = None) -> object:
        if where == "error":
            raise BitesAsError(bites.mark)
        return bites if where in ("result", "closure") else 1

    jid = cloud.call(with_it, *([bites] if where == "argument" else []))
    cloud.join(jid, ignore_errors=True)
    assert "bitten >>" not in all_ways_to_look(attacked, jid)
    cloud.kill(jid)
    cloud.delete(jid)
    assert not mark.exists()


def test_2_an_errors_own_pickle_is_loaded_by_result_alone(
    attacked: Attacked, mark: Path
) -> None:
    path = str(mark)

    def fail() -> None:
        raise BitesAsError(path)

    jid = cloud.call(fail)
    eventually(lambda: cloud.status(jid) == "error")
    attacked.service.cli("info", str(int(jid)), check=False)
    assert not mark.exists()
    with pytest.raises(CloudException, match="look at me"):
        cloud.result(jid)


def test_1_done_callbacks_of_status_load_nothing(attacked: Attacked, mark: Path) -> None:
    bites = Bites(mark)
    jids = cloud.map(lambda _: bites, range(3))
    cloud.join(jids)
    assert cloud.status(jids) == ["done"] * 3
    assert repr(jids)
    assert jids._repr_html_()
    assert not mark.exists()


# ------------------------------------------------------------------------- 6: what jobs print
PRINTED = (
    "\x1b]8;;http://evil\x07click\x1b]8;;\x07\x1b]52;c;ZXZpbA==\x07\x1b]0;title\x07\x1b[2J\x1b[6n"
    "\x1b_picloud;AAAA\x1b\\\x1bP+q544e\x1b\\\x9b2J<script>alert(1)</script>\x1b[31mred\x1b[0m\n"
)


def steers(shown: str) -> list[str]:
    """Return the control sequences in ``shown`` beside colours."""
    return re.findall("\x1b(?!\\[[0-9;]*[mK])|[\x00-\x08\x0e-\x1a\x7f-\x9f]", shown)


def test_6_what_a_job_prints_does_not_steer_a_terminal(attacked: Attacked) -> None:
    def say(text: str) -> None:
        print(text)
        print(text, file=sys.stderr)
        raise ValueError(text)

    jid = cloud.call(say, PRINTED, _label="x\x1b[2J\x07<b>")
    cloud.join(jid, ignore_errors=True)
    for words in (
        *(("logs", str(jid)), ("logs", "--stderr", str(jid)), ("logs", f"{jid}-{jid}")),
        *(("info", str(jid)), ("info", str(jid), "-o", "all"), ("jobs",), ("result", str(jid))),
    ):
        shown = on_a_terminal(attacked.service, *words)
        assert not steers(shown), (words, shown)
    logged = on_a_terminal(attacked.service, "logs", str(jid))
    assert "\x1b[31mred\x1b[0m" in logged
    assert "^[]8;;http://evil^Gclick" in logged
    raw = attacked.service.cli("logs", str(jid)).stdout
    assert "\x1b]8;;http://evil\x07click" in raw, "files and pipes get what was printed"


@pytest.mark.parametrize(
    "label",
    [
        *("<img src=x onerror=alert(1)>", "a\nb", "a\x00b", "\u202egnp.exe", "x" * 10_000),
        *("'\"><script>", "\x1b[2J", "\U0001f600"),
    ],
)
def test_6_labels_are_escaped_wherever_they_are_shown(attacked: Attacked, label: str) -> None:
    try:
        jid = cloud.call(lambda: 1, _label=label)
    except (CloudException, TypeError, ValueError):
        return  # refused in words
    cloud.join(jid)
    html = cloud.jobs(1)._repr_html_()
    assert "<img" not in html
    assert "<script" not in html
    assert not steers(repr(cloud.jobs(1)))
    assert not steers(on_a_terminal(attacked.service, "jobs"))


def test_6_what_a_cell_prints_is_escaped_in_the_notebooks_html() -> None:
    from picloud_jupyter.magics.transcript import Transcript  # not where jobs load this module

    transcript = Transcript()
    for stream in ("stdout", "stderr"):
        transcript.add(stream, PRINTED.encode())
    html = transcript.bundle("<script>", 1)["text/html"]
    assert "<script" not in html
    assert "\x1b" not in html


# ---------------------------------------------------------------------------- 13: the canary
def test_13_a_secret_is_in_no_process_no_file_and_no_word_beside_the_jobs_own(
    attacked: Attacked,
) -> None:
    canary = f"canary-{secrets.token_hex(16)}"
    cloud.secret.set("CANARY", value=canary)

    def use() -> None:
        value = os.environ["CANARY"]
        raise ValueError(f"refused {value}", "x" * 70_000 + value + "y" * 70_000)

    def rest() -> None:
        import time

        time.sleep(60)

    failed, running = cloud.call(use, _secrets="CANARY"), cloud.call(rest, _secrets="CANARY")
    cloud.join(failed, ignore_errors=True)
    eventually(lambda: cloud.status(running) == "processing")
    ours = os.readlink("/proc/self/ns/pid")
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            assert canary not in " ".join(process.cmdline()), process
            inside = os.readlink(f"/proc/{process.pid}/ns/pid") != ours
            environment = Path(f"/proc/{process.pid}/environ").read_bytes()
            assert inside or canary.encode() not in environment, process
    said = io.StringIO()
    try:
        cloud.result(failed)
    except CloudException as exc:
        traceback.print_exception(exc, file=said)
    said.write(
        repr(cloud.info([failed, running], "all")) + repr(session()) + repr(cloud.jobs())
    )
    for words in (
        ("info", str(failed), "-o", "all"),
        ("secret", "list"),
        ("logs", str(failed)),
    ):
        done = attacked.service.cli(*words, check=False)
        said.write(done.stdout + done.stderr)
    assert canary not in said.getvalue()
    assert "[secret CANARY]" in said.getvalue()
    cloud.kill(running)
    cloud.join(running, ignore_errors=True)
    home = attacked.service.home
    holders = {
        Path(folder, name).relative_to(home).parts[0]
        for folder, _, names in os.walk(home)
        for name in names
        if canary.encode() in _content(Path(folder, name))
    }
    assert holders == {"secrets"}


def _content(path: Path) -> bytes:
    with contextlib.suppress(OSError):  # of a container that is being removed, or a socket
        return path.read_bytes() if path.is_file() else b""
    return b""


# ------------------------------------------------------------------- 12, 36: what jobs use up
def test_36_a_job_that_floods_everything_leaves_the_service_answering(
    attacked: Attacked,
) -> None:
    def flood() -> None:
        for number in range(3000):
            sys.stdout.write("x" * 1000 + "\0\xff\n")
            sys.stderr.write("\x1b[2J" * 50)
            with contextlib.suppress(OSError):
                Path(f"/tmp/{number}").write_bytes(b"x" * 10_000)
        os.write(1, b"z" * (8 << 20))

    jid = cloud.call(flood)
    begun = time.monotonic()
    assert cloud.result(cloud.call(lambda: 3)) == 3
    assert time.monotonic() - begun < 30
    cloud.join(jid)
    assert len(cloud.info(jid, "stdout")[jid]["stdout"]) <= 64 * 1024
