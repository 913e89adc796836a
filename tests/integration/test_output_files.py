"""What the writer kept is what the reader gives, for any way the output came in."""

import os
import resource
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picloud_services.agent import output_files, output_ring
from picloud_services.agent.output_files import OutputWriter, delete, read
from picloud_services.dispatch.local_engine import LocalEngine

LEASE = "00112233445566ff"
MIB = 1024 * 1024


def everything(logs, position: int, stream: str = "stdout", lease: str = LEASE) -> bytes:
    data, offset = b"", 0
    while True:
        part = read(str(logs), lease, position, stream, offset, 5 * MIB)
        if not part.data:
            assert offset == part.total_bytes
            return data
        data += part.data
        offset = part.next_offset


@pytest.fixture
def small_limits(monkeypatch):
    monkeypatch.setattr(output_files, "HEAD_BYTES", 100)
    monkeypatch.setattr(output_ring, "RING_BYTES", 40)


def test_write_when_nothing_is_printed_makes_no_file(tmp_path):
    writer = OutputWriter(str(tmp_path), LEASE)
    writer.feed(0, [b""] * 1000)
    writer.feed(1, [b""] * 1000)
    writer.close()
    assert list(tmp_path.iterdir()) == []
    assert read(str(tmp_path), LEASE, 3, "stdout", 0, 10).total_bytes == 0


def test_write_when_the_streams_are_further_on_numbers_elements_from_there(tmp_path):
    writer = OutputWriter(str(tmp_path), LEASE, (2, 5))
    writer.feed(0, [b"second", b"third"])
    writer.feed(1, [b"fifth"])
    assert (writer.sizes(0), writer.sizes(1)) == ((3, 5), (5, 5))
    writer.close()
    assert [everything(tmp_path, n) for n in range(4)] == [b"", b"", b"second", b"third"]
    assert everything(tmp_path, 5, "stderr") == b"fifth"


PIECES = st.lists(st.binary(max_size=5), min_size=1, max_size=6)


@given(st.lists(st.tuples(st.integers(0, 1), PIECES), max_size=12))
def test_read_when_streams_advance_at_their_own_pace_gives_each_element_its_own(
    tmp_path_factory, feeds
):
    logs = tmp_path_factory.mktemp("logs")
    writer = OutputWriter(str(logs), LEASE)
    expected: list[list[bytes]] = [[b""], [b""]]
    for stream, pieces in feeds:
        writer.feed(stream, pieces)
        expected[stream][-1] += pieces[0]
        expected[stream] += pieces[1:]
        for number, name in enumerate(("stdout", "stderr")):
            for position, data in enumerate(expected[number]):
                part = read(str(logs), LEASE, position, name, 0, 1000)
                ended = position < len(expected[number]) - 1
                assert part.data == data
                assert part.finished == (ended and bool(data))
    writer.close()
    for number, name in enumerate(("stdout", "stderr")):
        for position, data in enumerate(expected[number]):
            assert everything(logs, position, name) == data


def test_read_when_bytes_are_no_text_gives_them_unchanged(tmp_path):
    writer = OutputWriter(str(tmp_path), LEASE)
    writer.feed(0, [b"\xff\xfe\x00\x1b[31m", b""])
    assert everything(tmp_path, 0) == b"\xff\xfe\x00\x1b[31m"


def test_read_when_the_element_still_prints_gives_what_there_is(tmp_path):
    writer = OutputWriter(str(tmp_path), LEASE)
    writer.feed(0, [b"one", b"tw"])
    part = read(str(tmp_path), LEASE, 1, "stdout", 1, 10)
    assert (part.data, part.next_offset, part.total_bytes, part.finished) == (b"w", 2, 2, False)
    writer.feed(0, [b"o", b""])
    part = read(str(tmp_path), LEASE, 1, "stdout", 2, 10)
    assert (part.data, part.next_offset, part.total_bytes, part.finished) == (b"o", 3, 3, True)


def test_read_when_the_index_is_torn_uses_its_whole_records(tmp_path):
    writer = OutputWriter(str(tmp_path), LEASE)
    writer.feed(0, [b"one", b"two", b""])
    writer.close()
    index = tmp_path / "00" / f"{LEASE}.idx"
    index.write_bytes(index.read_bytes()[:-7])
    assert everything(tmp_path, 0) == b"one"
    assert read(str(tmp_path), LEASE, 1, "stdout", 0, 10).total_bytes == 0


@pytest.mark.usefixtures("small_limits")
def test_write_when_the_head_is_full_keeps_the_tail_without_a_gap(tmp_path):
    writer = OutputWriter(str(tmp_path), LEASE)
    data = bytes(range(130))
    writer.feed(0, [data, b"next", b""])
    assert everything(tmp_path, 0) == data
    assert everything(tmp_path, 1) == b"next"


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("step", [1, 7, 39, 40, 41, 1000])
def test_write_when_output_is_endless_keeps_head_and_tail_and_marks_the_gap(tmp_path, step):
    writer = OutputWriter(str(tmp_path), LEASE)
    data = bytes(i % 251 for i in range(1000))
    for at in range(0, 1000, step):
        writer.feed(1, [data[at : at + step]])
        assert sum(f.stat().st_size for f in tmp_path.rglob("*")) < 5000
    writer.feed(1, [b"", b"after", b""])
    gap = b"\n[picloud: 860 bytes were dropped here]\n"
    assert everything(tmp_path, 0, "stderr") == data[:100] + gap + data[-40:]
    assert everything(tmp_path, 1, "stderr") == b"after"
    assert not list(tmp_path.rglob("*.tail"))


