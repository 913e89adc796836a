"""The store of secrets: files of their own, versions that are never used twice."""

import asyncio
import json
import os
import stat
import threading

import pytest

from picloud_jupyter.protocol.errors import NotFound
from picloud_services.accounts import secrets
from picloud_services.accounts.secrets import MAX_SECRETS, SecretStore

ANN, BOB = 1000, 1001


@pytest.fixture
def home(tmp_path):
    return tmp_path


def load(home):
    return SecretStore.load(home, lambda: 5.0)


async def test_set_then_it_is_there_after_a_restart(home):
    await load(home).set(ANN, "TOKEN", "välue")
    store = load(home)
    assert store.values(ANN, [("VARIABLE", "TOKEN")]) == (("VARIABLE", "välue"),)
    assert [(s.name, s.version, s.set_at) for s in store.lines(ANN)] == [("TOKEN", 1, 5.0)]


async def test_set_then_only_the_owner_of_the_service_may_read_the_file(home):
    old = os.umask(0)
    try:
        await load(home).set(ANN, "TOKEN", "value")
    finally:
        os.umask(old)
    for path, mode in ((home / "secrets", 0o700), (home / "secrets" / "1000.json", 0o600)):
        assert stat.S_IMODE(path.stat().st_mode) == mode
    assert "8a477f597d28d172789f06886806bc55" in (home / "secrets/CACHEDIR.TAG").read_text()


async def test_versions_when_a_secret_is_set_or_deleted_then_none_comes_twice(home):
    store = load(home)
    first = await store.set(ANN, "A", "1")
    second = await store.set(ANN, "A", "2")
    await store.delete(ANN, "A")
    third = await load(home).set(ANN, "A", "1")
    assert [first.version, second.version, third.version] == [1, 2, 3]
    assert load(home).versions(ANN, ["A"]) == (3,)


async def test_set_when_all_are_too_long_together_then_refused_and_kept(home, monkeypatch):
    monkeypatch.setattr(secrets, "MAX_CHARACTERS", 10)
    store = load(home)
    await store.set(ANN, "A", "x" * 6)
    await store.set(BOB, "A", "x" * 6)
    with pytest.raises(ValueError, match="more than 10 characters"):
        await store.set(ANN, "B", "x" * 5)
    await store.set(ANN, "A", "x" * 10)  # in the place of the other
    assert [line.name for line in store.lines(ANN)] == ["A"]


async def test_set_when_its_client_goes_then_the_next_waits_and_both_are_kept(
    home, monkeypatch
):
    store = load(home)
    begun, go_on = threading.Event(), threading.Event()
    write = secrets._write

    def slow_write(path, kept):
        begun.set()
        assert go_on.wait(20)
        write(path, kept)

    monkeypatch.setattr(secrets, "_write", slow_write)
    first = asyncio.create_task(store.set(ANN, "A", "1"))
    await asyncio.to_thread(begun.wait, 20)
    begun.clear()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    second = asyncio.create_task(store.set(ANN, "B", "2"))
    await asyncio.sleep(0)
    assert not begun.is_set()
    go_on.set()
    assert (await second).version == 2
    assert load(home).lines(ANN) == store.lines(ANN)
    assert [line.name for line in store.lines(ANN)] == ["A", "B"]


async def test_values_when_it_is_another_users_then_it_is_unknown(home):
    store = load(home)
    await store.set(ANN, "TOKEN", "value")
    await store.set(BOB, "OTHER", "value")
    for ask in (
        lambda: store.values(BOB, [("TOKEN", "TOKEN")]),
        lambda: store.versions(BOB, ["TOKEN"]),
    ):
        with pytest.raises(NotFound, match=r"no secret 'TOKEN'; there are: OTHER\."):
            ask()
    with pytest.raises(NotFound):
        await store.delete(BOB, "TOKEN")
    assert [line.name for line in store.lines(BOB)] == ["OTHER"]


async def test_set_when_there_are_too_many_then_it_is_refused_and_changes_are_not(home):
    store = load(home)
    kept = {f"S{n}": [1, 0.0, "v"] for n in range(MAX_SECRETS)}
    await store.set(ANN, "S0", "v")
    path = home / "secrets" / "1000.json"
    path.write_text(json.dumps({"last_version": 1, "secrets": kept}))
    store = load(home)
    with pytest.raises(ValueError, match="already"):
        await store.set(ANN, "NEW", "v")
    await store.set(ANN, "S0", "changed")


async def test_set_when_the_disk_refuses_then_the_old_value_stays(home):
    store = load(home)
    await store.set(ANN, "A", "old")
    (home / "secrets" / "1000.new").mkdir()
    with pytest.raises(OSError, match="1000"):
        await store.set(ANN, "A", "new")
    assert (
        store.values(ANN, [("A", "A")])
        == load(home).values(ANN, [("A", "A")])
        == (("A", "old"),)
    )


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"secrets": {"A": "hidden"}, "last_version": 1}', '{"secrets": {}}'],
)
async def test_load_when_a_file_is_damaged_then_it_is_named_and_its_content_is_not(
    home, content
):
    await load(home).set(ANN, "A", "x")
    path = home / "secrets" / "1000.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"1000\.json is damaged") as caught:
        load(home)
    assert "hidden" not in str(caught.value)


async def test_load_when_others_may_read_a_file_then_it_is_refused(home):
    await load(home).set(ANN, "A", "x")
    (home / "secrets" / "1000.json").chmod(0o640)
    with pytest.raises(PermissionError, match="chmod 600"):
        load(home)


async def test_repr_then_no_value_is_shown(home):
    store = load(home)
    await store.set(ANN, "A", "hidden")
    assert "hidden" not in repr(store) + repr(store._users) + str(vars(store))
