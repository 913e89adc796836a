"""The words about nodes and their agents."""

from dataclasses import dataclass

from picloud_jupyter.protocol.jobs import ContainerKind, LimitsGrade, Resources


@dataclass(frozen=True, slots=True)
class KindTrial:
    """What one container kind did when it was tried on a node.

    ``why`` says why it was refused ("" if it works), ``mend`` the one line that would mend it.
    """

    kind: ContainerKind
    works: bool
    program: str = ""
    why: str = ""
    mend: str = ""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that jobs may use: ``device`` is its file, ``index`` the number at that file's end."""

    index: int
    device: str
    uuid: str = ""
    model: str = ""


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What an agent says of its node when a control plane connects.

    ``boot_id`` is fresh for each agent process; ``logs`` is the folder of job output on the node.
    ``gpu_note`` says why there is no GPU, ``network_note`` why not a better network.
    """

    node: str
    boot_id: str
    process_id: int
    capacity: Resources
    container_kind: ContainerKind
    limits_grade: LimitsGrade
    network: str = ""
    logs: str = ""
    trials: tuple[KindTrial, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    gpu_note: str = ""
    network_note: str = ""
