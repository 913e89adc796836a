r"""Commands with places for values, such as ``gcc {source} -o {name}``. Pure.

``{name}`` of word characters is a place; all else stays as it is: ``{}``, ``${name}``, ``{1..2}``, ``{a b}``.
``\{name\}`` stands for the braces themselves, and ``${{name}}`` becomes ``${value}``.
"""

import re
from collections.abc import Collection, Mapping, Sequence

from picloud_jupyter.protocol.shell import MAX_COMMAND_BYTES, Parameter

Pieces = tuple[str | Parameter, ...]

_TOKEN = re.compile(
    r"""
      \\\{ (?P<braced> \w+ ) \\\}   # escaped on both sides: the braces themselves
    | (?P<kept> \\\{ | \$\{ \w+ \} )  # an escape of the shell's own, a variable of the shell
    | \{ (?P<name> \w+ ) \}
    """,
    re.VERBOSE,
)


def parse_template(text: str) -> Pieces:
    r"""Return ``text`` as literal pieces and the parameters between them.

    >>> parse_template(r"cp {a}{b} ${HOME}/\{c\}")
    ('cp ', Parameter(name='a'), Parameter(name='b'), ' ${HOME}/{c}')

    Raises:
        ValueError: it is empty, or holds a NUL.
    """
    if not text.strip():
        raise ValueError("the command is empty")
    _check_text("the command", text)
    pieces: list[str | Parameter] = []
    literal = ""
    at = 0
    for token in _TOKEN.finditer(text):
        literal += text[at : token.start()]
        at = token.end()
        if token["name"] is None:
            literal += token["kept"] or f"{{{token['braced']}}}"
            continue
        if literal:
            pieces.append(literal)
            literal = ""
        pieces.append(Parameter(token["name"]))
    literal += text[at:]
    return (*pieces, literal) if literal else tuple(pieces)


def parameter_names(pieces: Pieces) -> list[str]:
    """Return the names that need a value, each once, in order."""
    return list(dict.fromkeys(piece.name for piece in pieces if isinstance(piece, Parameter)))


def check_bound(pieces: Pieces, given: Collection[str]) -> None:
    r"""Return if each parameter has a value and each value a parameter.

    Raises:
        ValueError: one has none; the message names it.
    """
    names = parameter_names(pieces)
    unbound = [name for name in names if name not in given]
    if unbound:
        raise ValueError(
            f"the command needs a value for {_braced(unbound)}; to mean the braces themselves "
            f"write \\{{{unbound[0]}\\}}"
        )
    unused = [name for name in given if name not in names]
    if unused:
        has = f"it has {_braced(names)}" if names else "it has no parameters"
        raise ValueError(f"the command does not use {', '.join(map(repr, unused))}: {has}")


def check_values(values: Mapping[str, object]) -> dict[str, str]:
    """Return ``values`` as they came: names and texts.

    Raises:
        TypeError: one is not a string, or they are no mapping.
        ValueError: one holds a NUL, which no command can.
    """
    check_mapping("the values of a command's parameters", values)
    found: dict[str, str] = {}
    for name, value in values.items():
        if not isinstance(name, str):
            raise TypeError(f"names of parameters are strings, got {name!r}")
        if not isinstance(value, str):
            raise TypeError(
                f"the value of {{{name}}} must be a string, got {value!r}; use str(...)"
            )
        _check_text(f"the value of {{{name}}}", value)
        found[name] = value
    return found


def check_mapping(what: str, value: object) -> None:
    """Return if ``value`` is a mapping.

    Raises:
        TypeError: it is not; ``what`` names it.
    """
    if not isinstance(value, Mapping):
        raise TypeError(f"{what} must be a dict of names and values, got {value!r:.80}")


def check_length(pieces: Pieces, values: Mapping[str, str]) -> None:
    """Return if the command with its values is one that a program can be given.

    Raises:
        ValueError: it is above 128 KiB.
    """
    size = 0
    for piece in pieces:
        text = values[piece.name] if isinstance(piece, Parameter) else piece
        size += len(text.encode("utf-8", "surrogateescape"))
    if size > MAX_COMMAND_BYTES:
        raise ValueError(
            f"the command with its values has {size:,} bytes, more than the {MAX_COMMAND_BYTES:,} of Linux; "
            "put it into a file and send that: 'bash {script}' with the value '@script.sh'"
        )


def split_values(text: str) -> list[str]:
    r"""Return the values in ``text``, which commas part; ``\,`` is a comma within a value.

    >>> split_values(r"a,b\,c,")
    ['a', 'b,c', '']
    """
    return [part.replace(r"\,", ",") for part in re.split(r"(?<!\\),", text)]


def equal_length(columns: Mapping[str, Sequence[str]]) -> int:
    """Return how many values each parameter has.

    Raises:
        ValueError: not all have the same number, or there are none.
    """
    lengths = {name: len(values) for name, values in columns.items()}
    if not lengths:
        raise ValueError(
            "a map of a command needs at least one parameter with a list of values"
        )
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{{{name}}} {length:,}" for name, length in lengths.items())
        raise ValueError(f"all parameters need the same number of values; there are: {told}")
    count = next(iter(lengths.values()))
    if not count:
        raise ValueError(f"there are no values for {_braced(list(lengths))}")
    return count


def _check_text(what: str, text: str) -> None:
    if "\0" in text:
        raise ValueError(f"{what} holds a NUL, which a command cannot")


def _braced(names: Sequence[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in names)
