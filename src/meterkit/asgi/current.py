"""What the code that serves a request may ask of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meterkit.decisions.decision import Decision

__all__ = ["Current"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Current:
    """Who is served, and why.

    Attributes:
        customer: the customer's id.
        plan: the key of the plan in force.
        decision: what was decided about this request.
    """

    customer: str
    plan: str
    decision: Decision
