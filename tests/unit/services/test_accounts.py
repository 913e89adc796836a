"""Uploads on their way: what counts against whose quota, how many, how long."""

from typing import Any

import pytest

from picloud_jupyter.protocol.errors import QuotaExceeded
from picloud_jupyter.protocol.users import Quota
from picloud_services.accounts import service

ANN, BOB = 1000, 1001


class Clock:
    now = 0.0

    def steady_seconds(self) -> float:
        return self.now


def test_uploads_that_no_job_names_are_limited_and_forgotten_in_time(monkeypatch):
    monkeypatch.setattr(service, "MAX_SENDING", 3)
    clock: Any = Clock()
    nowhere: Any = None
    accounts = service.Accounts(nowhere, clock, Quota(disk_bytes=100))
    for clock.now, upload in enumerate(("u0", "u1", "u2")):
        accounts.require_room(ANN, 30, upload)
    with pytest.raises(QuotaExceeded, match="no job names"):
        accounts.require_room(ANN, 0, "u3")
    accounts.require_room(ANN, 40, "u0")  # the same again, with another size
    with pytest.raises(QuotaExceeded, match="occupy 100 bytes"):
        accounts.require_room(ANN, 1)
    accounts.require_room(BOB, 100, "bob's")
    clock.now = 1 + service.UPLOAD_SECONDS  # u1 is forgotten; u0 was asked for once more
    accounts.require_room(ANN, 30, "u3")
    accounts.sent(["u0", "u2", "u3", None, "never"])
    accounts.require_room(ANN, 100, "u4")
