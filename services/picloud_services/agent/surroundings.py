"""What a container has around it while it lives: network, way to the control plane, sampler."""

import functools
from collections.abc import Callable
from pathlib import Path

from picloud_jupyter.protocol.jobs import ContainerKind, SandboxSpec
from picloud_services.agent.forward import Forwarder
from picloud_services.agent.gpus import device_indices
from picloud_services.agent.network import Network
from picloud_services.agent.nvml import Nvml
from picloud_services.agent.orders import StartOrder
from picloud_services.agent.processes import process_gid
from picloud_services.agent.sampler import SampledContainer, Sampler
from picloud_services.agent.supervisor_client import SupervisorClient
from picloud_services.config import Settings


class Surroundings:
    """Networks, forwarding sockets and figures of all containers of one agent; on the event loop."""

    def __init__(self, settings: Settings, network: Network, sampler: Sampler) -> None:
        self._jobs_socket = settings.paths.jobs_socket
        self._network = network
        self._sampler = sampler
        self._forwarders: dict[str, Forwarder] = {}
        self._nvml = Nvml()

    def variables(self, spec: SandboxSpec) -> dict[str, str]:
        """Return the environment variables that a container of ``spec`` needs."""
        return self._network.variables(spec.network)

    def resolver(self, spec: SandboxSpec) -> str | None:
        """Return the container's /etc/resolv.conf; None leaves the machine's."""
        return self._network.resolver(spec.network)

    async def serve(self, order: StartOrder) -> None:
        """Listen for requests of code inside. Before the container starts.

        Raises:
            OSError: the socket cannot be made.
        """
        forwarder = Forwarder(Path(order.request.run_dir) / "api.sock", self._jobs_socket)
        await forwarder.start()
        self._forwarders[order.container] = forwarder

    def attach(self, client: SupervisorClient, init_pid: int, cgroups: tuple[str, ...]) -> None:
        """Begin to connect the container, whose first process is ``init_pid``, to its network."""
        order, spec = client.order, client.order.request.spec
        uid, gid = order.request.host_uid, process_gid(init_pid)
        if gid is not None:  # else it is gone already, as its supervisor will say
            self._network.attach(order.container, init_pid, uid, gid, spec.network)
        assert client.process is not None
        is_plain = order.kind is ContainerKind.PLAIN
        self._sampler.add(
            SampledContainer(
                order.container,
                supervisor_pid=client.process.pid,
                init_pid=0 if is_plain else init_pid,
                cgroups=cgroups,
                memory_limit_bytes=spec.memory_bytes,
                traffic=functools.partial(self._network.traffic, order.container),
                gpu_usage=self._gpu_usage(order),
            )
        )

    def _gpu_usage(self, order: StartOrder) -> Callable[[], tuple[float, int] | None] | None:
        indices = device_indices(order.request.devices)
        return functools.partial(self._nvml.usage, indices) if indices else None

    def is_ready(self, container: str) -> bool:
        """Whether a job may start in ``container`` without a wait."""
        return self._network.is_ready(container)

    async def wait_ready(self, container: str) -> str:
        """Return "" once the network is there, or why there is none."""
        return await self._network.wait_ready(container)

    def rest(self, container: str) -> None:
        """Save memory while ``container`` is idle; `wait_ready` undoes it."""
        self._network.suspend(container)

    async def leave(self, container: str) -> None:
        """Take down what belongs to ``container``."""
        if (forwarder := self._forwarders.pop(container, None)) is not None:
            await forwarder.close()
        self._sampler.remove(container)
        await self._network.detach(container)

    async def close(self) -> None:
        """Let go of all containers; what runs keeps its network."""
        for container in list(self._forwarders):
            await self._forwarders.pop(container).close()
        self._nvml.close()
        await self._network.close(keep=True)
