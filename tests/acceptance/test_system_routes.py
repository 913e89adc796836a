"""Every request of the API, made by one user with what belongs to another: it is unknown to them."""

import base64
import json
from dataclasses import dataclass
from typing import Any

import pytest

from picloud_jupyter.protocol import routes
from picloud_jupyter.protocol.codec import to_wire
from picloud_jupyter.protocol.frames import encode_json, pack_frame, pack_records
from picloud_jupyter.protocol.jobs import HostPython, JobSpec
from picloud_jupyter.protocol.openapi import document
from tests.tools.two_users import TwoUsers

pytestmark = [pytest.mark.isolation, pytest.mark.root]

NOT_FOUND = (404, "not_found")
REFUSED = (403, "not_allowed")


@dataclass(frozen=True)
class Ask:
    """One request, and what another user than the owner of its ids must get.

    ``expected`` is a status and an error code, or values that the answer must have.
    """

    path: str
    body: bytes = b""
    expected: Any = NOT_FOUND


BEGIN = """
# What Ann has: a finished job with output and a file, a running one, an open map, an upload, code.
from picloud_jupyter.cloud.session import session
sys.path.insert(0, 'modules')
import mine
def work(data):
    print('said by ann')
    with open('written.txt', 'w') as file:
        file.write('written by ann')
    return bytes(data)
def long():
    import time
    time.sleep(55)
done = cloud.call(work, bytes(100_000), _key='key-of-ann', _label='label of ann', _cache=True)
cloud.result(done)
code = cloud.call(mine.f)
cloud.result(code)
running = cloud.call(long)
cloud.wait_for.status(running, 'processing')
client = session().client
upload = client.post('/v1/uploads', {'size_bytes': 5})['upload']
client.put_bytes(f'/v1/uploads/{upload}', (b'upload',))
cloud.secret.set('OF_ANN', value='value of ann')
info = cloud.info(code, ['code_version', 'host_python'])[code]
print(json.dumps({'done': done, 'running': running, 'upload': upload, 'code': info['code_version'],
    'python': info['host_python']}))
"""

ASK = """
import base64, http.client, socket
class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(given[0])
answers = []
for method, path, body in given[1]:
    connection = Connection('localhost', timeout=30)
    connection.request(method, path, base64.b64decode(body))
    answer = connection.getresponse()
    answers.append([answer.status, base64.b64encode(answer.read()).decode()])
    connection.close()
print(json.dumps(answers))
"""


def ask(two_users: TwoUsers, user: Any, asks: list[tuple[str, str, bytes]]) -> list[Any]:
    """Make the requests as ``user``; return (status, body) of each."""
    words = [[method, path, base64.b64encode(body).decode()] for method, path, body in asks]
    found = user.run(ASK, str(two_users.socket), words)
    return [(status, base64.b64decode(body)) for status, body in found]