def test_write_when_the_disk_is_full_drops_and_counts(tmp_path, monkeypatch):
    real = os.pwrite
    full = False

    def pwrite(fd, data, offset):
        if full:
            raise OSError(28, "No space left on device")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    writer = OutputWriter(str(tmp_path), LEASE)
    writer.feed(0, [b"kept", b"begun "])
    full = True
    writer.feed(0, [b"lost"])
    assert writer.dropped_bytes == 4
    full = False
    writer.feed(0, [b"again", b"next", b""])
    writer.close()
    assert everything(tmp_path, 0) == b"kept"
    assert everything(tmp_path, 1) == b"begun again\n[picloud: 4 bytes were dropped here]\n"
    assert everything(tmp_path, 2) == b"next"


def test_write_when_a_file_may_grow_no_more_never_raises(tmp_path):
    """A real short write: the limit on file sizes cuts one write and refuses the next."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        writer = OutputWriter(str(tmp_path), LEASE)
        for _ in range(30):
            writer.feed(0, [b"x" * 99, b""])
        writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert everything(tmp_path, 5) == b"x" * 99
    assert everything(tmp_path, 29) == b""
    assert writer.dropped_bytes == 30 * 99 - 1000


def test_delete_removes_only_the_named_leases(tmp_path):
    leases = [f"0011223344556{i:03x}" for i in range(3)]
    for lease in leases:
        writer = OutputWriter(str(tmp_path), lease)
        writer.feed(0, [b"x", b""])
        writer.feed(1, [b"y", b""])
        writer.close()
    delete(str(tmp_path), [*leases[:2], "ffffffffffffffff"])
    left = sorted(p.name for p in Path(tmp_path, "00").iterdir())
    assert left == [f"{leases[2]}.{suffix}" for suffix in ("err", "idx", "out")]


@pytest.mark.usefixtures("small_limits")
def test_delete_removes_the_tails_that_a_killed_supervisor_left(tmp_path):
    left = OutputWriter(str(tmp_path), LEASE)
    for stream in (0, 1):
        left.feed(stream, [b"ended", b"", b"x" * 150])
    assert len(list(tmp_path.rglob("*.2.*.tail"))) == 2
    delete(str(tmp_path), [LEASE])
    assert list(Path(tmp_path, "00").iterdir()) == []


def test_delete_does_not_look_through_the_output_of_others(tmp_path, monkeypatch):
    """All leases of two years share their first digits, and so a folder."""
    OutputWriter(str(tmp_path), LEASE).feed(0, [b"x"])

    def scandir(path):
        raise AssertionError(f"{path} was listed")

    monkeypatch.setattr(os, "scandir", scandir)
    delete(str(tmp_path), [LEASE])
    assert not Path(tmp_path, "00", f"{LEASE}.out").exists()


async def test_sweep_removes_old_output_that_no_row_names_and_nothing_else(tmp_path):
    named, young, unnamed = (f"0011223344556{i:03x}" for i in range(3))
    for lease in (named, young, unnamed):
        writer = OutputWriter(str(tmp_path), lease)
        writer.feed(0, [b"x"])
        writer.close()
    folder = tmp_path / "00"
    (folder / f"{unnamed}.3.stdout.tail").write_bytes(b"without an index: the disk was full")
    (folder / "README").write_bytes(b"not ours")
    for path in folder.iterdir():
        if not path.name.startswith(young):
            os.utime(path, (1000, 1000))
    asked = []

    async def ask(leases):
        asked.extend(leases)
        return {named}

    engine = LocalEngine(tmp_path / "agent.sock", output=output_files, logs=tmp_path)
    assert await engine.sweep_output(ask, before_at=2000) == 3
    assert asked == [named, young, unnamed]
    left = {path.name.partition(".")[0] for path in folder.iterdir()}
    assert left == {named, young, "README"}


async def test_sweep_when_there_was_never_any_output_then_nothing_is_removed(tmp_path):
    engine = LocalEngine(tmp_path / "agent.sock", output=output_files, logs=tmp_path / "logs")
    assert await engine.sweep_output(lambda _leases: pytest.fail("asked"), before_at=2000) == 0


@pytest.mark.parametrize("lease", ["../../etc/passwd", "", "0" * 15, "0" * 16 + "\n"])
def test_read_when_the_lease_is_not_one_refuses(tmp_path, lease):
    with pytest.raises(ValueError, match="not a lease"):
        read(str(tmp_path), lease, 0, "stdout", 0, 1)


def test_write_when_the_disk_has_less_than_must_stay_free_then_output_is_dropped_and_marked(
    tmp_path,
):
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    plenty = OutputWriter(str(tmp_path), LEASE, keep_free_bytes=free // 2)
    plenty.feed(0, [b"kept", b""])
    plenty.close()
    assert everything(tmp_path, 0) == b"kept"
    scarce = OutputWriter(str(tmp_path), LEASE[::-1], keep_free_bytes=2 * free)
    scarce.feed(0, [b"x" * 1000, b""])
    scarce.close()
    assert scarce.dropped_bytes == 1000
    assert b"1000 bytes were dropped" in everything(tmp_path, 0, lease=LEASE[::-1])
