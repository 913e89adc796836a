"""Who may read stories, metrics and the diagnosis; and that each answer is counted once."""

import json

import pytest

from tests.tools.gateway_harness import Peer


async def test_metrics_for_the_owner_are_text(peer):
    answer = await peer.ask("GET", "/metrics")
    assert (answer.status, answer.body) == (200, b"picloud_leases 1\n")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


@pytest.mark.parametrize("path", ["/metrics", "/v1/diagnosis"])
async def test_metrics_and_diagnosis_for_code_inside_a_job_are_refused(gateway, path):
    inside = await Peer.open(gateway.inside)
    key = f"Bearer {gateway.job_key()}"
    assert (await inside.ask("GET", path, Authorization=key)).status == 403
    assert (await inside.ask("GET", path)).status == 401
    await inside.close()


async def test_story_of_a_job_and_of_what_is_none(peer):
    told = json.loads((await peer.ask("GET", "/v1/jobs/7/why")).body)
    assert (told["jid"], told["status"], told["steps"]) == (7, "done", [])
    assert (await peer.ask("GET", "/v1/jobs/8/why")).status == 404
    assert (await peer.ask("GET", "/v1/jobs/x/why")).status == 400


async def test_answers_are_counted_once_by_route_and_code(gateway, peer):
    for path in ("/v1/jobs/7/why", "/v1/jobs/8/why", "/nothing", "/v1/service"):
        await peer.ask("GET", path)
    assert gateway.answered == [
        ("GET /v1/jobs/{jid}/why", 200),
        ("GET /v1/jobs/{jid}/why", 404),
        ("none", 404),
        ("GET /v1/service", 200),
    ]
