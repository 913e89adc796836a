"""What a call and a map have in common: the function as bytes, and the spec."""

import functools
import os
import socket
from binascii import hexlify
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import picloud_jupyter
from picloud_jupyter.cloud import kept_functions
from picloud_jupyter.cloud.code import code_version
from picloud_jupyter.cloud.functions import Runnable, function_name
from picloud_jupyter.cloud.host_python import host_python
from picloud_jupyter.cloud.kept_functions import PickledFunction
from picloud_jupyter.cloud.keywords import Options
from picloud_jupyter.cloud.session import Session, show_warnings
from picloud_jupyter.cloud.settings import config
from picloud_jupyter.cloud.uploads import check_size, upload
from picloud_jupyter.protocol import routes
from picloud_jupyter.protocol.cells import Cell
from picloud_jupyter.protocol.codec import from_wire, to_wire
from picloud_jupyter.protocol.errors import (
    InternalError,
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
)
from picloud_jupyter.protocol.frames import Buffer, encode_json
from picloud_jupyter.protocol.jobs import INLINE_BYTES, HostPython, JobSpec
from picloud_jupyter.protocol.shell import ShellCommand
from picloud_jupyter.serialize.payload import digest, dump_function
from picloud_jupyter.serialize.pickler import References
from picloud_jupyter.transport.paths import checked

# Python, folder and code version; None = that is to be found out
Place = tuple[HostPython, str, str | None]


@dataclass(slots=True)
class Submission:
    """A function ready to be sent, with the JSON that says how its jobs shall run."""

    spec_json: bytes
    key_json: bytes
    function_json: bytes
    function_parts: Sequence[Buffer]

    def header(self, name: str, value: bytes) -> bytes:
        """Return the header of a submit's frame; its last field is ``name``, with JSON as value."""
        return b'{"spec":%b,"key":%b,"function":%b,"%b":%b}' % (
            self.spec_json,
            self.key_json,
            self.function_json,
            name.encode(),
            value,
        )


def dump_checked_function(func: Runnable, references: References) -> PickledFunction:
    """Return ``func`` as bytes, and add what they mention to the empty ``references``.

    Raises:
        pickle.PicklingError: something it uses cannot be pickled; named by path.
        PayloadTooLarge: it takes along more than `cloud.config.max_closure_data`.
    """
    kept = kept_functions.find(func, references)
    if kept is not None:
        return kept
    data = dump_function(func, references=references, file_limit_bytes=config.max_transmit_data)
    _check_function_size(func, data)
    pickled = PickledFunction(data, function_name(func))
    kept_functions.keep(func, pickled, references)
    return pickled


def _check_function_size(func: Runnable, data: bytes) -> None:
    if isinstance(func, ShellCommand | Cell):  # the files it takes along are like arguments
        what = "cell" if isinstance(func, Cell) else "command"
        check_size([data], config.max_transmit_data, f"the {what} and its files")
        return
    limit = config.max_closure_data
    if len(data) <= limit:
        return
    from picloud_jupyter.serialize.explain import closure_sizes

    largest = ", ".join(f"{name} ({size:,} bytes)" for name, size in closure_sizes(func)[:3])
    raise PayloadTooLarge(
        f"the function {function_name(func)} takes along {len(data):,} bytes, more than the {limit:,} allowed; the largest: {largest}",
        hint="pass such data as an argument, or raise cloud.config.max_closure_data",
    )


def prepare(
    session: Session,
    func: Runnable,
    function: PickledFunction,
    references: References,
    options: Options,
) -> Submission:
    """Return ``func`` (pickled as ``function``) ready to be sent, its local code shipped."""
    host, folder, version = _place(session)
    if version is None:
        # a command uses no Python module of the submitter's
        is_command = isinstance(func, ShellCommand)
        version = "" if is_command else code_version(session, func, references)
    state = (options, host, folder, version, os.getpid())
    made_for, spec_json = function.spec
    if made_for != state:
        spec_json = _spec_json(function.name, *state)
        function.spec = (state, spec_json)
    reference_json, parts = _place_function(session, function)
    key_json = encode_json(options.key) if options.key else b'"%b"' % hexlify(os.urandom(16))
    return Submission(spec_json, key_json, reference_json, parts)


def submit(
    session: Session, route: str, header: bytes, parts: Sequence[Buffer]
) -> dict[str, Any]:
    """Return the answer to a submit, its warnings shown.

    Raises:
        CloudException: the control plane refused it; the class says how.
    """
    try:
        answer: dict[str, Any] = session.client.send_frame("POST", route, header, parts)
    except NotFound:
        session.codes.clear()  # it may have lost them: the next submit looks, and sends them
        raise
    if answer.get("warnings"):
        show_warnings(answer["warnings"])
    return answer


def _place_function(
    session: Session, function: PickledFunction
) -> tuple[bytes, Sequence[Buffer]]:
    """The JSON of the function's reference, and what of it travels in the request's body."""
    parts = (function.data,)
    size_bytes = len(function.data)
    if size_bytes > INLINE_BYTES:
        return encode_json(upload(session, parts, size_bytes)), ()
    if not function.reference_json:
        reference = {"size_bytes": size_bytes, "digest": digest(parts)}
        function.reference_json = encode_json(reference)
    return function.reference_json, parts


def _place(session: Session) -> Place:
    """Where jobs run: this Python and folder, or inside a job those of that job."""
    if session.job is None:
        return host_python(), _folder() if session.local else "", None
    if session.place is None:
        session.place = _place_of_job(session, session.job.jid)
    return session.place


def _folder() -> str:
    try:
        return checked(os.getcwd())
    except FileNotFoundError as exc:
        raise InvalidRequest(
            "the working folder of this program was removed, and jobs begin there",
            hint="go to one that exists, with os.chdir, and call again",
        ) from exc


def _place_of_job(session: Session, jid: int) -> Place:
    """Where this job runs: what it submits runs there too, its code included."""
    request = {"jids": [(jid, jid)], "fields": ["host_python", "folder", "code_version"]}
    found = session.client.post(routes.INFO, request)["info"][str(jid)]
    try:
        host = from_wire(HostPython, found.get("host_python"))
    except ValueError as exc:
        raise InternalError(
            f"the control plane does not say which Python runs this job: {exc}"
        ) from exc
    return host, found.get("folder") or "", found.get("code_version") or ""


@functools.lru_cache(maxsize=64)
def _spec_json(
    name: str, options: Options, host: HostPython, folder: str, version: str, process_id: int
) -> bytes:
    spec = JobSpec(
        function_name=name,
        host_python=host,
        kind=options.kind,
        label=options.label,
        priority=options.priority,
        restartable=options.restartable,
        depends_on=options.depends_on,
        depends_on_errors=options.depends_on_errors,
        fast_serialization=options.fast_serialization,
        core_type=options.core_type,
        cores=options.cores,
        environment=options.environment,
        volumes=options.volumes,
        max_runtime_seconds=options.max_runtime_seconds,
        profile=options.profile,
        kill_process=options.kill_process,
        variables=options.variables,
        network=options.network,
        retries=options.retries,
        cache=options.cache,
        secrets=options.secrets,
        gpus=options.gpus,
        folder=folder,
        code_version=version,
        host_name=socket.gethostname(),
        process_id=process_id,
        client_version=picloud_jupyter.__version__,
    )
    return encode_json(to_wire(spec))
