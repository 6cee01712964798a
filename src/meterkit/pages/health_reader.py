"""The checks of ``meterkit doctor`` for the operator pages: at most once a minute, and not for long."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.decisions.periods import from_ms

if TYPE_CHECKING:
    from datetime import datetime

    from meterkit.insights.health_report import Health
    from meterkit.pages.usage_figures import PagesKit

_FRESH_MS: Final = 60_000
_TIMEOUT_S: Final = 3.0


class DatedReport(NamedTuple):
    """A report with its time; ``report`` is None if the checks took too long."""

    at: datetime
    report: Health | None


class HealthReader:
    """Runs the checks of a kit, and remembers their report for a minute.

    Checks that scan all keys are left out. No task outlives a request: checks that take longer than three
    seconds are cancelled, and tried again a minute later.

    Args:
        kit: to check.
    """

    def __init__(self, kit: PagesKit) -> None:
        self._kit = kit
        self._last: DatedReport | None = None
        self._last_ms = 0

    async def read(self) -> DatedReport:
        """Return the report of the last minute, or make one."""
        now_ms = self._kit.store.now_ms()
        if self._last is None or not 0 <= now_ms - self._last_ms < _FRESH_MS:
            report: Health | None = None
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    report = await self._kit.health(scan_keys=False)
            except TimeoutError:
                pass
            self._last, self._last_ms = DatedReport(from_ms(now_ms), report), now_ms
        return self._last
