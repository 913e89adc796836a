"""The three kinds of container behind one door."""

from picloud_jupyter.protocol.jobs import ContainerKind
from picloud_services.agent.bubblewrap import BubblewrapContainer
from picloud_services.agent.container import Container
from picloud_services.agent.plain_process import PlainProcess


def make_container(kind: ContainerKind, program: str = "") -> Container:
    """Return the way to make containers of ``kind``.

    ``program`` is the bwrap that was chosen by trial (`KindTrial.program`); the plain kind needs
    none.
    """
    if kind is ContainerKind.PLAIN:
        return PlainProcess()
    return BubblewrapContainer(kind, program)
