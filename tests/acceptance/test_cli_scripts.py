"""`picloud run`, and the words of the command line that came with it."""

import json
import re
import subprocess
import sys
import time

import pytest

from picloud_jupyter import cloud
from tests.tools.service_under_test import eventually

pytestmark = pytest.mark.isolation

OLD = """\
import cloud, sys

def square(x):
    return x ** 2

if __name__ == "__main__":
    jids = cloud.map(square, range(4), _label="old-script")
    print(cloud.result(jids), sys.argv[1:])
"""


@pytest.fixture
def run(service, tmp_path):
    """Run a script of this text by `picloud run` in its folder."""

    def run(
        text: str, *arguments: str, name: str = "script.py"
    ) -> subprocess.CompletedProcess[str]:
        (tmp_path / name).write_text(text)
        return service.cli("run", name, *arguments, check=False, cwd=tmp_path)

    return run


def test_a_script_with_picloud_s_module_name_runs_as_main(run):
    done = run(OLD, "--depth", "3", "-o", "x")
    assert done.stdout == "[0, 1, 4, 9] ['--depth', '3', '-o', 'x']\n", done.stderr
    assert (done.returncode, done.stderr) == (0, "")


def test_the_module_is_ours_itself_and_so_are_its_parts(run):
    done = run(
        "import cloud, cloud.wait_for, picloud_jupyter.cloud as ours\n"
        "from cloud import CloudException\n"
        "from cloud.wait_for import status\n"
        "print(cloud is ours, cloud.wait_for is ours.wait_for, cloud.__spec__.name)\n"
    )
    assert done.stdout == "True True picloud_jupyter.cloud\n", done.stderr


def test_an_installed_package_of_that_name_is_not_shadowed(run, tmp_path):
    (tmp_path / "cloud.py").write_text("colour = 'white'\n")
    done = run("import cloud\nprint(cloud.colour)\n")
    assert done.stdout == "white\n"
    assert "never shadowed" in done.stderr
    assert str(tmp_path / "cloud.py") in done.stderr


def test_a_script_of_python_2_is_explained_and_not_run(run, tmp_path):
    done = run('open("ran", "w")\nfor i in xrange(3):\n    print "i is", i\n')
    assert done.returncode == 3
    assert f"{tmp_path / 'script.py'}:3:" in done.stderr
    assert 'print("i is", i)' in done.stderr
    assert "for i in range(3):" in done.stderr
    assert not (tmp_path / "ran").exists()


def test_a_name_of_python_2_is_explained_where_it_fails(run):
    done = run("x = 1\nd = {}\nif d.has_key(3): pass\n")
    assert done.returncode == 1
    assert re.search(r"script\.py:3: has_key is written `in`", done.stderr)
    assert "if 3 in d: pass" in done.stderr
    done = run(
        "import cloud\ndef f():\n    return list(xrange(3))\ncloud.result(cloud.call(f))\n"
    )
    assert done.returncode == 1
    assert re.search(r"script\.py:3: xrange is range now", done.stderr), done.stderr
    done = run("import urllib2\n")
    assert "import urllib.request" in done.stderr


def test_an_old_idiom_of_the_api_is_explained(run):
    done = run("import cloud\ntry:\n    1/0\nexcept cloud.cloud.CloudException: pass\n")
    assert done.returncode == 1
    assert "write cloud.CloudException" in done.stderr


def test_a_script_s_own_end_is_kept(run):
    assert run("import sys\nsys.exit(7)\n").returncode == 7
    done = run("raise SystemExit('no data')\n")
    assert (done.returncode, done.stderr) == (1, "no data\n")
    done = run("def f():\n    raise KeyError('here')\nf()\n")
    assert done.returncode == 1
    assert "KeyError: 'here'" in done.stderr
    assert "picloud_jupyter" not in done.stderr


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"s = '\xe9'\n", "# -*- coding: latin-1 -*-"),
        (b"if 1:\n\tx = 1\n        y = 2\n", "mixes tabs and blanks"),
        (b"x = (\n", "cannot read it"),
        (b"x = '\0'\n", "Nothing was run"),
    ],
)
def test_a_script_that_cannot_be_read_is_refused_in_words(service, tmp_path, data, words):
    (tmp_path / "bad.py").write_bytes(data)
    done = service.cli("run", str(tmp_path / "bad.py"), check=False)
    assert done.returncode == 3
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_script_that_is_not_there(service, tmp_path):
    done = service.cli("run", str(tmp_path / "none.py"), check=False)
    assert done.returncode == 3
    assert "No such file" in done.stderr


