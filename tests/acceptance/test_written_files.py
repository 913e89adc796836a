"""What a job writes in its folder: kept, listed, fetched, and seen by no other job."""

import json
import os
import time
from pathlib import Path

import pytest

from picloud_jupyter import cloud
from picloud_jupyter.protocol.errors import Conflict, NotFound
from tests.tools.service_under_test import eventually

pytestmark = pytest.mark.isolation


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder that jobs are submitted from."""
    path = tmp_path / "work"
    (path / "results").mkdir(parents=True)
    (path / "data.txt").write_text("data\n")
    monkeypatch.chdir(path)
    return path


@pytest.fixture
def isolated(service):
    """The service, where what jobs write is kept apart from the folder."""
    if service.kind == "plain":
        pytest.skip("plain processes write into the real folder; that is tested below")
    return service


def write(number: int) -> list[str]:
    """Write four files; return what was there before."""
    before = sorted(os.listdir(".") + os.listdir("results"))
    Path(f"new{number}.txt").write_text("x" * number)
    Path("results", f"plot{number}").write_bytes(b"\0\xff")
    Path("made/deep").mkdir(parents=True)
    Path("made/deep/empty").touch()
    Path("link").symlink_to("/etc/passwd")
    return before


WRITTEN = ["made/deep/empty", "new3.txt", "results/plot3"]


def test_written_files_are_listed_read_and_fetched(isolated, folder, tmp_path):
    jid = cloud.call(write, 3)
    assert jid.result(60) == ["data.txt", "results"]
    files = cloud.files_of(jid)
    assert [file.path for file in files] == WRITTEN
    assert files["new3.txt"].read_text() == "xxx"
    assert files[2].read() == b"\0\xff"
    assert abs(files[0].modified_at - time.time()) < 60
    assert files.left == (("link", "it is a symbolic link, which is not followed"),)
    assert "new3.txt" in repr(files)
    assert "new3.txt" in files._repr_html_()  # what a notebook shows
    paths = files.fetch(tmp_path / "got")
    assert [path.relative_to(tmp_path / "got").as_posix() for path in paths] == WRITTEN
    assert (tmp_path / "got/results/plot3").read_bytes() == b"\0\xff"
    assert sorted(path.name for path in folder.iterdir()) == ["data.txt", "results"]
    info = cloud.info(jid, ["files_written", "files_left"])[jid]
    assert info == {"files_written": 3, "files_left": 1}
    assert f"done, wrote 3 files: cloud.files_of({int(jid)})" in jid._repr_html_()
    assert jid.files()[1].path == "new3.txt"
    with pytest.raises(NotFound, match=r"new3\.txt"):
        files["other"]


def test_files_are_seen_by_no_other_job_and_are_nobody_elses(isolated, folder):
    jids = cloud.map(write, range(8))
    assert cloud.result(jids, timeout=60) == [["data.txt", "results"]] * 8
    for number, jid in enumerate(jids):
        assert f"new{number}.txt" in [file.path for file in cloud.files_of(jid)]
        assert len(cloud.files_of(jid)) == 3
    after = cloud.call(lambda: sorted(os.listdir(".") + os.listdir("results")))
    assert after.result(60) == ["data.txt", "results"]
    assert len(cloud.files_of(after)) == 0


def test_a_changed_file_is_new_again_for_the_next_job(isolated, folder):
    def change(_number):
        found = Path("data.txt").read_text()
        with open("data.txt", "a") as file:
            file.write("more\n")
        Path("results").rmdir()
        return found, os.path.isdir("results")

    jids = cloud.map(change, range(5))
    assert cloud.result(jids, timeout=60) == [("data\n", False)] * 5
    assert [cloud.files_of(jid)["data.txt"].read() for jid in jids] == [b"data\nmore\n"] * 5
    assert (folder / "data.txt").read_text() == "data\n"
    look = cloud.call(lambda: (Path("data.txt").read_text(), os.path.isdir("results")))
    assert look.result(60) == ("data\n", True)


def test_files_of_a_failed_job_are_kept(isolated, folder):
    def fail():
        Path("so_far.txt").write_text("half")
        raise ValueError

    jid = cloud.call(fail)
    cloud.join(jid, ignore_errors=True)
    assert cloud.files_of(jid)["so_far.txt"].read() == b"half"


def test_a_large_file_comes_whole(isolated, folder):
    def big():
        with open("big.bin", "wb") as file:
            for number in range(40):
                file.write(bytes([number]) * 1_000_000)

    jid = cloud.call(big)
    jid.join(60)
    data = cloud.files_of(jid)["big.bin"].read()
    assert data == b"".join(bytes([number]) * 1_000_000 for number in range(40))


def test_an_unfinished_job_and_a_job_that_is_not_there(service, folder):
    jid = cloud.call(time.sleep, 60)
    with pytest.raises(Conflict, match="not finished"):
        cloud.files_of(jid)
    jid.kill()
    with pytest.raises(NotFound):
        cloud.files_of(10**12)
    with pytest.raises(TypeError, match="one job id"):
        cloud.files_of([1, 2])
    assert service.cli("files", str(10**12), check=False).returncode == 3


def test_a_fetch_that_would_replace_something_writes_nothing(isolated, folder, tmp_path):
    jid = cloud.call(write, 3)
    jid.join(60)
    got = tmp_path / "got"
    got.mkdir()
    (got / "new3.txt").write_text("mine")
    with pytest.raises(Conflict, match=r"new3\.txt"):
        cloud.files_of(jid).fetch(got)
    assert [path.name for path in got.iterdir()] == ["new3.txt"]
    assert (got / "new3.txt").read_text() == "mine"
    cloud.files_of(jid).fetch(got, overwrite=True)
    assert (got / "new3.txt").read_text() == "xxx"


def test_a_fetch_leads_through_no_link(isolated, folder, tmp_path):
    jid = cloud.call(write, 3)
    jid.join(60)
    got, outside = tmp_path / "got", tmp_path / "outside"
    got.mkdir()
    outside.mkdir()
    (got / "results").symlink_to(outside)
    with pytest.raises(cloud.CloudException, match="leads out of"):
        cloud.files_of(jid).fetch(got)
    assert not list(outside.iterdir())


def test_files_by_the_command_line(isolated, folder, tmp_path):
    jid = cloud.call(write, 3)
    jid.join(60)
    listed = isolated.cli("files", str(jid))
    assert "results/plot3" in listed.stdout
    assert "link is not kept" in listed.stderr
    as_json = json.loads(isolated.cli("-o", "json", "files", str(jid)).stdout)
    assert [row["path"] for row in as_json] == WRITTEN
    assert isolated.cli("files", str(jid), "new3.txt").stdout == "xxx"
    fetched = isolated.cli("files", str(jid), "--fetch", str(tmp_path / "got"))
    assert fetched.stdout.splitlines() == [str(tmp_path / "got" / path) for path in WRITTEN]
    again = isolated.cli("files", str(jid), "--fetch", str(tmp_path / "got"), check=False)
    assert again.returncode == 3
    assert "exist already" in again.stderr
    isolated.cli("files", str(jid), "--fetch", str(tmp_path / "got"), "--force")
    assert isolated.cli("files", str(jid), "none", check=False).returncode == 3


def test_files_go_with_their_job(isolated, folder):
    def fill():
        Path("big").write_bytes(os.urandom(3_000_000))

    jid = cloud.call(fill)
    jid.join(60)
    assert isolated.status()["disk"]["home_bytes"] > 3_000_000
    cached = cloud.call(fill, _cache=True)
    cached.join(60)
    jid.delete()
    with pytest.raises(NotFound):
        cloud.files_of(jid)
    assert len(cloud.files_of(cached)["big"].read()) == 3_000_000
    again = cloud.call(fill, _cache=True)
    again.join(60)
    assert cloud.info(again, "cached_from")[again]["cached_from"] == cached
    cached.delete()
    assert len(cloud.files_of(again)["big"].read()) == 3_000_000


def test_plain_processes_write_beside_the_notebook(service, folder):
    if service.kind != "plain":
        pytest.skip("the others keep what is written apart")
    jid = cloud.call(write, 3)
    jid.join(60)
    files = cloud.files_of(jid)
    assert len(files) == 0
    assert "real folder" in files.note
    assert "real folder" in service.cli("files", str(jid)).stderr
    assert (folder / "new3.txt").read_text() == "xxx"


def test_nothing_is_left_of_a_spent_container(isolated, folder):
    def spoil():
        Path("data.txt").unlink()
        return os.environ["PICLOUD_LEASE"]

    cloud.call(spoil).join(60)
    layers = isolated.home / "layers"

    def whiteouts() -> list[Path]:
        return [path for path in layers.glob("*/files/*") if path.name == "data.txt"]

    eventually(lambda: not whiteouts(), what="the layer of a spent container is removed")


def test_files_of_a_killed_job_are_kept(isolated, folder):
    def search():
        Path("data.txt").unlink()
        Path("made/deep").mkdir(parents=True)
        Path("made/deep/best.txt").write_text("best so far")
        Path("made/link").symlink_to("/etc")
        Path("link").symlink_to("/etc/passwd")
        print("written", flush=True)
        time.sleep(60)

    jid = cloud.call(search)
    eventually(lambda: "written" in jid.info("stdout")["stdout"])
    jid.kill()
    assert jid.status() == "killed"
    files = jid.files()
    assert [file.path for file in files] == ["made/deep/best.txt"]
    assert files[0].read() == b"best so far"
    assert {path for path, _ in files.left} == {"link", "made/link"}
    assert (folder / "data.txt").read_text() == "data\n"


def test_files_of_a_job_that_ran_too_long_or_crashed_are_kept(isolated, folder):
    def too_long():
        Path("so_far").write_text("half")
        time.sleep(60)

    def crash():
        Path("so_far").write_text("all")
        os.kill(os.getpid(), 11)

    late = cloud.call(too_long, _max_runtime=0.01)
    crashed = cloud.call(crash, _restartable=False)
    cloud.join([late, crashed], ignore_errors=True)
    assert late.files()["so_far"].read() == b"half"
    assert crashed.files()["so_far"].read() == b"all"
