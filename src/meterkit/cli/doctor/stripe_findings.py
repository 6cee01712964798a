"""What is wrong at Stripe, and how it is mended. Pure."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from meterkit.cli.doctor.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meterkit.errors import StripeError

__all__ = ["UNTOLD", "meters_at_stripe", "refused_by_stripe"]

UNTOLD: Final = Finding(
    check="stripe",
    problem="usage goes by meter event streams, and nobody hears of what Stripe refuses of them: no webhook"
    " secret is set",
    cure="have Stripe post its thin events about meters to the webhook endpoint, and set"
    " METERKIT_STRIPE_WEBHOOK_SECRET",
)


def meters_at_stripe(differences: Iterable[str]) -> list[Finding]:
    """What keeps Stripe's meters from taking what is sent; as :func:`meter_differences` says it."""
    found: list[Finding] = []
    for difference in differences:
        problem, separator, cure = difference.rpartition(": ")
        if not separator or not cure.startswith("make a meter"):
            problem, cure = difference, "make one at Stripe, or mend the event name in the plans file"
        found.append(Finding(check="stripe", problem=problem, cure=cure))
    return found


def refused_by_stripe(error: StripeError) -> Finding | str:
    """What comes of a refusal to list meters; a text where it only keeps one from looking."""
    message = str(error).partition(": ")[2]
    if error.status == HTTPStatus.FORBIDDEN:
        return f"the Stripe key may not list meters: {message}"
    if error.status == HTTPStatus.UNAUTHORIZED:
        return Finding(
            check="stripe",
            problem=f"Stripe refuses the key: {message}",
            cure="set METERKIT_STRIPE_API_KEY to a secret or restricted key of the account",
        )
    return Finding(
        check="stripe",
        problem=f"Stripe cannot be asked for its meters: {message}",
        cure="see that this host reaches METERKIT_STRIPE_API_BASE, by default https://api.stripe.com",
    )
