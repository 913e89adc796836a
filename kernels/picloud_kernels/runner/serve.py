"""The runner's loop: frames from the supervisor, chunks run, results back."""

import functools
import gc
import os
import sys
from collections.abc import Callable
from typing import Any

from picloud_jupyter.protocol.frames import OLDEST_WIRE_VERSION, WIRE_VERSION, pack_frame
from picloud_kernels.runner.calls import CallRunner, Wire
from picloud_kernels.runner.chunk import Chunk
from picloud_kernels.runner.functions import FunctionCache
from picloud_kernels.runner.link import Link, Tokens, take_private
from picloud_kernels.runner.output import Output
from picloud_kernels.runner.reset import Baseline, restore_default_signals
from picloud_kernels.runner.result_file import use_folder
from picloud_kernels.runner.startup import RunnerConfig, become_users_interpreter

_TEMPORARY = "/tmp"  # noqa: S108  # in a container it is the container's own


def serve(
    config_json: dict[str, Any],
    *,
    link_fd: int,
    token_fd: int,
    memory_fd: int,
    rss_bytes: Callable[[int], int],
) -> None:
    """Run chunks until the supervisor says stop or closes the link."""
    config = RunnerConfig.from_json(config_json)
    link = Link(link_fd)
    tokens = Tokens(token_fd)
    memory = functools.partial(rss_bytes, take_private(memory_fd))
    use_folder(config.out_dir)
    restore_default_signals()
    become_users_interpreter(config)
    output = Output(config.marker)
    baseline = Baseline(temporary=_TEMPORARY if config.isolated else "")
    calls = CallRunner(
        config, Wire(link.send, tokens.take, tokens.take_all, memory), output, baseline
    )
    cache = FunctionCache()
    gc.freeze()
    while (received := link.receive()) is not None:
        header, body = received
        name = header["t"]
        if name == "chunk":
            chunk = Chunk.from_frame(header, body, link.take_descriptors(len(header["files"])))
            calls.adopt_secrets(chunk.secrets)
            function = cache.of_chunk(chunk)
            if cache.prepare(function):
                baseline.adopt_imports()
            calls.run(chunk, function)
        elif name == "function":
            cache.announce(header["digest"], body)
        elif name == "hello":
            _check_wire(header, link)
        elif name == "stop":
            break
    output.flush()
    os._exit(0)  # leftover threads of elements must not keep the interpreter


def _check_wire(header: dict[str, Any], link: Link) -> None:
    if header["wire"] >= OLDEST_WIRE_VERSION and header["oldest"] <= WIRE_VERSION:
        return
    message = (
        f"the runner speaks wire versions {OLDEST_WIRE_VERSION} to {WIRE_VERSION}, the supervisor "
        f"{header['oldest']} to {header['wire']}; restart the service to bring both to one version"
    )
    link.send(pack_frame({"t": "refused", "message": message}))
    sys.exit(message)
