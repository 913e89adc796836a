"""A private PostgreSQL server on a unix socket, run as an ordinary user, for the store's contract."""

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

PLACES = ("/usr/lib/postgresql", "/usr/pgsql", "/opt/homebrew/opt/postgresql")


def binaries() -> Path | None:
    """Return the folder of the newest server programs, or None."""
    if found := shutil.which("initdb"):
        return Path(found).parent
    versions = [p for place in PLACES for p in Path(place).glob("*/bin/initdb")]
    return max(versions, key=lambda p: int(p.parts[-3])).parent if versions else None


@contextlib.contextmanager
def private_server() -> Iterator[str]:
    """Start a server; yield its SQLAlchemy URL; stop and remove it at the end.

    Raises:
        FileNotFoundError: PostgreSQL is not installed.
    """
    programs = binaries()
    if programs is None:
        raise FileNotFoundError(
            "PostgreSQL is not installed, and the store's contract must hold there too: "
            "apt-get install postgresql"
        )
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    user = "nobody" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
    entry = pwd.getpwnam(user)
    os.chown(folder, entry.pw_uid, entry.pw_gid)
    data = folder / "data"

    def run(program: str, *arguments: str) -> None:
        subprocess.run(
            [str(programs / program), *arguments],
            check=True,
            capture_output=True,
            cwd=folder,
            timeout=60,
            user=user if os.getuid() == 0 else None,
            group=entry.pw_gid if os.getuid() == 0 else None,
        )

    try:
        run(
            "initdb",
            "-D",
            str(data),
            "-U",
            "picloud",
            "--auth=trust",
            "--no-sync",
            "-E",
            "UTF8",
        )
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
        log = str(folder / "log")
        run("pg_ctl", "-D", str(data), "-o", options, "-l", log, "-w", "-t", "30", "start")
        yield f"postgresql+psycopg://picloud@/postgres?host={folder}"
    finally:
        with contextlib.suppress(subprocess.SubprocessError):
            run("pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder, ignore_errors=True)


def fresh_database(url: str, name: str) -> str:
    """Make an empty database on the server at ``url``; return its URL."""
    import psycopg

    plain = url.replace("+psycopg", "")
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return url.replace("/postgres?", f"/{name}?")
