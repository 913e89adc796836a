"""Quotas of users against the real service: set by the command line, held in words, lost is nothing."""

import json
import os
import sys
import time
from typing import Any

import pytest

from picloud_jupyter import cloud
from picloud_jupyter.protocol.errors import CloudException, QuotaExceeded
from tests.tools.service_under_test import ServiceUnderTest, eventually
from tests.tools.two_users import TwoUsers

pytestmark = pytest.mark.isolation
UID = str(os.geteuid())
ABS = """
jid = cloud.call(abs, -1)
print(json.dumps(cloud.result(jid)))
cloud.delete(jid)  # other tests count what a user has
"""
LIMITS = ("cores", "memory", "disk", "cost")


@pytest.fixture
def limited(service):
    """The service; whatever quota a test sets is gone after it."""
    yield service
    cloud.kill()
    service.cli(
        "user", "quota", *(word for name in LIMITS for word in (f"--{name}", "default"))
    )


def quota(service: ServiceUnderTest, *words: str) -> dict[str, Any]:
    return json.loads(service.cli("-o", "json", "user", "quota", *words).stdout)


def why(jid: int) -> str:
    (line,) = [line for line in _jobs() if line["jid"] == int(jid)]
    return line["why"]


def _jobs() -> list[dict[str, Any]]:
    from picloud_jupyter.cloud.session import session
    from picloud_jupyter.protocol import routes

    return session().client.get(routes.JOBS)["jobs"]


def test_everybody_sees_their_own_use_and_limits(limited):
    cloud.result(cloud.call(lambda: 1))
    assert limited.status()["user"]["user_id"] == os.geteuid()
    assert "you use" in limited.cli("status").stdout
    own = quota(limited)
    assert own["quota"] == {"cores": 0, "memory_bytes": 0, "disk_bytes": 0, "cost": 0}
    assert own["use"]["disk_bytes"] > 0
    assert UID in limited.cli("user", "list").stdout


def test_each_limit_is_set_shown_and_taken_back(limited):
    words = ("--cores", "1.5", "--memory", "8G", "--disk", "500M", "--cost", "2.5")
    found = quota(limited, UID, *words)
    assert found["own"] == {
        "cores": 1.5,
        "memory_bytes": 8 * 1024**3,
        "disk_bytes": 500 * 1024**2,
        "cost": 2.5,
    }
    text = limited.cli("user", "quota").stdout
    assert "of 1.5" in text
    assert "of 8.0 GiB" in text
    assert "of $2.50" in limited.cli("user", "list").stdout
    found = quota(limited, "--cores", "none", "--cost", "default")
    assert (found["own"]["cores"], found["own"]["cost"]) == (0, None)
    assert found["own"]["disk_bytes"] == 500 * 1024**2


@pytest.mark.parametrize(
    "words",
    [
        ("quota", "--cores", "many"),
        ("quota", "--cores", "0"),
        ("quota", "--disk", "-5G"),
        ("quota", "--memory", "inf"),
        ("quota", "no-such-user-here"),
        ("list", "--cores", "2"),
        ("show",),
    ],
)
def test_wrong_words_are_refused(limited, words):
    done = limited.cli("user", *words, check=False)
    assert done.returncode == 2, done.stderr
    assert quota(limited)["own"]["cores"] is None


def test_job_above_the_quota_of_cores_waits_and_says_so(limited):
    quota(limited, "--cores", "1")
    jids = [cloud.call(time.sleep, 30) for _ in range(2)]
    eventually(lambda: cloud.status(jids[0]) == "processing")
    eventually(lambda: "your quota is 1 core" in why(jids[1]))
    with pytest.raises(QuotaExceeded, match="It needs 2 cores, and your quota is 1 core"):
        cloud.call(time.sleep, 1, _type="c2", _cores=2)
    quota(limited, "--cores", "none")
    cloud.kill(jids[0])
    eventually(lambda: cloud.status(jids[1]) == "processing")


def test_job_above_the_quota_of_memory_is_refused(limited):
    quota(limited, "--memory", "1M")
    with pytest.raises(QuotaExceeded, match="of memory, and your quota is"):
        cloud.call(time.sleep, 0)


def test_quota_of_cost_refuses_new_jobs_in_words(limited):
    cloud.result(cloud.call(time.sleep, 0.3))
    quota(limited, "--cost", "0.0000001")
    with pytest.raises(QuotaExceeded, match="have cost .* your quota is") as caught:
        cloud.call(time.sleep, 0)
    assert caught.value.reason == "cap_reached"
    assert "picloud user quota" in str(caught.value.hint)
    quota(limited, "--cost", "none")
    assert cloud.result(cloud.call(lambda: 5)) == 5


def test_map_that_meets_the_quota_of_the_disk_keeps_what_was_taken(limited):
    used = quota(limited)["use"]["disk_bytes"]
    quota(limited, "--disk", str(used + 3_000_000))
    elements = [bytes([i % 256]) * 1000 for i in range(20_000)]
    with pytest.raises(QuotaExceeded, match="of the disk") as caught:
        cloud.map(len, elements)
    taken = list(caught.value.jid)
    assert 1000 < len(taken) < 20_000
    assert f"first {len(taken):,} elements" in str(caught.value)
    quota(limited, "--disk", "none")
    assert set(cloud.result(taken)) == {1000}
    rest = cloud.map(len, elements[len(taken) :])
    assert set(cloud.result(rest)) == {1000}


