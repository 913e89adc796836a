"""Another user's program: calls and waits again and again until its standard input is closed.

A process of its own, so that it waits for the service and not for the interpreter of the program
that submits a large map. Prints the seconds of each call and its result as one JSON list.
"""

import json
import select
import sys
import time

from picloud_jupyter import cloud


def main():
    seconds = []
    cloud.result(cloud.call(len, "warm"))
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], 0.02)[0]:
        began = time.perf_counter()
        assert cloud.result(cloud.call(len, "abc", _priority=1)) == 3
        seconds.append(time.perf_counter() - began)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
