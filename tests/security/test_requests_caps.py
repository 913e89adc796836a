"""Negative tests 44 and 46: caps that hold whatever is asked, and what the service never opens."""

import dataclasses
import json
import os
from typing import Any

import psutil
import pytest

from picloud_jupyter import cloud
from picloud_jupyter.protocol import frames, routes
from picloud_jupyter.protocol.frames import pack_records
from picloud_jupyter.protocol.ids import MAX_JID
from picloud_services.config import Settings
from tests.security.conftest import PLAIN_SPEC, Attacked
from tests.tools.unix_requests import BASE_URL


def ask(attacked: Attacked, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Return (status, JSON) of the answer."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body)
    answer = attacked.http.request(method, BASE_URL + path, data=data, timeout=60)
    return answer.status_code, answer.json()


def a_map(**changes: Any) -> bytes:
    header = {"spec": PLAIN_SPEC, "key": os.urandom(16).hex(), "function": {"size_bytes": 1}}
    return frames.pack_frame({**header, **changes}, b"f")


@pytest.mark.parametrize("count", [1_000_001, 10_000_000, 2**63 - 1, -1])
def test_44_a_map_has_at_most_a_million_jobs(attacked: Attacked, count: int) -> None:
    status, answer = ask(attacked, "POST", routes.MAPS, a_map(count=count))
    assert (status, answer["error"]["code"]) == (400, "invalid_request")


@pytest.mark.parametrize(
    ("header", "records"),
    [
        ({"first_index": 0, "count": 1001}, 1001),
        ({"first_index": 0, "count": 1}, 1001),
        ({"first_index": 0, "count": 1000}, 1),
        ({"first_index": 10**6, "count": 1000}, 1000),
        ({"first_index": -1, "count": 1}, 1),
        ({"first_index": 0, "count": 0}, 0),
        ({"first_index": 0, "count": 1, "uploads": [[0, {"size_bytes": 1}]] * 2000}, 1),
        (
            {
                "first_index": 0,
                "count": 1,
                "uploads": [[5, {"size_bytes": 1, "upload": "0" * 32}]],
            },
            1,
        ),
    ],
)
def test_44_a_part_has_at_most_a_thousand_jobs_and_what_it_says(
    attacked: Attacked, header: dict[str, Any], records: int
) -> None:
    path = routes.MAP_PART.format(map=attacked.map, part=0)
    body = frames.pack_frame(header, pack_records([b"x"] * records))
    status, answer = ask(attacked, "PUT", path, body)
    assert status in (400, 404, 413), answer


@pytest.mark.parametrize(
    ("path", "more"),
    [
        (routes.STATUS, {}),
        (routes.WAIT, {"timeout_seconds": 0}),
        (routes.RESULTS, {}),
        (routes.INFO, {}),
        (routes.KILL, {}),
        (routes.DELETE, {}),
    ],
)
@pytest.mark.parametrize("jids", [[[1, MAX_JID]], [[1, MAX_JID]] * 2000, [[1, 10**7]] * 2000])
def test_44_all_jids_there_can_be_are_refused_soon(
    attacked: Attacked, path: str, more: dict[str, Any], jids: list[list[int]]
) -> None:
    status, answer = ask(attacked, "POST", path, {"jids": jids, **more})
    assert status in (400, 404), answer
    status, _ = ask(attacked, "GET", routes.NODES)
    assert status == 200


def test_44_results_and_lists_have_limits_of_their_own(attacked: Attacked) -> None:
    jids = [[attacked.done, attacked.done]]
    for body in (
        {"jids": jids, "limit_bytes": 2**40},
        {"jids": jids, "limit_bytes": 0},
        {"jids": jids, "wait_seconds": 61},
        {"jids": jids, "wait_seconds": -1},
    ):
        assert ask(attacked, "POST", routes.RESULTS, body)[0] == 400
    for query in ("limit=1001", "limit=0", "limit=x", "before=-1", "status=x", "map=1e9"):
        assert ask(attacked, "GET", f"{routes.JOBS}?{query}")[0] == 400
    log = routes.LOG.format(jid=attacked.done, stream="stdout")
    for query in (
        "limit=4194305",
        "offset=-1",
        "wait_seconds=61",
        "tail_bytes=-1",
        "offset=1.5",
    ):
        assert ask(attacked, "GET", f"{log}?{query}")[0] == 400


@pytest.mark.parametrize(
    "changes",
    [
        {"cores": 10**6},
        {"core_type": "c1", "cores": -1},
        {"core_type": "../../x"},
        {"gpus": 10**6},
        {"gpus": -1},
        {"max_runtime_seconds": -1},
        {"retries": {"count": 10**9}},
        {"depends_on": [[1, MAX_JID]]},
        {"depends_on": [[2, 1]]},
        {"depends_on_errors": "x"},
        {"fast_serialization": 99},
        {"variables": [["A=B", "x"]]},
        {"variables": [["A", "x\0y"]]},
        {"variables": [["", "x"]]},
        {"volumes": ["relative:/x:rw"]},
        {"volumes": ["/etc:/proc:rw"]},
        {"volumes": ["/etc:/mnt:root"]},
        {"environment": "no-such"},
        {"max_result_bytes": -1},
        {"kind": "machine"},
        {"kind": "setup"},
        {"network": "host"},
        {"folder": "relative"},
        {"folder": "/no/such/folder"},
        {"code_version": "../../etc"},
        {"label": "x" * 600_000},
    ],
)
def test_44_a_spec_that_can_never_run_is_refused_or_stays_a_job_that_ends(
    attacked: Attacked, changes: dict[str, Any]
) -> None:
    spec = {**PLAIN_SPEC, **changes}
    status, answer = ask(attacked, "POST", routes.MAPS, a_map(spec=spec, count=1))
    assert status in (400, 404, 413, 429), (changes, answer)


@pytest.mark.parametrize(
    "words",
    [
        {"_max_runtime": 26 * 24 * 60},  # more than the kernel waits at a time
        {"_max_runtime": 10 * 365 * 24 * 60},
        {"_priority": 2**40},
        {"_priority": -(2**40)},
        {"_retries": 100},
        {"_label": "x" * 200},
    ],
)
def test_44_the_largest_values_that_are_taken_work(
    attacked: Attacked, words: dict[str, Any]
) -> None:
    assert cloud.result(cloud.call(lambda: 7, **words)) == 7


# ------------------------------------------------------------------------------ what it never opens
def test_46_no_process_of_it_listens_on_a_network(attacked: Attacked) -> None:
    control = attacked.process()
    agent = psutil.Process(
        attacked.http.get(BASE_URL + routes.SERVICE, timeout=30).json()["agent_pid"]
    )
    processes = {
        p.pid: p for root in (control, agent) for p in (root, *root.children(recursive=True))
    }
    for process in processes.values():
        for connection in process.net_connections("inet"):
            assert connection.status != psutil.CONN_LISTEN, (process, connection)


def test_46_there_is_no_setting_that_opens_it_to_a_network_or_turns_its_checks_off() -> None:
    """When it can be opened, this test is the place for what must be refused then."""
    opening = {"host", "port", "debug", "password", "insecure", "auth"}
    for field in dataclasses.fields(Settings):
        assert not opening & set(field.name.split("_"))


def test_46_its_sockets_are_its_owner_s_alone(attacked: Attacked) -> None:
    run = attacked.jobs_socket.parent
    assert run.stat().st_mode & 0o077 == 0
    for path in run.rglob("*.sock"):
        inside = path.parent.name == "run"  # of a container: its user's
        assert inside or path.stat().st_mode & 0o077 == 0, path
