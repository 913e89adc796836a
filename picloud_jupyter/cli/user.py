"""`picloud user`."""

import argparse
import pwd
from typing import Any

from picloud_jupyter.cli.command import Command, WrongUsageError
from picloud_jupyter.cli.output import Table, Text
from picloud_jupyter.cli.quota_words import number_type, size_type, used_of
from picloud_jupyter.cloud.session import session
from picloud_jupyter.protocol import routes
from picloud_jupyter.protocol.frames import encode_json
from picloud_jupyter.protocol.jobs import FINISHED_STATUSES

COLUMNS = ("uid", "name", "jobs", "cores", "memory", "disk", "cost")
_LIMITS = {"cores": "cores", "memory": "memory_bytes", "disk": "disk_bytes", "cost": "cost"}


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("list", "quota"), help="what to do")
    parser.add_argument(
        "user", metavar="USER", nargs="?", help="name or uid; without it, yourself"
    )
    limit: dict[str, Any] = {"metavar": "LIMIT", "default": argparse.SUPPRESS}
    parser.add_argument(
        "--cores",
        type=number_type,
        help="cores that run at a time; as all limits a number, none, or default (as the settings say)",
        **limit,
    )
    parser.add_argument(
        "--memory", type=size_type, help="memory of what runs at a time, as 8G", **limit
    )
    parser.add_argument(
        "--disk", type=size_type, help="arguments, results, output and files, as 50G", **limit
    )
    parser.add_argument(
        "--cost", type=number_type, help="what all jobs may cost, in all", **limit
    )


def _run(arguments: argparse.Namespace) -> Table | Text:
    changes = {
        name: getattr(arguments, option)
        for option, name in _LIMITS.items()
        if hasattr(arguments, option)
    }
    if arguments.action == "list":
        if arguments.user is not None or changes:
            raise WrongUsageError("list takes no user and no limits")
        users = session().client.get(routes.USERS)["users"]
        return Table(COLUMNS, [_row(user) for user in users])
    user = _find(_user_id(arguments))
    if changes:
        path = routes.USER_QUOTA.format(user=user["user_id"])
        quota = encode_json(user["own"] | changes)
        user = session().client.put_bytes(path, (quota,))["user"]
    return Text(_describe(user), user)


def _find(user_id: int | None) -> dict[str, Any]:
    """What the service knows of a user; everybody may ask for themselves."""
    client = session().client
    own: dict[str, Any] = client.get(routes.SERVICE)["user"]
    if user_id is None or user_id == own["user_id"]:
        return own
    for user in client.get(routes.USERS)["users"]:
        if user["user_id"] == user_id:
            return dict(user)
    nothing = {"cores": 0.0, "memory_bytes": 0, "disk_bytes": 0, "cost": 0.0}
    return {"user_id": user_id, "own": {}, "quota": nothing, "use": nothing, "counts": {}}


def _user_id(arguments: argparse.Namespace) -> int | None:
    text = arguments.user
    if text is None:
        return None
    if text.isdecimal():
        return int(text)
    try:
        return pwd.getpwnam(text).pw_uid
    except KeyError:
        raise WrongUsageError(
            f"there is no user {text!r} on this machine; give the uid"
        ) from None


def _name(user_id: int) -> str:
    try:
        return pwd.getpwuid(user_id).pw_name
    except KeyError:
        return ""


def _row(user: dict[str, Any]) -> tuple[object, ...]:
    jobs = ", ".join(
        f"{number:,} {status}"
        for status, number in user["counts"].items()
        if status not in FINISHED_STATUSES
    )
    return (user["user_id"], _name(user["user_id"]), jobs, *used_of(user).values())


def _describe(user: dict[str, Any]) -> str:
    name = _name(user["user_id"])
    lines = [("user", f"{user['user_id']} {name}".rstrip()), *used_of(user).items()]
    return "\n".join(f"{word:<8} {text}" for word, text in lines)


COMMAND = Command(
    "user",
    "show what users of this service use and may use; root and its owner set it",
    (
        "picloud user list                          everybody who ever used it",
        "picloud user quota                         your own use and limits",
        "picloud user quota alice --cores 4 --disk 50G",
        "picloud user quota 1001 --memory default --cost none",
    ),
    _run,
    _configure,
)
