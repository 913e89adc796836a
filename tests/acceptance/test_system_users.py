"""One service for every user of the machine: each has their own jobs, files and rights, and no others."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from picloud_jupyter.transport.paths import ServicePaths, is_set_up
from picloud_services.agent.uids import POOL_FIRST
from tests.tools.service_under_test import eventually
from tests.tools.two_users import TwoUsers, root_cli

pytestmark = [pytest.mark.isolation, pytest.mark.root]

RESULT = "print(json.dumps(cloud.result(cloud.call({}))))"


def test_a_job_runs_as_its_user_with_their_python_and_their_folder(two_users: TwoUsers) -> None:
    for user in (two_users.ann, two_users.bob):
        user.write("data.txt", f"of {user.name}", 0o600)
        code = "lambda: [os.getuid(), os.getgid(), os.getcwd(), sys.executable, open('data.txt').read()]"
        assert user.run(RESULT.format(code)) == [
            user.uid,
            user.gid,
            str(user.home),
            str(user.python),
            f"of {user.name}",
        ]


def test_a_user_s_groups_count_in_their_jobs(two_users: TwoUsers, tmp_path_factory) -> None:
    group = f"lab-{os.urandom(3).hex()}"
    subprocess.run(["groupadd", group], check=True)
    try:
        subprocess.run(["usermod", "-aG", group, two_users.ann.name], check=True)
        folder = two_users.place / "shared"
        folder.mkdir()
        (folder / "x").write_text("of the group")
        subprocess.run(["chgrp", "-R", group, str(folder)], check=True)
        folder.chmod(0o750)
        code = f"""
        try:
            jid = cloud.call(lambda: open('/data/x').read(), _vol='{folder}:/data')
            print(json.dumps(cloud.result(jid)))
        except cloud.CloudException as exc:
            print(json.dumps(str(exc)))"""
        assert two_users.ann.run(code) == "of the group"
        assert f"{folder}, a volume, may not be read by you" in two_users.bob.run(code)
    finally:
        subprocess.run(["groupdel", "-f", group], check=True)


def test_local_modules_go_along_and_belong_to_who_sent_them(two_users: TwoUsers) -> None:
    ann, bob = two_users.ann, two_users.bob
    ann.write("lib/mine.py", "SECRET = 'code of ann'\ndef f(): return SECRET\n")
    code = """
    sys.path.insert(0, 'lib')
    import mine
    jid = cloud.call(mine.f)
    print(json.dumps([cloud.result(jid), cloud.info(jid, 'code_version')[jid]['code_version']]))"""
    value, digest = ann.run(code)
    assert value == "code of ann"
    assert len(digest) == 64
    refused = bob.run(
        """
        from picloud_jupyter.cloud.session import session
        try:
            print(json.dumps(session().client.get(f'/v1/code/{given[0]}')))
        except cloud.CloudException as exc:
            print(json.dumps(type(exc).__name__))""",
        digest,
    )
    assert refused == "NotFound"


def test_large_values_go_in_and_out_without_a_path_into_the_service(
    two_users: TwoUsers,
) -> None:
    code = """
    jid = cloud.call(lambda data: data + data, os.urandom(4_000_000))
    from picloud_jupyter.cloud.session import session
    local = session().client.get('/v1/service')['uploads_local']
    print(json.dumps([len(cloud.result(jid)), local]))"""
    assert two_users.ann.run(code) == [8_000_000, False]


SUBMIT = """
try:
    if given[1]:
        os.chdir(given[1])
    jid = cloud.call(lambda: os.listdir('/x'), **({'_vol': given[0]} if given[0] else {}))
    print(json.dumps(['ran', cloud.result(jid)]))
except cloud.CloudException as exc:
    print(json.dumps([type(exc).__name__, str(exc)]))
