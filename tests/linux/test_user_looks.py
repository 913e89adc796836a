"""Looks at users' paths with their rights; one that never answers holds up nobody else."""

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from picloud_jupyter.protocol.errors import Unavailable
from picloud_services.agent import syscalls
from picloud_services.environments import readable
from picloud_services.environments.readable import LOOKS_AT_ONCE, Looks, Wanted
from tests.tools.two_users import TwoUsers

pytestmark = [pytest.mark.isolation, pytest.mark.root]


@pytest.fixture
def dead_disk(two_users: TwoUsers) -> Iterator[Path]:
    """A mount whose server never says a word, as a user could make one."""
    place = two_users.place / "dead"
    place.mkdir()
    server = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={server},rootmode=40000,user_id=0,group_id=0,allow_other"
    syscalls.mount_at(
        "dead", str(place), "fuse", syscalls.MS_NOSUID | syscalls.MS_NODEV, options
    )
    try:
        yield place / "folder"
    finally:
        os.close(server)  # whoever waits gets an error
        syscalls._libc.umount2(os.fsencode(place), 2)


async def test_look_when_the_disk_is_dead_then_in_words_and_others_are_served(
    two_users: TwoUsers, dead_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readable, "LOOK_SECONDS", 0.3)
    looks = Looks(everybody=True)
    ann, bob = two_users.ann.uid, two_users.bob.uid
    dead = [Wanted(str(dead_disk), "a volume")]
    began = time.monotonic()
    for _ in range(LOOKS_AT_ONCE):
        with pytest.raises(Unavailable, match="does not answer") as caught:
            await looks.first_refused(ann, dead)
        assert str(dead_disk) in str(caught.value)
        assert not caught.value.retry
    hanging = [t for t in threading.enumerate() if t.name == "picloud-look"]
    assert len(hanging) == LOOKS_AT_ONCE
    assert time.monotonic() - began < 30
    with pytest.raises(Unavailable):
        await looks.first_refused(ann, [Wanted("/usr", "the submitting folder")])
    assert sum(t.name == "picloud-look" for t in threading.enumerate()) == LOOKS_AT_ONCE
    assert await looks.first_refused(bob, [Wanted("/usr", "the submitting folder")]) is None


async def test_look_when_a_user_submits_much_at_once_then_all_is_answered(
    two_users: TwoUsers,
) -> None:
    looks = Looks(everybody=True)
    places = [Wanted("/usr", "the submitting folder")]
    async with asyncio.timeout(20):
        found = await asyncio.gather(
            *(looks.first_refused(two_users.ann.uid, places) for _ in range(4 * LOOKS_AT_ONCE))
        )
    assert found == [None] * (4 * LOOKS_AT_ONCE)


async def test_look_then_each_user_s_own_rights(two_users: TwoUsers) -> None:
    looks = Looks(everybody=True)
    home = Wanted(str(two_users.ann.home), "the submitting folder", writable=True)
    assert await looks.first_refused(two_users.ann.uid, [home]) is None
    refused = await looks.first_refused(two_users.bob.uid, [Wanted("/usr", "x"), home])
    assert refused == (home, "may not be read by you")
    for path, mode, words in (
        ("/usr", True, "may not be written to by you"),
        ("/no/such", False, "is not on this machine"),
    ):
        place = Wanted(path, "a volume", writable=mode)
        assert await looks.first_refused(two_users.bob.uid, [place]) == (place, words)
    assert await looks.first_refused(0, [Wanted("/root", "x", writable=True)]) is None
