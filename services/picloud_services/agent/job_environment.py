"""The environment variables of a job. Pure; nothing of the service's own is taken over."""

from collections.abc import Mapping

from picloud_jupyter.protocol.jobs import SandboxSpec

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
KEPT = (
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
)  # how times and letters look is the machine's matter
# Each library that would otherwise start a thread per core of the whole machine.
THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "LOKY_MAX_CPU_COUNT",
    "PYTHON_CPU_COUNT",
)


def job_environment(
    spec: SandboxSpec,
    variables: Mapping[str, str],
    *,
    places: Mapping[str, str],
    host: Mapping[str, str],
) -> dict[str, str]:
    """Return what the runner finds in os.environ.

    ``variables`` are the request's and win over the spec's, which win over ours. ``places`` has
    "home", "tmp" and "run_dir" as seen by the job; ``host`` is the service's own environment, of
    which language and time zone are kept.
    """
    python = spec.host_python
    cores = str(max(1, round(spec.cpu_cores)))
    programs = python.executable.rpartition("/")[0]
    found = {
        "PATH": f"{programs}:{SYSTEM_PATH}",
        "HOME": places["home"],
        "USER": "picloud",
        "LOGNAME": "picloud",
        "SHELL": "/bin/sh",
        "LANG": "C.UTF-8",
        "TMPDIR": places["tmp"],
        "PICLOUD_RUN_DIR": places["run_dir"],
        **dict.fromkeys(THREADS, cores),
        **{name: host[name] for name in KEPT if name in host},
    }
    if python.prefix != python.base_prefix:
        found["VIRTUAL_ENV"] = python.prefix
    return {**found, **dict(spec.variables), **variables}
