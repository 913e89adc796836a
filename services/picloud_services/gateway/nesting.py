"""What a job may ask for the jobs that it submits: nothing of this machine that it has not itself. Pure."""

from picloud_jupyter.protocol.errors import NotAllowed
from picloud_jupyter.protocol.jobs import JobSpec, NetworkPolicy
from picloud_services.dispatch.sandbox import Volume, parse_volume


def check_child(spec: JobSpec, parent: JobSpec) -> None:
    """Return if a job with ``parent`` may submit ``spec``.

    Raises:
        NotAllowed: it asks for a Python, a folder, code, a secret, a volume or a network that it does
            not have itself.
        InvalidRequest: a volume is of another form.
    """
    for name, words in (
        ("host_python", "Python"),
        ("folder", "submitting folder"),
        ("code_version", "code version"),
    ):
        if getattr(spec, name) != getattr(parent, name):
            raise NotAllowed(
                f"a job submits jobs with its own {words} ({name}) only",
                hint="submit from outside of jobs what needs another one",
            )
    if parent.network is NetworkPolicy.NONE and spec.network is not NetworkPolicy.NONE:
        raise NotAllowed(
            "a job without a network submits jobs without one only",
            hint="submit with _network='none'",
        )
    if foreign := {name for _, name in spec.secrets} - {name for _, name in parent.secrets}:
        raise NotAllowed(
            f"a job may give its jobs only the secrets that it has itself, not {min(foreign)!r}",
            hint="name it in _secrets of the job that submits",
        )
    if spec.volumes:
        own = [parse_volume(text) for text in parent.volumes]
        for text in spec.volumes:
            if not _is_within(parse_volume(text), own):
                raise NotAllowed(
                    f"a job may give its jobs only the volumes that it has itself, not {text[:200]!r}",
                    hint="name it in _vol of the job that submits, with the same folder and mode",
                )


def _is_within(volume: Volume, own: list[Volume]) -> bool:
    """Whether ``volume`` is the very folder of one of ``own``, with no more rights.

    A folder inside one would not do: a job that may write there can make it a link to anywhere.
    """
    source, _, mode = volume
    if any(
        source != s and source.startswith(s.rstrip("/") + "/") and m == "rw" for s, _, m in own
    ):
        return False
    return any(source == s and (mode == "ro" or m == "rw") for s, _, m in own)
