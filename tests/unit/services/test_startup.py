"""Where state goes, and how a failed start is put into words."""

import errno
import os
from pathlib import Path

import pytest

from picloud_jupyter.protocol.errors import DiskFull, InvalidRequest
from picloud_jupyter.transport.paths import ServicePaths
from picloud_services.app import startup
from picloud_services.base.ballast import ballast_of
from picloud_services.base.filesystem import DiskSpace


@pytest.fixture
def paths(tmp_path: Path) -> ServicePaths:
    return ServicePaths(tmp_path / "home", tmp_path / "run")


def test_prepare_when_local_then_the_home_itself_and_private(paths):
    place = startup.prepare(paths)
    assert (place.paths, place.note) == (paths, "")
    assert paths.home.stat().st_mode & 0o777 == 0o700


def test_prepare_when_on_a_network_file_system_then_local_and_said_so(
    paths, tmp_path, monkeypatch
):
    monkeypatch.setattr(startup, "network_file_system", lambda _path: "NFS")
    monkeypatch.setattr(startup, "LOCAL_STATE", tmp_path / "var")
    place = startup.prepare(paths)
    assert place.paths.home.parent == tmp_path / "var"
    assert place.paths.home.stat().st_mode & 0o777 == 0o700
    assert place.paths.run == paths.run
    assert "NFS" in place.note
    assert str(place.paths.home) in place.note
    assert not paths.home.exists()
    assert startup.prepare(paths) == place  # the same place next time


def test_prepare_when_the_local_folder_is_open_to_others_then_refused(
    paths, tmp_path, monkeypatch
):
    monkeypatch.setattr(startup, "network_file_system", lambda _path: "NFS")
    monkeypatch.setattr(startup, "LOCAL_STATE", tmp_path / "var")
    startup.prepare(paths).paths.home.chmod(0o777)
    with pytest.raises(PermissionError, match="not a private folder"):
        startup.prepare(paths)


@pytest.mark.parametrize(("free", "fits"), [(15 * 2**20, False), (200 * 2**20, True)])
def test_prepare_when_space_is_short_then_disk_full_and_256_mb_are_enough(
    paths, monkeypatch, free, fits
):
    monkeypatch.setattr(startup, "disk_space", lambda _path: DiskSpace(256 * 2**20, free))
    if fits:
        startup.prepare(paths)
        return
    with pytest.raises(DiskFull, match="to start"):
        startup.prepare(paths)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x"), "disk_full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk_full"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "platform_error"),
        (PermissionError("words only"), "platform_error"),
        (ValueError("/home/secret is damaged"), "platform_error"),
        (DiskFull("as it is"), "disk_full"),
    ],
)
def test_startup_error_when_raised_then_one_that_a_client_knows(error, code):
    found = startup.as_startup_error(error)
    assert found.code == code
    text = error.parameter if isinstance(error, DiskFull) else error.args[0]
    if isinstance(text, str):
        assert text in found.parameter
    if getattr(error, "filename", None):
        assert error.filename in found.parameter


def test_settings_when_one_is_wrong_then_it_is_named_and_nothing_else_is_called_a_setting(
    paths,
):
    with pytest.raises(InvalidRequest, match="a setting of the service is wrong: --cores"):
        startup.load_settings(paths, ["--cores=x"])
    assert "setting" not in startup.as_startup_error(ValueError("a file is damaged")).parameter


def test_failure_when_run_cannot_be_written_then_at_least_printed(paths, capsys):
    startup.report_failure(paths, DiskFull("there is no room"))
    assert "there is no room" in capsys.readouterr().err
    assert not paths.run.exists()


def test_settings_when_nothing_is_set_then_traitlets_is_not_needed(paths, monkeypatch):
    for name in list(os.environ):
        if name.startswith("PICLOUD_"):
            monkeypatch.delenv(name)
    assert startup.load_settings(paths, []).paths == paths
    assert startup.load_settings(paths, ["--cores=2"]).cores == 2


def test_home_when_it_has_folders_of_the_users_own_then_refused_until_a_service_held_it(paths):
    (paths.home / "code").mkdir(parents=True)
    with pytest.raises(InvalidRequest, match=r"has code already"):
        startup.prepare(paths)
    (paths.home / "code").rmdir()
    startup.prepare(paths)
    paths.lock.touch()
    (paths.home / "code").mkdir()
    startup.prepare(paths)


def test_prepare_when_the_service_was_here_then_its_reserve_makes_room_for_a_start(
    paths, monkeypatch
):
    startup.prepare(paths)
    (paths.home / "lock").touch()
    (paths.home / "store.db").touch()
    reserve = ballast_of(paths.home / "store.db")
    reserve.touch()
    monkeypatch.setattr(
        startup,
        "disk_space",
        lambda _path: DiskSpace(2**28, 2**20 * (1 if reserve.exists() else 5)),
    )
    startup.prepare(paths)
    assert not reserve.exists()
    monkeypatch.setattr(startup, "disk_space", lambda _path: DiskSpace(2**28, 2**20))
    with pytest.raises(DiskFull, match="at least 3 MiB"):
        startup.prepare(paths)
