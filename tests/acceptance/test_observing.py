"""What an operator sees of a real service: a job's story, the metrics, the bundle for bug reports."""

import http.client
import json
import os
import re
import signal
import socket
import tarfile
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from picloud_jupyter import cloud
from picloud_jupyter.cloud.session import session
from picloud_jupyter.protocol.errors import NotFound
from tests.tools.service_under_test import eventually

pytestmark = pytest.mark.isolation
CANARY = "canary-4b1d7f0a"


def texts(jid):
    return [step.text for step in cloud.why(jid).steps]


# ------------------------------------------------------------------------------------------ why
def test_why_of_a_finished_job_tells_its_life_in_order(service):
    jid = cloud.call(lambda: print("hello") or 3, _label="told")
    cloud.result(jid)
    story = cloud.why(jid)
    found = [step.text for step in story.steps if step.source == "store"]
    assert found[0] == "submitted as a call"
    assert found[1].startswith("given to node ")
    assert found[2].startswith("started in a ")
    assert found[3].startswith("returned after ")
    assert found[4:] == ["it had printed 6 bytes to stdout", "done"]
    assert all(
        step.container and step.lease for step in story.steps if "started in" in step.text
    )
    assert (story.status, story.label, story.not_known) == ("done", "told", ())


def test_why_of_a_failed_job_says_what_to_do(service):
    jid = cloud.call(lambda: 1 / 0)
    cloud.join(jid, ignore_errors=True)
    story = cloud.why(jid)
    assert story.reason == "error"
    assert "Mend the function" in story.next_step
    log = eventually(
        lambda: [t for t in texts(jid) if t.startswith("control: the lease is over")]
    )
    assert "ended: 1 error" in log[0]


def test_why_of_a_killed_container_tells_each_attempt(service):
    def die():
        os.kill(os.getpid(), 9)

    jid = cloud.call(die)
    cloud.join(jid, ignore_errors=True)
    story = cloud.why(jid)
    given = [step for step in story.steps if step.text.startswith("given to")]
    assert [step.attempt for step in given] == [1, 2, 3]
    assert len({step.container for step in given}) == 3
    assert "poison" in story.steps[-1].text or "poison" in " ".join(texts(jid))
    assert any("queued again, attempt 2" in text for text in texts(jid))
    assert "lost 3 times" in story.summary


def test_why_of_a_job_that_runs_and_of_one_that_waits_for_it(service):
    first = cloud.call(time.sleep, 60)
    second = cloud.call(lambda: 1, _depends_on=first)
    eventually(lambda: cloud.status(first) == "processing")
    running = cloud.why(first)
    assert running.summary.startswith("It runs since ")
    assert f"picloud logs -f {int(first)}" in running.next_step
    assert any(step.container for step in running.steps if step.text.startswith("started"))
    assert f"waiting for job {int(first)}" in cloud.why(second).summary
    cloud.kill([first, second])
    assert cloud.why(first).reason == "killed"


def test_why_of_an_element_of_a_map_names_its_place(service):
    jids = cloud.map(lambda x: x, range(20))
    cloud.join(jids)
    assert texts(jids[7])[0].startswith("submitted as element 7 of map ")


def test_why_by_the_command_line(service):
    jid = cloud.call(lambda: 5)
    cloud.result(jid)
    text = service.cli("why", str(jid)).stdout
    assert f"job {int(jid)} (" in text
    assert "+0.000  submitted as a call" in text
    for words in (("why", str(jid), "-o", "json"), ("-o", "json", "why", str(jid))):
        found = json.loads(service.cli(*words).stdout)
        assert (found["jid"], found["status"], found["not_known"]) == (int(jid), "done", [])
        assert found["steps"][0]["at"] > 0
    assert service.cli("why", "1999999999", check=False).returncode == 3
    assert service.cli("why", "1-2", check=False).returncode == 2


def test_why_of_what_is_no_job_is_refused(service):
    with pytest.raises(NotFound, match="1999999999"):
        cloud.why(1999999999)
    with pytest.raises(TypeError, match="one job"):
        cloud.why([1, 2])


def test_why_over_a_killed_control_plane_and_a_killed_agent(own_service):
    own_service.start()
    jid = cloud.call(time.sleep, 4)
    eventually(lambda: cloud.status(jid) == "processing")
    before = own_service.status()
    os.kill(before["pid"], signal.SIGKILL)
    eventually(lambda: own_service.status()["pid"] != before["pid"])
    os.kill(before["agent_pid"], signal.SIGKILL)
    cloud.join(jid)
    story = cloud.why(jid)
    starts = [s for s in story.steps if re.search(r": (control plane|agent) \d+", s.text)]
    assert len(starts) >= 2
    times = [step.at or 0.0 for step in story.steps]
    assert all(times[0] < (step.at or 0.0) < times[-1] for step in starts)
    assert [s.attempt for s in story.steps if s.text.startswith("given to")] == [1]
    assert story.not_known == ()


