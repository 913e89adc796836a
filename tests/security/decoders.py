"""Every decoder of bytes that somebody else may have made, with what it may raise and where it begins.

`test_requests_decoders` tries them with hypothesis, `fuzz` with atheris for as long as it is given.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from picloud_jupyter.cloud import shell_templates
from picloud_jupyter.protocol import displays, frames, ids, written_files
from picloud_jupyter.protocol.codec import from_wire, to_wire
from picloud_jupyter.protocol.errors import (
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    error_from_wire,
)
from picloud_jupyter.protocol.frames import FrameError, pack_frame, pack_records
from picloud_jupyter.protocol.jobs import (
    ContainerKind,
    HostPython,
    JobSpec,
    LimitsGrade,
    Resources,
    SandboxSpec,
)
from picloud_jupyter.protocol.nodes import NodeReport
from picloud_jupyter.serialize import failure, payload
from picloud_jupyter.transport import embedded
from picloud_services.accounts.keys import KeyRing
from picloud_services.agent import (
    guardian,
    leftovers,
    network,
    orders,
    output_files,
    proxy_head,
    runner_frames,
)
from picloud_services.base import single_instance
from picloud_services.dispatch.sandbox import parse_volume
from picloud_services.gateway import decode, http_parser, payloads
from picloud_services.gateway.application import make_routes
from picloud_services.gateway.router import Router

PLACE = Path(tempfile.gettempdir())
LEASE = "0123456789abcdef"
PYTHON = HostPython("/bin/sh", "/usr", "/usr", "3.11.2", ("/usr",))
SPEC = to_wire(JobSpec("f", PYTHON))
NODE = to_wire(
    NodeReport("n", "b", 1, Resources(1.0, 1), ContainerKind.ROOT, LimitsGrade.CGROUP)
)
ORDER = orders.StartOrder(
    "c",
    "/r",
    ContainerKind.ROOT,
    "d",
    orders.RequestFields("c", SandboxSpec(0, PYTHON), "/r", "/o", "/l", "/b", "", 1),
    "/logs",
)
RESULT = {"t": "result", "p": 0, "r": "done", "at": 1.0, "s": 0.1, "u": 0.1, "y": 0.0}
LISTING = {"t": "files", "files": [["a/b", 1, 1.5]], "left": [["c", "why"]]}
DISPLAY = displays.encode(
    displays.Display(displays.DisplayType.DISPLAY_DATA, {"text/plain": "x"})
)
HEAD = b"POST /v1/jobs/1/files/a%2Fb?limit=1 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"
_services: Any = None
_ROUTER = Router(make_routes(_services))
_KEYS = KeyRing(bytes(32))


@dataclass(frozen=True)
class Decoder:
    """One decoder: what it reads, the errors that it declares, and bytes that it takes."""

    read: Callable[[bytes], object]
    refused: tuple[type[Exception], ...] = ()
    seeds: tuple[bytes, ...] = ()


def _text(read: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: read(data.decode("utf-8", "replace"))


def _frames(data: bytes) -> None:
    reader = frames.FrameReader(max_body_bytes=1024**2)
    for start in range(0, len(data), 7):
        list(reader.feed(data[start : start + 7]))


def _runner(data: bytes) -> None:
    reader = runner_frames.RunnerFrames()
    for start in range(0, len(data), 11):
        reader.feed(data[start : start + 11])


def _submit(data: bytes) -> None:
    header, body = payloads.read_submit(data)
    spec = payloads.parse_spec(bytes(header.spec))
    for volume in spec.volumes:
        parse_volume(volume)
    body.take(header.function.size_bytes, "function")
    body.end()


def _http(data: bytes) -> None:
    parser = http_parser.RequestParser()
    for start in range(0, len(data), 13):
        parser.feed(memoryview(data)[start : start + 13])
    for request in parser.requests:
        try:
            _ROUTER.find(request.head.method, request.head.path)
        except (NotFound, InvalidRequest):
            continue


def _displays(data: bytes) -> None:
    for begins_within in (False, True):
        splitter = displays.Splitter(begins_within=begins_within)
        pieces = [*splitter.feed(data[:9]), *splitter.feed(data[9:]), *splitter.finish()]
        displays.to_terminal(pieces)


def _listing(data: bytes) -> None:
    header, body = frames.split_frame(data)
    written_files.read_listing(header, len(data) - len(body) - frames.PREFIX.size, len(data))


def _from_wire(cls: type) -> Callable[[bytes], object]:
    return lambda data: from_wire(cls, decode.read_json(data))


def _order(data: bytes) -> None:
    orders.read_start_frame(frames.decode_header(data))


def _in_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Return a decoder of a file: its bytes are written into one called ``name``."""

    def write_and_read(data: bytes) -> None:
        with tempfile.TemporaryDirectory(dir=PLACE, prefix="picloud-decoders-") as folder:
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            read(path)

    return write_and_read


