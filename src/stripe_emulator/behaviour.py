"""The switches of the emulator's behaviour."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from decimal import Decimal


@dataclass(kw_only=True, eq=False, repr=False)
class Behaviour:
    """The emulator's settings; ``StripeEmulator`` describes them."""

    clock: Callable[[], float] = time.time
    api_keys: Collection[str] | None = None
    latency_s: float = 0.0
    rate_limit_per_s: int | None = None
    summary_lag_s: float = 0.0
    invoice_lag_s: float = 0.0
    identifier_memory_s: float = 86_400
    refuse_unknown_customers: bool = True
    reports_name: Literal["identifier", "idempotency_key"] = "identifier"
    retry_days: Sequence[int] = (3, 5, 7)
    after_retries: Literal["cancel", "unpaid", "past_due"] = "cancel"
    collects_after_cancel: bool = True
    prices_usage_by: Literal["timestamp", "arrival"] = "timestamp"
    automatic_webhooks: bool = True
    tax_percent: Decimal | None = None
