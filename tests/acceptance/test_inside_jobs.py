"""Jobs inside jobs, keys scoped to a job, and what a job sees."""

import os

import pytest

from picloud_jupyter import cloud

pytestmark = [pytest.mark.isolation, pytest.mark.usefixtures("service")]


def test_recursive_calls_end_on_two_cores():
    def fib(n):
        from picloud_jupyter import cloud

        if n < 2:
            return n
        return sum(cloud.result([cloud.call(fib, n - 1), cloud.call(fib, n - 2)]))

    assert cloud.result(cloud.call(fib, 6), timeout=55) == 8


def test_map_inside_a_map_ends():
    def outer(n):
        from picloud_jupyter import cloud

        return sum(cloud.result(cloud.map(lambda x: x * n, range(5))))

    assert cloud.result(cloud.map(outer, range(6)), timeout=55) == [n * 10 for n in range(6)]


def test_children_know_their_parent():
    def parent():
        from picloud_jupyter import cloud

        return int(cloud.call(lambda: 1))

    jid = cloud.call(parent)
    child = cloud.result(jid)
    assert cloud.info(child, "attributes")[child]["attributes"]["parent_jid"] == jid


def test_a_job_gives_its_jobs_no_folder_that_it_has_not_itself(service, tmp_path):
    def submit(volume):
        from picloud_jupyter import cloud

        jid = cloud.call(lambda: os.listdir("/x"), _vol=volume)
        return cloud.result(jid)

    refused = cloud.call(submit, "/etc:/x:rw")
    with pytest.raises(cloud.CloudException, match="only the volumes that it has itself"):
        cloud.result(refused)
    if service.kind != "plain":  # which has no volumes
        (tmp_path / "mine").write_text("")
        volume = f"{tmp_path}:/x"
        assert cloud.result(cloud.call(submit, volume, _vol=volume)) == ["mine"]


def test_picloud_command_works_inside():
    def run():
        import subprocess
        import sys

        return subprocess.run(
            [sys.executable, "-m", "picloud_jupyter.cli", "-o", "json", "status"],
            capture_output=True,
            text=True,
            check=False,
        )

    done = cloud.result(cloud.call(run))
    assert done.returncode == 0, done.stderr


def test_a_job_may_not_stop_the_service():
    def stop():
        import subprocess
        import sys

        done = subprocess.run(
            [sys.executable, "-m", "picloud_jupyter.cli", "down"],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stderr

    code, text = cloud.result(cloud.call(stop))
    assert code != 0
    assert cloud.result(cloud.call(lambda: 1)) == 1, text


def test_eight_jobs_draw_eight_numbers():
    def draw(_):
        import random

        import numpy

        return random.random(), numpy.random.random()

    values = cloud.result(cloud.map(draw, range(8)))
    assert len({a for a, _ in values}) == 8
    assert len({b for _, b in values}) == 8


def test_home_and_working_directory(service):
    here = os.getcwd()
    home, cwd = cloud.result(cloud.call(lambda: (os.environ["HOME"], os.getcwd())))
    assert cwd == here
    if service.kind != "plain":
        assert home == "/home/picloud"


def test_the_host_is_hidden(service):
    if service.kind == "plain":
        assert cloud.connection_info()["isolated"] is False
        return

    def look():
        found = {}
        for path in ("/etc/shadow", "/root/.bashrc", "/proc/1/environ"):
            try:
                with open(path, "rb") as f:
                    found[path] = len(f.read())
            except OSError as error:
                found[path] = error.strerror
        found["uid"] = os.getuid()
        found["processes"] = len([n for n in os.listdir("/proc") if n.isdigit()])
        return found

    found = cloud.result(cloud.call(look))
    assert isinstance(found["/etc/shadow"], str)
    assert isinstance(found["/root/.bashrc"], str)
    assert found["uid"] != 0
    assert found["processes"] < 10