# ------------------------------------------------------------------------- the other words
def test_wait_for_a_status(service):
    jid = cloud.call(time.sleep, 0.5)
    assert service.cli("wait-for", "status", str(jid), "done", "-t", "30").stdout == "done\n"
    assert service.cli("wait-for", "status", str(jid), "killed", check=False).returncode == 3
    slow = cloud.call(time.sleep, 60)
    late = service.cli("wait-for", "status", str(slow), "done", "-t", "0.2", check=False)
    assert late.returncode == 3
    assert service.cli("wait-for", "status", str(slow), "asleep", check=False).returncode == 2
    slow.kill()


def test_logs_of_a_map_come_line_by_line_with_their_jobs(service):
    def talk(number):
        print("first", number, flush=True)
        time.sleep(0.3)
        print("last", number, end="")

    jids = cloud.map(talk, range(4))
    done = service.cli("logs", "-f", f"{jids[0]}-{jids[-1]}")
    wanted = {f"{jid}: {word} {i}" for i, jid in enumerate(jids) for word in ("first", "last")}
    assert set(done.stdout.splitlines()) == wanted
    for jid in jids:
        assert done.stdout.index(f"{jid}: first") < done.stdout.index(f"{jid}: last")
    assert service.cli("logs", f"{jids[0]}-{jids[-1]}").stdout.count("\n") == 8
    refused = service.cli("logs", "-n", "5", f"{jids[0]}-{jids[-1]}", check=False)
    assert refused.returncode == 3


def test_logs_of_a_map_are_followed_while_it_runs(service):
    def talk(_number):
        print("here", flush=True)
        time.sleep(30)

    jids = cloud.map(talk, range(2))
    command = [
        sys.executable,
        "-m",
        "picloud_jupyter.cli",
        "logs",
        "-f",
        f"{jids[0]}-{jids[-1]}",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        lines = {following.stdout.readline() for _ in jids}
        assert lines == {f"{jid}: here\n" for jid in jids}
        jids.kill()
        assert following.wait(30) == 0


def test_list_of_one_map(service):
    jids = cloud.map(abs, range(3))
    cloud.join(jids)
    number = cloud.info(jids[0], "map")[jids[0]]["map"]
    rows = json.loads(service.cli("-o", "json", "list", "--map", str(number)).stdout)
    assert [row["jid"] for row in rows] == sorted(map(int, jids), reverse=True)


def test_setup_says_that_nothing_is_needed(service):
    done = service.cli("setup", "-e", "me@example.org", "-p", "secret")
    assert "No account and no key is needed" in done.stdout
    assert "nothing was sent" in done.stderr


def test_completion_and_manual_know_every_word(service):
    words = ("files", "run", "wait-for", "setup", "logs", "up")
    bash, page = (service.cli("completion", shell).stdout for shell in ("bash", "man"))
    for word in words:
        assert re.search(rf"^ +{word}\) ", bash, re.MULTILINE)
        assert f".SS picloud {word.replace('-', chr(92) + '-')}" in page


def test_logs_follow_ends_when_the_jobs_were_never_started(service):
    jid = cloud.call(time.sleep, 60)
    second = cloud.call(abs, 1, _depends_on=jid)
    with subprocess.Popen(
        [sys.executable, "-m", "picloud_jupyter.cli", "logs", "-f", f"{jid},{second}"]
    ) as following:
        eventually(lambda: jid.status() == "processing")
        cloud.kill([jid, second])
        assert following.wait(30) == 0
