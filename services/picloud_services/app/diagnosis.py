"""GET /v1/diagnosis: what `picloud debug-bundle` asks a service that runs. No payloads, no secrets."""

import dataclasses
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from picloud_jupyter.protocol.frames import OLDEST_WIRE_VERSION, WIRE_VERSION
from picloud_jupyter.protocol.scrubbing import scrub
from picloud_jupyter.protocol.version import __version__
from picloud_services.base.database import Database
from picloud_services.base.ticker import Ticker
from picloud_services.config import Settings, list_settings

MAX_CHECK_BYTES = 4 * 1024**3  # a larger store is not read whole for this


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Asks the parts."""

    settings: Settings
    database: Database
    tickers: Sequence[Ticker]

    async def describe(self) -> dict[str, Any]:
        """Return the answer."""
        names = [setting.name for setting in list_settings()]
        values = {name: getattr(self.settings, name) for name in names}
        return {
            "versions": {
                "picloud": __version__,
                "wire": WIRE_VERSION,
                "oldest_wire": OLDEST_WIRE_VERSION,
                "python": sys.version,
                "kernel": platform.release(),
            },
            "settings": {n: scrub(v) if isinstance(v, str) else v for n, v in values.items()},
            "store": await self._store(),
            "upkeep": [dataclasses.asdict(ticker.health) for ticker in self.tickers],
        }

    async def _store(self) -> dict[str, Any]:
        source = self.database.source
        if self.database.dialect != "sqlite":
            return {"kind": self.database.dialect, "checked": False, "damage": []}
        size_bytes = source.file.stat().st_size
        if size_bytes > MAX_CHECK_BYTES:
            return {"kind": "sqlite", "checked": False, "damage": [], "bytes": size_bytes}
        damage = await self.database.check()
        return {"kind": "sqlite", "checked": True, "damage": damage, "bytes": size_bytes}