"""


def test_what_a_user_may_not_read_is_refused_at_submit_by_name(two_users: TwoUsers) -> None:
    ann, bob = two_users.ann, two_users.bob
    ann.write("open/readable.txt", "readable by all, in a closed home")
    bob.command("ln", "-sfn", str(ann.home / "open"), "way_in")
    own = bob.write("own/x", "x").parent
    for source in (ann.home, ann.home / "open", bob.home / "way_in", Path("/root")):
        kind, words = bob.run(SUBMIT, f"{source}:/x", None)
        assert kind == "InvalidRequest", words
        assert f"{source}, a volume, " in words
    kind, words = bob.run(SUBMIT, "/usr:/x:rw", None)
    assert (kind, "/usr, a volume, may not be written to by you" in words) == (
        "InvalidRequest",
        True,
    )
    assert bob.run(SUBMIT, f"{own}:/x:rw", None) == ["ran", ["x"]]


RAW_SUBMIT = """
# What no honest client sends: a folder, or a Python, that is somebody else's.
import dataclasses
from picloud_jupyter.cloud import submission
from picloud_jupyter.cloud.host_python import host_python
python, folder = host_python(), given[0]
if given[1]:
    python = dataclasses.replace(python, paths=(*python.paths, given[1]))
submission._place = lambda _session: (python, folder, "")
try:
    jid = cloud.call(lambda: [os.listdir(path) for path in given if path])
    print(json.dumps(['ran', cloud.result(jid)]))
except cloud.CloudException as exc:
    print(json.dumps([type(exc).__name__, str(exc)]))
"""


def test_a_forged_folder_or_python_shows_nothing_that_is_somebody_else_s(
    two_users: TwoUsers,
) -> None:
    ann, bob = two_users.ann, two_users.bob
    ann.write("open/readable.txt", "readable by all, in a closed home")
    bob.command("ln", "-sfn", str(ann.home / "open"), "way_in")
    for folder, extra in (
        (str(ann.home), ""),
        (str(ann.home / "open"), ""),
        (str(bob.home / "way_in"), ""),
        (str(two_users.state), ""),
        (str(bob.home), str(ann.home / "open")),
        (str(bob.home), str(bob.home / "way_in")),
        (str(bob.home), "/root"),
        (str(bob.home), str(two_users.state / "blobs")),
    ):
        kind, words = bob.run(RAW_SUBMIT, folder, extra)
        assert kind == "InvalidRequest", words
        assert (extra or folder) in words


def test_a_link_that_changes_while_containers_are_made_never_leads_into_another_home(
    two_users: TwoUsers,
) -> None:
    ann, bob = two_users.ann, two_users.bob
    ann.write("open/readable.txt", "readable by all, in a closed home")
    bob.write("real/readable.txt", "bob's own")
    swap = f"""
import os, time
end = time.time() + 40
while time.time() < end and not os.path.exists("stop"):
    for target in ("real", {str(ann.home / "open")!r}):
        os.symlink(target, "fresh")
        os.rename("fresh", "turning")
        time.sleep(0.001)
