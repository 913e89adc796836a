"""Specs and payloads out of a submit: bytes in the body, or uploads that came before."""

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache

from picloud_jupyter.protocol.errors import Corrupt, InvalidRequest, PayloadTooLarge
from picloud_jupyter.protocol.jobs import INLINE_BYTES, JobSpec, PayloadRef
from picloud_jupyter.protocol.requests import MAX_KEY_CHARACTERS
from picloud_jupyter.protocol.secrets import check_job_secrets
from picloud_services.base import codec
from picloud_services.blobs.store import BlobRef
from picloud_services.dispatch.sandbox import parse_volume
from picloud_services.gateway.decode import read_as, read_json, split_frame
from picloud_services.gateway.nesting import check_child
from picloud_services.gateway.services import Services
from picloud_services.gateway.words import Caller
from picloud_services.jobs.words import Function, Payload

KEPT_SPECS = 256
KEPT_SPEC_BYTES = 16 * 1024  # of usual ones; many large ones would fill the memory
MAX_SPEC_BYTES = 512 * 1024


@dataclass(frozen=True, slots=True)
class SubmitHeader:
    """The header of a submit. ``key`` names it, so that a repetition gives the first answer."""

    spec: codec.Raw
    function: PayloadRef
    key: str = ""
    arguments: PayloadRef | None = None
    count: int | None = None


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


def read_submit(data: bytes) -> tuple[SubmitHeader, Body]:
    """Return the header of a submit and the bytes that it describes.

    Raises:
        InvalidRequest: it is no frame, or its header lacks something.
    """
    head, body = split_frame(data)
    try:
        header = codec.read(SubmitHeader, bytes(head))
    except (ValueError, RecursionError) as exc:
        raise InvalidRequest(f"the header of the frame: {exc}") from exc
    if not 0 < len(header.key) <= MAX_KEY_CHARACTERS:
        raise InvalidRequest(
            "key is missing or too long: 32 random hex digits that name this very submit"
        )
    return header, Body(body)


def parse_spec(data: bytes) -> JobSpec:
    """Return the spec whose JSON ``data`` is.

    Raises:
        InvalidRequest: it is none; the message names the field.
        PayloadTooLarge: its variables, paths and dependencies are too many to be kept with each job.
    """
    if len(data) > MAX_SPEC_BYTES:
        raise PayloadTooLarge(
            f"the spec has {len(data)} bytes, and at most {MAX_SPEC_BYTES} are taken",
            hint="Send data as arguments, not in variables, labels or names.",
        )
    return _parse_usual(data) if len(data) <= KEPT_SPEC_BYTES else _parse(data)


def _parse(data: bytes) -> JobSpec:
    return read_as(JobSpec, read_json(data), "spec")


# One notebook sends the same bytes again and again.
_parse_usual = lru_cache(maxsize=KEPT_SPECS)(_parse)


async def read_spec(services: Services, caller: Caller, header: SubmitHeader) -> JobSpec:
    """Return the spec of a submit; its Python and its code are here, its parent is who asks.

    Raises:
        InvalidRequest: a field is wrong, or this machine lacks the submitter's Python.
        NotFound: the code version was never sent, or the caller has no secret of that name.
        DiskFull: the disk is down to its floor; what runs goes on, nothing new is taken.
        NotAllowed: a job asks for something of this machine that it does not have itself.
    """
    services.disk.require()
    spec = parse_spec(bytes(header.spec))
    if caller.job is not None:
        check_child(spec, services.jobs.running_spec(caller.job.jid))
    await services.environments.check(
        caller.user_id, spec.host_python, spec.folder, [parse_volume(v) for v in spec.volumes]
    )
    if spec.code_version:
        await services.code.require(caller.user_id, spec.code_version)
    if spec.secrets or spec.secret_versions:
        spec = _with_versions(services, caller, spec)
    parent_jid = caller.job.jid if caller.job else None
    return spec if parent_jid == spec.parent_jid else replace(spec, parent_jid=parent_jid)


def _with_versions(services: Services, caller: Caller, spec: JobSpec) -> JobSpec:
    """Return ``spec`` with its secrets checked and their versions as they are now."""
    try:
        pairs = check_job_secrets(spec.secrets)
    except ValueError as exc:
        raise InvalidRequest(str(exc)) from exc
    versions = services.secrets.versions(caller.user_id, [name for _, name in pairs])
    return replace(spec, secrets=pairs, secret_versions=versions)


async def read_payload(
    services: Services, caller: Caller, ref: PayloadRef, name: str, body: Body
) -> Payload:
    """Return one payload: its bytes out of ``body``, or the blob that its upload became.

    Raises:
        InvalidRequest: sizes do not fit, or it is too large to travel in the body.
        NotFound: the upload is not finished or not the caller's.
    """
    if ref.upload is not None:
        return await services.uploads.take(caller.user_id, ref)
    if ref.size_bytes > INLINE_BYTES:
        raise InvalidRequest(
            f"{name} has {ref.size_bytes} bytes; above {INLINE_BYTES} it must be uploaded first"
        )
    return body.take(ref.size_bytes, name)


async def read_function(
    services: Services, caller: Caller, ref: PayloadRef, body: Body
) -> Function:
    """Return the function of a submit, its digest checked: runners keep functions by it.

    Raises:
        InvalidRequest: the bytes have another digest. Otherwise as `read_payload`.
    """
    payload = await read_payload(services, caller, ref, "function", body)
    digest = ref.digest
    if isinstance(payload, BlobRef):
        if not digest:
            raise InvalidRequest("function.digest is missing: the sha256 in hex of its bytes")
        try:
            await services.blobs.verify(payload)
        except Corrupt as exc:
            raise InvalidRequest(
                f"the uploaded function does not have the sha256 {digest[:80]}; send it again"
            ) from exc
        return Function(payload, digest)
    found = hashlib.sha256(payload).hexdigest()
    if digest and digest != found:
        raise InvalidRequest(f"the function's sha256 is {found}, not {digest}; send it again")
    return Function(payload, found)
