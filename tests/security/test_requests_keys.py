"""Negative tests 7, 9, 10, 11, 13, 16 and 18: keys of jobs, wrong, foreign, old, altered, too curious.

What speaks for a job is good while its lease lives and for what a job may ask; elsewhere nothing of
it is kept.
"""

import http.client
import os
import socket
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from picloud_jupyter import cloud
from picloud_jupyter.protocol import frames, routes
from picloud_jupyter.protocol.frames import encode_json, pack_records
from picloud_jupyter.protocol.openapi import document
from picloud_services.accounts.keys import JobIdentity, KeyRing, make_job_key
from tests.security.conftest import PLAIN_SPEC, Attacked
from tests.tools.service_under_test import eventually


class Connection(http.client.HTTPConnection):
    """HTTP over the unix socket at ``path``."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(str(self._path))


@dataclass(frozen=True)
class Holder:
    """A running job, and what it could do with its key."""

    attacked: Attacked
    identity: JobIdentity
    key: str

    def ask(
        self, method: str, path: str, body: bytes = b"", key: str | None = None
    ) -> tuple[int, bytes]:
        """Ask as code inside a container does, with ``key`` (default: the job's; "" is none)."""
        connection = Connection(self.attacked.jobs_socket)
        key = self.key if key is None else key
        connection.request(
            method, path, body, {"Authorization": f"Bearer {key}"} if key else {}
        )
        answer = connection.getresponse()
        found = answer.status, answer.read()
        connection.close()
        return found

    def made(self, **changes: Any) -> str:
        """Return the key that the job would have if its identity were another one, by its lease's key."""
        ring = KeyRing.load(self.attacked.service.home)
        return make_job_key(
            ring.lease_key(self.identity.lease), replace(self.identity, **changes)
        )


@pytest.fixture(scope="module")
def holder(attacked: Attacked) -> Iterator[Holder]:
    """A job that runs until the module ends."""
    found = hold(attacked)
    yield found
    cloud.kill(found.identity.jid)


def hold(attacked: Attacked) -> Holder:
    """Start a job that tells who it is, and goes on."""

    def stay() -> None:
        import os
        import time

        names = ("PICLOUD_USER_ID", "PICLOUD_JID", "PICLOUD_ATTEMPT", "PICLOUD_LEASE")
        print(*(os.environ[name] for name in names), flush=True)
        time.sleep(300)

    jid = int(cloud.call(stay))

    def said() -> list[str]:
        words: str = cloud.info(jid, ["stdout"])[jid]["stdout"]
        return words.split()

    user, own, attempt, lease = eventually(said, what="the job begins")
    identity = JobIdentity(int(user), int(own), int(attempt), lease)
    ring = KeyRing.load(attacked.service.home)
    return Holder(attacked, identity, make_job_key(ring.lease_key(lease), identity))


# --------------------------------------------------------------------------- who is let in at all
def test_7_the_key_of_a_running_job_is_let_in(holder: Holder) -> None:
    assert holder.ask("GET", routes.NODES)[0] == 200


WRONG = {
    "none": lambda h: "",
    "cut": lambda h: h.key[:-1],
    "longer": lambda h: h.key + "0",
    "no prefix": lambda h: h.key.removeprefix("pcj_"),
    "another prefix": lambda h: "pc_" + h.key.removeprefix("pcj_"),
    "a digit changed": lambda h: h.key[:-1] + ("0" if h.key[-1] != "0" else "1"),
    "in capitals": lambda h: h.key.upper(),
    "no MAC": lambda h: h.key.rpartition(".")[0] + ".",
    "huge": lambda h: "pcj_" + "1" * 50_000,
    "not ASCII": lambda h: h.key[:-1] + "\xb2",
    "of an upload": lambda h: h.attacked.upload,
    "a jid of 5,000 digits": lambda h: h.key.replace(
        f".{h.identity.jid}.", f".{'9' * 5000}.", 1
    ),
    "altered user": lambda h: h.key.replace(f"_{h.identity.user_id}.", "_4242.", 1),
    "altered jid": lambda h: h.key.replace(f".{h.identity.jid}.", f".{h.attacked.done}.", 1),
    "user of another, well made": lambda h: h.made(user_id=h.identity.user_id + 1),
    "jid of another, well made": lambda h: h.made(jid=h.attacked.done),
    "earlier attempt, well made": lambda h: h.made(attempt=h.identity.attempt - 1),
    "later attempt, well made": lambda h: h.made(attempt=h.identity.attempt + 1),
    "another lease, well made": lambda h: KeyRingOf(h).of_lease("0" * 16),
    "of another service": lambda h: make_job_key(
        KeyRing(bytes(32)).lease_key(h.identity.lease), h.identity
    ),
}


@dataclass(frozen=True)
class KeyRingOf:
    """Makes keys with the service's own secret."""

    holder: Holder

    def of_lease(self, lease: str) -> str:
        """Return a key of the job under another lease."""
        ring = KeyRing.load(self.holder.attacked.service.home)
        return make_job_key(ring.lease_key(lease), replace(self.holder.identity, lease=lease))


@pytest.mark.parametrize("name", WRONG)
def test_7_18_a_wrong_key_is_refused_in_one_way(holder: Holder, name: str) -> None:
    status, body = holder.ask("GET", routes.NODES, key=WRONG[name](holder))
    assert status == 401, body
    none = holder.ask("GET", routes.NODES, key="")[1]
    cut = holder.ask("GET", routes.NODES, key="pcj_x")[1]
    assert body in (none, cut)  # a wrong key learns nothing of how it is wrong


@pytest.mark.parametrize(
    "header", ["Basic", "bearer", "Token", "Bearer:", "Bearer\t", "Cookie:"]
)
def test_7_a_key_elsewhere_than_behind_bearer_is_none(holder: Holder, header: str) -> None:
    for path, headers in (
        (f"{routes.NODES}?key={holder.key}&access_token={holder.key}", {}),
        (routes.NODES, {"Authorization": f"{header}{holder.key}"}),
        (routes.NODES, {"Cookie": f"Authorization={holder.key}", "X-API-Key": holder.key}),
    ):
        connection = Connection(holder.attacked.jobs_socket)
        connection.request("GET", path, headers=headers)
        assert connection.getresponse().status == 401
        connection.close()


@pytest.mark.parametrize(
    ("method", "path"), [(m.upper(), p) for p, ms in document()["paths"].items() for m in ms]
)
def test_7_every_operation_needs_a_key_inside_of_jobs(
    holder: Holder, method: str, path: str
) -> None:
    status, body = holder.ask(method, path.replace("{", "").replace("}", ""), key="")
    assert status == 401, body


def test_7_a_key_is_of_no_use_at_the_door_of_users(holder: Holder) -> None:
    connection = Connection(holder.attacked.socket)
    foreign = holder.made(user_id=4242)
    connection.request("GET", routes.SERVICE, headers={"Authorization": f"Bearer {foreign}"})
    answer = connection.getresponse()
    assert b'"user_id":%d' % os.getuid() in answer.read()
    connection.close()


# -------------------------------------------------------------------------------- what it is for
NOT_FOR_JOBS = [
    (method.upper(), path)
    for path, methods in document()["paths"].items()
    for method, operation in methods.items()
    if operation["x-picloud-callers"] != "anybody"
]


@pytest.mark.parametrize(("method", "path"), NOT_FOR_JOBS)
def test_16_a_job_manages_no_users_no_secrets_and_no_service(
    holder: Holder, method: str, path: str
) -> None:
    filled = path.format_map({"name": "X", "user": holder.identity.user_id})
    status, body = holder.ask(method, filled, b"{}")
    assert (status, b"not_allowed" in body) == (403, True), body


def test_16_what_only_users_may_is_what_the_gateway_refuses_to_jobs() -> None:
    assert ("PUT", routes.USER_QUOTA) in NOT_FOR_JOBS
    assert ("GET", routes.SECRETS) in NOT_FOR_JOBS
    assert ("POST", routes.STOP) in NOT_FOR_JOBS


@pytest.mark.parametrize(
    "changes",
    [
        {"folder": "/etc"},
        {"volumes": ["/etc:/mnt:ro"]},
        {"volumes": ["/:/mnt:rw"]},
        {"secrets": [["TOKEN", "CANARY"]]},
        {"host_python": PLAIN_SPEC["host_python"]},
        {"code_version": "0" * 64},
    ],
)
def test_16_a_job_submits_nothing_with_more_rights_than_its_own(
    holder: Holder, changes: dict[str, Any]
) -> None:
    asked = encode_json(
        {
            "jids": [[holder.identity.jid] * 2],
            "fields": ["host_python", "folder", "code_version"],
        }
    )
    import json

    own = json.loads(holder.ask("POST", routes.INFO, asked)[1])["info"][
        str(holder.identity.jid)
    ]
    spec = {"function_name": "f", **own, "code_version": own["code_version"] or "", **changes}
    header = {"spec": spec, "key": "n" * 32, "function": {"size_bytes": 1}}
    call = frames.pack_frame({**header, "arguments": {"size_bytes": 1}}, b"f", b"a")
    for path, body in ((routes.CALLS, call), (routes.MAPS, frames.pack_frame(header, b"f"))):
        status, said = holder.ask("POST", path, body)
        assert status == 403, said


def test_16_a_job_gets_no_path_of_the_service_s_files(holder: Holder) -> None:
    asked = encode_json({"jids": [[holder.attacked.done] * 2], "local": True})
    status, body = holder.ask("POST", routes.RESULTS, asked)
    assert status == 200
    header, _ = frames.split_frame(body)
    assert [item["file"] for item in header["items"]] == [None]
    status, body = holder.ask("POST", routes.UPLOADS, encode_json({"size_bytes": 1}))
    assert (status, b'"path":null' in body) == (200, True)


# ------------------------------------------------------------------------------------- afterwards
def test_11_18_the_key_of_a_job_that_was_killed_is_dead_at_once(attacked: Attacked) -> None:
    held = hold(attacked)
    assert held.ask("GET", routes.NODES)[0] == 200
    cloud.kill(held.identity.jid)
    cloud.join(held.identity.jid, ignore_errors=True)
    eventually(lambda: held.ask("GET", routes.NODES)[0] == 401, seconds=5)
    for method, path, body in (
        ("POST", routes.KILL, encode_json({"jids": None})),
        ("POST", routes.UPLOADS, encode_json({"size_bytes": 1})),
        ("PUT", routes.MAP_PART.format(map=attacked.map, part=0), pack_records([b"x"])),
    ):
        assert held.ask(method, path, body)[0] == 401


def test_10_13_no_key_and_no_secret_is_kept_or_shown_anywhere(
    attacked: Attacked, holder: Holder
) -> None:
    canary = "canary-4f1c9a-of-a-secret"
    cloud.secret.set("CANARY", value=canary)

    def use() -> int:
        import os

        return len(os.environ["TOKEN"])

    assert cloud.result(cloud.call(use, _secrets={"TOKEN": "CANARY"})) == len(canary)
    ring = KeyRing.load(attacked.service.home)
    told = {
        "the job's key": holder.key,
        "the lease's key": ring.lease_key(holder.identity.lease),
        "the secret": canary,
    }
    own_place = attacked.service.home / "secrets"
    for folder in (attacked.service.home, attacked.jobs_socket.parent):
        for path in folder.rglob("*"):
            if path.is_file() and own_place not in path.parents:
                data = path.read_bytes()
                for what, text in told.items():
                    assert text.encode() not in data, f"{what} is in {path}"
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes()
        except OSError:
            continue  # it ended
        for what, text in told.items():
            assert text.encode() not in words, f"{what} is in the command line of {process}"
    cloud.secret.delete("CANARY")


def test_10_what_keys_are_made_of_is_for_its_owner_alone(attacked: Attacked) -> None:
    home = attacked.service.home
    for path in (home / "secret", *(home / "secrets").glob("*.json")):
        assert path.stat().st_mode & 0o077 == 0, path
    assert home.stat().st_mode & 0o077 == 0
    assert attacked.jobs_socket.parent.stat().st_mode & 0o077 == 0


def test_13_nothing_shows_a_key_by_being_printed(attacked: Attacked, holder: Holder) -> None:
    ring = KeyRing.load(attacked.service.home)
    assert repr(ring) == "KeyRing(...)"
    status, body = holder.ask("GET", "/v1/nowhere/" + holder.key[:50])
    assert status == 404
    assert holder.key.rpartition(".")[2].encode() not in body
    assert holder.key not in attacked.log()


def test_9_a_wrong_key_takes_as_long_as_an_unknown_one() -> None:
    """Medians of interleaved samples: the MAC is made and compared whether the lease is known or not."""
    ring = KeyRing(bytes(range(32)))
    identity = JobIdentity(1000, 7, 1, "0123456789abcdef")
    good = make_job_key(ring.lease_key(identity.lease), identity)
    early, late = good[:-32] + "x" + good[-31:], good[:-1] + "x"
    unknown = good.replace(identity.lease, "f" * 16)
    seconds: dict[str, list[float]] = {early: [], late: [], unknown: []}
    for _ in range(10_000):
        for key, samples in seconds.items():
            began = time.perf_counter()
            assert ring.check(key) is None
            samples.append(time.perf_counter() - began)
    medians = [statistics.median(samples) for samples in seconds.values()]
    assert max(medians) < 1.2 * min(medians)