def _output(path: Path) -> None:
    (path.parent / f"{LEASE}.out").write_bytes(b"printed")
    for offset in (0, 5, 2**53):
        output_files.read(str(path.parent.parent), LEASE, 0, "stdout", offset, 1024**2)


def _record(path: Path) -> None:
    single_instance.read_record(path)


def _status(path: Path) -> None:
    status = leftovers._status(path.parent)
    leftovers._supervisor(status)
    list(leftovers._first_processes(status))


def _own_files(path: Path) -> None:
    guardian.read_agent_process(path)
    network._read_state(path)
    embedded._recorded(path, "start_time")


_JSON = (InvalidRequest,)
DECODERS: dict[str, Decoder] = {
    "frame": Decoder(frames.split_frame, (FrameError,), (pack_frame({"t": "x"}, b"body"),)),
    "stream of frames": Decoder(_frames, (FrameError,), (pack_frame({"t": "x"}, b"b") * 2,)),
    "pack": Decoder(
        lambda data: list(frames.Pack(data, most=1000)),
        (FrameError,),
        (pack_records([b"a", b"", b"bc"]),),
    ),
    "what a runner says": Decoder(
        _runner,
        (runner_frames.BrokenProtocol,),
        (pack_frame(RESULT, b"x"), pack_frame({"t": "hello", "pid": 1})),
    ),
    "JSON of a request": Decoder(decode.read_json, _JSON, (b'{"jids":[[1,2]],"until":"all"}',)),
    "submit": Decoder(
        _submit,
        (InvalidRequest, PayloadTooLarge),
        (pack_frame({"spec": SPEC, "key": "k", "function": {"size_bytes": 1}}, b"f"),),
    ),
    "HTTP": Decoder(_http, (), (HEAD, b"GET /v1/service HTTP/1.1\r\n\r\n")),
    "range": Decoder(
        _text(lambda text: decode.read_byte_range(text, 10)),
        (InvalidRequest,),
        (b"bytes=1-2", b"bytes=-3"),
    ),
    "job key": Decoder(
        _text(_KEYS.check), (), (b"pcj_1.2.3." + LEASE.encode() + b"." + b"0" * 32,)
    ),
    "display": Decoder(_displays, (), (b"text" + DISPLAY + b"text",)),
    "payload of a display": Decoder(displays.decode, (), (DISPLAY[11:-2],)),
    "written files": Decoder(_listing, (FrameError,), (pack_frame(LISTING, b"x"),)),
    "head for the proxy": Decoder(
        proxy_head.read_head,
        (proxy_head.HeadError,),
        (
            b"CONNECT [::1]:443 HTTP/1.1\r\n\r\n",
            b"GET http://u@h:8/p?q HTTP/1.1\r\nA: b\r\n\r\n",
        ),
    ),
    "shell template": Decoder(
        _text(shell_templates.parse_template), (ValueError,), (b"cp {a} ${HOME} \\{c\\}",)
    ),
    "values of a template": Decoder(
        _text(shell_templates.split_values), (ValueError,), (b"a,b,\\,c",)
    ),
    "jids": Decoder(_text(ids.parse_jids), (ValueError,), (b"1-4,7",)),
    "volume": Decoder(_text(parse_volume), (InvalidRequest,), (b"/a:/b:rw",)),
    "failure": Decoder(failure.read_failure, (FrameError,), (pack_frame({"type": "E"}, b"x"),)),
    "head of a function": Decoder(
        payload.read_function_header,
        (payload.PayloadError,),
        (b"".join(bytes(part) for part in payload.dump_function_parts(len)),),
    ),
    "spec": Decoder(
        _from_wire(JobSpec), (ValueError, InvalidRequest), (json.dumps(SPEC).encode(),)
    ),
    "report of a node": Decoder(
        _from_wire(NodeReport), (ValueError, InvalidRequest), (json.dumps(NODE).encode(),)
    ),
    "order": Decoder(_order, (ValueError,), (json.dumps(orders.start_frame(ORDER)).encode(),)),
    "error": Decoder(
        lambda data: error_from_wire(decode.read_json(data)),
        _JSON,
        (b'{"error":{"code":"not_found","message":"m","status":404,"jid":1}}',),
    ),
    "record of a service": Decoder(
        _in_file("record.json", _record), (), (b'{"host_id":"h","boot_id":"b","pid":1}',)
    ),
    "status of a container": Decoder(
        _in_file("status.json", _status),
        (),
        (b'{"pid":1,"start_time":2,"init_pid":3,"cgroups":["/x"],"state":"ready"}',),
    ),
    "files that name a process": Decoder(
        _in_file("agent.json", _own_files), (), (b'{"pid":999999999,"start_time":2}',)
    ),
    "index of output": Decoder(
        _in_file(f"{LEASE[:2]}/{LEASE}.idx", _output),
        (),
        (output_files.RECORD.pack(0, 0, 3) + output_files.RECORD.pack(2**31, 0, 7),),
    ),
}
