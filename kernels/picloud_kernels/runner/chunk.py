"""One chunk as it came."""

import os
from dataclasses import dataclass, field
from typing import Any

from picloud_jupyter.protocol.frames import Buffer, Pack


@dataclass(slots=True)
class Chunk:
    """One chunk as it came: docs/internals.md 2. Descriptors in ``files`` are ours to close."""

    lease: str
    function_digest: str
    function_body: Buffer
    function_descriptors: list[int]
    jids: list[tuple[int, int]]
    attempt: int
    user_id: int
    lease_key: str
    profile: bool
    fast: int
    max_result_bytes: int
    arguments: Pack
    files: dict[int, int] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict, repr=False)  # variable: value

    @classmethod
    def from_frame(cls, header: dict[str, Any], body: bytes, descriptors: list[int]) -> "Chunk":
        """Return the chunk of a frame and the descriptors that came with it.

        Raises:
            FrameError: the arguments are not a pack.
        """
        positions = [entry[0] for entry in header["files"]]
        files = dict(zip(positions, descriptors, strict=True))
        function_descriptor = files.pop(-1, None)
        view = memoryview(body)
        return cls(
            lease=header["lease"],
            function_digest=header["function"],
            function_body=view[: header["function_bytes"]],
            function_descriptors=[] if function_descriptor is None else [function_descriptor],
            jids=[(first, last) for first, last in header["jids"]],
            attempt=header["attempt"],
            user_id=header["user_id"],
            lease_key=header["lease_key"],
            profile=header["profile"],
            fast=header["fast"],
            max_result_bytes=header["max_result_bytes"],
            arguments=Pack(view[header["function_bytes"] :]),
            files=files,
            secrets=dict(header.get("secrets") or ()),
        )

    def close_function(self) -> None:
        """Close the function's file: the function is known already."""
        for descriptor in self.function_descriptors:
            os.close(descriptor)
        self.function_descriptors.clear()
