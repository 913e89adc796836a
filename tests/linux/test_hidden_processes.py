"""A /proc that shows an ordinary user no process of others but its number (hidepid=1)."""

import subprocess
import sys

PROGRAM = """
import os
from picloud_services.agent.process_table import read_table
from picloud_services.agent.processes import find_process
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
print(len(os.listdir("/proc")) > 1 and list(read_table()) == [os.getpid()], find_process(1))
"""
HIDE = "mount --make-rprivate / && mount -t proc -o hidepid=1 proc /proc && exec "


def test_processes_of_others_when_hidden_are_none_of_ours() -> None:
    said = subprocess.run(
        ["unshare", "-m", "sh", "-c", HIDE + '"$0" -c "$1"', sys.executable, PROGRAM],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert said.stdout == "True None\n"