def test_map_of_large_elements_that_meets_the_quota_keeps_what_was_taken(limited):
    used = quota(limited)["use"]["disk_bytes"]
    quota(limited, "--disk", str(used + 1_000_000))
    elements = [bytes([i]) * 200_000 for i in range(9)]
    with pytest.raises(QuotaExceeded, match="of the disk") as caught:
        cloud.map(len, elements)
    assert caught.value.jid is not None, str(caught.value)
    taken = list(caught.value.jid)
    assert 1 < len(taken) < 9
    assert set(cloud.result(taken)) == {200_000}


def test_large_arguments_are_refused_before_they_are_sent(limited):
    used = quota(limited)["use"]["disk_bytes"]
    quota(limited, "--disk", str(used + 1_000_000))
    with pytest.raises(QuotaExceeded, match="this needs"):
        cloud.call(len, b"x" * 5_000_000)


def test_what_jobs_print_counts_and_goes_with_them(limited):
    def talk():
        print("x" * 3_000_000)

    def crash():
        talk()
        sys.stdout.flush()
        os._exit(3)

    for printing in (talk, crash):
        before = quota(limited)["use"]["disk_bytes"]
        jid = cloud.call(printing, _kill_process=True)
        cloud.join(jid, ignore_errors=True)
        grown = quota(limited)["use"]["disk_bytes"] - before
        assert 3_000_000 < grown < 3_200_000, printing
        cloud.delete(jid)
        assert quota(limited)["use"]["disk_bytes"] == before


def test_map_with_an_element_that_cannot_be_sent_ends_in_its_own_error(limited):
    elements = [*range(3000), (i for i in range(3))]
    with pytest.raises(Exception, match="generator") as caught:
        cloud.map(abs, elements)
    assert not isinstance(caught.value, CloudException)
    eventually(lambda: not any(line["status"] == "queued" for line in _jobs()))


def test_deletion_whose_answer_was_lost_may_be_asked_for_again(limited):
    from picloud_jupyter.cloud.session import session
    from picloud_jupyter.protocol import routes

    jids = cloud.map(abs, range(-5, 0))
    cloud.join(jids)
    asked = {"jids": [[jids[0], jids[-1]]], "key": os.urandom(16).hex()}
    for _ in range(2):
        assert session().client.post(routes.DELETE, asked) == {"deleted": 5}
    with pytest.raises(CloudException, match="exists"):
        cloud.delete(jids)


def test_a_job_may_not_change_quotas(limited):
    def rise(uid):
        from picloud_jupyter.cloud.session import session

        with pytest.raises(Exception, match="not for code inside a job"):
            session().client.put_bytes(f"/v1/users/{uid}/quota", (b"{}",))
        with pytest.raises(Exception, match="not for code inside a job"):
            session().client.get("/v1/users")
        return "refused"

    assert cloud.result(cloud.call(rise, os.geteuid())) == "refused"


def test_settings_hold_for_users_without_a_quota_of_their_own(own_service):
    own_service.environment |= {
        "PICLOUD_USER_CORES": "0.5",
        "PICLOUD_USER_MEMORY_BYTES": "900000000000",
        "PICLOUD_USER_DISK_BYTES": "800000000000",
        "PICLOUD_COST_CAP": "7",
    }
    own_service.start()
    assert own_service.status()["user"]["quota"] == {
        "cores": 0.5,
        "memory_bytes": 900000000000,
        "disk_bytes": 800000000000,
        "cost": 7,
    }
    with pytest.raises(QuotaExceeded, match=r"It needs 1 core, and your quota is 0\.5 cores"):
        cloud.call(abs, -3)
    quota(own_service, "--cores", "none")
    assert cloud.result(cloud.call(abs, -3)) == 3


@pytest.mark.root
def test_only_root_sees_users_and_sets_quotas_of_a_system_service(two_users: TwoUsers):
    ann, bob = two_users.ann, two_users.bob
    assert ann.run(ABS) == 1
    refused = bob.cli("user", "quota", ann.name, "--cores", "0.5")
    assert refused.returncode == 3
    assert "root" in refused.stderr or "owner" in refused.stderr
    assert bob.cli("user", "list").returncode == 3
    assert bob.cli("user", "quota").returncode == 0
    done = two_users.cli("user", "quota", ann.name, "--cores", "0.5")
    assert done.returncode == 0, done.stderr
    code = """
        from picloud_jupyter.protocol.errors import QuotaExceeded
        try:
            cloud.call(abs, -1)
        except QuotaExceeded as exc:
            print(json.dumps(str(exc)))
    """
    assert "your quota is 0.5 cores" in ann.run(code)
    assert bob.run(ABS) == 1
    two_users.cli("user", "quota", ann.name, "--cores", "default")