# -------------------------------------------------------------------------------------- metrics
def scrape():
    """Read the page as a scraper does: HTTP on the socket, nothing of ours."""
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(session().client.endpoint.socket_path))
    connection.request("GET", "/metrics")
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name, *sorted(sample.labels.values())] = sample.value
    return found


def test_metrics_count_what_happened(service):
    before = scrape()
    jids = cloud.map(lambda x: 1 / x, [0, 1, 2])
    cloud.join(jids, ignore_errors=True)
    after = scrape()

    def grown(*key):
        return after[key] - before.get(key, 0)

    assert grown("picloud_jobs_finished_total", "done", "done") == 2
    assert grown("picloud_jobs_finished_total", "error", "error") == 1
    assert grown("picloud_http_requests_total", "200", "POST /v1/maps") == 1
    assert grown("picloud_commit_seconds_count") >= 2
    assert after["picloud_cores_capacity", os.uname().nodename] >= 1
    assert after["picloud_agent_connections_total",] >= 1
    assert after["picloud_disk_free_bytes",] > 0
    assert after["process_resident_memory_bytes",] > 2**20


def test_metrics_show_what_runs(service):
    jid = cloud.call(time.sleep, 60)
    eventually(lambda: scrape()["picloud_jobs", "processing"] >= 1)
    eventually(lambda: scrape()["picloud_containers", "working"] >= 1)
    assert scrape()["picloud_leases",] >= 1
    cloud.kill(jid)


def test_metrics_are_not_for_code_inside_jobs(service):
    def ask():
        from picloud_jupyter.cloud.session import session
        from picloud_jupyter.protocol.errors import NotAllowed

        try:
            session().client.exchange("GET", "/metrics").answer()
        except NotAllowed as exc:
            return str(exc)
        return "answered"

    assert "not for code inside a job" in cloud.result(cloud.call(ask))


# --------------------------------------------------------------------------------- debug-bundle
def read_bundle(path):
    with tarfile.open(path) as archive:
        return {
            member.name.partition("/")[2]: file.read().decode()
            for member in archive.getmembers()
            if (file := archive.extractfile(member)) is not None
        }


def test_bundle_holds_what_is_needed_and_no_secret(service, tmp_path, monkeypatch):
    def leak(argument):
        print(CANARY, argument)
        raise ValueError(CANARY)

    cloud.secret.set("BUNDLE_TOKEN", value=f"{CANARY}-secret")
    monkeypatch.setenv("PICLOUD_API_SECRETKEY", f"{CANARY}-key")
    jid = cloud.call(leak, f"{CANARY}-argument", _secrets=["BUNDLE_TOKEN"])
    cloud.join(jid, ignore_errors=True)
    cloud.result(cloud.call(lambda: f"{CANARY}-result"))
    path = tmp_path / "b.tar.gz"
    said = service.cli("debug-bundle", str(path)).stdout
    assert str(path) in said
    assert path.stat().st_mode & 0o077 == 0
    parts = read_bundle(path)
    assert not [name for name, text in parts.items() if CANARY in text]
    assert {"README.txt", "doctor.txt", "diagnosis.json", "metrics.txt", "jobs.json"} <= set(
        parts
    )
    assert {"logs/service.log", "logs/agent.log", "home.json", "machine.json"} <= set(parts)
    assert json.loads(parts["diagnosis.json"])["store"]["damage"] == []
    assert json.loads(parts["diagnosis.json"])["settings"]["retention_days"] == 30
    assert int(jid) in [job["jid"] for job in json.loads(parts["jobs.json"])["jobs"]]
    assert all(name in said for name in parts if name != "README.txt")
    cloud.secret.delete("BUNDLE_TOKEN")


def test_bundle_when_there_is_a_file_then_it_is_kept(service, tmp_path):
    path = tmp_path / "mine"
    path.write_text("mine")
    done = service.cli("debug-bundle", str(path), check=False)
    assert (done.returncode, path.read_text()) == (3, "mine")
    assert "nothing was written" in done.stderr
    assert service.cli("debug-bundle", "/nowhere/b", check=False).returncode == 3


def test_bundle_of_a_service_that_cannot_start_has_the_logs_and_the_state_of_the_store(
    own_service, tmp_path
):
    own_service.start()
    cloud.result(cloud.call(lambda: 1))
    cloud.close()
    own_service.cli("down")
    store = own_service.home / "store.db"
    store.write_bytes(b"SQLite format 3\0" + b"broken" * 1000)
    path = tmp_path / "b.tar.gz"
    own_service.cli("debug-bundle", str(path))
    parts = read_bundle(path)
    assert "does not run" in parts["doctor.txt"]
    assert json.loads(parts["store.json"])["damage"]
    assert "control plane" in parts["logs/service.log"]
    assert "NOT HAD" in parts["README.txt"]
