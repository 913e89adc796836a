"""Code that hostile jobs run in a container, and what came of it."""

from tests.tools.container_harness import Lab

PRELUDE = """
import ctypes, errno, fcntl, json, mmap, os, resource, signal, socket, struct, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def call(number, *arguments):
    return check(libc.syscall(number, *(ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments)))
def read(path):
    with open(path, "rb") as file:
        return file.read(200)
def write(path, text="x"):
    with open(path, "w") as file:
        file.write(text)
def answer(message):
    with socket.socket(16, socket.SOCK_RAW, 0) as sock:
        sock.send(message)
        error = -struct.unpack_from("=i", sock.recv(4096), 16)[0]
    if error:
        raise OSError(error, os.strerror(error))
def attempt(source):
    try:
        value = eval(source)
    except OSError as exc:
        return ["refused", errno.errorcode.get(exc.errno, str(exc))]
    except ValueError as exc:  # of setrlimit
        return ["refused", str(exc)]
    return ["done", repr(value)[:300]]
"""


def probe(lab: Lab, sources: dict[str, str], **options: object) -> dict[str, list[str]]:
    """Return for each name what came of its source inside: ("refused", error) or ("done", value)."""
    code = f"{PRELUDE}\nprint(json.dumps({{n: attempt(s) for n, s in {sources!r}.items()}}))"
    found: dict[str, list[str]] = lab.run(code, **options).words  # type: ignore[arg-type]
    return found
