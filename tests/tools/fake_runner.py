"""A runner that speaks L5 for real, over the descriptors it inherits, and imports nothing of ours.

It is put at BUNDLE/picloud_kernels/runner/main.py. The function's bytes are ignored; the
arguments record of each element is a little program: words separated by blanks.

    out:TEXT err:TEXT   print            sleep:SECONDS     sleep
    exit:CODE kill:N    end the process  result:N          a body of N bytes
    file:NAME           name a file      raw:HEX           send bytes instead of the result
    flood:N             print N bytes    close             close descriptors 3 and 4
    eat:N               hold N bytes for a moment          fds  answer with the payload's bytes
    nomarker            write no markers
    note:FILE           append the element's position to FILE
    also:HEX            send bytes beside the result
    mint:N              once its element has ended, put N tokens of its own into the pipe
"""

import array
import contextlib
import json
import os
import socket
import struct
import sys
import time

config = json.loads(sys.argv[1])
marker = bytes.fromhex(config["marker"])
link = socket.socket(fileno=3)
buffer = bytearray()
received_fds: list[int] = []


def receive():
    while True:
        if len(buffer) >= 12:
            head, body = struct.unpack(">IQ", buffer[:12])
            if len(buffer) >= 12 + head + body:
                header = json.loads(buffer[12 : 12 + head])
                data = bytes(buffer[12 + head : 12 + head + body])
                del buffer[: 12 + head + body]
                return header, data
        data, ancillary, _, _ = link.recvmsg(1 << 18, socket.CMSG_SPACE(253 * 4))
        if not data:
            sys.exit(0)
        for _, _, rights in ancillary:
            fds = array.array("i")
            fds.frombytes(rights)
            received_fds.extend(fds)
        buffer.extend(data)


def frame(header, body=b""):
    head = json.dumps(header).encode()
    return struct.pack(">IQ", len(head), len(body)) + head + body


def records(pack):
    (count,) = struct.unpack(">I", pack[:4])
    at = 4 + 4 * count
    for size in struct.unpack(f">{count}I", pack[4:at]):
        yield pack[at : at + size]
        at += size


def run(position, program, started_at):
    body, extra, raw, marked = b"", {}, None, True
    for word in program.decode().split():
        name, _, value = word.partition(":")
        if name == "out":
            os.write(1, value.encode())
        elif name == "err":
            os.write(2, value.encode())
        elif name == "sleep":
            time.sleep(float(value))
        elif name == "exit":
            os._exit(int(value))
        elif name == "kill":
            os.kill(os.getpid(), int(value))
        elif name == "result":
            body = b"x" * int(value)
        elif name == "file":
            extra = {"file": value, "size": 100_000, "digest": ""}
        elif name == "raw":
            raw = bytes.fromhex(value)
        elif name == "flood":
            left = int(value)
            while left > 0:
                left -= os.write(1, b"y" * min(left, 1 << 16))
        elif name == "eat":
            held = bytearray(int(value))
            held[::4096] = b"z" * len(held[::4096])
            time.sleep(0.1)
            del held
        elif name == "close":
            os.closerange(3, 5)
            time.sleep(60)
        elif name == "fds":
            body = b"|".join(os.read(fd, 100) for fd in received_fds)
            for fd in received_fds:
                os.close(fd)
            received_fds.clear()
        elif name == "note":
            with open(value, "a") as file:
                file.write(f"{position}\n")
        elif name == "also":
            link.sendall(bytes.fromhex(value))
        elif name == "nomarker":
            marked = False
        elif name == "mint" and not os.fork():
            time.sleep(0.1)
            with contextlib.suppress(BlockingIOError):
                os.write(
                    os.open("/proc/self/fd/4", os.O_WRONLY | os.O_NONBLOCK), bytes(int(value))
                )
            os._exit(0)
    if marked:
        os.write(1, marker)
        os.write(2, marker)
    times = {"at": started_at, "s": time.time() - started_at, "u": 0.001, "y": 0.0}
    header = {"t": "result", "p": position, "r": "done", **times, **extra}
    link.sendall(frame(header, body) if raw is None else raw)


def main():
    if os.environ.get("FAKE_RUNNER_DIES"):
        print("there is no such module", file=sys.stderr)
        sys.exit(3)
    versions = {"wire": 1, "oldest": 1, "python_version": "3.11.0"}
    link.sendall(frame({"t": "hello", **versions, "pid": os.getpid(), "rss_bytes": 1000}))
    while True:
        header, body = receive()
        if header["t"] == "stop":
            sys.exit(0)
        if header["t"] != "chunk":
            continue
        for position, program in enumerate(records(body[header["function_bytes"] :])):
            try:
                if not os.read(4, 1):
                    break
            except BlockingIOError:
                break
            run(position, program, time.time())
        end = {"t": "end", "lease": header["lease"], "rss_bytes": 2000, "threads": 1}
        link.sendall(frame({**end, "children": 0}))


main()
