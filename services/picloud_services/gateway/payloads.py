"""Specs and payloads out of a submit: bytes in the body, or uploads that came before."""

import hashlib
from dataclasses import replace
from typing import Any

from picloud_jupyter.protocol.errors import InvalidRequest
from picloud_jupyter.protocol.jobs import INLINE_BYTES, JobSpec, PayloadRef
from picloud_services.blobs.store import BlobRef
from picloud_services.gateway.decode import read_as, read_text
from picloud_services.gateway.services import Services
from picloud_services.gateway.words import Caller
from picloud_services.jobs.words import Function, Payload

KEY_DIGITS = 64


class Body:
    """The raw part of a frame, taken in the order that the header names."""

    def __init__(self, view: memoryview) -> None:
        self._view = view

    def take(self, size_bytes: int, name: str) -> bytes:
        """Return the next ``size_bytes``.

        Raises:
            InvalidRequest: there are fewer left.
        """
        if not 0 <= size_bytes <= len(self._view):
            raise InvalidRequest(
                f"{name} should have {size_bytes} bytes, and {len(self._view)} are left in the body"
            )
        taken, self._view = bytes(self._view[:size_bytes]), self._view[size_bytes:]
        return taken

    def end(self) -> None:
        """Return if everything was taken.

        Raises:
            InvalidRequest: bytes are left that the header does not name.
        """
        if self._view:
            raise InvalidRequest(
                f"the body has {len(self._view)} bytes that its header does not name"
            )


async def read_spec(services: Services, caller: Caller, header: dict[str, Any]) -> JobSpec:
    """Return the spec of a submit; its Python and its code are here, its parent is who asks.

    Raises:
        InvalidRequest: a field is wrong, or this machine lacks the submitter's Python.
        NotFound: the code version was never sent.
        DiskFull: the disk is down to its floor; what runs goes on, nothing new is taken.
    """
    services.disk.require()
    spec = read_as(JobSpec, header.get("spec"), "spec")
    services.environments.check(spec.host_python, spec.folder)
    if spec.code_version:
        await services.code.require(spec.code_version)
    parent_jid = caller.job.jid if caller.job else None
    return spec if parent_jid == spec.parent_jid else replace(spec, parent_jid=parent_jid)


def read_key(header: dict[str, Any]) -> str:
    """Return the idempotency key of a submit.

    Raises:
        InvalidRequest: it is missing or too long.
    """
    key = read_text(header, "key", longest=KEY_DIGITS)
    if not key:
        raise InvalidRequest("key is missing: 32 random hex digits that name this very submit")
    return key


async def read_payload(
    services: Services, caller: Caller, value: object, name: str, body: Body
) -> Payload:
    """Return one payload: its bytes out of ``body``, or the blob that its upload became.

    Raises:
        InvalidRequest: sizes do not fit, or it is too large to travel in the body.
        NotFound: the upload is not finished or not the caller's.
    """
    ref = read_as(PayloadRef, value, name)
    if ref.upload is not None:
        return await services.uploads.take(caller.user_id, ref)
    if ref.size_bytes > INLINE_BYTES:
        raise InvalidRequest(
            f"{name} has {ref.size_bytes} bytes; above {INLINE_BYTES} it must be uploaded first"
        )
    return body.take(ref.size_bytes, name)


async def read_function(
    services: Services, caller: Caller, value: object, body: Body
) -> Function:
    """Return the function of a submit, its digest checked: runners keep functions by it.

    Raises:
        InvalidRequest: the bytes have another digest. Otherwise as `read_payload`.
        Corrupt: an uploaded one has another digest.
    """
    payload = await read_payload(services, caller, value, "function", body)
    digest = read_as(PayloadRef, value, "function").digest
    if isinstance(payload, BlobRef):
        if not digest:
            raise InvalidRequest("function.digest is missing: the sha256 in hex of its bytes")
        await services.blobs.verify(payload)
        return Function(payload, digest)
    found = hashlib.sha256(payload).hexdigest()
    if digest and digest != found:
        raise InvalidRequest(f"the function's sha256 is {found}, not {digest}; send it again")
    return Function(payload, found)
