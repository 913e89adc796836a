"""Where groups are, what is written into them, what their files say: v1 and v2."""

from collections import defaultdict

from picloud_jupyter.protocol.jobs import LimitsGrade
from picloud_services.agent import cgroup
from picloud_services.agent.cgroup_counters import counters_v1, counters_v2
from picloud_services.agent.mounts import parse_mountinfo

V1 = """\
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
36 31 0:33 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
39 31 0:36 /docker/abc /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
"""
V1_OWN = "4:memory:/service/x\n3:cpu,cpuacct:/\n2:pids:/docker/abc/y\n0::/\n"
V2 = "29 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"


def test_find_v1_when_controllers_share_a_mount_then_a_group_is_named_once() -> None:
    tree = cgroup.find_v1(parse_mountinfo(V1), V1_OWN)
    assert tree is not None
    assert set(tree.group("c")) == {
        "/sys/fs/cgroup/cpu,cpuacct/picloud/c",
        "/sys/fs/cgroup/memory/service/x/picloud/c",
        "/sys/fs/cgroup/pids/y/picloud/c",
    }


def test_find_v1_when_a_needed_controller_is_missing_then_there_is_none() -> None:
    assert cgroup.find_v1(parse_mountinfo(V1.replace("rw,pids", "rw,rdma")), V1_OWN) is None
    assert cgroup.find_v1(parse_mountinfo(V2), "0::/\n") is None


def test_find_v2_when_the_service_has_moved_then_its_parent_is_ours() -> None:
    own = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/picloud.scope"
    for line in (own, f"{own}/{cgroup.SERVICE}"):
        tree = cgroup.find_v2(parse_mountinfo(V2), line + "\n")
        assert tree is not None
        assert tree.group("c") == (
            "/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/app.slice/picloud.scope/picloud/c",
        )


def test_settings_then_swap_is_part_of_the_memory_and_quota_follows_the_cores() -> None:
    limits = cgroup.CgroupLimits(memory_bytes=1 << 30, cpu_cores=0.2, pids=64)
    first = {file: value for _, file, value in cgroup.settings(1, limits)}
    assert (
        first["memory.limit_in_bytes"] == first["memory.memsw.limit_in_bytes?"] == str(1 << 30)
    )
    assert first["cpu.cfs_quota_us"] == "20000"
    second = {file: value for _, file, value in cgroup.settings(2, limits)}
    assert second["cpu.max"] == "20000 100000"
    assert (second["memory.max"], second["memory.swap.max?"], second["pids.max"]) == (
        str(1 << 30),
        "0",
        "64",
    )


def test_settings_when_a_core_s_share_is_tiny_then_the_kernel_s_least_quota_is_kept() -> None:
    limits = cgroup.CgroupLimits(memory_bytes=1 << 30, cpu_cores=0.001, pids=64)
    assert ("cpu", "cpu.cfs_quota_us", "1000") in cgroup.settings(1, limits)


def test_counters_v1_when_files_are_as_recorded_then_devices_are_summed() -> None:
    texts = defaultdict(
        bytes,
        {
            "cpuacct.usage": b"1500000000\n",
            "memory.usage_in_bytes": b"4096\n",
            "memory.max_usage_in_bytes": b"8192\n",
            "memory.oom_control": b"oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
            "blkio.throttle.io_service_bytes": b"254:0 Read 10\n254:0 Write 20\n254:0 Sync 5\n"
            b"8:0 Read 1\n8:0 Write 2\nTotal 33\n",
            "pids.current": b"7\n",
        },
    )
    found = counters_v1(texts)
    assert (found.cpu_seconds, found.memory_bytes, found.memory_peak_bytes) == (1.5, 4096, 8192)
    assert (found.disk_read_bytes, found.disk_written_bytes) == (11, 22)
    assert (found.processes, found.oom_count) == (7, 3)


def test_counters_v2_when_files_are_as_documented_then_they_say_the_same() -> None:
    texts = defaultdict(
        bytes,
        {
            "cpu.stat": b"usage_usec 2500000\nuser_usec 2000000\nsystem_usec 500000\n",
            "memory.current": b"4096\n",
            "memory.events": b"low 0\nhigh 0\nmax 4\noom 1\noom_kill 1\noom_group_kill 0\n",
            "io.stat": b"254:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n8:0 rbytes=1 wbytes=2\n",
            "pids.current": b"7\n",
        },
    )
    found = counters_v2(texts)
    assert found.cpu_seconds == 2.5
    assert found.memory_peak_bytes == 0, "kernels before 5.19 keep no peak"
    assert (found.disk_read_bytes, found.disk_written_bytes) == (11, 22)
    assert (found.processes, found.oom_count) == (7, 1)


def test_grade_when_there_is_no_tree_then_limits_are_watched() -> None:
    assert cgroup.grade(None) is LimitsGrade.WATCHED


def test_pids_when_a_member_is_outside_our_pid_namespace_then_it_is_left_out(tmp_path) -> None:
    (tmp_path / "cgroup.procs").write_text("0\n17\n0\n")
    assert cgroup.pids([str(tmp_path)]) == {17}
