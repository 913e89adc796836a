"""Work shared by this product and its peers; importable by every worker."""

import os

SPIN = int(os.environ.get("BENCH_SPIN", "20000"))


def noop(x=None):
    return x


def one_millisecond(x=None):
    total = 0
    for i in range(SPIN):
        total += i
    return x


def echo(value):
    return value
