"""The reserved keywords of call and map: taken out, checked, turned into options. Pure.

Each does what it says or is refused here; none is accepted and ignored.
"""

import difflib
import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from picloud_jupyter.cloud.jid_ranges import read_jids
from picloud_jupyter.protocol.ids import JidRange
from picloud_jupyter.protocol.jobs import (
    CORE_TYPES,
    DEFAULT_PRIORITY,
    EndReason,
    Kind,
    NetworkPolicy,
    RetryPolicy,
)
from picloud_jupyter.protocol.secrets import check_job_secrets
from picloud_jupyter.transport.inside import SECRETS_VARIABLE

RETRIED_REASONS = (
    *(EndReason.ERROR, EndReason.EXIT_CODE, EndReason.OOM, EndReason.TIMEOUT),
    *(EndReason.CRASHED, EndReason.LOST_WORKER, EndReason.NODE_LOST, EndReason.DISK_FULL),
    *(EndReason.START_FAILED, EndReason.POISON, EndReason.INPUT_UNDESERIALIZABLE),
    *(EndReason.RESULT_UNSERIALIZABLE, EndReason.RESULT_TOO_LARGE, EndReason.SPOT_RECLAIMED),
)

NO_RETRIES = RetryPolicy()
MOST_MINUTES = 1000 * 365 * 24 * 60  # what every clock and number on the way can hold


@dataclass(frozen=True, slots=True)
class Options:
    """What the reserved keywords of one call or map asked for.

    Two are equal if they make the same spec: key and callbacks do not count. ``kind`` is no keyword: the
    doors set it.
    """

    label: str | None = None
    priority: int = DEFAULT_PRIORITY
    restartable: bool = True
    depends_on: tuple[JidRange, ...] = ()
    depends_on_errors: str = "abort"
    fast_serialization: int = 0
    core_type: str = "c1"
    cores: int = 1
    environment: str | None = None
    volumes: tuple[str, ...] = ()
    max_runtime_seconds: float | None = None
    profile: bool = False
    kill_process: bool = False
    variables: tuple[tuple[str, str], ...] = ()
    network: NetworkPolicy = NetworkPolicy.INTERNET
    retries: RetryPolicy = NO_RETRIES
    cache: bool = False
    secrets: tuple[tuple[str, str], ...] = ()
    gpus: int = 0
    key: str | None = field(default=None, compare=False)
    kind: Kind = Kind.CALL
    callbacks: tuple[Callable[..., object], ...] = field(default=(), compare=False)
    callbacks_on_error: tuple[Callable[..., object], ...] = field(default=(), compare=False)


DEFAULT_OPTIONS = Options()


def take_options(
    keywords: dict[str, Any],
    *,
    func: Callable[..., object] | None,
    environ: Mapping[str, str],
    callbacks: bool = True,
) -> Options:
    """Take the reserved keywords out of ``keywords`` and return them, checked.

    An underscore keyword that is not reserved stays if the signature of ``func`` takes it.
    ``environ`` is where `_os_env_vars` copies names from; ``callbacks`` whether there are any (map
    has none).

    Raises:
        TypeError: a value is of the wrong type, or an underscore keyword is unknown to both.
        ValueError: a value is outside what is allowed.
    """
    if not keywords:
        return DEFAULT_OPTIONS
    found: dict[str, Any] = {}
    for name in [name for name in keywords if name.startswith("_")]:
        reader = _READERS.get(name)
        if reader is None:
            _check_unreserved(name, func)
        elif reader in (_callback, _callback_on_error) and not callbacks:
            raise ValueError(f"{name} works with cloud.call only; for a map use cloud.iresult")
        else:
            value = keywords.pop(name)
            found.update(reader(_copied(value, environ) if name == "_os_env_vars" else value))
    if not found:
        return DEFAULT_OPTIONS
    options = Options(**found)
    _check_cores(options.core_type, options.cores)
    return options


def _check_unreserved(name: str, func: Callable[..., object] | None) -> None:
    if func is not None and _accepts(func, name):
        return
    near = difflib.get_close_matches(name, _READERS, n=3, cutoff=0.5)
    known = (
        f"did you mean {' or '.join(near)}?"
        if near
        else f"there are {', '.join(sorted(_READERS))}"
    )
    raise TypeError(
        f"{name} is not a keyword of cloud, and the function does not take it; {known}"
    )


