"""What the shop of a life sells: a plans file whose amounts, allowance and currency are a seed's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from meterkit.catalog import Catalog, loads

PLANS: Final = ("basic", "pro", "tried", "max")
METERS: Final = ("tokens", "pages", "calls")
ADDONS: Final = ("pack", "boost")
# How much more an amount is, in minor units: a customer's price is one of its own currency, or is wrong.
_MORE: Final = {"usd": 0, "eur": 10, "jpy": 20}
CURRENCIES: Final = (*_MORE,)
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
currency: [usd, eur, jpy]
default_plan: free
meters:
  tokens: {{unit: token, stripe: {{event_name: ai_tokens}}}}
  pages:  {{unit: page, stripe: {{event_name: pdf_pages}}}}
  calls:  {{unit: call, stripe: {{event_name: api_calls}}}}
  seats:  {{unit: seat, kind: gauge}}
  work:   {{unit: job}}
credits:
  ai: {{costs: {{work: 1 per 1}}}}
addons:
  pack:
    price: {{amount_cents: 400, interval: month}}
    meters: {{pages: {{included: 6}}, calls: {{included: 9}}}}
    max: 4
  boost:
    price: {{amount_cents: 700, interval: month}}
    grants:
      - credit: ai
        quantity: 20
        every: period
        priority: 20
        id: boost
        rollover: {{at_most: 30, for: 1 period}}
routes: [{{match: "*", exempt: true}}]
billing: {{usage: {usage}, changes: {{allowance: {allowance}, downgrade: {downgrade}}}}}
plans:
  free:
    price: {{amount_cents: 0, interval: month}}
    meters:
      tokens: {{included: 5, overage: deny}}
      pages:  {{included: 5, overage: deny}}
      calls:  {{included: 5, overage: deny}}
      work:   {{included: 0, overage: deny}}
  basic:
    rank: 1
    price: {{amount_cents: 1500, interval: month, stripe_price: price_basic}}
    seat_price: {{amount_cents: 300, stripe_price: price_basic_seat}}
    addons: [pack, boost]
    meters:
      tokens: {{included: 10, overage: {{bill: {{per: 1, amount_cents: {basic_tokens}}}}}}}
      pages:  {{included: 10, overage: deny}}
      calls:  {{included: 20, overage: {{bill: {{per: 1, amount_cents: {basic_calls}}}}}}}
      seats:  {{included: 1, overage: deny}}
      work:   {{included: 0, overage: deny}}
    grants: {grants_of_30}
  pro:
    rank: 2
    price: {{amount_cents: 2900, interval: month, stripe_price: price_pro}}
    seat_price: {{amount_cents: 200, stripe_price: price_pro_seat}}
    addons: [boost]
    meters:
      tokens: {{included: 20, overage: {{bill: {{per: 1, amount_cents: {pro_tokens}}}}}}}
      pages:  {{included: 10, overage: {{bill: {{per: 1, amount_cents: {pro_pages}}}}}}}
      calls:  {{included: 20, overage: {{bill: {{per: 1, amount_cents: {pro_calls}}}}}}}
      seats:  {{included: 3, overage: deny}}
      work:   {{included: 0, overage: deny}}
    grants: {grants_of_40}
  tried:
    rank: 3
    price: {{amount_cents: 3300, interval: month, stripe_price: price_tried}}
    trial: 14d
    addons: [pack]
    meters:
      tokens: {{included: 0, overage: {{bill: {{per: 1, amount_cents: {tried_tokens}}}}}}}
      pages:  {{included: 0, overage: {{bill: {{per: 1, amount_cents: {tried_pages}}}}}}}
      calls:  {{included: unlimited}}
      work:   {{included: 0, overage: deny}}
    grants: {grants_of_30}
  max:
    rank: 4
    price: {{amount_cents: 9900, interval: month, stripe_price: price_max}}
    seat_price: {{amount_cents: 100, stripe_price: price_max_seat}}
    addons: [pack, boost]
    meters:
      tokens: {{included: unlimited}}
      pages:  {{included: 30, overage: {{bill: {{per: 1, amount_cents: {max_pages}}}}}}}
      calls:  {{included: 50, overage: {{bill: {{per: 1, amount_cents: {max_calls}}}}}}}
      seats:  {{included: 5, overage: deny}}
      work:   {{included: 0, overage: deny}}
"""

_GRANTS: Final = """
      - credit: ai
        quantity: {}
        every: period
        priority: 10
        id: monthly
        rollover: {{at_most: 45, for: 2 periods}}
      - {{credit: ai, quantity: 10, every: once, priority: 30, id: welcome}}"""
_AMOUNT: Final = re.compile(r"(?<=amount_cents: )\d+")


def _in_all_currencies(amount: re.Match[str]) -> str:
    return str({code: _in_currency(int(amount[0]), code) for code in _MORE}).replace("'", "")


def _in_currency(cents: int, code: str) -> int:
    return cents and cents + _MORE[code]


@dataclass(frozen=True, kw_only=True)
class ShopFile:
    """A plans file; ``amounts`` are cents for a unit beyond what is included, by plan and meter."""

    allowance: str = "prorated"
    downgrade: str = "period_end"
    usage: str = "meters"
    amounts: Mapping[str, int] = field(default_factory=lambda: _AMOUNTS)

    @property
    def catalog(self) -> Catalog:
        return loads(_AMOUNT.sub(_in_all_currencies, self._text))

    def in_currency(self, code: str) -> Catalog:
        """What a file would say that has this currency alone."""
        text = self._text.replace(f"[{', '.join(CURRENCIES)}]", code)
        return loads(_AMOUNT.sub(lambda amount: str(_in_currency(int(amount[0]), code)), text))

    @property
    def _text(self) -> str:
        words = {"allowance": self.allowance, "downgrade": self.downgrade, "usage": self.usage}
        grants = {f"grants_of_{monthly}": _GRANTS.format(monthly) for monthly in (30, 40)}
        return _FILE.format(**words, **grants, **self.amounts)

    def with_prices(self, plan: str, more: int) -> ShopFile:
        """The file after the seller has changed all usage prices of a plan."""
        changed = {
            name: (cents + more) % 9 + 1 if name.startswith(f"{plan}_") else cents
            for name, cents in self.amounts.items()
        }
        return replace(self, amounts=changed)
