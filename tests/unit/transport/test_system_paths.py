"""Which service a program takes, and what tells that root set one up for everybody."""

import json
import os
import pwd
from pathlib import Path

import pytest

from picloud_jupyter.protocol.errors import InvalidRequest
from picloud_jupyter.transport.endpoint import find_endpoint
from picloud_jupyter.transport.paths import (
    ServicePaths,
    is_set_up,
    make_run,
    service_paths,
    system_paths,
)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServicePaths:
    """Folders of a system service that is not set up yet."""
    monkeypatch.setenv("PICLOUD_SYSTEM_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("PICLOUD_SYSTEM_RUN", str(tmp_path / "run"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("PICLOUD_HOME", raising=False)
    return system_paths()


def test_system_paths_then_one_folder_is_everybody_s_and_the_socket_is_in_it(machine, tmp_path):
    assert machine.api_socket == tmp_path / "run" / "api.sock"
    assert machine.run == tmp_path / "run" / "private"
    make_run(machine)
    assert machine.public is not None
    assert machine.public.stat().st_mode & 0o777 == 0o755
    assert machine.run.stat().st_mode & 0o777 == 0o700


def test_system_paths_when_nothing_is_named_then_the_usual_ones(monkeypatch):
    for name in ("PICLOUD_SYSTEM_HOME", "PICLOUD_SYSTEM_RUN"):
        monkeypatch.delenv(name, raising=False)
    found = system_paths()
    assert (str(found.home), found.api_socket.name) == ("/var/lib/picloud", "api.sock")
    assert os.path.basename(found.api_socket.parent) == "picloud"


def test_make_run_when_the_public_folder_is_a_link_then_refused(machine, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError, match="not a folder of this user"):
        make_run(machine)


@pytest.mark.root
def test_endpoint_when_root_set_one_up_then_that_unless_another_is_named(
    machine, tmp_path, monkeypatch
):
    assert find_endpoint().embedded is not None
    make_run(machine)
    found = find_endpoint()
    assert (found.system, found.embedded, found.local) == (True, None, True)
    assert found.socket_path == str(machine.api_socket)
    monkeypatch.setenv("PICLOUD_HOME", str(tmp_path / "own"))
    assert find_endpoint().embedded is not None
    assert find_endpoint("http://127.0.0.1:1", "k").port == 1
    monkeypatch.delenv("PICLOUD_HOME")
    monkeypatch.setenv("PICLOUD_URL", "unix:///somewhere/api.sock")
    assert find_endpoint().socket_path == "/somewhere/api.sock"


@pytest.mark.root
def test_is_set_up_when_others_may_write_there_or_made_it_then_not(machine, tmp_path):
    assert not is_set_up(machine)
    make_run(machine)
    assert is_set_up(machine)
    public = tmp_path / "run"
    public.chmod(0o777)
    assert not is_set_up(machine)
    public.chmod(0o755)
    os.chown(public, 1, 1)
    assert not is_set_up(machine)
    os.chown(public, 0, 0)
    machine.run.rmdir()
    assert not is_set_up(machine)
    assert not is_set_up(ServicePaths(tmp_path, tmp_path))


def test_service_paths_when_the_file_that_names_its_folder_is_damaged_then_the_usual_ones(
    tmp_path: Path,
) -> None:
    usual = service_paths(tmp_path)
    for damaged in (b"\0" * 40, b"\xff\n", b""):
        usual.whereabouts.write_bytes(damaged)
        assert service_paths(tmp_path) == usual


def test_service_paths_when_the_home_is_a_copy_then_not_those_of_the_original(tmp_path):
    original, copy, run = tmp_path / "original", tmp_path / "copy", tmp_path / "run"
    run.mkdir(mode=0o700)
    (run / "api.sock").touch()
    (run / "record.json").write_text(json.dumps({"home": str(original)}))
    for home in (original, copy):
        home.mkdir()
        service_paths(home).whereabouts.write_bytes(os.fsencode(run))
    assert service_paths(original).run == run
    assert service_paths(copy).run != run


def test_home_of_a_user_who_has_none_is_asked_for_in_words(monkeypatch):
    for name in ("HOME", "PICLOUD_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # no account has this uid
    with pytest.raises(InvalidRequest, match="HOME is not set") as refused:
        service_paths()
    assert "PICLOUD_HOME" in str(refused.value)
    monkeypatch.setenv("PICLOUD_HOME", "/srv/jobs")
    assert service_paths().home == Path("/srv/jobs")
