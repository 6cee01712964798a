"""Instants of emulated subscriptions, in seconds: they begin on 1 April 2026."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

NOW: Final = datetime(2026, 4, 1, tzinfo=UTC)
SECOND: Final = int(NOW.timestamp())
MAY: Final = int(datetime(2026, 5, 1, tzinfo=UTC).timestamp())
DAY: Final = 86_400
HOUR: Final = 3_600
