"""An independent reference for money: a customer and its users and teams, in exact fractions.

All amounts are in micro-dollars. Dollars for a million tokens are micro-dollars for one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from fractions import Fraction
from math import ceil, floor
from typing import Final, NamedTuple

PLANS: Final = """
schema: 1
currency: usd
default_plan: pro
meters:
  input_tokens:  {unit: token}
  output_tokens: {unit: token, stripe: {event_name: out}}
  images:        {unit: image, stripe: {event_name: images}}
prices:
  out: {default: 0.733 per 1000, models: {"small-*": 0.117 per 1000, "large-*": 2.101 per 1000}}
credits:
  usd:
    unit: money
    costs: {tokens: provider_prices, markup: 37%}
    models:
      "small-*": {input_tokens: 0.15 per 1_000_000, output_tokens: 0.61 per 1_000_000}
      "large-*": {input_tokens: 3 per 1_000_000, output_tokens: 15 per 1_000_000}
      "*":       {input_tokens: 0.7 per 1_000_000, output_tokens: 1.9 per 1_000_000}
routes:
  - match: "POST /chat"
    usage: openai
    model: request
    reserve: {output_tokens: {from: max_tokens, default: 1_000, ceiling: 1_000_000}}
plans:
  pro:
    price: {amount_cents: 2000, interval: month}
    budget: {amount_cents: 300}
    meters:
      output_tokens: {included: 20_000, overage: {bill: {price: prices.out}}}
      images:        {included: 2, overage: {bill: {per: 3, amount_cents: 50}}}
    subjects:
      user: {budget: {amount_cents: 200}}
      team: {budget: {amount_cents: 90, per: day}, images: {included: 5}}
"""
CENT: Final = 10_000
MARKUP: Final = Fraction(137, 100)
PROVIDER: Final = {
    "small-1": (Fraction(15, 100), Fraction(61, 100)),
    "large-1": (Fraction(3), Fraction(15)),
    "other": (Fraction(7, 10), Fraction(19, 10)),
}
"""What a token that goes in, and one that comes out, costs the seller."""
OVERAGE: Final = {"large-1": Fraction(2101, 100), "other": Fraction(733, 100), "small-1": Fraction(117, 100)}
"""What an output token beyond the included ones costs the customer; the dearest first."""
IMAGE: Final = Fraction(50 * CENT, 3)
INCLUDED: Final = 20_000
IMAGES_INCLUDED: Final = 2
BUDGET: Final = 300 * CENT
USER_BUDGET: Final = 200 * CENT
TEAM_BUDGET: Final = 90 * CENT
TEAM_IMAGES: Final = 5
SPANS: Final = {"period": "spend-period", "day": "spend-1d"}


def charged(model: str, entered: int, left: int) -> Fraction:
    """What the balance is charged for a call."""
    price_in, price_out = PROVIDER[model]
    return (entered * price_in + left * price_out) * MARKUP


class Hold(NamedTuple):
    """What a call that is open holds: of the balance, and output tokens of a model."""

    charge: int
    model: str
    tokens: int

    @property
    def cost(self) -> int:
        """What it may cost a user or a team."""
        return ceil(self.charge + self.tokens * OVERAGE[self.model])

    @classmethod
    def of(cls, model: str, at_most: int) -> Hold:
        return cls(ceil(charged(model, 0, at_most)), model, at_most)


NOTHING: Final = Hold(0, "other", 0)


class Carried:
    """Whole micro-dollars of amounts; what a process cannot count in whole ones it carries."""

    def __init__(self) -> None:
        self._left: dict[int, Fraction] = defaultdict(Fraction)

    def whole(self, process: int, amount: Fraction) -> int:
        total = self._left[process] + amount
        self._left[process] = total - floor(total)
        return floor(total)


class Subject:
    """A user or a team: every unit counts at its price, whether it is included or not."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.spent = {"period": 0, "day": 0}
        self.images = 0
        self._held: dict[str, int] = {}
        self._carried = Carried()

    @property
    def span(self) -> str:
        return "period" if self.kind == "user" else "day"

    def begins(self, span: str) -> None:
        self.spent["day"] = 0
        if span == "period":
            self.spent["period"] = self.images = 0

    def refuses(self, needed: int, images: int = 0) -> set[str]:
        most = USER_BUDGET if self.kind == "user" else TEAM_BUDGET
        found = set[str]()
        if needed > most - self.spent[self.span] - sum(self._held.values()):
            found.add(f"{self.kind}:{SPANS[self.span]}")
        if self.kind == "team" and images > TEAM_IMAGES - self.images:
            found.add("team:images-period")
        return found

    def holds(self, call: str, hold: Hold) -> None:
        self._held[call] = hold.cost

    def gives_back(self, call: str) -> None:
        del self._held[call]

    def uses(self, process: int, cost: Fraction, images: int = 0) -> None:
        micros = self._carried.whole(process, cost)
        for span in self.spent:
            self.spent[span] += micros
        self.images += images


