"""The figures of a container, from a tree of files in a control group's place."""

import os

from picloud_services.agent.cgroup import CgroupReader
from picloud_services.agent.container import RunningContainer
from picloud_services.agent.meters import CgroupMeter
from picloud_services.base.user_rights import Rights, file_rights


def test_peak_when_the_kernel_lets_nobody_begin_a_new_one_then_it_is_read_all_the_same(
    tmp_path, monkeypatch
):
    (tmp_path / "group").mkdir()
    (tmp_path / "group").chmod(0o755)  # whatever the umask
    peak = tmp_path / "group" / "memory.peak"
    peak.write_text("12345\n")
    peak.chmod(0o444)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)  # the folders above are not everybody's
    running = RunningContainer(os.getpid(), os.getpid(), ("group",), ())
    (tmp_path / "group" / "cgroup.controllers").touch()
    with file_rights(Rights(65534, 65534) if os.geteuid() == 0 else None):
        meter = CgroupMeter(running)
        reader = CgroupReader(running.cgroups)
    meter.reset_peak()
    reader.reset_peak()
    assert meter.peak_bytes() == reader.read().memory_peak_bytes == 12345
    reader.close()
