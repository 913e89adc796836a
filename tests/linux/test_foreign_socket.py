"""A socket of somebody else where this user's service would listen: nothing is sent to it."""

import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from picloud_jupyter.protocol.errors import NotAllowed
from picloud_jupyter.transport.embedded import embedded_client, ensure_running, listens
from picloud_jupyter.transport.paths import ServicePaths, service_paths

pytestmark = [pytest.mark.isolation, pytest.mark.root]

NOBODY = 65534


@pytest.fixture
def squatted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[ServicePaths, socket.socket]]:
    """The folders of a service that never ran, and a socket that another user made there first."""
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    paths = service_paths(tmp_path / "home")
    paths.run.mkdir(mode=0o755)
    os.chown(paths.run, NOBODY, NOBODY)
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.settimeout(5)
        theirs.bind(str(paths.api_socket))
        os.seteuid(NOBODY)  # who listens is who the kernel names
        try:
            theirs.listen()
        finally:
            os.seteuid(0)
        yield paths, theirs
    shutil.rmtree(paths.run)


def test_request_when_somebody_else_listens_then_refused_and_nothing_sent(squatted):
    paths, theirs = squatted
    client = embedded_client(paths, start=True)
    with pytest.raises(NotAllowed, match=f"user {NOBODY}") as caught:
        client.get("/v1/service")
    assert str(paths.api_socket) in str(caught.value)
    accepted, _ = theirs.accept()
    with accepted:
        accepted.settimeout(5)
        assert accepted.recv(100) == b""


def test_start_when_somebody_else_listens_then_it_is_not_taken_for_the_service(squatted):
    paths, _ = squatted
    for look in (listens, ensure_running):
        with pytest.raises(NotAllowed):
            look(paths)


def test_paths_when_the_usual_folder_is_somebody_else_s_then_where_the_service_says(squatted):
    usual, _ = squatted
    run = usual.home.parent / "run"
    run.mkdir(mode=0o700)
    usual.home.mkdir()
    usual.whereabouts.write_bytes(os.fsencode(run))
    (run / "record.json").write_text(json.dumps({"home": str(usual.home)}))
    with socket.socket(socket.AF_UNIX) as ours:
        ours.bind(str(run / "api.sock"))
        assert service_paths(usual.home).run == run
