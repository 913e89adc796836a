"""Descriptors of pipes and sockets, watched for real."""

import os
import socket

import pytest

from picloud_services.agent.watcher import Watcher


def test_wait_when_something_can_be_read_calls_what_belongs_to_it():
    watcher, calls = Watcher(), []
    read, write = os.pipe()
    other, other_write = os.pipe()
    watcher.watch(read, lambda: calls.append("read"))
    watcher.watch(other, lambda: calls.append("other"))
    os.write(write, b"x")
    watcher.wait(1.0)
    assert calls == ["read"]
    for fd in (read, write, other, other_write):
        os.close(fd)


def test_wait_when_nothing_is_ready_returns_after_the_timeout():
    watcher, calls = Watcher(), []
    near, far = socket.socketpair()
    with near, far:
        watcher.watch(near.fileno(), lambda: calls.append("ready"))
        watcher.wait(0.001)
    assert calls == []


def test_watch_when_write_is_asked_for_and_taken_back_follows():
    watcher, calls = Watcher(), []
    near, far = socket.socketpair()
    with near, far:
        watcher.watch(near.fileno(), lambda: calls.append("ready"), write=True)
        watcher.wait(1.0)
        assert calls == ["ready"]
        watcher.watch(near.fileno(), lambda: calls.append("ready"))
        watcher.wait(0.0)
    assert calls == ["ready"]


def test_unwatch_when_it_is_done_by_the_first_callback_the_second_is_not_called():
    watcher, calls = Watcher(), []
    pipes = [os.pipe(), os.pipe()]
    for read, write in pipes:
        os.write(write, b"x")

        def on_ready(own: int = read) -> None:
            calls.append(own)
            for fd, _ in pipes:
                watcher.unwatch(fd)

        watcher.watch(read, on_ready)
    watcher.wait(1.0)
    watcher.wait(0.0)
    assert len(calls) == 1
    assert not any(watcher.watches(read) for read, _ in pipes)
    for pipe in pipes:
        for fd in pipe:
            os.close(fd)


@pytest.mark.parametrize("seconds", [25 * 86_400.0, 1e300, float("inf")])
def test_wait_when_longer_than_the_kernel_waits_then_what_is_ready_is_called(seconds):
    watcher, calls = Watcher(), []
    read, write = os.pipe()
    watcher.watch(read, lambda: calls.append("ready"))
    os.write(write, b"x")
    watcher.wait(seconds)
    assert calls == ["ready"]
    os.close(read)
    os.close(write)


def test_unwatch_when_it_is_closed_already_frees_the_number_for_another():
    watcher, calls = Watcher(), []
    read, write = os.pipe()
    watcher.watch(read, lambda: calls.append("old"))
    os.close(read)
    watcher.unwatch(read)
    again = os.dup(write)  # takes the number that has become free
    assert again == read
    watcher.watch(again, lambda: calls.append("new"), write=True)
    watcher.wait(1.0)
    assert calls == ["new"]
    os.close(again)
    os.close(write)
