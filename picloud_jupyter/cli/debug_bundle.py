"""`picloud debug-bundle`."""

import argparse
import io
import json
import os
import tarfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from picloud_jupyter.cli import doctor
from picloud_jupyter.cli.bundle_parts import (
    Redactor,
    home_listing,
    log_ends,
    machine,
    store_check,
    variables_set,
)
from picloud_jupyter.cli.command import Command
from picloud_jupyter.cli.exit_codes import ExitWith
from picloud_jupyter.cli.output import Text, format_bytes, to_text
from picloud_jupyter.cli.service import read_service, refuse_inside_a_job
from picloud_jupyter.cloud.session import session
from picloud_jupyter.protocol import routes
from picloud_jupyter.protocol.errors import CloudException, Conflict, InvalidRequest
from picloud_jupyter.transport.paths import service_paths, system_paths

JOBS = 200  # the newest, of the caller
_ABOUT = """What `picloud debug-bundle` gathered on {when}, for whoever looks into a problem.

It holds no arguments, results, output, files or code of jobs, no secrets, no keys and no values of
environment variables. It does hold names: of functions, labels, folders, this machine and its users.

{parts}
"""


@dataclass(slots=True)
class Bundle:
    """What goes into the file: name -> text; ``missing`` says what could not be had, and why."""

    redactor: Redactor
    parts: dict[str, tuple[str, str]] = field(default_factory=dict)  # name -> about, text
    missing: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, about: str, value: object) -> None:
        """Add text, or plain values as JSON."""
        text = value if isinstance(value, str) else json.dumps(value, indent=1, default=str)
        self.parts[name] = about, self.redactor.clean(text)

    def about(self, when: str) -> str:
        """Return the page that says what it holds."""
        lines = [f"{name:<28} {about}" for name, (about, _) in self.parts.items()]
        lines += [f"{name:<28} NOT HAD: {why}" for name, why in self.missing.items()]
        return _ABOUT.format(when=when, parts="\n".join(lines))

    def write(self, path: Path, when: str, now_at: float) -> None:
        """Write it all to ``path``, readable by its owner alone; a file that is there is not touched.

        Raises:
            Conflict: there is something already.
            InvalidRequest: it cannot be written there.
        """
        texts = {"README.txt": self.redactor.clean(self.about(when))}
        texts |= {name: text for name, (_, text) in self.parts.items()}
        folder = path.name.removesuffix(".gz").removesuffix(".tar").removesuffix(".tgz")
        if folder == path.name:  # what is unpacked must not have the name of the file itself
            folder += ".d"
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        except FileExistsError:
            raise Conflict(
                f"{path} is there already; nothing was written",
                hint="name another file",
            ) from None
        except OSError as exc:
            raise InvalidRequest(f"{path} cannot be written: {exc.strerror}") from exc
        try:
            with open(file, "wb") as raw, tarfile.open(fileobj=raw, mode="w:gz") as archive:
                for name, text in texts.items():
                    data = text.encode("utf-8", "backslashreplace")
                    member = tarfile.TarInfo(f"{folder}/{name}")
                    member.size, member.mode, member.mtime = len(data), 0o600, int(now_at)
                    archive.addfile(member, io.BytesIO(data))
        except OSError as exc:
            path.unlink()
            raise InvalidRequest(f"{path} cannot be written: {exc.strerror}") from exc


def _run(arguments: argparse.Namespace) -> Text:
    refuse_inside_a_job("debug-bundle")
    now_at = time.time()
    when = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(now_at))
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now_at))
    path = Path(arguments.file or f"picloud-debug-{stamp}.tar.gz").absolute()
    home, bundle = _gather()
    bundle.write(path, when, now_at)
    size = path.stat().st_size
    value: dict[str, Any] = {
        "file": str(path),
        "bytes": size,
        "home": str(home) if home else None,
        "parts": list(bundle.parts),
        "missing": bundle.missing,
    }
    text = f"{path} ({format_bytes(size)}) was written. Look it through before you give it away.\n\n"
    return Text(text + bundle.about(when).strip(), value)


def _gather() -> tuple[Path | None, Bundle]:
    """Return the home that was looked at, if it is on this machine, and all that was found."""
    endpoint = session().client.endpoint
    is_here = endpoint.embedded is not None or endpoint.system
    paths = system_paths() if endpoint.system else service_paths()
    told = doctor.COMMAND.run(argparse.Namespace())
    told = told.value if isinstance(told, ExitWith) else told
    service = _service()
    home = Path(str(service.get("home") or paths.home)) if is_here else None
    bundle = Bundle(Redactor.of(os.environ, home))
    bundle.add(
        "doctor.txt",
        "kinds of container: which works, why others do not",
        to_text(told, header=True),
    )
    bundle.add("machine.json", "the machine, its Python and the packages used", machine())
    names = variables_set(os.environ)
    bundle.add("variables.txt", "names (not values) of PICLOUD_* variables that are set", names)
    if service:
        bundle.add("service.json", "what `picloud status` knows", service)
        _add_answers(bundle)
    else:
        bundle.missing["service.json"] = "the service does not run; doctor.txt says why"
    if home is not None:
        _add_files(bundle, home, is_running=bool(service))
    return home, bundle


def _service() -> dict[str, Any]:
    try:
        return read_service(session().client)
    except CloudException:  # doctor.txt has its words
        return {}


def _add_answers(bundle: Bundle) -> None:
    asked = (
        ("diagnosis.json", "versions, settings, integrity of the store", routes.DIAGNOSIS),
        ("metrics.txt", "the figures that Prometheus reads", routes.METRICS),
        ("jobs.json", "your newest jobs: names, times, ends", f"{routes.JOBS}?limit={JOBS}"),
    )
    for name, about, route in asked:
        try:
            answer = session().client.exchange("GET", route).answer().body
        except CloudException as exc:
            bundle.missing[name] = str(exc).splitlines()[0]
            continue
        text = bytes(answer).decode("utf-8", "replace")
        bundle.add(name, about, json.loads(text) if name.endswith(".json") else text)


def _add_files(bundle: Bundle, home: Path, *, is_running: bool) -> None:
    try:
        bundle.add("home.json", f"names and sizes in {home}", home_listing(home))
        for name, text in log_ends(home).items():
            bundle.add(f"logs/{name}", "its end", text)
        if not is_running:
            bundle.add("store.json", "integrity of the store", store_check(home / "store.db"))
    except OSError as exc:
        bundle.missing["logs"] = f"{exc.filename}: {exc.strerror}"


def _configure(parser: argparse.ArgumentParser) -> None:
    about = "where to write; default picloud-debug-TIME.tar.gz in this folder"
    parser.add_argument("file", metavar="FILE", nargs="?", help=about)


COMMAND = Command(
    "debug-bundle",
    "gather in one file what is needed to find out why something does not work, without secrets",
    (
        "picloud debug-bundle                    a file in this folder; says what it holds",
        "picloud debug-bundle /tmp/p.tar.gz      a file of that name",
        "sudo picloud debug-bundle               also the logs of the service of every user",
    ),
    _run,
    _configure,
)