def _accepts(func: Callable[..., object], name: str) -> bool:
    try:
        parameters = inspect.signature(func).parameters.values()
    except (TypeError, ValueError):
        return True  # a builtin that does not tell: it will say itself
    return any(
        p.kind is p.VAR_KEYWORD or (p.name == name and p.kind is not p.POSITIONAL_ONLY)
        for p in parameters
    )


def _check_cores(core_type: str, cores: int) -> None:
    allowed = CORE_TYPES[core_type].core_counts
    if cores not in allowed:
        counts = ", ".join(map(str, allowed))
        raise ValueError(
            f"_cores={cores} does not exist for _type={core_type!r}; it has {counts}"
        )


# ------------------------------------------------------------------ one reader for each keyword
def _label(value: object) -> dict[str, Any]:
    if value is not None and not (isinstance(value, str) and value.isascii()):
        raise TypeError(f"_label must be an ASCII string, got {value!r}")
    return {"label": value}


def _priority(value: object) -> dict[str, Any]:
    return {"priority": _integer("_priority", value)}


def _flag(name: str, field: str) -> Callable[[object], dict[str, Any]]:
    def read(value: object) -> dict[str, Any]:
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, got {value!r}")
        return {field: value}

    return read


def _truthy(field: str) -> Callable[[object], dict[str, Any]]:
    return lambda value: {field: bool(value)}


def _depends_on(value: object) -> dict[str, Any]:
    return {"depends_on": () if value is None else tuple(read_jids(value))}


def _depends_on_errors(value: object) -> dict[str, Any]:
    if value not in ("abort", "ignore"):
        raise ValueError(f"_depends_on_errors must be 'abort' or 'ignore', got {value!r}")
    return {"depends_on_errors": value}


def _fast_serialization(value: object) -> dict[str, Any]:
    level = _integer("_fast_serialization", value)
    if level not in (0, 1, 2):
        raise ValueError(f"_fast_serialization must be 0, 1 or 2, got {level}")
    return {"fast_serialization": level}


def _type(value: object) -> dict[str, Any]:
    if not isinstance(value, str):
        raise TypeError(f"_type must be a string, got {value!r}")
    if value not in CORE_TYPES:
        raise ValueError(f"_type must be one of {', '.join(CORE_TYPES)}; got {value!r}")
    return {"core_type": value}


def _high_cpu(value: object) -> dict[str, Any]:
    return {"core_type": "c2"} if value else {}


def _cores(value: object) -> dict[str, Any]:
    cores = _integer("_cores", value)
    if cores < 1:
        # No ValueError: PiCloud raised this, and programs that were written for it catch it.
        raise TypeError(f"_cores must be at least 1, got {cores}")
    return {"cores": cores}


def _environment(value: object) -> dict[str, Any]:
    return {"environment": None if value is None else str(value)}


def _volumes(value: object) -> dict[str, Any]:
    names = (value,) if isinstance(value, str) else value
    if names is None:
        return {}
    if not isinstance(names, Iterable):
        raise TypeError(f"_vol must be a string or strings, got {value!r}")
    found = tuple(names)
    if not all(isinstance(name, str) and name for name in found):
        raise TypeError(f"_vol must be a string or strings, got {value!r}")
    return {"volumes": found}


def _max_runtime(value: object) -> dict[str, Any]:
    if value is None:
        return {}
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or (isinstance(value, float) and not math.isfinite(value))
    ):
        raise TypeError(f"_max_runtime must be a number of minutes, got {value!r}")
    if not 0 < value <= MOST_MINUTES:
        raise ValueError(
            f"_max_runtime must be more than 0 minutes and at most {MOST_MINUTES:,}, got {value!r:.80}"
        )
    return {"max_runtime_seconds": value * 60.0}


