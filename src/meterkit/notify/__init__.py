"""What happens to customers, told to handlers that the app registers."""

from __future__ import annotations

from meterkit.notify.events import CreditsLow
from meterkit.notify.handlers import Handlers

__all__ = ["CreditsLow", "Handlers"]
