"""`picloud exec -f`: what goes wrong with one stream is told by the command, not by a thread."""

import threading

import pytest

from picloud_jupyter.cli import exec as cli_exec
from picloud_jupyter.protocol.errors import Unreachable


def test_stream_when_it_breaks_in_its_thread_then_raised_where_the_command_waits(
    monkeypatch, capsys
):
    def broken(_jid, _stream, *, follow):
        assert follow
        yield b""
        raise Unreachable("the service went away")

    monkeypatch.setattr(cli_exec, "read_log", broken)
    copying = cli_exec._Copying(7, "stderr", 2)
    copying.start()
    with pytest.raises(Unreachable, match="went away"):
        copying.finish()
    assert "Traceback" not in capsys.readouterr().err
    assert copying not in threading.enumerate()
