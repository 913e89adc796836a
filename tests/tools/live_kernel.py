"""A real Jupyter kernel driven message by message, as a front end does."""

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

from picloud_jupyter import cloud

SECONDS = 40.0


@dataclass
class Ran:
    """What came back of one execution: the reply's content, and (type, content) in their order."""

    reply: dict[str, Any] = field(default_factory=dict)
    messages: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def stream(self, name: str) -> str:
        return "".join(
            str(content["text"])
            for kind, content in self.messages
            if kind == "stream" and content["name"] == name
        )

    @property
    def stdout(self) -> str:
        return self.stream("stdout")

    @property
    def stderr(self) -> str:
        return self.stream("stderr")

    def bundles(self, kind: str) -> list[dict[str, Any]]:
        return [content["data"] for found, content in self.messages if found == kind]

    @property
    def value(self) -> str | None:
        results = self.bundles("execute_result")
        return str(results[-1]["text/plain"]) if results else None

    @property
    def traceback(self) -> str:
        return "\n".join(self.reply.get("traceback", ()))

    @property
    def kinds(self) -> list[str]:
        """The kinds of messages in order, repeated ones once."""
        found: list[str] = []
        for kind, content in self.messages:
            name = content["name"] if kind == "stream" else kind
            if not found or found[-1] != name:
                found.append(name)
        return found

    def check(self) -> "Ran":
        assert self.reply["status"] == "ok", self.traceback or self.reply
        return self


class LiveKernel:
    """A kernel process and a client of it; what comes is sorted by the execution it belongs to."""

    def __init__(self, folder: Path) -> None:
        self.manager = KernelManager(kernel_name="python3")
        self.manager.start_kernel(cwd=str(folder))
        self.client: BlockingKernelClient = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)
        self.ran: dict[str, Ran] = {}

    def start(self, code: str) -> str:
        """Begin to execute ``code``; return the id of the request."""
        request: str = self.client.execute(code, allow_stdin=False)
        self.ran[request] = Ran()
        return request

    def run(self, code: str, *, seconds: float = SECONDS) -> Ran:
        return self.finish(self.start(code), seconds=seconds)

    def finish(self, request: str, *, seconds: float = SECONDS) -> Ran:
        """Return what came of a request, once its kernel is idle again."""
        deadline = time.monotonic() + seconds
        while not self._next(deadline - time.monotonic(), until_idle=request):
            assert time.monotonic() < deadline, f"not within {seconds} s: {self.ran[request]}"
        while True:
            reply = self.client.get_shell_msg(timeout=max(0.1, deadline - time.monotonic()))
            if reply["parent_header"]["msg_id"] == request:
                self.ran[request].reply = reply["content"]
                return self.ran[request]

    def listen(self, request: str, seen: Any, *, seconds: float = SECONDS) -> Ran:
        """Return what came of a request so far, as soon as ``seen(ran)`` is true."""
        deadline = time.monotonic() + seconds
        while not seen(self.ran[request]):
            assert time.monotonic() < deadline, f"not within {seconds} s: {self.ran[request]}"
            self._next(0.1)
        return self.ran[request]

    def _next(self, seconds: float, until_idle: str = "") -> bool:
        try:
            message = self.client.get_iopub_msg(timeout=max(0.05, min(seconds, 1.0)))
        except Empty:
            return False
        parent = message["parent_header"].get("msg_id", "")
        kind, content = message["msg_type"], message["content"]
        if kind == "status":
            return bool(content["execution_state"] == "idle" and parent == until_idle)
        if kind not in ("execute_input", "comm_open", "comm_msg"):
            self.ran.setdefault(parent, Ran()).messages.append((kind, content))
        return False

    def complete(self, code: str) -> list[str]:
        """Return what TAB offers at the end of ``code``."""
        reply = self.client.complete(code, reply=True, timeout=SECONDS)
        matches: list[str] = reply["content"]["matches"]
        return matches

    def value(self, expression: str) -> Any:
        """Return what JSON of ``expression`` in the kernel is."""
        ran = self.run(f"import json; print(json.dumps({expression}))").check()
        return json.loads(ran.stdout)

    def interrupt(self) -> None:
        self.manager.interrupt_kernel()

    def end(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
        self.manager.cleanup_resources()


@contextlib.contextmanager
def kernel_with_magics(folder: Path) -> Iterator[LiveKernel]:
    """Give a kernel in ``folder`` that knows %%picloud; it is ended afterwards."""
    kernel = LiveKernel(folder)
    try:
        kernel.run("%load_ext picloud_jupyter").check()
        yield kernel
    finally:
        kernel.end()


def last_jid(kernel: LiveKernel) -> int:
    """Return the job that was last submitted by a cell of ``kernel``."""
    registry = "get_ipython().magics_manager.registry"
    return int(kernel.value(f"{registry}['PicloudMagics'].jobs.jids[-1]"))


def last_info(kernel: LiveKernel, *fields: str) -> list[Any]:
    """Return ``fields`` of that job."""
    jid = last_jid(kernel)
    found = cloud.info(jid, list(fields))[jid]
    return [found[field] for field in fields]
