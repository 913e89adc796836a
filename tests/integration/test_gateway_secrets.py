"""Requests about secrets: values come in, and never go out."""

import json
import os

import pytest

from picloud_jupyter.protocol.codec import to_wire
from picloud_jupyter.protocol.secrets import MAX_SECRET_BYTES
from tests.tools.gateway_harness import PYTHON, Peer, call_frame, connected, serving

SPEC = {"function_name": "f", "host_python": to_wire(PYTHON)}


@pytest.fixture
async def gateway(tmp_path):
    async with serving(tmp_path) as started:
        yield started


@pytest.fixture
async def peer(gateway):
    async with connected(gateway.api) as opened:
        yield opened


def error_of(answer) -> dict[str, object]:
    found: dict[str, object] = json.loads(answer.body)["error"]
    return found


async def test_set_list_delete_then_values_are_in_no_answer(peer):
    answers = [await peer.ask("PUT", "/v1/secrets/TOKEN", b"hidden")]
    answers.append(await peer.ask("GET", "/v1/secrets"))
    (line,) = json.loads(answers[-1].body)["secrets"]
    assert (line["name"], line["version"]) == ("TOKEN", 1)
    answers.append(await peer.ask("DELETE", "/v1/secrets/TOKEN"))
    answers.append(await peer.ask("GET", "/v1/secrets"))
    assert json.loads(answers[-1].body) == {"secrets": []}
    assert [answer.status for answer in answers] == [200] * 4
    assert not any(b"hidden" in answer.body for answer in answers)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/secrets/a-b", b"hidden", 400),
        ("/v1/secrets/..%2F1", b"hidden", 400),
        ("/v1/secrets/TOKEN", b"", 400),
        ("/v1/secrets/TOKEN", b"hidden\0", 400),
        ("/v1/secrets/TOKEN", b"hidden\xff", 400),
        ("/v1/secrets/TOKEN", b"hidden" * MAX_SECRET_BYTES, 413),
    ],
)
async def test_set_when_it_cannot_be_kept_then_the_answer_does_not_repeat_it(
    gateway, path, body, status
):
    peer = await Peer.open(gateway.api)
    answer = await peer.ask("PUT", path, body)
    assert answer.status == status
    assert b"hidden" not in answer.body
    assert gateway.gateway._services.secrets.lines(os.getuid()) == []
    await peer.close()


async def test_delete_when_there_is_none_then_404_with_the_next_step(peer):
    answer = await peer.ask("DELETE", "/v1/secrets/NOPE")
    assert answer.status == 404
    assert "picloud secret set NOPE" in str(error_of(answer)["hint"])


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/secrets"), ("PUT", "/v1/secrets/A"), ("DELETE", "/v1/secrets/A")],
)
async def test_secrets_when_a_job_asks_then_403(gateway, method, path):
    inside = await Peer.open(gateway.inside)
    body = b"x" if method == "PUT" else b""
    bearer = "Bearer " + gateway.job_key()
    answer = await inside.ask(method, path, body, Authorization=bearer)
    assert answer.status == 403
    await inside.close()


async def test_submit_when_it_names_secrets_then_the_spec_has_their_versions(gateway, peer):
    await peer.ask("PUT", "/v1/secrets/A", b"1")
    await peer.ask("PUT", "/v1/secrets/A", b"2")
    # What the client says of versions does not count.
    spec = {**SPEC, "secrets": [["V", "A"]], "secret_versions": [77]}
    answer = await peer.ask("POST", "/v1/calls", call_frame(b"f", b"a", spec=spec))
    assert answer.status == 200
    _, found, *_ = gateway.jobs.calls[0]
    assert (found.secrets, found.secret_versions) == ((("V", "A"),), (2,))


@pytest.mark.parametrize(
    ("secrets", "status", "words"),
    [
        ([["V", "NOPE"]], 404, "NOPE"),
        ([["PICLOUD_JID", "A"]], 400, "belong to the service"),
        ([["A", "A"], ["A", "B"]], 400, "twice"),
    ],
)
async def test_submit_when_a_secret_cannot_be_given_then_nothing_is_entered(
    gateway, peer, secrets, status, words
):
    await peer.ask("PUT", "/v1/secrets/A", b"1")
    frame = call_frame(b"f", b"a", spec={**SPEC, "secrets": secrets})
    answer = await peer.ask("POST", "/v1/calls", frame)
    assert answer.status == status
    assert words in str(error_of(answer)["message"])
    assert gateway.jobs.calls == []


async def test_submit_when_versions_come_without_secrets_then_they_are_dropped(gateway, peer):
    frame = call_frame(b"f", b"a", spec={**SPEC, "secret_versions": [1, 2]})
    assert (await peer.ask("POST", "/v1/calls", frame)).status == 200
    assert gateway.jobs.calls[0][1].secret_versions == ()
