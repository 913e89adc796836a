"""Negative tests 3, 5, 15 and 17: hostile bodies and words. Stored as data or refused, and no more."""

import gzip
import io
import json
import secrets
import zipfile
from typing import Any
from urllib.parse import quote

import pytest
import requests

from picloud_jupyter import cloud
from picloud_jupyter.protocol import frames, routes
from picloud_jupyter.protocol.operations import OPERATIONS
from tests.security.conftest import PLAIN_SPEC, Attacked
from tests.tools.unix_requests import BASE_URL

MIB = 1024**2
GROWTH_BYTES = 96 * MIB

BOMBS: dict[str, bytes] = {
    "a million levels": b"[" * 10**6 + b"]" * 10**6,
    "a million levels of objects": b'{"a":' * 10**6 + b"1" + b"}" * 10**6,
    "33 levels": b'{"jids":' + b"[" * 33 + b"]" * 33 + b"}",
    "a number of a million digits": b'{"jids":[[' + b"9" * 10**6 + b",1]]}",
    "65 bits": b'{"jids":[[1,18446744073709551616]]}',
    "1e999": b'{"jids":[[1,1e999]]}',
    "NaN": b'{"jids":[[NaN,1]]}',
    "Infinity": b'{"jids":[[1,-Infinity]]}',
    "a name twice": b'{"jids":[[1,1]],"jids":[[2,2]]}',
    "half a character": b'{"jids":[[1,1]],"until":"\\ud800"}',
    "not UTF-8": b'{"jids":"\xff\xfe"}',
    "a byte order mark": b'\xef\xbb\xbf{"jids":[[1,1]]}',
    "UTF-16": '{"jids":[[1,1]]}'.encode("utf-16"),
    "two documents": b'{"jids":[[1,1]]}{"jids":[[2,2]]}',
    "a comment": b'{"jids":[[1,1]]/* */}',
    "an array": b"[[1,1]]",
    "a million ranges": b'{"jids":[' + b"[1,1]," * 10**6 + b"[1,1]]}",
    "250,001 ranges": b'{"jids":[' + b"[1,1]," * 250_000 + b"[1,1]]}",
    "names without end": b"{" + b",".join(b'"%d":0' % n for n in range(300_000)) + b"}",
    "gzip 1:1000": gzip.compress(b'{"jids":' + b" " * 15 * MIB + b"[[1,1]]}"),
    "17 MiB": b" " * 17 * MIB,
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("path", [routes.STATUS, routes.WAIT])
def test_3_a_bomb_is_refused_in_words_and_leaves_no_memory_behind(
    attacked: Attacked, name: str, path: str
) -> None:
    process = attacked.process()
    before = process.memory_info().rss
    headers = {"Content-Encoding": "gzip"} if "gzip" in name else {}
    answer = attacked.http.post(BASE_URL + path, data=BOMBS[name], headers=headers, timeout=30)
    assert answer.status_code in (400, 413), answer.text[:300]
    assert answer.json()["error"]["code"] in ("invalid_request", "payload_too_large")
    assert process.memory_info().rss - before < GROWTH_BYTES


@pytest.mark.parametrize("depth", [1000, 10**6])
def test_3_a_spec_that_is_a_bomb_is_refused(attacked: Attacked, depth: int) -> None:
    header = (
        b'{"spec":' + b"[" * depth + b"]" * depth + b',"key":"k","function":{"size_bytes":1}}'
    )
    body = frames.pack_raw(header, b"f")
    for path in (routes.CALLS, routes.MAPS):
        answer = attacked.http.post(BASE_URL + path, data=body, timeout=30)
        assert answer.status_code in (400, 413), answer.text[:300]


def test_3_an_archive_that_is_a_bomb_stays_shut(attacked: Attacked) -> None:
    import hashlib

    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(20):
            archive.writestr(f"../../module{number}.py", b"\0" * 10 * MIB)
    data = packed.getvalue()
    before = attacked.free_bytes()
    path = routes.CODE.format(digest=hashlib.sha256(data).hexdigest())
    answer = attacked.http.put(BASE_URL + path, data=data, timeout=30)
    assert answer.status_code == 200
    assert before - attacked.free_bytes() < 100 * MIB
    assert not list(attacked.service.home.rglob("module*.py"))


# ------------------------------------------------------------------------------------------ words
WORDS = {
    "markup": "<img src=x onerror=alert(1)>",
    "SQL": "'; DROP TABLE jobs;--",
    "SQL in quotes": '" OR 1=1 --',
    "path": "../../../../etc/passwd",
    "absolute path": "/etc/passwd",
    "header": "x\r\nSet-Cookie: a=b",
    "NUL": "a\0b",
    "right to left": "\u202egnp.exe",
    "emoji": "\U0001f600" * 10,
    "1 MB": "x" * 1_000_000,
    "terminal": "\x1b]8;;http://evil\x07click\x1b]8;;\x07\x1b[2J",
    "format": "%s%n{0.__class__}${HOME}$(id)`id`",
    "empty": "",
    "blank": " \t ",
    "surrogate pair": "\U00010000",
    "minus": "-rf",
}

NAMED = [operation for operation in OPERATIONS if "{" in operation.path]


def _call(attacked: Attacked, **changes: Any) -> requests.Response:
    header = {
        "spec": {**PLAIN_SPEC, **changes},
        "key": secrets.token_hex(16),
        "function": {"size_bytes": 1},
        "arguments": {"size_bytes": 1},
    }
    body = frames.pack_frame(header, b"f", b"a")
    return attacked.http.post(BASE_URL + routes.CALLS, data=body, timeout=30)


@pytest.mark.parametrize("name", WORDS)
def test_5_a_label_and_a_name_are_data_or_refused(attacked: Attacked, name: str) -> None:
    text = WORDS[name]
    answer = _call(attacked, label=text, function_name=text, host_name=text, core_type="c1")
    if answer.status_code != 200:
        assert answer.status_code in (400, 413), answer.text[:300]
        return
    jid = answer.json()["jid"]
    body: Any = {"jids": [[jid, jid]], "fields": ["label", "function", "status"]}
    found = attacked.http.post(BASE_URL + routes.INFO, json=body, timeout=30).json()["info"][
        str(jid)
    ]
    assert found["label"] == text
    assert text in str(found["function"]) or found["function"] is None
    listed = attacked.http.get(
        BASE_URL + routes.JOBS, params={"label": text[:1000]}, timeout=30
    )
    if text and len(text) <= 1000:
        assert [line["label"] for line in listed.json()["jobs"]] == [text]
    cloud.kill(jid)


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("operation", NAMED, ids=lambda o: f"{o.method} {o.path}")
def test_5_words_in_a_path_find_nothing_and_come_back_only_as_data(
    attacked: Attacked, operation: Any, name: str
) -> None:
    text = quote(WORDS[name][:2000], safe="")
    names = [word[1:-1] for word in operation.path.split("/") if word.startswith("{")]
    path = operation.path.format(**dict.fromkeys(names, text))
    body = b"{}" if operation.body is not None else None
    answer = attacked.http.request(operation.method, BASE_URL + path, data=body, timeout=30)
    assert answer.status_code in (400, 404), answer.text[:300]
    assert "Set-Cookie" not in answer.headers
    assert answer.headers["Content-Type"] == "application/json"
    assert "root:" not in answer.text


@pytest.mark.parametrize(
    "path",
    ["../../../../etc/passwd", "..", ".", "/etc/passwd", "a/../../b", "//etc/passwd", "a\0b"],
)
def test_5_a_path_of_written_files_leads_nowhere_else(attacked: Attacked, path: str) -> None:
    url = routes.FILE.format(jid=attacked.done, path=quote(path, safe=""))
    answer = attacked.http.get(BASE_URL + url, timeout=30)
    assert answer.status_code == 404, answer.text[:300]


@pytest.mark.parametrize(
    "upload",
    ["0" * 32, "f" * 32, "../../../etc/passwd", "0" * 31, "0" * 33, "store.db", "%2e%2e"],
)
def test_15_an_upload_is_found_by_nobody_who_guesses(attacked: Attacked, upload: str) -> None:
    path = routes.UPLOAD.format(upload=quote(upload, safe=""))
    for answer in (
        attacked.http.put(BASE_URL + path, data=b"x", timeout=30),
        attacked.http.post(BASE_URL + path, json={"size_bytes": 1}, timeout=30),
    ):
        assert answer.status_code == 404, answer.text[:300]


def test_15_ids_of_uploads_are_random_and_of_128_bits(attacked: Attacked) -> None:
    found = {
        attacked.http.post(
            BASE_URL + routes.UPLOADS, json={"size_bytes": 1}, timeout=30
        ).json()["upload"]
        for _ in range(50)
    }
    assert len({upload[:8] for upload in found}) == 50
    assert all(len(bytes.fromhex(upload)) == 16 for upload in found)


# ------------------------------------------------------------------------------- mass assignment
EXTRA: dict[str, Any] = {
    "user_id": 0,
    "owner": True,
    "uid": 0,
    "is_admin": True,
    "jid": 1,
    "status": "done",
    "reason": "done",
    "attempt": 99,
    "lease": "0" * 16,
    "price": 0,
    "cost": -1.0,
    "cached_from": 1,
    "parent_jid": 1,
    "created_at": 0.0,
    "environment_id": "x",
    "secret_versions": [],
    "pids": 10**6,
    "cpu_cores": 1000.0,
    "memory_bytes": 2**50,
}


def test_17_fields_that_are_not_the_client_s_change_nothing(attacked: Attacked) -> None:
    answer = _call(attacked, **EXTRA)
    assert answer.status_code == 200, answer.text[:300]
    jid = answer.json()["jid"]
    fields = ["status", "attempt", "cost", "parent_jid", "created", "cached_from"]
    body: Any = {"jids": [[jid, jid]], "fields": fields}
    found = attacked.http.post(BASE_URL + routes.INFO, json=body, timeout=30).json()["info"][
        str(jid)
    ]
    assert jid > attacked.failed
    assert found["attempt"] in (0, 1)
    assert found["parent_jid"] is None
    assert found["cached_from"] is None
    assert found["created"] > 10**9
    assert (found["cost"] or 0.0) >= 0.0
    cloud.kill(jid)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (routes.STATUS, {"user_id": 12345}),
        (routes.WAIT, {"user_id": 12345, "timeout_seconds": 0}),
        (routes.INFO, {"user_id": 12345, "owner": 12345}),
    ],
)
def test_17_nobody_becomes_another_user_by_a_field(
    attacked: Attacked, path: str, body: dict[str, Any]
) -> None:
    asked = {"jids": [[attacked.done, attacked.done]]}
    plain = attacked.http.post(BASE_URL + path, json=asked, timeout=30)
    extra = attacked.http.post(BASE_URL + path, json={**asked, **body}, timeout=30)
    assert (plain.status_code, extra.status_code) == (200, 200)
    assert json.loads(plain.text) == json.loads(extra.text)


def test_17_a_quota_takes_no_other_words(attacked: Attacked) -> None:
    url = BASE_URL + routes.USER_QUOTA.format(user=4242)
    answer = attacked.http.put(
        url, json={"cores": 1, "use": {"cost": 0}, "user_id": 0, "owner": True}, timeout=30
    )
    assert answer.status_code == 200
    assert answer.json()["user"]["user_id"] == 4242
    assert answer.json()["user"]["use"]["cost"] == 0
    attacked.http.put(url, json={}, timeout=30)
