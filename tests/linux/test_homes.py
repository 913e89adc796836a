"""Homes where a database cannot be: on a network file system, on one that cannot be written."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from picloud_jupyter import cloud
from picloud_jupyter.transport.paths import service_paths
from tests.tools.disks import mounted
from tests.tools.service_under_test import ServiceUnderTest, eventually

pytestmark = pytest.mark.root
NFS = "inject=statfs:poke_exit=@arg2=6969000000000000"  # f_type, the first field of the answer


@pytest.fixture
def own(tmp_path):
    found = ServiceUnderTest(tmp_path / "home", "root")
    found.home.mkdir()
    yield found
    found.end()


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace plays the file system")
def test_home_on_a_network_file_system_keeps_its_state_on_this_machine(own, tmp_path):
    tracer = subprocess.Popen(
        [
            *("strace", "-f", "-q", "-o", str(tmp_path / "trace"), "--seccomp-bpf"),
            *("-P", str(own.home), "-e", "trace=statfs", "-e", NFS),
            *(sys.executable, "-m", "picloud_jupyter.cli", "up"),
        ],
        env={**os.environ, **own.environment},
        stdout=subprocess.DEVNULL,
    )
    eventually(service_paths(own.home).api_socket.exists)
    own.start()
    note = own.cli("status").stdout
    found = re.search(
        r"network file system \(NFS\).*(/var/tmp/picloud-0-[0-9a-f]{8})", note, re.S
    )
    assert found, note
    local = Path(found[1])
    assert cloud.result(cloud.call(lambda: 5), timeout=60) == 5
    assert (local / "store.db").exists()
    assert not (own.home / "store.db").exists()
    own.end()
    tracer.wait(30)
    assert not local.exists()


def test_home_that_cannot_be_written_is_said_so_and_left_alone(own):
    with mounted(own.home, "size=32m"):
        subprocess.run(["mount", "-o", "remount,ro", str(own.home)], check=True)
        done = own.cli("status", check=False)
        assert done.returncode
        assert "cannot be used: Read-only file system" in done.stderr
        assert str(own.home) in done.stderr
        assert "Traceback" not in done.stderr
