"""What the shop of a life sells: a plans file whose amounts, allowance and currency are a seed's."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from meterkit.catalog import loads

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog import Catalog

PLANS: Final = ("basic", "pro", "tried", "max")
METERS: Final = ("tokens", "pages", "calls")
_AMOUNTS: Final[Mapping[str, int]] = {
    "basic_tokens": 5,
    "basic_calls": 2,
    "pro_tokens": 3,
    "pro_pages": 7,
    "pro_calls": 2,
    "tried_tokens": 4,
    "tried_pages": 6,
    "max_pages": 7,
    "max_calls": 1,
}
_FILE: Final = """
schema: 1
currency: usd
default_plan: free
meters:
  tokens: {{unit: token, stripe: {{event_name: ai_tokens}}}}
  pages:  {{unit: page, stripe: {{event_name: pdf_pages}}}}
  calls:  {{unit: call, stripe: {{event_name: api_calls}}}}
  seats:  {{unit: seat, kind: gauge}}
routes: [{{match: "*", exempt: true}}]
billing: {{changes: {{allowance: {allowance}, downgrade: {downgrade}}}}}
plans:
  free:
    price: {{amount_cents: 0, interval: month}}
    meters:
      tokens: {{included: 5, overage: deny}}
      pages:  {{included: 5, overage: deny}}
      calls:  {{included: 5, overage: deny}}
  basic:
    rank: 1
    price: {{amount_cents: 1500, interval: month, stripe_price: price_basic}}
    seat_price: {{amount_cents: 300, stripe_price: price_basic_seat}}
    meters:
      tokens: {{included: 10, overage: {{bill: {{per: 1, amount_cents: {basic_tokens}}}}}}}
      pages:  {{included: 10, overage: deny}}
      calls:  {{included: 20, overage: {{bill: {{per: 1, amount_cents: {basic_calls}}}}}}}
      seats:  {{included: 1, overage: deny}}
  pro:
    rank: 2
    price: {{amount_cents: 2900, interval: month, stripe_price: price_pro}}
    seat_price: {{amount_cents: 200, stripe_price: price_pro_seat}}
    meters:
      tokens: {{included: 20, overage: {{bill: {{per: 1, amount_cents: {pro_tokens}}}}}}}
      pages:  {{included: 10, overage: {{bill: {{per: 1, amount_cents: {pro_pages}}}}}}}
      calls:  {{included: 20, overage: {{bill: {{per: 1, amount_cents: {pro_calls}}}}}}}
      seats:  {{included: 3, overage: deny}}
  tried:
    rank: 3
    price: {{amount_cents: 3300, interval: month, stripe_price: price_tried}}
    trial: 14d
    meters:
      tokens: {{included: 0, overage: {{bill: {{per: 1, amount_cents: {tried_tokens}}}}}}}
      pages:  {{included: 0, overage: {{bill: {{per: 1, amount_cents: {tried_pages}}}}}}}
      calls:  {{included: unlimited}}
  max:
    rank: 4
    price: {{amount_cents: 9900, interval: month, stripe_price: price_max}}
    seat_price: {{amount_cents: 100, stripe_price: price_max_seat}}
    meters:
      tokens: {{included: unlimited}}
      pages:  {{included: 30, overage: {{bill: {{per: 1, amount_cents: {max_pages}}}}}}}
      calls:  {{included: 50, overage: {{bill: {{per: 1, amount_cents: {max_calls}}}}}}}
      seats:  {{included: 5, overage: deny}}
"""


@dataclass(frozen=True, kw_only=True)
class ShopFile:
    """A plans file.

    Attributes:
        amounts: cents for a unit beyond what is included, by plan and meter.
    """

    allowance: str = "prorated"
    downgrade: str = "period_end"
    amounts: Mapping[str, int] = field(default_factory=lambda: _AMOUNTS)

    @property
    def catalog(self) -> Catalog:
        """What meterkit reads of it."""
        return loads(_FILE.format(allowance=self.allowance, downgrade=self.downgrade, **self.amounts))

    def with_prices(self, plan: str, more: int) -> ShopFile:
        """The file after the seller has changed all usage prices of a plan."""
        changed = {
            name: (cents + more) % 9 + 1 if name.startswith(f"{plan}_") else cents
            for name, cents in self.amounts.items()
        }
        return replace(self, amounts=changed)
