"""`picloud files`."""

import argparse
import datetime
import sys

from picloud_jupyter.cli.command import Command, jid_type
from picloud_jupyter.cli.output import Raw, Table, Text, format_bytes
from picloud_jupyter.cloud.written_files import JobFiles, files_of


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("jid", metavar="JID", type=jid_type, help="a finished job")
    parser.add_argument("path", metavar="PATH", nargs="?", help="print this file, as it is")
    parser.add_argument("--fetch", metavar="DIR", help="write the files below this folder")
    parser.add_argument("--force", action="store_true", help="replace files that are there")


def _run(arguments: argparse.Namespace) -> Table | Text | Raw:
    files = files_of(arguments.jid)
    if arguments.path is not None:
        return _one(files, arguments)
    if arguments.fetch is not None:
        paths = [str(p) for p in files.fetch(arguments.fetch, overwrite=arguments.force)]
        _say_rest(files)
        return Text("\n".join(paths), paths)
    _say_rest(files)
    if arguments.output == "json":
        rows: list[tuple[object, ...]] = [(f.path, f.size_bytes, f.modified_at) for f in files]
    else:
        rows = [(f.path, format_bytes(f.size_bytes), _local(f.modified_at)) for f in files]
    return Table(("path", "size", "modified"), rows)


def _one(files: JobFiles, arguments: argparse.Namespace) -> Raw | Text:
    file = files.find(arguments.path)
    if arguments.fetch is not None:
        path = str(
            JobFiles(files.jid, [file], (), "").fetch(
                arguments.fetch, overwrite=arguments.force
            )[0]
        )
        return Text(path, path)
    for piece in file.pieces() if arguments.output != "json" else ():
        sys.stdout.buffer.write(piece)
    return Raw(b"", file.read() if arguments.output == "json" else None)


def _say_rest(files: JobFiles) -> None:
    for line in (files.note, *(f"{path} is not kept: {why}" for path, why in files.left)):
        if line:
            print(f"picloud: {line}", file=sys.stderr)


def _local(at: float) -> str:
    moment = datetime.datetime.fromtimestamp(at, tz=datetime.UTC)
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


COMMAND = Command(
    "files",
    "list the files that a job wrote in its working folder, print or fetch them",
    (
        "picloud files 17                     what it wrote",
        "picloud files 17 --fetch results     all of them, below the folder results",
        "picloud files 17 out/plot.png > p    one file, as it is",
    ),
    _run,
    _configure,
)
