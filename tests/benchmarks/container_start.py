"""How long a new container takes to its first Python instruction, without an agent around it."""

import os
import time
from pathlib import Path

from picloud_jupyter.protocol.jobs import ContainerKind
from tests.tools.container_harness import Lab, read_all

SAY_WHEN = "import time; print(time.monotonic(), flush=True)"


class ContainerStarts:
    """Makes containers of ``kind`` one after another, everything but the start prepared."""

    def __init__(self, kind: str, folder: Path) -> None:
        self._lab = Lab(ContainerKind(kind), folder, os.geteuid())
        self._container = self._lab.container()

    def first_instruction_seconds(self) -> float:
        """Return the seconds from the request to the first line of Python inside."""
        out, out_fd = os.pipe()
        err, err_fd = os.pipe()
        request = self._lab.request(
            out_fd, err_fd, command_tail=("-S", "-E", "-s", "-c", SAY_WHEN)
        )
        began = time.monotonic()
        running = self._container.start(request)
        os.close(out_fd)
        os.close(err_fd)
        said, complaint = read_all(out, err)
        os.waitpid(running.pid, 0)
        self._container.clean(request, running)
        os.close(out)
        os.close(err)
        assert said, complaint
        return float(said) - began
