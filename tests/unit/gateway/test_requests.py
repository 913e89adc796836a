"""What handlers do with requests, without sockets: where JSON is read, which uploads count on."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from picloud_jupyter.protocol.codec import to_wire
from picloud_jupyter.protocol.frames import encode_json, pack_frame
from picloud_jupyter.protocol.jobs import HostPython, JobSpec
from picloud_services.blobs.store import BlobRef
from picloud_services.gateway import words
from picloud_services.gateway.decode import read_json
from picloud_services.gateway.jobs import create_call
from picloud_services.gateway.maps import create_map
from picloud_services.gateway.words import AT_ONCE_BYTES, Caller, Request
from picloud_services.jobs.words import CallReceipt, MapReceipt

SPEC = to_wire(JobSpec("f", HostPython("/bin/sh", "/usr", "/usr", "3.11.2")))


def request(body: bytes) -> Request:
    return Request(Caller(1000), (), {}, {}, len(body), body)


@pytest.mark.parametrize("count", [1, AT_ONCE_BYTES])
async def test_json_when_large_then_it_is_read_beside_the_loop(monkeypatch, count):
    readers = []

    def watched(data: bytes) -> dict[str, Any]:
        readers.append(threading.get_ident())
        return read_json(data)

    monkeypatch.setattr(words, "read_json", watched)
    asked = {"jids": [[1, 1]], "more": "x" * count}
    assert await request(encode_json(asked)).json() == asked
    assert (readers == [threading.get_ident()]) is (count == 1)


async def nothing(*_: object) -> None:
    return


class Services:
    """The parts of a service that a submit meets; ``sent`` are the uploads that count no more."""

    def __init__(self) -> None:
        async def take(_user: int, payload: Any) -> BlobRef:
            return BlobRef(payload.upload, payload.size_bytes, payload.digest)

        async def submit_call(*_: object) -> CallReceipt:
            return CallReceipt(1)

        async def create_map(*_: object) -> MapReceipt:
            return MapReceipt(1, None)

        self.sent: list[str | None] = []
        self.accounts = SimpleNamespace(sent=self.sent.extend)
        self.disk = SimpleNamespace(require=lambda: None)
        self.environments = SimpleNamespace(check=nothing)
        self.uploads = SimpleNamespace(take=take)
        self.blobs = SimpleNamespace(verify=nothing)
        self.jobs = SimpleNamespace(submit_call=submit_call, create_map=create_map)


def payload(name: str) -> dict[str, object]:
    return {"size_bytes": 70_000, "upload": name, "digest": "0" * 64}


async def test_uploads_when_a_call_names_them_then_they_count_no_more():
    services: Any = Services()
    header = {"spec": SPEC, "key": "k", "function": payload("f"), "arguments": payload("a")}
    await create_call(services, request(pack_frame(header)))
    assert services.sent == ["f", "a"]


async def test_upload_when_a_map_names_its_function_then_it_counts_no_more():
    services: Any = Services()
    header = {"spec": SPEC, "key": "k", "function": payload("f"), "count": 2}
    await create_map(services, request(pack_frame(header)))
    assert services.sent == ["f"]
