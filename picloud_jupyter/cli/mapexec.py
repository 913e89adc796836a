"""`picloud mapexec`."""

import argparse
import os
from collections.abc import Sequence

from picloud_jupyter.cli import job_options
from picloud_jupyter.cli.command import Command, WrongUsageError
from picloud_jupyter.cli.output import Raw
from picloud_jupyter.cli.result import present
from picloud_jupyter.cloud import results, shell
from picloud_jupyter.cloud.shell_templates import equal_length, split_values
from picloud_jupyter.protocol.ids import to_ranges


def _configure(parser: argparse.ArgumentParser) -> None:
    job_options.add_command(parser)
    job_options.add_data(parser)
    add = parser.add_argument_group("the map").add_argument
    add(
        "-n",
        "--map-data",
        metavar="NAME=V1,V2,..",
        type=job_options.named_value,
        action="append",
        default=[],
        help=r"a job for each value of {NAME}; \, is a comma within a value",
    )
    add(
        "-N",
        "--arg-file",
        metavar="NAME=FILE",
        type=job_options.named_value,
        action="append",
        default=[],
        help="the same, with a value on each line of a file; @ is relative to it",
    )
    add(
        "-k", "--copies", metavar="N", type=int, help="repeat all values N times; alone: N jobs"
    )
    job_options.add_job_options(parser)


def _run(arguments: argparse.Namespace) -> str | Raw:
    common = job_options.one_of_each(arguments.data, "-d")
    command = job_options.command_of(arguments)
    keywords = job_options.keywords_of(arguments)
    with job_options.plain_words():
        columns, count = _columns(arguments)
        jids = shell.execute_many(command, common, columns, count, **keywords)
    if arguments.simulate:
        return present(jids, results.result(jids), arguments.output)
    return ",".join(f"{first}-{last}" for first, last in to_ranges(jids))


def _columns(arguments: argparse.Namespace) -> tuple[dict[str, Sequence[str]], int]:
    """The values of each parameter, and how many jobs they make."""
    given = [(name, split_values(text)) for name, text in arguments.map_data]
    given += [(name, read_values(path)) for name, path in arguments.arg_file]
    columns = job_options.one_of_each(given, "-n or -N")
    copies = 1 if arguments.copies is None else arguments.copies
    if copies < 1:
        raise WrongUsageError(f"-k must be at least 1, got {copies}")
    if not columns and arguments.copies is None:
        raise WrongUsageError("give values with -n or -N, or a number of equal jobs with -k")
    count = equal_length(columns) if columns else 1
    return {name: [*values] * copies for name, values in columns.items()}, count * copies


def read_values(path: str) -> list[str]:
    """Return the lines of a file that are not blank; files that they name lie relative to it.

    Raises:
        OSError: it cannot be read.
    """
    folder = os.path.dirname(os.path.abspath(path))
    with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        lines = [line.rstrip("\r\n") for line in file]
    return [_beside(folder, line) for line in lines if line.strip()]


def _beside(folder: str, value: str) -> str:
    if not value.startswith("@") or value == "@":
        return value
    return "@" + os.path.join(folder, os.path.expanduser(value[1:]))


COMMAND = Command(
    "mapexec",
    "run a shell command once for each value, and print the jids as first-last",
    (
        "picloud mapexec -n seed=1,2,3 './simulate {seed}'     three jobs",
        "picloud mapexec -n f=@a.dat,@b.dat 'wc -l {f}'        a file for each",
        "picloud mapexec -N seed=seeds.txt -d n=1000 './simulate {seed} {n}'",
        "picloud mapexec -k 8 ./search                         eight equal jobs",
    ),
    _run,
    _configure,
)
