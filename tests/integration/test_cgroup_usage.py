"""Counter files of both versions, written as the kernel writes them."""

from pathlib import Path

import pytest

from picloud_services.agent.cgroup_usage import CgroupUsage


def write(folder: Path, files: dict[str, str]) -> str:
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    return str(folder)


def test_read_when_v1_with_a_folder_per_controller_then_finds_each_file(tmp_path):
    folders = (
        write(tmp_path / "cpuacct", {"cpuacct.usage": "2500000000\n"}),
        write(tmp_path / "memory", {"memory.usage_in_bytes": "4096\n"}),
        write(tmp_path / "pids", {"pids.current": "3\n"}),
        write(
            tmp_path / "blkio",
            {"blkio.throttle.io_service_bytes": "8:0 Read 10\n8:0 Write 20\nTotal 30\n"},
        ),
    )
    usage = CgroupUsage(folders)
    assert usage.read() == (2.5, 4096, 3, 10, 20)
    usage.close()
    usage.close()


def test_read_when_v2_then_reads_the_unified_files(tmp_path):
    folder = write(
        tmp_path / "group",
        {
            "cgroup.controllers": "cpu memory pids io\n",
            "cpu.stat": "usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\n",
            "memory.current": "8192\n",
            "pids.current": "2\n",
            "io.stat": "8:0 rbytes=1 wbytes=2 rios=0 wios=0\n8:16 rbytes=10 wbytes=20 rios=1\n",
        },
    )
    usage = CgroupUsage((folder,))
    assert usage.read() == (1.5, 8192, 2, 11, 22)
    (tmp_path / "group" / "io.stat").write_text("8:0 rbytes=5 wbytes=6 rios=0 wios=0\n")
    assert usage.read()[3:] == (5, 6)
    usage.close()


def test_read_when_the_disk_controller_is_missing_then_the_rest_is_read(tmp_path):
    folder = write(
        tmp_path / "group",
        {
            "cgroup.controllers": "",
            "cpu.stat": "usage_usec 0\n",
            "memory.current": "1\n",
            "pids.current": "1\n",
        },
    )
    usage = CgroupUsage((folder,))
    assert usage.read() == (0.0, 1, 1, 0, 0)
    usage.close()


def test_open_when_the_group_is_gone_then_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cpuacct\.usage"):
        CgroupUsage((str(tmp_path / "gone"),))
