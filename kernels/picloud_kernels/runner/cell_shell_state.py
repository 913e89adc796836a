"""Whether a cell changed its shell: one that it did not change serves the next cell too."""

from collections.abc import Iterator
from typing import Any

_PASSING = frozenset(  # set anew for each cell, or never read again
    (
        "_user_ns",
        "user_ns",
        "user_module",
        "user_ns_hidden",
        "ns_table",
        "source",
        "names",
        "exec_result",
        "_filename_map",
        "_in_post_execute",
        "_logger",
        "sys_excepthook",
    )
)


class ShellState:
    """A shell's settings, magics, callbacks, transformers and printers when this was made."""

    def __init__(self, shell: Any) -> None:  # noqa: ANN401  # IPython's
        for part in _parts(shell):
            if hasattr(part, "trait_values"):
                part.trait_values()  # makes the defaults, which are made when they are asked for
        self._shell = shell
        self._saved = [(part, _copied(vars(part))) for part in _parts(shell)]

    def is_unchanged(self) -> bool:
        """Whether the shell is as it was."""
        parts = list(_parts(self._shell))
        return len(parts) == len(self._saved) and all(
            now is then and _is_same(vars(now), saved)
            for now, (then, saved) in zip(parts, self._saved, strict=True)
        )


def _parts(shell: Any) -> Iterator[Any]:  # noqa: ANN401
    yield shell
    yield shell.events
    yield shell.hooks
    yield shell.compile
    yield shell.builtin_trap
    yield shell.input_transformer_manager
    yield shell.magics_manager
    yield shell.extension_manager
    yield shell.display_formatter
    yield from shell.display_formatter.formatters.values()
    yield from (part for part in shell.configurables if part is not shell)


def _is_same(now: dict[str, Any], saved: dict[str, Any]) -> bool:
    if len(now.keys() - _PASSING) != len(saved):
        return False
    try:  # what is identical is equal without being asked
        return all(now[name] == value for name, value in saved.items())
    except Exception:  # noqa: BLE001  # gone, or a value of the user's that cannot be compared
        return False


def _copied(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: _copy(each) for name, each in attributes.items() if name not in _PASSING}


def _copy(value: Any) -> Any:  # noqa: ANN401
    """Return containers as copies and everything else as it is."""
    if isinstance(value, dict):
        return {key: _copy(each) for key, each in value.items()}
    if type(value) is list:
        return [_copy(each) for each in value]
    return set(value) if type(value) is set else value
