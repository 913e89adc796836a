"""A `requests` session whose every request goes to one unix socket."""

import socket
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool
from urllib3.connection import HTTPConnection

BASE_URL = "http://localhost"
SECONDS = 30.0


class _Pool(HTTPConnectionPool):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost")

        class Connection(HTTPConnection):
            def connect(self) -> None:
                self.sock = socket.socket(socket.AF_UNIX)
                self.sock.settimeout(SECONDS)
                self.sock.connect(str(path))

        self.ConnectionCls = Connection


class _Adapter(HTTPAdapter):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._pool = _Pool(path)

    def get_connection_with_tls_context(self, *_arguments: Any, **_more: Any) -> _Pool:
        return self._pool

    def close(self) -> None:
        self._pool.close()


def unix_session(path: Path) -> requests.Session:
    """Return a session of the service that listens at ``path``; its addresses begin with BASE_URL."""
    session = requests.Session()
    session.trust_env = False
    session.mount("http://", _Adapter(path))
    return session