def make_asks(has: dict[str, Any], spec: dict[str, Any], ann_uid: int) -> dict[Any, list[Ask]]:
    """Return for each route the requests of Bob that name what is Ann's."""
    done, running = [[has["done"]] * 2], [[has["running"]] * 2]
    each = encode_json({"jids": done})
    job = {"jid": str(has["done"])}
    inline = {"size_bytes": 1}
    stolen = {"size_bytes": 6, "upload": has["upload"]}

    def submit(**changes: Any) -> bytes:
        header = {"spec": spec, "key": "k" * 32, "function": inline, "arguments": inline}
        return pack_frame({**header, **changes}, b"f", b"a")

    depends = {**spec, "depends_on": done}
    shipped = {**spec, "code_version": has["code"]}
    map_body = {"spec": spec, "key": "m" * 32, "count": 1, "function": inline}
    a_map = str(has["map"])
    return {
        ("GET", routes.SERVICE): [Ask(routes.SERVICE, expected={"scope": "system"})],
        ("GET", routes.OPENAPI): [Ask(routes.OPENAPI, expected={"openapi": "3.1.0"})],
        ("POST", routes.CALLS): [
            Ask(routes.CALLS, submit(spec=depends)),
            Ask(routes.CALLS, submit(spec=shipped)),
            Ask(routes.CALLS, submit(function={**stolen, "digest": "0" * 64})),
            Ask(routes.CALLS, submit(arguments=stolen)),
        ],
        ("POST", routes.MAPS): [
            Ask(routes.MAPS, pack_frame({**map_body, "spec": depends}, b"f")),
            Ask(routes.MAPS, pack_frame({**map_body, "spec": shipped}, b"f")),
        ],
        ("PUT", routes.MAP_PART): [
            Ask(
                routes.MAP_PART.format(map=a_map, part=0),
                pack_frame({"first_index": 0, "count": 1, "uploads": []}, pack_records([b"x"])),
            )
        ],
        ("POST", routes.MAP_SEAL): [
            Ask(routes.MAP_SEAL.format(map=a_map), encode_json({"count": 0, "parts": 0}))
        ],
        ("GET", routes.JOBS): [
            Ask(f"{routes.JOBS}?limit=1000", expected={}),  # Ann's words are looked for in it
            Ask(f"{routes.JOBS}?label=label%20of%20ann", expected={"jobs": []}),
            Ask(f"{routes.JOBS}?map={a_map}", expected={"jobs": []}),
        ],
        ("POST", routes.STATUS): [Ask(routes.STATUS, each)],
        ("POST", routes.WAIT): [Ask(routes.WAIT, each)],
        ("POST", routes.RESULTS): [
            Ask(routes.RESULTS, encode_json({"jids": done, "local": True, "wait_seconds": 1}))
        ],
        ("GET", routes.RESULT): [Ask(routes.RESULT.format(**job))],
        ("GET", routes.ARGUMENTS): [Ask(routes.ARGUMENTS.format(**job))],
        ("GET", routes.FUNCTION): [Ask(routes.FUNCTION.format(**job))],
        ("POST", routes.INFO): [Ask(routes.INFO, each)],
        ("POST", routes.KILL): [
            Ask(routes.KILL, encode_json({"jids": running})),
            Ask(routes.KILL, encode_json({"jids": None}), expected={"killed": 0}),
        ],
        ("POST", routes.DELETE): [Ask(routes.DELETE, each)],
        ("GET", routes.LOG): [Ask(routes.LOG.format(**job, stream="stdout"))],
        ("GET", routes.FILES): [Ask(routes.FILES.format(**job))],
        ("GET", routes.FILE): [Ask(routes.FILE.format(**job, path="written.txt"))],
        ("GET", routes.SAMPLES): [Ask(routes.SAMPLES.format(**job))],
        ("POST", routes.UPLOADS): [
            Ask(routes.UPLOADS, encode_json({"size_bytes": 5}), expected={"path": None})
        ],
        ("PUT", routes.UPLOAD): [Ask(routes.UPLOAD.format(upload=has["upload"]), b"other!")],
        ("POST", routes.UPLOAD): [
            Ask(routes.UPLOAD.format(upload=has["upload"]), encode_json({"size_bytes": 6}))
        ],
        ("GET", routes.CODE): [Ask(routes.CODE.format(digest=has["code"]))],
        ("PUT", routes.CODE): [
            Ask(
                routes.CODE.format(digest=has["code"]),
                b"zip",
                expected=(400, "invalid_request"),
            )
        ],
        ("GET", routes.NODES): [Ask(routes.NODES, expected={})],
        ("GET", routes.SECRETS): [Ask(routes.SECRETS, expected={"secrets": []})],
        ("PUT", routes.SECRET): [
            Ask(routes.SECRET.format(name="OF_BOB"), b"value of bob", expected={})
        ],
        ("DELETE", routes.SECRET): [Ask(routes.SECRET.format(name="OF_ANN"))],
        ("GET", routes.WHY): [Ask(routes.WHY.format(**job))],
        ("GET", routes.DIAGNOSIS): [Ask(routes.DIAGNOSIS, expected=REFUSED)],
        ("GET", routes.METRICS): [Ask(routes.METRICS, expected=REFUSED)],
        ("POST", routes.STOP): [Ask(routes.STOP, encode_json({}), expected=REFUSED)],
        ("GET", routes.USERS): [Ask(routes.USERS, expected=REFUSED)],
        ("PUT", routes.USER_QUOTA): [
            Ask(routes.USER_QUOTA.format(user=ann_uid), encode_json({}), expected=REFUSED)
        ],
    }