class Account:
    """What the reference knows of a customer."""

    def __init__(self, day_cents: int | None) -> None:
        self.balance = self.granted = self.paid = 0
        self.limits = {"period": BUDGET} | ({} if day_cents is None else {"day": day_cents * CENT})
        self.spent = {"period": 0, "day": 0}
        self.charged = self.images = self.tokens = 0
        self.overage = dict.fromkeys(OVERAGE, 0)
        self.held: dict[str, Hold] = {}
        self._carried = Carried()
        self.subjects = {("user", name): Subject("user") for name in ("u1", "u2")}
        self.subjects |= {("team", name): Subject("team") for name in ("red", "blue")}

    def of(self, given: Mapping[str, str]) -> list[Subject]:
        """The subjects of a call."""
        return [self.subjects[one] for one in given.items()]

    def begins(self, span: str) -> None:
        """A day or a period begins; nothing is held then."""
        self.spent["day"] = 0
        if span == "period":
            self.spent["period"] = self.charged = self.images = self.tokens = 0
            self.overage = dict.fromkeys(OVERAGE, 0)
        for subject in self.subjects.values():
            subject.begins(span)

    def refuses_call(self, hold: Hold, given: Mapping[str, str]) -> set[str]:
        found = set[str]()
        if hold.charge > self.balance - sum(one.charge for one in self.held.values()):
            found.add("usd_charged-period")
        found |= self._over(self._may_cost([*self.held.values(), hold]) - self._may_cost(self.held.values()))
        return found.union(*(one.refuses(hold.cost) for one in self.of(given)))

    def refuses_images(self, quantity: int, given: Mapping[str, str]) -> set[str]:
        found = self._over(self.image_cost(quantity))
        return found.union(*(one.refuses(ceil(quantity * IMAGE), quantity) for one in self.of(given)))

    def _over(self, needed: int) -> set[str]:
        held = self._may_cost(self.held.values())
        return {
            SPANS[span]
            for span, most in self.limits.items()
            if needed > 0 and needed > most - self.spent[span] - held
        }

    def _may_cost(self, holds: Iterable[Hold]) -> int:
        """What all that is held may come to cost.

        Included tokens may cover the cheapest of the held ones: the others cost what the dearest do. Each
        price is rounded up once, so of several models each may cost a micro-dollar more.
        """
        holds = [*holds]
        beyond = max(0, sum(one.tokens for one in holds) - max(0, INCLUDED - self.tokens))
        whole = dearest = models = 0
        for model, price in OVERAGE.items():
            tokens = sum(one.tokens for one in holds if one.model == model)
            whole += ceil((self.overage[model] + tokens) * price) - ceil(self.overage[model] * price)
            part = min(tokens, beyond)
            dearest += ceil(part * price)
            beyond -= part
            models += tokens > 0
        if models > 1 and dearest > 0:
            dearest += models
        return sum(one.charge for one in holds) + min(whole, dearest)

    def holds(self, call: str, hold: Hold, given: Mapping[str, str]) -> None:
        self.held[call] = hold
        for subject in self.of(given):
            subject.holds(call, hold)

    def gives_back(self, call: str, given: Mapping[str, str]) -> None:
        del self.held[call]
        for subject in self.of(given):
            subject.gives_back(call)

    def uses(self, process: int, model: str, entered: int, left: int, given: Mapping[str, str]) -> None:
        """A call is charged, and its output tokens are counted."""
        units = self._carried.whole(process, charged(model, entered, left))
        self.paid += units
        self.balance -= units
        self.charged += units
        self._spend(units)
        self.uses_tokens(process, model, left, given, units)

    def uses_tokens(
        self, process: int, model: str, tokens: int, given: Mapping[str, str], units: int = 0
    ) -> None:
        """Output tokens are counted: the included ones first, then at the price of their model."""
        beyond = max(0, self.tokens + tokens - INCLUDED) - max(0, self.tokens - INCLUDED)
        before = self.overage[model]
        self.tokens += tokens
        self.overage[model] += beyond
        self._spend(ceil((before + beyond) * OVERAGE[model]) - ceil(before * OVERAGE[model]))
        for subject in self.of(given):
            subject.uses(process, units + tokens * OVERAGE[model])

    def image_cost(self, quantity: int) -> int:
        """What so many more images cost the customer."""
        return _images_cost(self.images + quantity) - _images_cost(self.images)

    def takes_images(self, process: int, quantity: int, given: Mapping[str, str]) -> None:
        """Images are counted."""
        self._spend(self.image_cost(quantity))
        self.images += quantity
        for subject in self.of(given):
            subject.uses(process, quantity * IMAGE, quantity)

    def _spend(self, micros: int) -> None:
        for span in self.spent:
            self.spent[span] += micros


def _images_cost(images: int) -> int:
    return ceil(max(0, images - IMAGES_INCLUDED) * IMAGE)
