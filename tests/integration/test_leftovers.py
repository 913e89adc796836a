"""What earlier agents left is removed, whatever a job made of it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from picloud_jupyter.protocol.jobs import ContainerKind
from picloud_services.agent import leftovers
from picloud_services.agent.leftovers import (
    clean_up,
    end_stray_pasta,
    find_containers,
    hold_layer,
    remove_stray_layers,
)
from picloud_services.agent.orders import RequestFields, StartOrder, start_frame
from picloud_services.agent.overlay import remove_tree
from picloud_services.agent.plain_process import MARK
from picloud_services.agent.process_table import ProcessLine
from picloud_services.agent.processes import find_process
from tests.tools.deep_folders import make_deep
from tests.tools.running_agent import make_spec


@pytest.fixture(autouse=True)
def emptied(tmp_path):
    yield
    remove_tree(str(tmp_path))  # what is too deep for pytest


def test_stray_layers_go_however_deep_a_job_nested_folders(tmp_path):
    for name in ("deep", "other", "held"):
        (tmp_path / "layers" / name / "tmp").mkdir(parents=True)
    make_deep(tmp_path / "layers" / "deep" / "tmp", 1_200)
    (tmp_path / "layers" / "other" / "tmp").chmod(0)
    held = hold_layer(str(tmp_path / "layers" / "held"))
    try:
        remove_stray_layers(tmp_path, alive=set())
    finally:
        os.close(held)
    assert [path.name for path in (tmp_path / "layers").iterdir()] == ["held"]


def test_plain_processes_of_a_stray_layer_end_with_all_below_them(tmp_path):
    """Their supervisor was killed, and the run directory is gone that named them."""
    with contextlib.ExitStack() as running:
        processes = {}
        for name in ("gone", "alive", "held"):
            (tmp_path / "layers" / name).mkdir(parents=True)
            process = subprocess.Popen(
                ["/bin/sh", "-c", "env -i sleep 60 & echo $!; wait"],
                env={MARK: name, "PATH": os.environ["PATH"]},
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            running.enter_context(process)
            running.callback(os.killpg, process.pid, signal.SIGKILL)
            assert process.stdout is not None
            processes[name] = process, int(process.stdout.readline())
        held = hold_layer(str(tmp_path / "layers" / "held"))
        running.callback(os.close, held)
        remove_stray_layers(tmp_path, alive={"alive"})
        process, child = processes["gone"]
        assert find_process(process.pid) is find_process(child) is None
        for name in ("alive", "held"):
            process, child = processes[name]
            assert find_process(process.pid) is not None
            assert find_process(child) is not None
    assert sorted(path.name for path in (tmp_path / "layers").iterdir()) == ["alive", "held"]


def test_a_folder_without_an_order_goes_however_deep_it_is(tmp_path):
    (tmp_path / "c" / "x" / "run").mkdir(parents=True)
    make_deep(tmp_path / "c" / "x" / "run", 1_200)
    assert list(find_containers(tmp_path, tmp_path)) == []
    assert list((tmp_path / "c").iterdir()) == []


def test_a_supervisor_that_has_just_been_forked_is_waited_for(tmp_path):
    """The launcher of a killed agent may still be at it."""
    request = RequestFields(
        "x", make_spec(), "", "", str(tmp_path / "layer"), "", "", os.getuid()
    )
    folder = tmp_path / "c" / "x"
    order = StartOrder("x", str(folder), ContainerKind.PLAIN, "", request, "")
    for path in (folder, tmp_path / "layer"):
        path.mkdir(parents=True)
    (folder / "order.json").write_text(json.dumps(start_frame(order)))
    held = hold_layer(order.request.layer_dir)
    ourselves = find_process(os.getpid())
    assert ourselves is not None
    status = json.dumps({"pid": ourselves.pid, "start_time": ourselves.start_time})
    later = threading.Timer(0.1, (folder / "status.json").write_text, [status])
    later.start()
    try:
        (found,) = find_containers(tmp_path, tmp_path)
    finally:
        later.join()
        os.close(held)
    assert found.supervisor == ourselves


@contextlib.contextmanager
def supervised(tmp_path):
    """A container's order, a process that holds its layer as a supervisor does, and the child of that."""
    layer, folder = tmp_path / "layers" / "x", tmp_path / "c" / "x"
    for path in (folder, layer):
        path.mkdir(parents=True)
    request = RequestFields("x", make_spec(), "", "", str(layer), "", "", os.getuid())
    order = StartOrder("x", str(folder), ContainerKind.PLAIN, "", request, "")
    (folder / "order.json").write_text(json.dumps(start_frame(order)))
    program = (
        "import subprocess, sys, time; from picloud_services.agent.leftovers import hold_layer;"
        "held = hold_layer(sys.argv[1]); child = subprocess.Popen(['sleep', '60']);"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", program, str(layer)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        child = int(supervisor.stdout.readline())
        try:
            yield order, supervisor, child
        finally:
            supervisor.kill()


@pytest.mark.parametrize("damaged", ["status.json", "order.json"])
def test_a_supervisor_whose_files_were_damaged_ends_with_all_below_it(tmp_path, damaged):
    with supervised(tmp_path) as (order, supervisor, child):
        Path(order.folder, damaged).write_bytes(b"\0" * 100)
        for found in find_containers(tmp_path, tmp_path):
            assert found.supervisor is None
            clean_up(found.order)
        assert supervisor.wait(10) == -9
    assert find_process(child) is None
    assert not Path(order.folder).exists()


@pytest.mark.parametrize("home", [".", "linked"])
def test_a_supervisor_that_nobody_was_told_of_ends_with_all_below_it(tmp_path, home):
    """A launcher that was killed began it: it says who it is, and not yet what runs in it."""
    (tmp_path / "linked").symlink_to(tmp_path)
    layer = tmp_path / home / "layers" / "x"
    with supervised(tmp_path) as (order, supervisor, child):
        process = find_process(supervisor.pid)
        assert process is not None
        status = {"pid": process.pid, "start_time": process.start_time, "state": "starting"}
        Path(order.folder, "status.json").write_text(json.dumps(status))
        clean_up(replace(order, request=replace(order.request, layer_dir=str(layer))))
        assert supervisor.wait(10) == -9
    assert find_process(child) is None
    assert not Path(order.folder).exists()
    assert not layer.exists()


def test_a_layer_that_is_removed_is_held_so_that_no_supervisor_begins_there(
    tmp_path, monkeypatch
):
    removed: list[str] = []

    def remove(path):
        if path == order.request.layer_dir and os.path.exists(path):
            with pytest.raises(BlockingIOError):
                hold_layer(path)
        removed.append(path)
        remove_tree(path)

    monkeypatch.setattr(leftovers, "remove_tree", remove)
    with supervised(tmp_path) as (order, _, _):
        clean_up(order)
        clean_up(order)  # again: there is nothing to hold any more
    assert removed == [order.request.layer_dir, order.folder] * 2


@contextlib.contextmanager
def as_pasta(container, *, device="/proc/self/fd/1"):
    """A process that looks like the pasta of the container whose first process is ``container``."""
    words = ["pasta", "-c", "echo; read line", "--quiet", "-P", device]
    words += ["--netns", f"/proc/{container}/ns/net", "--netns-only"]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, executable="/bin/sh", stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        process.stdout.readline()  # its command line is there a moment after it began
        yield process
        process.kill()


@pytest.fixture
def in_our_namespace(monkeypatch):
    monkeypatch.setattr(leftovers, "PASTA_DEPTH", 1)


@pytest.fixture
def gone():
    with subprocess.Popen(["/bin/true"]) as process:
        pass
    return process.pid


@pytest.mark.usefixtures("in_our_namespace")
def test_a_pasta_whose_container_is_gone_is_ended(gone):
    with as_pasta(gone) as pasta:
        assert end_stray_pasta([os.getpid(), pasta.pid]) == [pasta.pid]
        assert pasta.wait(5) == -9
        assert end_stray_pasta([pasta.pid]) == []


@pytest.mark.usefixtures("in_our_namespace")
def test_a_pasta_whose_containers_number_is_another_processes_now_is_ended(monkeypatch):
    with as_pasta(os.getpid()) as pasta:
        of_now = find_process(pasta.pid)
        assert of_now is not None
        later = ProcessLine(1, "S", of_now.start_time + 1)
        monkeypatch.setattr(leftovers, "read_process", lambda _pid: later)
        assert end_stray_pasta([pasta.pid]) == [pasta.pid]


@pytest.mark.usefixtures("in_our_namespace")
def test_a_pasta_that_still_serves_or_is_not_ours_stays(gone, monkeypatch):
    with as_pasta(os.getpid()) as serving, as_pasta(gone, device="/run/other.pid") as other:
        assert end_stray_pasta([serving.pid, other.pid]) == []
        monkeypatch.setattr(leftovers, "read_process", lambda _pid: None)  # hidden from us
        assert end_stray_pasta([serving.pid]) == []


def test_a_pasta_of_another_pid_namespace_stays(gone):
    """The number that it names is not one of ours."""
    with as_pasta(gone) as pasta:
        assert end_stray_pasta([pasta.pid]) == []
