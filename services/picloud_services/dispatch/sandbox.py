"""From what a client asks for to what a container is: the sandbox spec and its digest. Pure."""

import posixpath

from picloud_jupyter.protocol.errors import InvalidRequest
from picloud_jupyter.protocol.jobs import (
    ContainerKind,
    JobSpec,
    Kind,
    NetworkPolicy,
    Resources,
    SandboxSpec,
)
from picloud_services.base import codec

Volume = tuple[str, str, str]
MODES = ("ro", "rw")
# Inside, these are each container's own and would cover a volume; _OWN_TREES with all below them.
_OWN_FOLDERS = ("/", "/home", "/home/picloud", "/run", "/tmp", "/var/tmp")  # noqa: S108
_OWN_TREES = ("/dev", "/proc", "/sys", "/run/picloud")
_REUSED_KINDS = (Kind.CALL, Kind.CELL, Kind.SHELL)


def parse_volume(text: str) -> Volume:
    """Return (host path, path inside, mode) of ``/data:/data`` or ``/data:/data:rw``.

    Raises:
        InvalidRequest: it is of another form; named volumes do not exist here.
    """
    host, _, rest = text.partition(":")
    inside, _, mode = rest.partition(":")
    if not inside:
        raise InvalidRequest(
            f"there is no volume {text[:200]!r}: named volumes are not available here",
            hint="show a folder of this machine with _vol='/host/folder:/path/inside[:rw]'",
        )
    if not (host.startswith("/") and inside.startswith("/")):
        raise InvalidRequest(f"both paths of volume {text[:200]!r} must begin with /")
    if (mode or "ro") not in MODES:
        raise InvalidRequest(f"the mode of volume {text[:200]!r} must be ro or rw")
    return posixpath.normpath(host), posixpath.normpath(inside), mode or "ro"


def check_spec(spec: JobSpec, kinds: set[ContainerKind]) -> None:
    """Return if containers of ``kinds`` can give what ``spec`` asks for.

    Raises:
        InvalidRequest: they cannot; the message names the keyword.
    """
    if spec.environment is not None:
        raise InvalidRequest(
            f"there is no environment {spec.environment[:80]!r}: saved environments are not available here",
            hint="leave _env out: jobs see the Python that you submit from",
        )
    volumes = [parse_volume(text) for text in spec.volumes]
    for _, inside, _ in volumes:
        _check_inside(inside)
    for name, value in spec.variables:
        if not name or "=" in name or "\0" in name + value:
            raise InvalidRequest(
                f"{name[:80]!r} cannot be an environment variable of a job",
                hint="a name has at least one letter and no =; names and values have no NUL character",
            )
    if kinds != {ContainerKind.PLAIN}:
        return
    if volumes:
        raise InvalidRequest(
            "a volume (_vol) needs a container, and jobs here are plain processes, not isolated",
            hint="picloud doctor says why, and what mends it",
        )
    if spec.network is NetworkPolicy.NONE:
        raise InvalidRequest(
            "_network='none' needs a container, and jobs here are plain processes on the host's network",
            hint="picloud doctor says why, and what mends it",
        )


def _check_inside(inside: str) -> None:
    place = "/" + inside.lstrip("/")
    if place in _OWN_FOLDERS or f"{place}/".startswith(tuple(f"{t}/" for t in _OWN_TREES)):
        raise InvalidRequest(
            f"a volume cannot be shown at {inside[:200]!r}: that place is the container's own",
            hint="choose another path inside, like /data",
        )


def build_sandbox(
    spec: JobSpec, user_id: int, wanted: Resources, environment_id: str
) -> tuple[SandboxSpec, str]:
    """Return the sandbox of jobs of ``spec`` that occupy ``wanted`` each, and its digest."""
    sandbox = SandboxSpec(
        user_id=user_id,
        host_python=spec.host_python,
        core_type=spec.core_type,
        cores=spec.cores,
        cpu_cores=float(spec.cores),
        memory_bytes=wanted.memory_bytes,
        folder=spec.folder,
        code_version=spec.code_version,
        volumes=tuple(parse_volume(text) for text in spec.volumes),
        variables=spec.variables,
        network=spec.network,
        environment_id=environment_id,
        secrets=tuple(
            (variable, name, version)
            for (variable, name), version in zip(
                spec.secrets, spec.secret_versions, strict=True
            )
        ),
        gpus=spec.gpus,
    )
    return sandbox, codec.digest(sandbox)


def single_use(spec: JobSpec) -> bool:
    """Return whether a runner serves one job of ``spec`` only."""
    return spec.kill_process or spec.profile or spec.kind not in _REUSED_KINDS
