"""A small real HTTP server that plays the control API, for the client's edge cases.

Jobs run in the server's threads when they are submitted, or when `run` is called if ``hold`` is set.
``faults`` says what happens to the next requests: ("drop", "drop_after", "busy", "full", "garbage") by route prefix.
"""

import contextlib
import hashlib
import json
import re
import shutil
import socketserver
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from picloud_jupyter import cloud
from picloud_jupyter.protocol.errors import CloudException, Conflict, NotFound, error_to_wire
from picloud_jupyter.protocol.frames import Pack, pack_frame, split_frame
from picloud_jupyter.protocol.ids import iterate_ranges, to_ranges
from picloud_jupyter.serialize.failure import dump_failure
from picloud_jupyter.serialize.payload import dump_bytes, load_call, load_function
from picloud_jupyter.transport.paths import make_private, service_paths

FINISHED = ("done", "error", "killed", "stalled")
INLINE_BYTES = 64 * 1024


class PlayedGateway:
    """Serves ``socket_path``; everything it was asked stands in ``requests``."""

    def __init__(self, socket_path: Path, folder: Path) -> None:
        self.folder = folder
        self.jobs: dict[int, dict[str, Any]] = {}
        self.maps: dict[int, dict[str, Any]] = {}
        self.keys: dict[str, int] = {}
        self.codes: dict[str, bytes] = {}
        self.uploads: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.connections = 0
        self.faults: list[tuple[str, str]] = []
        self.hold = False
        self.warnings: list[str] = []
        self.changed = threading.Condition()
        gateway = self

        class Handler(_Handler):
            played = gateway

        class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            daemon_threads = True
            block_on_close = False
            request_queue_size = 64

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a client that went away

        socket_path.unlink(missing_ok=True)
        self._server = Server(str(socket_path), Handler)
        self._open: set[Any] = set()
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        """Stop serving and cut every connection."""
        self._server.shutdown()
        self._server.server_close()
        self.cut()

    def cut(self) -> None:
        """Cut every open connection, as a restarted control plane does."""
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(2)

    def opened(self, connection: Any) -> None:
        self.connections += 1
        self._open.add(connection)

    def closed(self, connection: Any) -> None:
        self._open.discard(connection)

    def count(self, pattern: str) -> int:
        """How many requests matched."""
        return sum(1 for method, path in self.requests if re.match(pattern, f"{method} {path}"))

    # -------------------------------------------------------------------------- jobs
    def add(self, function: bytes, arguments: bytes, spec: dict[str, Any]) -> int:
        jid = len(self.jobs) + 1
        self.jobs[jid] = {
            "status": "queued",
            "reason": None,
            "message": "",
            "body": b"",
            "function": function,
            "arguments": arguments,
            "spec": spec,
        }
        if not self.hold:
            self.run(jid)
        return jid

    def run(self, jid: int) -> None:
        job = self.jobs[jid]
        try:
            function = load_function(job["function"])  # first: arguments may refer to it
            args, kwargs = load_call(job["arguments"])
            value = function.call(*args, **kwargs)
            self.end(jid, "done", "done", dump_bytes(value))
        except Exception as exc:
            self.end(jid, "error", "error", dump_failure(exc, traceback.format_exc()))

    def end(
        self, jid: int, status: str, reason: str, body: bytes = b"", message: str = ""
    ) -> None:
        with self.changed:
            self.jobs[jid].update(status=status, reason=reason, body=body, message=message)
            self.changed.notify_all()

    def find(self, ranges: Any) -> list[int]:
        jids = list(iterate_ranges([tuple(pair) for pair in ranges]))
        for jid in jids:
            if jid not in self.jobs:
                raise NotFound("there is no such job", jid)
        return jids

    def wait(self, seconds: float, check: Any) -> None:
        deadline = time.monotonic() + seconds
        with self.changed:
            while not check() and (left := deadline - time.monotonic()) > 0:
                self.changed.wait(left)


