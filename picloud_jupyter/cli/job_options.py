"""The options of commands that make jobs: which job, and how it runs."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from picloud_jupyter.cli.command import WrongUsageError, jids_type
from picloud_jupyter.cloud.jid_ranges import JidRanges
from picloud_jupyter.protocol.errors import CloudException
from picloud_jupyter.protocol.jobs import CORE_TYPES, NetworkPolicy

CORE_COUNTS = (1, 2, 4, 8, 16)


def add_command(parser: argparse.ArgumentParser) -> None:
    """Add COMMAND, which takes all words from the first that is no option."""
    parser.add_argument(
        "command_words",
        metavar="COMMAND",
        nargs=argparse.PARSER,  # as REMAINDER, with at least one word
        help="run by /bin/bash, its words joined by spaces; {name} is a place for a value",
    )


def command_of(arguments: argparse.Namespace) -> str:
    """Return the command as one text; ``--`` before it only ends the options."""
    words = arguments.command_words
    return " ".join(words[1:] if words[0] == "--" else words)


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add -d/--data."""
    parser.add_argument(
        "-d",
        "--data",
        metavar="NAME=VALUE",
        type=named_value,
        action="append",
        default=[],
        help="the value of {NAME}; @PATH sends that file and becomes its name there",
    )


def named_value(text: str) -> tuple[str, str]:
    """Return (name, value) of NAME=VALUE."""
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def one_of_each(pairs: list[tuple[str, Any]], option: str) -> dict[str, Any]:
    """Return ``pairs`` as a dict.

    Raises:
        WrongUsageError: a name comes twice.
    """
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise WrongUsageError(f"{option} gives {{{name}}} twice")
        found[name] = value
    return found


def add_job_options(parser: argparse.ArgumentParser) -> None:
    """Add PiCloud's common job options."""
    add = parser.add_argument_group("the job").add_argument
    add("-t", "--type", choices=tuple(CORE_TYPES), default="c1", help="core type; default c1")
    add("-c", "--cores", type=int, choices=CORE_COUNTS, default=1, help="how many; default 1")
    add(
        "-r",
        "--return",
        metavar="FILE",
        dest="return_file",
        help="the result is this file, not stdout",
    )
    add("-i", "--ignore-exit-status", action="store_true", help="any exit code is a success")
    add("-w", "--cwd", metavar="DIR", help="the folder to run in, where the job runs")
    add("-e", "--env", metavar="NAME", help="environment")
    add("-v", "--vol", metavar="HOST:PATH", action="append", help="volume; may be repeated")
    add("-l", "--label", help="to find the job by")
    add("-m", "--max-runtime", metavar="MINUTES", type=float, help="end it after so long")
    add("-x", "--depends-on", metavar="JIDS", type=jids_type, help="start after these jobs")
    add(
        "--depends-on-errors",
        choices=("abort", "ignore"),
        default="abort",
        help="if one of them fails; default abort",
    )
    add("--not-restartable", action="store_true", help="never start it a second time")
    add("--priority", type=int, default=5, help="lower runs earlier; default 5")
    add("--gpu", metavar="N", type=int, help="GPUs of its own")
    add(
        "--secret",
        metavar="[VARIABLE=]NAME",
        action="append",
        default=[],
        help="a secret as a variable; may be repeated",
    )
    add("--retries", metavar="N", type=int, help="run it again so often if it fails")
    add(
        "--network",
        choices=[policy.value for policy in NetworkPolicy],
        help="what it reaches; default internet",
    )


def keywords_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what `cloud.shell.execute` and `execute_map` get from these options."""
    depends_on = arguments.depends_on
    pairs = [text.partition("=") for text in arguments.secret]
    optional = {
        "_gpu": arguments.gpu,
        "_secrets": one_of_each([(var, name or var) for var, _, name in pairs], "--secret")
        or None,
        "_retries": arguments.retries,
        "_network": arguments.network,
    }
    return {
        **{name: value for name, value in optional.items() if value is not None},
        "return_file": arguments.return_file,
        "ignore_exit_status": arguments.ignore_exit_status,
        "cwd": arguments.cwd,
        "_type": arguments.type,
        "_cores": arguments.cores,
        "_env": arguments.env,
        "_vol": arguments.vol,
        "_label": arguments.label,
        "_max_runtime": arguments.max_runtime,
        "_depends_on": None if depends_on is None else JidRanges.of_pairs(depends_on),
        "_depends_on_errors": arguments.depends_on_errors,
        "_restartable": not arguments.not_restartable,
        "_priority": arguments.priority,
    }


@contextmanager
def plain_words() -> Iterator[None]:
    """What is wrong with the words given to a job is wrong usage, and no fault of ours.

    Raises:
        WrongUsageError: a template, a value, a file or an option is wrong; nothing was submitted.
    """
    try:
        yield
    except CloudException:
        raise
    except (ValueError, TypeError, OSError) as exc:
        raise WrongUsageError(_words(exc)) from exc


def _words(exc: Exception) -> str:
    if isinstance(exc, OSError) and exc.filename is not None:
        return f"{exc.filename}: {exc.strerror}"
    return str(exc)