"""
    bob.command("rm", "-f", "stop", "turning")
    swapper = subprocess.Popen(
        [str(bob.python), "-c", swap], user=bob.uid, group=bob.gid, cwd=bob.home
    )
    try:
        eventually(lambda: os.path.lexists(bob.home / "turning"))
        found = bob.run(
            """
            words = {}
            for number in range(25):
                try:
                    jid = cloud.call(lambda: open('/x/readable.txt').read(),
                        _vol=f"{os.getcwd()}/turning:/x", _kill_process=True)
                    word = cloud.result(jid)
                except cloud.CloudException as exc:
                    word = type(exc).__name__
                words[word] = words.get(word, 0) + 1
            print(json.dumps(words))"""
        )
    finally:
        (bob.home / "stop").touch()
        swapper.wait(50)
    assert "readable by all, in a closed home" not in found
    assert sum(found.values()) == 25


def test_what_is_kept_of_jobs_is_unreadable_for_users(two_users: TwoUsers) -> None:
    ann, bob = two_users.ann, two_users.bob
    ann.run(RESULT.format("lambda: print('said') or 'x' * 200_000 and None"))
    closed = [two_users.state, two_users.place / "run" / "private"]
    closed += [*two_users.state.glob("*"), *two_users.state.glob("*/*")]
    assert len(closed) > 10
    code = """
    def look(path):
        try:
            return os.listdir(path) if os.path.isdir(path) else open(path, 'rb').read(1) and 'read'
        except PermissionError:
            return 'refused'
        except FileNotFoundError:
            return 'refused'
    print(json.dumps([look(path) for path in given[0]]))"""
    assert set(bob.run(code, [str(path) for path in closed])) == {"refused"}
    assert set(ann.run(code, [str(path) for path in closed])) == {"refused"}


def test_kill_and_lists_are_about_one_s_own_jobs(two_users: TwoUsers) -> None:
    ann, bob = two_users.ann, two_users.bob
    jid = ann.run(
        """
        import time
        jid = cloud.call(lambda: __import__('time').sleep(50), _label='of ann')
        cloud.wait_for.status(jid, 'processing')
        print(json.dumps(jid))"""
    )
    assert bob.run("cloud.kill()\nprint(json.dumps(1))") == 1
    assert json.loads(bob.cli("-o", "json", "jobs").stdout or "[]") == [] or jid not in [
        job["jid"] for job in json.loads(bob.cli("-o", "json", "jobs").stdout)
    ]
    assert ann.run("print(json.dumps(cloud.status(given[0])))", jid) == "processing"
    done = bob.cli("kill", str(jid))
    assert done.returncode == 3
    assert "NotFound" in done.stderr or "no such job" in done.stderr
    ann.run("cloud.kill(given[0])\nprint(1)", jid)
    assert ann.run("print(json.dumps(cloud.status(given[0])))", jid) == "killed"


def test_a_key_says_nothing_on_the_socket_of_users(two_users: TwoUsers) -> None:
    key = two_users.ann.run(
        """
        def key():
            from picloud_jupyter.transport.inside import current_job
            return current_job().key
        print(json.dumps(cloud.result(cloud.call(key))))"""
    )
    code = """
    from picloud_jupyter.transport.client import Client
    from picloud_jupyter.transport.endpoint import Endpoint
    for key in ("", "x", given[1], given[1][:-1]):
        found = Client(Endpoint(socket_path=given[0], key=key)).get('/v1/service')
        assert found['user_id'] == os.getuid(), found
    print(json.dumps('itself'))"""
    assert two_users.bob.run(code, str(two_users.socket), key) == "itself"


def test_only_root_stops_it(two_users: TwoUsers) -> None:
    code = """
    from picloud_jupyter.cloud.session import session
    try:
        session().client.post('/v1/stop', {'kill_jobs': True, 'purge': True})
    except cloud.CloudException as exc:
        print(json.dumps(type(exc).__name__))"""
    assert two_users.bob.run(code) == "NotAllowed"
    for word in ("up", "down"):
        done = two_users.bob.cli(word, "--system")
        assert done.returncode == 3
        assert f"sudo picloud {word} --system" in done.stderr
    assert "serves     every user of this machine" in two_users.bob.cli("status").stdout


def test_doctor_tells_each_user_whom_they_talk_to(two_users: TwoUsers) -> None:
    told = two_users.ann.cli("doctor").stdout
    assert f"It serves every user of this machine; you are uid {two_users.ann.uid}." in told
    assert "Containers: root." in told
    assert json.loads(two_users.cli("-o", "json", "doctor").stdout)["scope"] == "system"


def test_doctor_when_the_service_crashed_then_in_words_and_no_job_goes_elsewhere(
    two_users: TwoUsers,
) -> None:
    gone = two_users.place / "gone"
    (gone / "private").mkdir(parents=True)
    variables = {"PICLOUD_SYSTEM_RUN": str(gone)}
    done = two_users.ann.cli("doctor", env=variables)
    assert done.returncode == 3
    assert "The service of this machine does not run" in done.stdout
    assert "sudo picloud up --system" in done.stdout


def test_up_when_the_system_s_service_is_there_then_no_other_is_started(
    two_users: TwoUsers,
) -> None:
    done = two_users.ann.cli("up")
    assert done.returncode == 0, done.stderr
    assert "the service of every user of this machine serves you" in done.stdout
    refused = two_users.ann.cli("up", "--replace")
    assert refused.returncode == 3
    assert "sudo picloud up --system --replace" in refused.stderr
    assert not (two_users.ann.home / ".local/share/picloud").exists()


def test_root_s_own_jobs_run_as_nobody_of_the_machine(two_users: TwoUsers) -> None:
    code = (
        "import json, os\nfrom picloud_jupyter import cloud\n"
        "jid = cloud.call(lambda data: [os.getuid(), len(data)], bytes(200_000))\n"
        "print(json.dumps([*cloud.result(jid), int(jid)]))"
    )
    variables = {k: v for k, v in os.environ.items() if k != "PICLOUD_HOME"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**variables, **two_users.variables},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    uid, size, jid = json.loads(done.stdout)
    assert (uid >= POOL_FIRST, size) == (True, 200_000)
    assert two_users.ann.cli("result", str(jid)).returncode == 3


def test_a_user_chooses_a_service_of_their_own(two_users: TwoUsers) -> None:
    code = "print(json.dumps(cloud.connection_info()['server_url']))"
    assert two_users.ann.run(code) == f"unix://{two_users.socket}"
    own = two_users.ann.run(code, env={"PICLOUD_HOME": str(two_users.ann.home / "own")})
    assert own != f"unix://{two_users.socket}"
    nowhere = {"PICLOUD_SYSTEM_RUN": str(two_users.place / "nowhere")}
    assert two_users.ann.run(code, env=nowhere) != f"unix://{two_users.socket}"


def test_a_uid_without_an_account_is_refused_in_words(two_users: TwoUsers) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        os.seteuid(54_321)  # whom the service sees is who connects
        try:
            connection.connect(str(two_users.socket))
        finally:
            os.seteuid(0)
        connection.sendall(
            b"GET /v1/service HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    body = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert "uid 54321 has no account on this machine" in body["error"]["message"]


def test_a_new_control_plane_takes_over_what_runs_for_each_user(two_users: TwoUsers) -> None:
    begin = """
    def work():
        import time
        time.sleep(4)
        return os.getuid()
    jid = cloud.call(work, _restartable=False)
    cloud.wait_for.status(jid, 'processing')
    print(json.dumps(jid))"""
    jids = [user.run(begin) for user in (two_users.ann, two_users.bob)]
    done = two_users.cli("up", "--system", "--replace")
    assert (done.returncode, "replaced" in done.stdout) == (0, True), done.stdout + done.stderr
    for user, jid in zip((two_users.ann, two_users.bob), jids, strict=True):
        assert user.run("print(json.dumps(cloud.result(given[0])))", jid) == user.uid


def test_down_leaves_nothing_and_the_users_find_their_own_again(tmp_path_factory) -> None:
    place = tmp_path_factory.mktemp("system")
    variables = {
        "PICLOUD_SYSTEM_HOME": str(place / "state"),
        "PICLOUD_SYSTEM_RUN": str(place / "run"),
    }
    paths = ServicePaths(place / "state", place / "run" / "private", place / "run")
    nothing = root_cli(variables, "up", "--system", "--replace")
    assert nothing.returncode
    assert "no service of every user" in nothing.stderr
    assert not is_set_up(paths)
    assert root_cli(variables, "up", "--system").returncode == 0
    assert is_set_up(paths)
    started_directly = root_cli(variables, "up", "--system").stdout
    assert "runs already" in started_directly
    assert "nothing starts it again with the machine" in started_directly
    assert root_cli(variables, "down", "--system").returncode == 0
    assert not is_set_up(paths)
    assert not (place / "run").exists()
    assert (place / "state" / "store.db").exists()
    root_cli(variables, "down", "--system", "--purge")
    assert not (place / "state").exists()


@pytest.mark.timeout(120)
def test_plain_processes_cannot_serve_every_user(tmp_path_factory) -> None:
    place = tmp_path_factory.mktemp("system")
    variables = {
        "PICLOUD_SYSTEM_HOME": str(place / "state"),
        "PICLOUD_SYSTEM_RUN": str(place / "run"),
        "PICLOUD_CONTAINER_KIND": "plain",
    }
    try:
        done = root_cli(variables, "up", "--system")
        assert "no containers yet: `picloud doctor` says why" in done.stdout
        log = place / "state" / "agent.log"
        eventually(lambda: "needs containers of the kind root" in log.read_text())
        doctor = root_cli(variables, "doctor")
        assert doctor.returncode == 3
        assert "no agent does" in doctor.stdout
        assert "needs containers of the kind root" in doctor.stdout
    finally:
        root_cli(variables, "down", "--system", "--purge")
