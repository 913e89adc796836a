"""Many clients in one process, each with a connection of its own: ``python tests/faults/crowd.py COUNT``."""

import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from picloud_jupyter.protocol.errors import CloudException
from picloud_jupyter.transport.embedded import embedded_client
from picloud_jupyter.transport.paths import service_paths


def main() -> int:
    """Ask for the state of the service from all at once; return 1 if one got no answer."""
    count = int(sys.argv[1])
    together = threading.Barrier(count)
    answered: list[float] = []
    failed: list[str] = []

    def ask() -> None:
        client = embedded_client(service_paths(), start=False)
        try:
            together.wait()
            begun = time.monotonic()
            client.get("/v1/service")
            together.wait()  # all hold their connection
            client.get("/v1/service")
        except (CloudException, OSError, threading.BrokenBarrierError) as error:
            failed.append(repr(error))
            together.abort()
        else:
            answered.append(time.monotonic() - begun)
        finally:
            client.close()

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"{len(answered)} of {count}, all within {max(answered, default=0.0):.1f} s")
    print("\n".join(failed[:10]), file=sys.stderr)
    return int(len(answered) != count)


if __name__ == "__main__":
    sys.exit(main())
