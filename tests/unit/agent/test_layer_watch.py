"""Who goes when the disk runs short, and what counts as a container's own."""

import os
import tempfile
from types import SimpleNamespace

import pytest

from picloud_services.agent import layer_watch
from picloud_services.agent.layer_watch import (
    LOOK_SECONDS,
    MIB,
    Filling,
    LayerWatch,
    Limits,
    WatchedLayer,
    count_files,
    too_much,
)
from picloud_services.agent.overlay import remove_tree
from picloud_services.base.filesystem import DiskSpace

ROOMY = DiskSpace(10**12, 10**11, 10**7, 10**6)
SHORT = DiskSpace(10**12, 50 * MIB, 10**7, 10**6)
CROWDED = DiskSpace(10**12, 10**11, 10**7, 500)
LIMITS = Limits(layer_bytes=0, free_bytes=128 * MIB, free_files=2000)
LIMITED = Limits(layer_bytes=100 * MIB, free_bytes=128 * MIB, free_files=2000)


def filling(name: str, mib: int, files: int = 10, *, is_idle: bool = False) -> Filling:
    return Filling(name, mib * MIB, files, is_idle)


@pytest.mark.parametrize(
    ("fillings", "space", "limits", "ended"),
    [
        ([filling("a", 10**6)], ROOMY, LIMITS, []),
        ([filling("a", 99), filling("b", 101), filling("c", 900)], ROOMY, LIMITED, ["b", "c"]),
        ([filling("a", 40), filling("b", 50)], SHORT, LIMITS, ["b"]),
        ([filling("a", 40, is_idle=True), filling("b", 50)], SHORT, LIMITS, ["a"]),
        ([filling("a", 1, is_idle=True), filling("b", 50)], SHORT, LIMITS, ["b"]),
        ([filling("a", 31), filling("b", 30)], SHORT, LIMITS, []),  # others filled it
        ([filling("a", 200), filling("b", 60)], SHORT, LIMITED, ["a"]),
        ([filling("a", 99, 400), filling("b", 0, 600)], CROWDED, LIMITS, ["b"]),
        ([filling("a", 99, 400)], CROWDED, LIMITS, []),
        ([], SHORT, LIMITED, []),
    ],
)
def test_who_goes(fillings, space, limits, ended):
    assert [name for name, _ in too_much(fillings, space, limits)] == ended


async def test_a_disk_that_was_filled_while_there_was_no_container_ends_none(
    tmp_path, monkeypatch
):
    """What went in hours is not what goes until the next look."""
    layer = tmp_path / "layer"
    layer.mkdir()
    (layer / "file").write_bytes(b"x" * 3 * MIB)
    watched = [WatchedLayer("a", str(layer), 0, is_idle=False)]
    ended: list[str] = []
    watch = LayerWatch(
        tmp_path,
        Limits(layer_bytes=0, free_bytes=10 * MIB, free_files=0),
        lambda: watched,
        lambda _container: False,
        lambda container, _why: ended.append(container),
    )
    clock = [0.0]
    spaces = iter([100 * MIB, 40 * MIB, 22 * MIB])
    monkeypatch.setattr(layer_watch, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(layer_watch, "disk_space", lambda _: DiskSpace(10**12, next(spaces)))
    await watch._look()
    clock[0] += 3600.0
    await watch._look()
    assert ended == []
    clock[0] += LOOK_SECONDS
    await watch._look()
    assert ended == ["a"]


def test_words_name_the_setting_or_the_disk():
    [(_, limited)] = too_much([filling("a", 101)], ROOMY, LIMITED)
    [(_, short)] = too_much([filling("a", 101)], SHORT, LIMITS)
    assert "its files took 101 MiB; the setting layer_bytes allows 100 MiB" in limited
    assert "all but full, and its files took 101 MiB" in short


def test_files_of_two_names_count_once_and_removed_ones_that_are_open_count(tmp_path):
    layer = tmp_path / "layer"
    (layer / "deep" / "er").mkdir(parents=True)
    (layer / "deep" / "er" / "file").write_bytes(b"x" * 3 * MIB)
    os.link(layer / "deep" / "er" / "file", layer / "again")
    (layer / "link").symlink_to("/usr")
    watched = [WatchedLayer("a", str(layer), os.getppid(), is_idle=False)]
    [before] = count_files(watched)
    assert 3 * MIB <= before.used_bytes < 3.5 * MIB
    with (
        tempfile.TemporaryFile(dir=tmp_path) as removed,
        os.fdopen(os.memfd_create("memory"), "wb") as memory,
    ):
        removed.write(b"y" * 5 * MIB)
        memory.write(b"z" * 7 * MIB)
        removed.flush()
        memory.flush()
        [found] = count_files(watched)  # we are a child of our parent
    assert 5 * MIB <= found.used_bytes - before.used_bytes < 5.5 * MIB


def test_removed_files_count_where_layers_themselves_are_in_memory():
    with tempfile.TemporaryDirectory(dir="/dev/shm") as layer:
        with tempfile.TemporaryFile(dir=layer) as removed:
            removed.write(b"y" * MIB)
            removed.flush()
            [found] = count_files([WatchedLayer("a", layer, os.getppid(), is_idle=False)])
    assert MIB <= found.used_bytes < 2 * MIB


def test_layer_that_is_gone_has_nothing(tmp_path):
    [found] = count_files([WatchedLayer("a", str(tmp_path / "none"), 2**22 + 1, is_idle=True)])
    assert found == Filling("a", 0, 0, is_idle=True)


def test_folders_deeper_than_any_path_and_closed_ones_are_counted_or_passed(tmp_path):
    place = os.open(tmp_path, os.O_RDONLY)
    depth = 1200
    for number in range(depth):
        os.mkdir("d" * 20, dir_fd=place)
        below = os.open("d" * 20, os.O_RDONLY, dir_fd=place)
        if number % 500 == 0:
            os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=below))
        os.close(place)
        place = below
    os.close(place)
    (tmp_path / "closed").mkdir(mode=0)
    (tmp_path / "z").touch()
    [found] = count_files([WatchedLayer("a", str(tmp_path), 2**22 + 1, is_idle=False)])
    remove_tree(str(tmp_path))  # too deep for others
    assert found.files == depth + 3 + 2
