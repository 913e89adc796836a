"""The runner's loop: frames from the supervisor, chunks run, results back."""

import gc
import os
import sys
from collections.abc import Callable
from typing import Any

from picloud_jupyter.protocol.frames import OLDEST_WIRE_VERSION, WIRE_VERSION, pack_frame
from picloud_jupyter.protocol.recent import RecentKeys
from picloud_kernels.runner.calls import CallRunner, Chunk, Wire
from picloud_kernels.runner.functions import Function
from picloud_kernels.runner.link import Link, Tokens
from picloud_kernels.runner.output import Output
from picloud_kernels.runner.reset import Baseline, restore_default_signals
from picloud_kernels.runner.startup import RunnerConfig, become_users_interpreter

_TEMPORARY = "/tmp"  # noqa: S108  # in a container it is the container's own
MAX_FUNCTIONS = 64  # the supervisor counts alike: docs/internals.md 3


def serve(
    config_json: dict[str, Any], *, link_fd: int, token_fd: int, rss_bytes: Callable[[], int]
) -> None:
    """Run chunks until the supervisor says stop or closes the link."""
    config = RunnerConfig.from_json(config_json)
    link = Link(link_fd)
    tokens = Tokens(token_fd)
    restore_default_signals()
    become_users_interpreter(config)
    output = Output(config.marker)
    baseline = Baseline(temporary=_TEMPORARY if config.isolated else "")
    calls = CallRunner(config, Wire(link.send, tokens.take, rss_bytes), output, baseline)
    functions: RecentKeys[Function] = RecentKeys(MAX_FUNCTIONS)
    gc.freeze()
    while (received := link.receive()) is not None:
        header, body = received
        name = header["t"]
        if name == "chunk":
            chunk = Chunk.from_frame(header, body, link.take_descriptors(len(header["files"])))
            calls.run(chunk, _function_of(chunk, functions, baseline))
        elif name == "function":
            descriptors = link.take_descriptors(1 if header.get("file") else 0)
            functions.put(header["digest"], Function(body, descriptors))
        elif name == "hello":
            _check_wire(header, link)
        elif name == "stop":
            break
    output.flush()
    os._exit(0)  # leftover threads of elements must not keep the interpreter


def _function_of(chunk: Chunk, functions: RecentKeys[Function], baseline: Baseline) -> Function:
    function = functions.get(chunk.function_digest)
    if chunk.function_body or chunk.function_descriptors:
        if function is None:
            function = Function(chunk.function_body, chunk.function_descriptors)
            functions.put(chunk.function_digest, function)
        else:
            chunk.close_function()
    if function is None:
        raise RuntimeError(
            f"the supervisor left out function {chunk.function_digest}, which this runner does not have"
        )
    if function.load():
        baseline.adopt_imports()
    return function


def _check_wire(header: dict[str, Any], link: Link) -> None:
    if header["wire"] >= OLDEST_WIRE_VERSION and header["oldest"] <= WIRE_VERSION:
        return
    message = (
        f"the runner speaks wire versions {OLDEST_WIRE_VERSION} to {WIRE_VERSION}, the supervisor "
        f"{header['oldest']} to {header['wire']}; restart the service to bring both to one version"
    )
    link.send(pack_frame({"t": "refused", "message": message}))
    sys.exit(message)
