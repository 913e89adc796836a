"""The words of ``%%picloud``: parsed, merged with the notebook's defaults, made into options."""

import argparse
import os
import re
import shlex
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from IPython.core.error import UsageError

from picloud_jupyter.cloud.keywords import Options, take_options
from picloud_jupyter.protocol.jobs import CORE_TYPES, Kind

_KEYWORDS = {  # of `cloud.call`, for what is called otherwise here
    "env": "_env",
    "type": "_type",
    "cores": "_cores",
    "vol": "_vol",
    "label": "_label",
    "max_runtime": "_max_runtime",
    "cache": "_cache",
}
_UNDERSCORED = re.compile(rf"\b_({'|'.join(_KEYWORDS)})\b(?:='?([^';,\s]*)'?)?")


class _Parser(argparse.ArgumentParser):
    """Raises UsageError where argparse would end the kernel."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}; {self.prog}? lists what there is")


@dataclass(frozen=True, slots=True)
class Request:
    """What the line of one cell asks for.

    ``inputs`` and ``outputs`` None = those that the cell reads and assigns. ``files`` are (path here,
    name in the job's folder).
    """

    options: Options
    inputs: tuple[str, ...] | None = None
    outputs: tuple[str, ...] | None = None
    files: tuple[tuple[str, str], ...] = ()
    fetch: str | None = None
    nowait: bool = False
    local: bool = False
    dry_run: bool = False


def make_parser(prog: str = "%%picloud") -> argparse.ArgumentParser:
    """Return the parser of the line; what is not given there is not in its namespace."""
    parser = _Parser(
        prog=prog,
        add_help=False,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Run the cell as a job in a container. Names that it reads are sent, names that it assigns come\n"
            "back; output appears here while it runs. Interrupting the kernel cancels the job."
        ),
    )
    add = parser.add_argument
    add("--env", "-e", metavar="NAME", help="saved environment")
    add("--type", "-t", metavar="TYPE", help=f"core type: {', '.join(CORE_TYPES)}")
    add("--cores", "-c", metavar="N", type=int, help="number of cores")
    add(
        *("--vol", "-v"),
        metavar="HOST:PATH[:rw]",
        action="append",
        help="folder of this machine inside the container; may be repeated",
    )
    add(
        *("--file", "-f"),
        metavar="PATH[:NAME]",
        action="append",
        help="local file that is put into the job's working folder; may be repeated",
    )
    add("--label", metavar="TEXT", help="a name to find the job by")
    add("--input", metavar="A,B", help="send these names and no others; '' sends none")
    add("--output", metavar="X,Y", help="bring back these names and no others; '' brings none")
    add("--max-runtime", metavar="MINUTES", type=float, help="end the job if it runs longer")
    add("--fetch", metavar="DIR", help="copy the files that the cell wrote into this folder")
    for name, text in (
        ("cache", "use the kept result of the same cell with the same names, if there is one"),
        ("nowait", "go on at once; the value of this cell is a handle of the job"),
        ("local", "run the cell here in the kernel: for debugging"),
        ("dry-run", "say what would be sent and how it would run; run nothing"),
    ):
        add(f"--{name}", action=argparse.BooleanOptionalAction, help=text)
    return parser


PARSER = make_parser()


def parse_line(line: str, parser: argparse.ArgumentParser = PARSER) -> dict[str, Any]:
    """Return {word: value} of what ``line`` gives.

    Raises:
        UsageError: a word is unknown, or its value is of the wrong form.
    """
    try:
        words = shlex.split(line)
    except ValueError as exc:
        raise UsageError(f"{parser.prog}: {exc}: {line}") from None
    found, rest = parser.parse_known_args(words)
    if rest:
        raise UsageError(
            f"{parser.prog}: {' '.join(rest)} is none of its options; {parser.prog}? lists them"
        )
    return vars(found)


def read_request(given: Mapping[str, Any]) -> Request:
    """Return what ``given`` (as of `parse_line`) asks for, checked.

    Raises:
        UsageError: a value is outside what is allowed, or a file does not exist.
    """
    words = dict(given)
    files = tuple(_file(text) for text in words.get("file", ()))
    for name, count in Counter(name for _, name in files).items():
        if count > 1:
            raise UsageError(
                f"--file: {count} files are called {name}; give each a name of its own: --file PATH:NAME"
            )
    return Request(
        read_options(words),
        inputs=_names("--input", words.get("input")),
        outputs=_names("--output", words.get("output")),
        files=files,
        fetch=_folder(words.get("fetch")),
        nowait=words.get("nowait", False),
        local=words.get("local", False),
        dry_run=words.get("dry_run", False),
    )


def read_options(words: Mapping[str, Any]) -> Options:
    """Return the options of the job; messages name the words of the line.

    Raises:
        UsageError: a value is outside what is allowed.
    """
    keywords = {_KEYWORDS[word]: value for word, value in words.items() if word in _KEYWORDS}
    try:
        options = take_options(keywords, func=None, environ=os.environ)
    except (TypeError, ValueError) as exc:
        raise UsageError(in_words_of_line(str(exc))) from None
    return replace(options, kind=Kind.CELL)


def in_words_of_line(text: str) -> str:
    """Return ``text`` about keywords of `cloud.call` with the words of the line in their place.

    >>> in_words_of_line("_cores=3 does not exist for _type='c1'; give a larger _max_runtime")
    '--cores 3 does not exist for --type c1; give a larger --max-runtime'
    """
    return _UNDERSCORED.sub(
        lambda found: f"--{found[1].replace('_', '-')} {found[2] or ''}".rstrip(), text
    )


def _names(option: str, text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if not name.isidentifier():
            raise UsageError(
                f"{option}: {name!r} is not a name; write for example {option} a,b"
            )
    return tuple(dict.fromkeys(names))


def _file(text: str) -> tuple[str, str]:
    path, colon, name = text.rpartition(":")
    if not colon or os.path.exists(os.path.expanduser(text)):
        path, name = text, ""
    source = os.path.expanduser(path)
    try:
        is_file = stat.S_ISREG(os.stat(source).st_mode)
        problem = (
            "" if is_file else "is not a file; folders beside the notebook are visible anyway"
        )
    except FileNotFoundError:
        problem = "does not exist"
    except OSError as exc:
        problem = f"cannot be read: {exc.strerror}"
    if problem:
        raise UsageError(f"--file: {path} {problem}")
    name = name or os.path.basename(source)
    if name in (".", "..") or "/" in name or "\0" in name:
        raise UsageError(f"--file: {name!r} is not a plain file name")
    return source, name


def _folder(text: str | None) -> str | None:
    if text is None:
        return None
    folder = os.path.expanduser(text)
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise UsageError(f"--fetch: {text} is not a folder")
    return folder


def describe(given: Mapping[str, Any]) -> str:
    """Return ``given`` as the words of a line.

    >>> describe({"type": "c2", "vol": ["/a:/a"], "cache": True})
    '--type c2 --vol /a:/a --cache'
    """
    words: list[str] = []
    for name, value in given.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(option if value else option.replace("--", "--no-", 1))
        else:
            for item in (
                value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
            ):
                words += [option, shlex.quote(str(item))]
    return " ".join(words)
