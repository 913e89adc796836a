"""`cloud.config`: the client's options, with their defaults, from file and by assignment.

The file is ``client.json`` in `getconfigpath()`: one JSON object. The service has settings of its
own (``picloud_config.py`` in its home folder).
"""

import difflib
import json
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from picloud_jupyter.transport.paths import default_home

FILE_NAME = "client.json"

DEFAULTS: dict[str, Any] = {
    "api_key": "",  # of a remote control plane; $PICLOUD_API_KEY goes before it
    "url": "",  # of a remote control plane; $PICLOUD_URL goes before it
    "max_transmit_data": 256 * 1024 * 1024,  # bytes of one function or one element's arguments
    "max_closure_data": 16 * 1024 * 1024,  # bytes a function may bring along by accident
    "automatic_dependency_transfer": True,  # ship local modules
    "retry_attempts": 9,  # repetitions of a request that was not answered
    "progress": "auto",  # "auto": after a second, where somebody sees it; "on"; "off"
}
_CHOICES = {"progress": ("auto", "on", "off")}


def config_folder() -> Path:
    """Return the folder of the configuration: the home of this user's service. It need not exist."""
    return default_home()


class Config:
    """The options as attributes; a value is cast to the type of its default.

    Raises:
        ValueError: the value cannot be cast.
        AttributeError: there is no such option.
    """

    def __init__(self, folder: Callable[[], Path] = config_folder) -> None:
        vars(self).update(_folder=folder, _lock=threading.Lock(), _on_commit=[])

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # called until they are loaded
        if name.startswith("__") or name not in DEFAULTS:
            raise AttributeError(_no_option(name))
        return self._current()[name]

    def __setattr__(self, name: str, value: object) -> None:
        if name not in DEFAULTS:
            raise AttributeError(_no_option(name))
        self._current()[name] = cast_option(name, value)

    def __dir__(self) -> list[str]:
        return [*DEFAULTS, "commit"]

    def __repr__(self) -> str:
        values = self._current()
        shown = {
            name: "..." if name == "api_key" and values[name] else values[name]
            for name in DEFAULTS
        }
        return "\n".join(f"cloud.config.{name} = {value!r}" for name, value in shown.items())

    def commit(self) -> None:
        """Make all changes count: connections are closed, and what `setkey` said is forgotten."""
        for action in self._on_commit:
            action()

    def on_commit(self, action: Callable[[], object]) -> None:
        """Have ``action`` called by `commit`."""
        self._on_commit.append(action)

    def _current(self) -> dict[str, Any]:
        """The attributes of this object, the options among them."""
        values = vars(self)
        with self._lock:
            if not DEFAULTS.keys() <= values.keys():
                values.update(_load(self._folder() / FILE_NAME))
        return values


def cast_option(name: str, value: object) -> Any:  # noqa: ANN401
    """Return ``value`` as the type of the option's default.

    Raises:
        ValueError: it cannot be cast, or is none of the option's choices.
    """
    default = DEFAULTS[name]
    try:
        cast = _to_bool(value) if isinstance(default, bool) else type(default)(value)
    except (TypeError, ValueError):
        kind = type(default).__name__
        raise ValueError(f"cloud.config.{name} must be of type {kind}, got {value!r}") from None
    if name in _CHOICES and cast not in _CHOICES[name]:
        raise ValueError(
            f"cloud.config.{name} must be one of {', '.join(_CHOICES[name])}; got {cast!r}"
        )
    if isinstance(cast, int) and cast < 0:
        raise ValueError(f"cloud.config.{name} must not be negative, got {cast}")
    return cast


_WORDS = {"true": True, "1": True, "false": False, "0": False}


def _to_bool(value: object) -> bool:
    if isinstance(value, str):
        if value.lower() not in _WORDS:
            raise ValueError(value)
        return _WORDS[value.lower()]
    return bool(value)


def _load(path: Path) -> dict[str, Any]:
    """The defaults with what the file says; what is wrong in it is said on stderr."""
    values = dict(DEFAULTS)
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return values
    except (OSError, ValueError) as exc:
        _warn(f"{path} cannot be read ({exc}); the defaults are used")
        return values
    if not isinstance(found, Mapping):
        _warn(f"{path} is not a JSON object; the defaults are used")
        return values
    for name, value in found.items():
        if name not in DEFAULTS:
            _warn(f"{path}: {_no_option(name)}")
            continue
        try:
            values[name] = cast_option(name, value)
        except ValueError as exc:
            _warn(f"{path}: {exc}; the default is used")
    return values


def _warn(text: str) -> None:
    print(f"picloud: {text}", file=sys.stderr)  # noqa: T201  # logging may not be set up yet


def _no_option(name: str) -> str:
    near = difflib.get_close_matches(name, DEFAULTS, n=1)
    return f"there is no option {name!r}" + (
        f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(DEFAULTS)}"
    )


config = Config()
