"""Finds the paths of what a chunk names, and puts the chunk together."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from picloud_jupyter.protocol.jobs import JobSpec, SandboxSpec
from picloud_services.blobs.store import BlobRef, BlobStore
from picloud_services.dispatch.cluster import HeldLease
from picloud_services.dispatch.engine import Chunk, FilePayload
from picloud_services.dispatch.sandbox import single_use
from picloud_services.jobs.leasing import Arguments
from picloud_services.jobs.words import Function

KEPT_FUNCTIONS = 256
Pairs = tuple[tuple[str, str], ...]
CodePath = Callable[[int, str], Awaitable[Path]]  # of a user, and a code version
# (user, (variable, name) pairs) -> (variable, value) pairs; NotFound if one was deleted
SecretValues = Callable[[int, Pairs], Pairs]


@dataclass(frozen=True, slots=True)
class ChunkSources:
    """Where the parts of a chunk come from that are not in its rows."""

    blobs: BlobStore
    code_path: CodePath
    lease_key: Callable[[str], str]
    secret_values: SecretValues


class ChunkBuilder:
    """Builds chunks. Those without files are ready at once."""

    def __init__(self, sources: ChunkSources) -> None:
        self._blobs = sources.blobs
        self._code_path = sources.code_path
        self._lease_key = sources.lease_key
        self._secret_values = sources.secret_values
        self._code_paths: dict[tuple[int, str], str] = {}
        self._functions: OrderedDict[str, Function] = OrderedDict()

    def keep(self, function: Function) -> None:
        """Keep a small function for chunks to come."""
        self._functions[function.digest] = function
        self._functions.move_to_end(function.digest)
        if len(self._functions) > KEPT_FUNCTIONS:
            self._functions.popitem(last=False)

    def function(self, digest: str) -> Function | None:
        """Return a kept function."""
        return self._functions.get(digest)

    def at_once(
        self, user_id: int, spec: JobSpec, arguments: Arguments, function: Function
    ) -> bool:
        """Return whether a chunk can be built without looking for files."""
        return (
            not arguments.files
            and isinstance(function.payload, bytes)
            and (not spec.code_version or (user_id, spec.code_version) in self._code_paths)
        )

    async def find(
        self, user_id: int, spec: JobSpec, arguments: Arguments, function: Function
    ) -> tuple[FilePayload, ...]:
        """Return the files that the chunk names; also finds the code archive.

        Raises:
            NotFound, Corrupt: one is gone or damaged.
        """
        version = spec.code_version
        if version and (user_id, version) not in self._code_paths:
            self._code_paths[user_id, version] = str(await self._code_path(user_id, version))
        files = []
        if isinstance(function.payload, BlobRef):
            files.append(await self._file(-1, function.payload))
        for jid, ref in arguments.files:
            files.append(await self._file(jid - arguments.first_jid, ref))
        return tuple(files)

    async def _file(self, position: int, ref: BlobRef) -> FilePayload:
        path = await self._blobs.local_path(ref)
        return FilePayload(position, str(path), ref.size_bytes, ref.digest)

    def build(
        self,
        held: HeldLease,
        spec: JobSpec,
        sandbox: tuple[SandboxSpec, str],
        arguments: Arguments,
        function: Function,
        files: tuple[FilePayload, ...] = (),
        estimate_seconds: float = 0.0,
    ) -> Chunk:
        """Return the chunk of a lease, with the secrets of its jobs as they are now.

        Raises:
            NotFound: a secret was deleted since the jobs were submitted.
        """
        payload = function.payload
        code = held.slot.user_id, spec.code_version
        return Chunk(
            lease=held.lease,
            slot=held.slot.slot,
            sandbox_digest=sandbox[1],
            sandbox=sandbox[0],
            function_digest=function.digest,
            function=payload if isinstance(payload, bytes) else b"",
            arguments=arguments.pack,
            jids=((held.first_jid, held.first_jid + held.count - 1),),
            user_id=held.slot.user_id,
            attempt=held.attempt,
            single_use=single_use(spec),
            fresh=held.fresh,
            max_runtime_seconds=spec.max_runtime_seconds,
            profile=spec.profile,
            fast_serialization=spec.fast_serialization,
            max_result_bytes=spec.max_result_bytes or 0,
            lease_key=self._lease_key(held.lease),
            code_path=self._code_paths[code] if spec.code_version else "",
            files=files,
            estimate_seconds=estimate_seconds,
            kind=str(spec.kind),
            secrets=(
                self._secret_values(held.slot.user_id, spec.secrets) if spec.secrets else ()
            ),
        )
