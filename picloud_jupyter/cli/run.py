"""From a command line to an exit code."""

import argparse
import contextlib
import errno
import json
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from picloud_jupyter import __version__
from picloud_jupyter.cli.command import Command, WrongUsageError
from picloud_jupyter.cli.exit_codes import (
    DONE,
    INTERRUPTED,
    REFUSED,
    UNEXPECTED,
    WRONG_USAGE,
    ExitWith,
)
from picloud_jupyter.cli.output import NotPrintableError, show
from picloud_jupyter.protocol.errors import CloudException
from picloud_jupyter.protocol.terminal import safe_text

NAMES = (
    *("up", "down", "status", "doctor", "jobs", "join", "result", "info", "logs", "kill"),
    *("why", "debug_bundle"),
    *(
        "exec",
        "mapexec",
        "delete",
        "files",
        "script",
        "setup",
        "host_setup",
        "wait_for",
        "secret",
        "user",
        "backup",
        "restore",
        "top",
        "completion",
    ),
)


_OF_THIS_MACHINE = ("up", "down", "host-setup", "backup", "restore")


def commands(words: Sequence[str] = ()) -> list[Command]:
    """Return the subcommand that ``words`` begin with, else all, in the order of the help.

    Most of them import the whole API, which takes longer than what `picloud up` does itself.
    """
    is_alone = bool(words) and words[0] in NAMES and words[0] != "completion"  # that needs all
    names = words[:1] if is_alone else NAMES
    return [import_module(f"picloud_jupyter.cli.{name}").COMMAND for name in names]


def make_parser(found: Sequence[Command]) -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="picloud",
        description="Run Python functions as durable jobs in containers on this machine.",
        epilog="`picloud COMMAND --help` shows examples. Jobs are submitted from Python: from picloud_jupyter import cloud.",
    )
    parser.add_argument("--version", action="version", version=f"picloud {__version__}")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="say what is done, on stderr"
    )
    _add_output(parser, "default")
    parser.add_argument(
        "-s",
        "--simulate",
        action="store_true",
        help="in a service of this command alone: local processes, gone when it ends",
    )
    parser.add_argument("-u", "--url", help="of a control plane on another machine")
    parser.add_argument("-a", "--api-key", metavar="KEY", help="for that control plane")
    parser.add_argument("-k", "--api-secretkey", metavar="SECRET", help="the key's second half")
    words = parser.add_subparsers(dest="word", metavar="COMMAND", title="commands")
    for command in found:
        sub = words.add_parser(
            command.name,
            aliases=list(command.aliases),
            help=command.help,
            description=f"{command.help[0].upper()}{command.help[1:]}.",
            epilog="Examples:\n" + "\n".join(f"  {line}" for line in command.examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.configure(sub)
        if "-o" not in sub._option_string_actions:  # noqa: SLF001  # `info -o` names fields
            _add_output(sub, argparse.SUPPRESS)
        sub.set_defaults(command=command, parser=parser)
    return parser


def _add_output(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "-o",
        "--output",
        choices=("default", "no-header", "json"),
        default=default,
        help="how results are printed",
    )


def run(words: Sequence[str]) -> int:
    """Run one command line and return its exit code; see `picloud_jupyter.cli.main`."""
    parser = make_parser(commands(words))
    try:
        arguments = parser.parse_args(words)
    except SystemExit as exc:  # argparse has printed help, version or what is wrong
        return exc.code if isinstance(exc.code, int) else WRONG_USAGE
    if arguments.word is None:
        parser.print_help()
        return UNEXPECTED
    if arguments.verbose:
        logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
    return _run_command(arguments)


def _run_command(arguments: argparse.Namespace) -> int:
    try:
        _connect(arguments)
        return _run_and_show(arguments)
    except CloudException as exc:
        _show_error(exc, arguments.output)
        return REFUSED
    except WrongUsageError as exc:
        print(f"picloud {arguments.word}: {exc}", file=sys.stderr)
        return WRONG_USAGE
    except NotPrintableError as exc:
        print(f"picloud: {exc}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as head, has had enough
        _drop_output()
        return DONE
    except Exception as exc:  # noqa: BLE001  # the loop's top: what nobody expected
        if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT):
            _drop_output()
            what = exc.filename or "what was to be printed"
            words = f"{what} could not be written whole: {exc.strerror}; free some space there"
            print(f"picloud: {words}", file=sys.stderr)
            return REFUSED
        traceback.print_exc()
        return UNEXPECTED


def _run_and_show(arguments: argparse.Namespace) -> int:
    found: Any = arguments.command.run(arguments)
    code = DONE
    if isinstance(found, ExitWith):
        found, code = found.value, found.code
    show(found, arguments.output)
    sys.stdout.flush()
    return code


def _drop_output() -> None:
    """Let what was not printed yet go nowhere: the interpreter would try once more when it ends."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _connect(arguments: argparse.Namespace) -> None:
    elsewhere = arguments.simulate or arguments.url or arguments.api_key
    if elsewhere and arguments.word in _OF_THIS_MACHINE:
        raise WrongUsageError(
            "it is about the service of this machine; -s, -u and -a name another one"
        )
    if arguments.api_secretkey and not arguments.api_key:
        raise WrongUsageError("-k is the second half of a key; give the first with -a")
    if arguments.simulate:
        if arguments.url or arguments.api_key:
            raise WrongUsageError("-s runs jobs here, and -u and -a say elsewhere; give one")
        from picloud_jupyter.cloud.private_service import start_simulator

        start_simulator()
    if arguments.url or arguments.api_key:
        from picloud_jupyter import cloud

        cloud.setkey(arguments.api_key or "", arguments.api_secretkey, arguments.url)


def _show_error(error: CloudException, style: str) -> None:
    if style == "json":
        fields = {
            "error": {
                "code": error.code,
                "message": error.parameter,
                "jid": error.jid if isinstance(error.jid, int) else None,
                "status": error.status,
                "reason": error.reason,
                "hint": error.hint,
            }
        }
        print(json.dumps(fields, ensure_ascii=False), file=sys.stderr)
    else:
        words = f"picloud: {error}"  # with what a job said of its failure
        print(safe_text(words) if sys.stderr.isatty() else words, file=sys.stderr)
