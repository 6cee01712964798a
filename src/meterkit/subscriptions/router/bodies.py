"""What clients of the billing routes send, as models: nothing else is taken, and nothing is converted."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from meterkit.subscriptions.rules.checks import SEATS_MAX

__all__ = [
    "CancelBody",
    "CheckoutBody",
    "CreateBody",
    "PlanBody",
    "PortalBody",
    "SeatsBody",
    "UsageAnswer",
]

_Plan = Annotated[str, Field(min_length=1, max_length=128, description="The key of a plan.")]
_Seats = Annotated[int, Field(ge=1, le=SEATS_MAX, description="Seats in all.")]
_Url = Annotated[str, Field(min_length=1, max_length=2048, description="An address of an allowed origin.")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class CreateBody(_Body):
    """A subscription that is to begin."""

    plan: _Plan
    seats: _Seats = 1


class PlanBody(_Body):
    """The plan that a subscription is to have."""

    plan: _Plan


class SeatsBody(_Body):
    """The seats that a subscription is to have."""

    seats: _Seats


class CancelBody(_Body):
    """When a subscription is to end: now, or with its period."""

    immediately: bool = False


class CheckoutBody(CreateBody):
    """A subscription that is to begin on a page of Stripe's."""

    success_url: _Url
    cancel_url: _Url


class PortalBody(_Body):
    """Where Stripe's portal sends its visitor back to."""

    return_url: _Url


class UsageAnswer(BaseModel):
    """What a customer has used in a billing period, meter by meter."""

    customer: str
    plan: str
    status: str | None
    access: str
    period: dict[str, Any]
    features: list[str]
    balance: dict[str, int]
    meters: dict[str, dict[str, Any]]
