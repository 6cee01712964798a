"""What a refusal offers: top-ups with their page, in the problem document and in the form of x402.

https://github.com/coinbase/x402/blob/main/specs/x402-specification-v2.md
"""

from __future__ import annotations

import json
from base64 import b64encode
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from meterkit.catalog.meters import CHARGED

if TYPE_CHECKING:
    from meterkit.catalog import Catalog
    from meterkit.decisions.decision import Decision

X402_VERSION: Final = 2
PAGE_VALID_S: Final = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Top-ups that a customer can buy.

    Attributes:
        credit: the balance that they add to.
        url: the page where they are bought.
        amounts_cents: the amounts, the smallest first.
        currency: of the plans file.
    """

    credit: str
    url: str
    amounts_cents: tuple[int, ...]
    currency: str

    @classmethod
    def of(cls, catalog: Catalog, refusal: Decision) -> Offer | None:
        """The top-ups that help; None: another limit refuses, none are sold, or no page of them is known."""
        violated = (refusal.limit or "", *refusal.violated)
        for credit in catalog.credits.values():
            url = credit.top_up and (credit.top_up.url or catalog.billing.portal_url)
            if (
                credit.top_up is not None
                and url
                and any(name.startswith(f"{credit.name}{CHARGED}-") for name in violated)
            ):
                amounts = tuple(sorted(credit.top_up.packs))
                return cls(credit=credit.name, url=url, amounts_cents=amounts, currency=catalog.currency)
        return None

    @property
    def member(self) -> dict[str, Any]:
        """The member ``offer`` of a problem document."""
        return {
            "credit": self.credit,
            "top_up_url": self.url,
            "amounts_cents": list(self.amounts_cents),
            "currency": self.currency,
        }


def payment_required(error: str, resource: str, offer: dict[str, Any]) -> dict[str, Any]:
    """``PaymentRequired`` of x402: each amount as a payment on a page, with the scheme ``checkout``.

    Args:
        error: what is the matter, in words.
        resource: the address of the request.
        offer: see :attr:`Offer.member`.
    """
    accepts: list[dict[str, Any]] = [
        {
            "scheme": "checkout",
            "network": f"fiat:{offer['currency']}",
            "amount": str(amount),
            "asset": str(offer["currency"]).upper(),
            "payTo": "merchant",
            "maxTimeoutSeconds": PAGE_VALID_S,
            "extra": {"url": offer["top_up_url"], "credit": offer["credit"]},
        }
        for amount in offer["amounts_cents"]
    ]
    return {"x402Version": X402_VERSION, "error": error, "resource": {"url": resource}, "accepts": accepts}


def payment_field(error: str, resource: str, offer: Offer) -> tuple[bytes, bytes]:
    """The field ``PAYMENT-REQUIRED``, which tells clients of x402 the same over HTTP."""
    return (b"payment-required", b64encode(compact(payment_required(error, resource, offer.member))))


def compact(value: object) -> bytes:
    """JSON without blanks."""
    return json.dumps(value, separators=(",", ":")).encode()
