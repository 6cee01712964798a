"""What the blocks ``billing:`` and ``dunning:`` of a plans file say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Outcome = Literal["success", "client_gone", "client_error", "server_error", "interim"]
"""Interim: the answer asks for more before the call can complete. `charge_on` cannot list it."""
Debt = Literal["deny", "allow"]

_DAY_MS: Final = 86_400_000
OUTCOMES: Final[tuple[Outcome, ...]] = ("success", "client_gone", "client_error", "server_error")
BILLED_ON_SUCCESS: Final[frozenset[Outcome]] = frozenset({"success", "client_gone"})
BILLED_ON_ATTEMPT: Final[frozenset[Outcome]] = frozenset({*OUTCOMES, "interim"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """When plan changes bind, what they add within a period, and gauges above the new limit."""

    upgrade: Literal["now", "period_end"] = "now"
    downgrade: Literal["now", "period_end"] = "period_end"
    over_limit: Literal["block_growth", "allow"] = "block_growth"
    allowance: Literal["prorated", "whole"] = "prorated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Billing:
    """The ``billing:`` block.

    Attributes:
        hold_invoice_ms: how long a renewal invoice stays a draft, at most, until its usage is counted.
    """

    charge_on: frozenset[Outcome] = BILLED_ON_SUCCESS
    sources: frozenset[Literal["reported", "partial", "estimated", "missing"]] = frozenset(
        {"reported", "partial", "estimated"}
    )
    idempotency_header: str | None = None
    portal_url: str | None = None
    checkout: Mapping[str, Any] = field(default_factory=dict[str, Any])
    hold_invoice_ms: int = 24 * 3_600_000
    changes: Changes = Changes()
    late_usage: Literal["next_period", "dead_letter"] = "next_period"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dunning:
    """The ``dunning:`` block: spans from the first failed payment.

    Attributes:
        attempts: the failed attempt that ends grace; None: only the clock does.
        remind_ms: the spans after which handlers are reminded, the shortest first.
        debt: whether a customer may subscribe while an invoice of an earlier subscription is open.
    """

    grace_ms: int
    attempts: int | None = 3
    restrict_to: str
    suspend_after_ms: int
    remind_ms: tuple[int, ...] = (1 * _DAY_MS, 6 * _DAY_MS, 13 * _DAY_MS)
    debt: Debt = "deny"