def _copied(value: object, environ: Mapping[str, str]) -> Mapping[str, str]:
    """The variables themselves, where only their names were given; absent ones are left out."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise TypeError(
            f"_os_env_vars must be names, or a dict of names and values; got {value!r}"
        )
    names = [name for name in value if name in environ]
    secret = set(environ.get(SECRETS_VARIABLE, "").split(",")).intersection(names)
    if secret:
        raise ValueError(
            f"_os_env_vars would show the value of the secret {min(secret)}; use _secrets=[...]"
        )
    return {name: environ[name] for name in names}


def _variables(value: Any) -> dict[str, Any]:  # noqa: ANN401  # from _copied
    for name, text in value.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise TypeError(f"_os_env_vars must hold strings, got {name!r}: {text!r}")
        if not name or "=" in name or "\0" in name + text:
            raise ValueError(f"_os_env_vars: {name!r} cannot be an environment variable")
    return {"variables": tuple(sorted(value.items()))}


def _network(value: object) -> dict[str, Any]:
    names = [policy.value for policy in NetworkPolicy]
    if value is None or value is False:
        return {"network": NetworkPolicy.NONE}
    if value not in names:
        raise ValueError(f"_network must be one of {', '.join(names)}; got {value!r}")
    return {"network": NetworkPolicy(value)}


def _secrets(value: object) -> dict[str, Any]:
    """Names of secrets, each given as the variable of its name, or {variable: name}."""
    if value is None:
        return {}
    if isinstance(value, str):
        value = (value,)
    if not isinstance(value, Iterable):
        raise TypeError(f"_secrets must be names, or a dict {{variable: name}}; got {value!r}")
    pairs = value.items() if isinstance(value, Mapping) else [(name, name) for name in value]
    return {"secrets": check_job_secrets(tuple(pairs))}


def _gpu(value: object) -> dict[str, Any]:
    gpus = _integer("_gpu", value)
    if gpus < 0:
        raise ValueError(f"_gpu must be 0 or more, got {gpus}")
    return {"gpus": gpus}


def _retries(value: object) -> dict[str, Any]:
    """An int, or a dict {reason: count or "count", "delay_seconds"}."""
    if isinstance(value, RetryPolicy):
        return {"retries": value}
    if not isinstance(value, Mapping):
        return {"retries": RetryPolicy(_retry_count(value))}
    unknown = set(value) - {"count", "reasons", "delay_seconds"}
    if unknown:
        raise ValueError(
            f"_retries has count, reasons and delay_seconds; got {', '.join(map(repr, sorted(map(str, unknown))))}"
        )
    delay = value.get("delay_seconds", 0.0)
    if (
        isinstance(delay, bool)
        or not isinstance(delay, int | float)
        or not 0 <= delay <= 86_400
    ):
        raise ValueError(f"_retries: delay_seconds must be from 0 to 86400, got {delay!r}")
    reasons = value.get("reasons", ())
    if not isinstance(reasons, Iterable):
        raise TypeError(f"_retries: reasons must be names of end reasons, got {reasons!r}")
    names = (reasons,) if isinstance(reasons, str) else tuple(reasons)
    allowed = [reason.value for reason in RETRIED_REASONS]
    for name in names:
        if name not in allowed:
            raise ValueError(f"_retries: {name!r} is none of {', '.join(allowed)}")
    count = _retry_count(value.get("count", 1))
    return {"retries": RetryPolicy(count, tuple(map(EndReason, names)), float(delay))}


def _retry_count(value: object) -> int:
    count = _integer("_retries", value)
    if not 0 <= count <= 100:
        raise ValueError(f"_retries must be from 0 to 100, got {count}")
    return count


def _key(value: object) -> dict[str, Any]:
    if value is not None and not (
        isinstance(value, str) and re.fullmatch(r"[!-~]{1,64}", value)
    ):
        raise ValueError(
            f"_key must be 1 to 64 printable ASCII characters without spaces, got {value!r}"
        )
    return {"key": value}


def _callback(value: object) -> dict[str, Any]:
    return {"callbacks": _callables("_callback", value)}


def _callback_on_error(value: object) -> dict[str, Any]:
    return {"callbacks_on_error": _callables("_callback_on_error", value)}


def _callables(name: str, value: object) -> tuple[Callable[..., object], ...]:
    if value is None:
        return ()
    found = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not all(callable(item) for item in found):
        raise TypeError(f"{name} must be callable, or a list of callables; got {value!r}")
    return found


def _integer(name: str, value: object) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an int, got {value!r}")
    return int(value.__index__())


_READERS: dict[str, Callable[[object], dict[str, Any]]] = {
    "_label": _label,
    "_priority": _priority,
    "_restartable": _flag("_restartable", "restartable"),
    "_depends_on": _depends_on,
    "_depends_on_errors": _depends_on_errors,
    "_fast_serialization": _fast_serialization,
    "_type": _type,
    "_high_cpu": _high_cpu,
    "_cores": _cores,
    "_env": _environment,
    "_vol": _volumes,
    "_max_runtime": _max_runtime,
    "_profile": _truthy("profile"),
    "_kill_process": _truthy("kill_process"),
    "_os_env_vars": _variables,
    "_network": _network,
    "_secrets": _secrets,
    "_gpu": _gpu,
    "_retries": _retries,
    "_cache": _truthy("cache"),
    "_key": _key,
    "_callback": _callback,
    "_callback_on_error": _callback_on_error,
}