@contextlib.contextmanager
def played_service(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PlayedGateway]:
    """Give what `cloud` finds as the service of this user, with its home in ``folder``."""
    monkeypatch.setenv("PICLOUD_HOME", str(folder / "home"))
    cloud.close()
    run = service_paths().run
    make_private(run)
    played = PlayedGateway(run / "api.sock", folder)
    try:
        yield played
    finally:
        cloud.close()
        played.close()
        shutil.rmtree(run)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    played: PlayedGateway
    disable_nagle_algorithm = False

    def address_string(self) -> str:
        return "client"

    def log_message(self, *_: Any) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        self.played.opened(self.connection)

    def finish(self) -> None:
        self.played.closed(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        path, _, query = self.path.partition("?")
        size = int(self.headers.get("Content-Length") or 0)
        fault = self._fault(path)
        if fault == "drop":
            self.close_connection = True
            self.connection.shutdown(2)
            return
        body = self.rfile.read(size)
        self.played.requests.append((self.command, path))
        if fault == "garbage":
            self.wfile.write(b"HELLO?\r\n\r\n")
            self.close_connection = True
            return
        if fault == "busy":
            self._send(503, b'{"error":{"code":"unavailable","message":"busy","retry":true}}')
            return
        if fault == "full":
            self._send(507, b'{"error":{"code":"disk_full","message":"the disk is full"}}')
            return
        try:
            assert self.headers["X-PiCloud-Wire"] == "1"
            status, answer = 200, self._route(path, query, body)
        except CloudException as exc:
            status, answer = exc.http_status, json.dumps(error_to_wire(exc)).encode()
        if fault == "drop_after":
            self.close_connection = True
            self.connection.shutdown(2)
            return
        self._send(status, answer)

    def _fault(self, path: str) -> str:
        for fault in self.played.faults:
            if path.startswith(fault[1]):
                self.played.faults.remove(fault)
                return fault[0]
        return ""

    def _send(self, status: int, answer: Any) -> None:
        headers: dict[str, str] = {}
        if isinstance(answer, tuple):
            answer, headers = answer
        if not isinstance(answer, bytes):
            answer = json.dumps(answer).encode()
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    # -------------------------------------------------------------------------- routes
    def _route(self, path: str, query: str, body: bytes) -> Any:
        for pattern, method in _ROUTES:
            found = re.fullmatch(pattern, f"{self.command} {path}")
            if found:
                return getattr(self, method)(body, query, *found.groups())
        raise NotFound(f"no such route: {self.command} {path}")

    def _payload(self, reference: dict[str, Any], view: memoryview) -> tuple[bytes, memoryview]:
        if reference.get("upload"):
            return self.played.uploads[reference["upload"]], view
        size = reference["size_bytes"]
        return bytes(view[:size]), view[size:]

    def service(self, _body: bytes, _query: str) -> Any:
        return {
            "pid": 4711,
            "agent_pid": 4712,
            "version": "0",
            "home": "/h",
            "container_kind": "plain",
            "limits_grade": "watched",
            "network": "pasta",
            "started_at": time.time() - 90,
            "capacity": {"cores": 2.0, "memory_bytes": 2**30},
            "disk": {"home_bytes": 2**20, "free_bytes": 2**30},
            "counts": dict(Counter(job["status"] for job in self.played.jobs.values())),
            "trials": [
                {"kind": "root", "works": False, "why": "not root", "mend": "use sudo"},
                {"kind": "plain", "works": True},
            ],
        }

    def call(self, body: bytes, _query: str) -> Any:
        header, view = split_frame(body)
        function, view = self._payload(header["function"], view)
        arguments, view = self._payload(header["arguments"], view)
        assert not len(view)
        played = self.played
        repeated = header["key"] in played.keys
        if not repeated:
            played.keys[header["key"]] = played.add(function, arguments, header["spec"])
        return {
            "jid": played.keys[header["key"]],
            "cached": False,
            "repeated": repeated,
            "warnings": played.warnings,
        }

    def make_map(self, body: bytes, _query: str) -> Any:
        header, view = split_frame(body)
        function, _ = self._payload(header["function"], view)
        number = len(self.played.maps) + 1
        self.played.maps[number] = {
            "function": function,
            "spec": header["spec"],
            "count": header["count"],
            "parts": {},
        }
        return {"map": number, "first_jid": None, "warnings": self.played.warnings}

    def part(self, body: bytes, _query: str, number: str, part: str) -> Any:
        header, view = split_frame(body)
        found = self.played.maps[int(number)]
        if int(part) not in found["parts"]:
            records = list(Pack(view))
            for index, reference in header["uploads"]:
                records[index] = self.played.uploads[reference["upload"]]
            assert len(records) == header["count"]
            found["parts"][int(part)] = [
                self.played.add(found["function"], record, found["spec"]) for record in records
            ]
        jids = found["parts"][int(part)]
        return {"first_jid": jids[0], "count": len(jids)}

    def seal(self, body: bytes, _query: str, number: str) -> Any:
        asked, found = json.loads(body), self.played.maps[int(number)]
        jids = [jid for part in sorted(found["parts"]) for jid in found["parts"][part]]
        assert asked.pop("short") in (True, False)
        assert asked == {"count": len(jids), "parts": len(found["parts"])}
        found["sealed"] = True
        return {"jids": to_ranges(jids)}

    def status(self, body: bytes, _query: str) -> Any:
        jids = self.played.find(json.loads(body)["jids"])
        return {"statuses": [[jid, jid, self.played.jobs[jid]["status"]] for jid in jids]}

    def wait(self, body: bytes, _query: str) -> Any:
        asked = json.loads(body)
        played = self.played
        jids = played.find(asked["jids"])

        def counts() -> dict[str, int]:
            return dict(Counter(played.jobs[jid]["status"] for jid in jids))

        def ready() -> bool:
            now = counts()
            over = all(status in FINISHED for status in now)
            if asked["until"] == "change":
                return bool(now != asked["counts_seen"])
            return over or bool(
                asked["until"] == "error" and set(now) - {"done", "queued", "processing"}
            )

        played.wait(asked["timeout_seconds"], ready)
        failed = [j for j in jids if played.jobs[j]["status"] in FINISHED[1:]]
        pending = [j for j in jids if played.jobs[j]["status"] not in FINISHED]
        return {
            "finished": not pending,
            "counts": counts(),
            "failed": [
                [j, played.jobs[j]["status"], played.jobs[j]["reason"]] for j in failed[:10]
            ],
            "pending": to_ranges(pending)[:50],
            "why": {str(j): "the cores are busy" for j in pending[:1]},
        }

    def results(self, body: bytes, _query: str) -> Any:
        asked = json.loads(body)
        jids = self.played.find(asked["jids"])
        assert len(jids) <= 2000
        jobs = self.played.jobs
        if asked.get("wait_seconds"):
            self.played.wait(
                asked["wait_seconds"], lambda: any(jobs[j]["status"] in FINISHED for j in jids)
            )
        items, bodies, total = [], [], 0
        finished = [j for j in jids if jobs[j]["status"] in FINISHED]
        for jid in finished:
            job = jobs[jid]
            item = {name: job[name] for name in ("status", "reason", "message")} | {"jid": jid}
            item |= {"size": len(job["body"]), "file": None, "blob": False, "digest": ""}
            if len(job["body"]) > INLINE_BYTES:
                item["blob"] = True
                if asked["local"]:
                    path = self.played.folder / f"result-{jid}"
                    path.write_bytes(job["body"])
                    item["file"] = str(path)
            else:
                bodies.append(job["body"])
                total += len(job["body"])
            items.append(item)
            if total > asked["limit_bytes"]:
                break
        return pack_frame({"items": items, "more": len(items) < len(finished)}, *bodies)

    def result(self, _body: bytes, _query: str, jid: str) -> Any:
        return self.played.jobs[int(jid)]["body"]

    def arguments(self, _body: bytes, _query: str, jid: str) -> Any:
        return self.played.jobs[int(jid)]["arguments"]

    def function(self, _body: bytes, _query: str, jid: str) -> Any:
        return self.played.jobs[int(jid)]["function"]

    def info(self, body: bytes, _query: str) -> Any:
        asked = json.loads(body)
        fields = asked["fields"]
        if fields is None:
            fields = ["stdout", "stderr", "status", "runtime"]
        found = {}
        for jid in self.played.find(asked["jids"]):
            job = self.played.jobs[jid]
            known = {
                "stdout": "out\n",
                "stderr": "",
                "status": job["status"],
                "runtime": 0.5,
                "created": 1e9,
                "files_written": 0,
                "memory.max_usage": 5,
                "attributes": job["spec"],
            }
            place = {
                name: job["spec"].get(name)
                for name in ("host_python", "folder", "code_version")
            }
            names = list(known) if fields == ["all"] else fields
            found[str(jid)] = {name: (known | place)[name] for name in names}
        return {"info": found}

    def kill(self, body: bytes, _query: str) -> Any:
        ranges = json.loads(body)["jids"]
        jids = list(self.played.jobs) if ranges is None else self.played.find(ranges)
        for jid in jids:
            if self.played.jobs[jid]["status"] not in FINISHED:
                self.played.end(jid, "killed", "killed", message="you killed it")
        return {"killed": len(jids)}

    def delete(self, body: bytes, _query: str) -> Any:
        jids = self.played.find(json.loads(body)["jids"])
        for jid in jids:
            if self.played.jobs[jid]["status"] not in FINISHED:
                raise Conflict("it is not finished", jid)
        for jid in jids:
            del self.played.jobs[jid]
        return {"deleted": len(jids)}

    def list_jobs(self, _body: bytes, _query: str) -> Any:
        lines = [
            {"jid": jid, "status": job["status"], "reason": job["reason"], "label": None}
            | {"function": job["spec"]["function_name"], "created_at": 1e9, "core_type": "c1"}
            | {"started_at": 1e9, "finished_at": None, "map": None, "cores": 1, "why": ""}
            for jid, job in self.played.jobs.items()
        ]
        return {"jobs": lines[::-1]}

    def samples(self, _body: bytes, _query: str, _jid: str) -> Any:
        return {
            "samples": [
                {"at": at, "cpu_seconds": at * 0.5, "memory_bytes": 2**20} for at in (1.0, 2.0)
            ]
        }

    def log(self, _body: bytes, query: str, _jid: str, stream: str) -> Any:
        text = b"line one\nline two\n" if stream == "stdout" else b""
        options = dict(pair.split("=") for pair in query.split("&"))
        offset = int(options.get("offset", 0))
        piece = text[offset : offset + 9]
        names = ("X-PiCloud-Next", "X-PiCloud-Total", "X-PiCloud-Finished")
        values = (offset + len(piece), len(text), 1)
        return piece, dict(zip(names, map(str, values), strict=True))

    def begin_upload(self, body: bytes, _query: str) -> Any:
        name = f"u{len(self.played.uploads) + 1}"
        self.played.uploads[name] = b""
        local = not self.headers.get("Authorization")
        return {"upload": name, "path": str(self.played.folder / name) if local else None}

    def finish_upload(self, body: bytes, _query: str, name: str) -> Any:
        asked = json.loads(body)
        data = (self.played.folder / name).read_bytes()
        assert len(data) == asked["size_bytes"]
        assert hashlib.sha256(data).hexdigest() == asked["digest"]
        self.played.uploads[name] = data
        return {}

    def put_upload(self, body: bytes, _query: str, name: str) -> Any:
        self.played.uploads[name] = body
        return {"size_bytes": len(body), "digest": hashlib.sha256(body).hexdigest()}

    def find_code(self, _body: bytes, _query: str, digest: str) -> Any:
        if digest not in self.played.codes:
            raise NotFound("no such code")
        return {}

    def put_code(self, body: bytes, _query: str, digest: str) -> Any:
        assert hashlib.sha256(body).hexdigest() == digest
        self.played.codes[digest] = body
        return {}


_ROUTES = (
    ("GET /v1/service", "service"),
    ("POST /v1/calls", "call"),
    ("POST /v1/maps", "make_map"),
    (r"PUT /v1/maps/(\d+)/parts/(\d+)", "part"),
    (r"POST /v1/maps/(\d+)/seal", "seal"),
    ("GET /v1/jobs", "list_jobs"),
    ("POST /v1/status", "status"),
    ("POST /v1/wait", "wait"),
    ("POST /v1/results", "results"),
    (r"GET /v1/jobs/(\d+)/result", "result"),
    (r"GET /v1/jobs/(\d+)/arguments", "arguments"),
    (r"GET /v1/jobs/(\d+)/function", "function"),
    (r"GET /v1/jobs/(\d+)/samples", "samples"),
    (r"GET /v1/jobs/(\d+)/logs/(stdout|stderr)", "log"),
    ("POST /v1/info", "info"),
    ("POST /v1/kill", "kill"),
    ("POST /v1/delete", "delete"),
    ("POST /v1/uploads", "begin_upload"),
    (r"POST /v1/uploads/(\w+)", "finish_upload"),
    (r"PUT /v1/uploads/(\w+)", "put_upload"),
    (r"GET /v1/code/(\w+)", "find_code"),
    (r"PUT /v1/code/(\w+)", "put_code"),
)