@pytest.fixture(scope="module")
def has(two_users: TwoUsers) -> dict[str, Any]:
    """What Ann has."""
    two_users.ann.write("modules/mine.py", "def f(): return 1\n")
    found: dict[str, Any] = two_users.ann.run(BEGIN)
    spec = plain_spec(found)
    header = {"spec": spec, "key": "map-of-ann", "count": None, "function": {"size_bytes": 1}}
    ((status, body),) = ask(
        two_users, two_users.ann, [("POST", routes.MAPS, pack_frame(header, b"f"))]
    )
    assert status == 200, body
    return {**found, "map": json.loads(body)["map"]}


def plain_spec(has: dict[str, Any]) -> dict[str, Any]:
    """Return a spec that any user may submit: the system's own Python, no folder."""
    python = HostPython("/bin/sh", "/usr", "/usr", "3.11.2", paths=("/usr",))
    return to_wire(JobSpec("f", python))


def test_what_is_ann_s_is_unknown_to_bob_on_every_route(
    two_users: TwoUsers, has: dict[str, Any]
) -> None:
    asks = make_asks(has, plain_spec(has), two_users.ann.uid)
    described = {
        (method.upper(), path): operation
        for path, methods in document()["paths"].items()
        for method, operation in methods.items()
    }
    assert set(described) == set(asks), "each operation has its requests here"
    flat = [(*key, one) for key, ones in asks.items() for one in ones]
    answers = ask(two_users, two_users.bob, [(m, one.path, one.body) for m, _, one in flat])
    for (method, template, one), (status, body) in zip(flat, answers, strict=True):
        words = f"{method} {one.path}: {status} {body[:300]!r}"
        for word in (b"of ann", b"by ann", two_users.ann.name.encode()):
            assert word not in body, words
        if isinstance(one.expected, tuple):
            found = status, json.loads(body)["error"]["code"]
            assert found == one.expected, words
            assert str(status) in described[method, template]["responses"], words
        else:
            assert status == 200, words
            answer = json.loads(body)
            for name, value in one.expected.items():
                assert answer[name] == value, words


def test_what_is_ann_s_is_as_it_was(two_users: TwoUsers, has: dict[str, Any]) -> None:
    job = {"jid": str(has["done"])}
    asks = [
        ("GET", routes.LOG.format(**job, stream="stdout"), b""),
        ("GET", routes.FILE.format(**job, path="written.txt"), b""),
        ("GET", routes.CODE.format(digest=has["code"]), b""),
        ("GET", routes.SECRETS, b""),
        ("POST", routes.STATUS, encode_json({"jids": [[has["running"]] * 2]})),
        ("POST", routes.MAP_SEAL.format(map=has["map"]), encode_json({"count": 0, "parts": 0})),
    ]
    (log, file, code, secrets, status, seal) = ask(two_users, two_users.ann, asks)
    assert log == (200, b"said by ann\n")
    assert file == (200, b"written by ann")
    assert code[0] == 200
    assert [line["name"] for line in json.loads(secrets[1])["secrets"]] == ["OF_ANN"]
    assert json.loads(status[1])["statuses"][0][2] == "processing"
    assert seal[0] == 200, seal[1]
    two_users.ann.run("cloud.kill(given[0])\nprint(1)", has["running"])


def test_the_same_key_and_the_same_call_of_another_user_are_their_own(
    two_users: TwoUsers, has: dict[str, Any]
) -> None:
    code = """
    def work(data):
        print('said by ann')
        with open('written.txt', 'w') as file:
            file.write('written by ann')
        return os.getuid()
    jid = cloud.call(work, bytes(100_000), _key='key-of-ann', _cache=True)
    info = cloud.info(jid, 'cached_from')[jid]
    print(json.dumps([int(jid), cloud.result(jid), info['cached_from']]))"""
    jid, uid, cached_from = two_users.bob.run("import os\n" + code.replace("\n    ", "\n"))
    assert jid != has["done"]
    assert uid == two_users.bob.uid
    assert cached_from is None


@pytest.mark.parametrize(
    "label", ["<img src=x onerror=alert(1)>", "'; DROP TABLE jobs;--", "../../etc"]
)
def test_words_of_a_user_are_data_and_stay_theirs(two_users: TwoUsers, label: str) -> None:
    jid, kept = two_users.ann.run(
        """
        jid = cloud.call(lambda: None, _label=given[0])
        print(json.dumps([int(jid), cloud.info(jid, 'label')[jid]['label']]))""",
        label,
    )
    assert kept == label
    shown = two_users.bob.cli("-o", "json", "jobs").stdout
    assert jid not in [job["jid"] for job in json.loads(shown or "[]")]
