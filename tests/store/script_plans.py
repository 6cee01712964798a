"""The plans, customers, quantities and times of the driver's random lives: small, so that limits meet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from meterkit.catalog import Catalog, loads
from store.script_counts import DAY_MS, MINUTE_MS, SLOT_MS

PLANS: Final = """
schema: 1
currency: usd
default_plan: free
anonymous: {plan: free, by: ip}
dunning: {grace: 2d, restrict_to: tight, suspend_after: 5d}
meters:
  requests: {unit: request, stripe: {event_name: requests}}
  tokens: {unit: token, stripe: {event_name: tokens, report: usage}}
  jobs: {unit: job, stripe: {event_name: jobs, report: none}}
  plain: {unit: item}
  notes: {unit: note}
  large: {unit: token, from: tokens, where: {provider: "l*"}, stripe: {event_name: large, report: usage}}
  coded: {unit: token, from: tokens, where: {provider: "*", model: "yes"}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      requests:
        rate:
          - 9/second
          - {limit: 7/3 seconds, algorithm: token-bucket, burst: 12}
          - {limit: 60/minute, algorithm: fixed-window}
        concurrency: 3
        included: 150
        overage: deny
        warn_at: [1, 50, 67, 100]
      tokens:
        rate: [3000/26 hours, 20_000/30 days]
        included: 4000
        overage: {bill: {cap: 3000}}
        warn_at: [80, 110]
      jobs:
        rate: [{limit: 5_001/second, algorithm: token-bucket}, 40_000/25 hours]
        concurrency: 6
        included: 2000
        overage: bill
      plain: {rate: 30/5 minutes}
      large: {included: 100, overage: {bill: {cap: 90}}}
      notes:
        rate:
          - {limit: 7/3 seconds, algorithm: token-bucket, burst: 101}
          - {limit: 500/second, algorithm: token-bucket, burst: 50}
  tight:
    price: {amount_cents: 0, interval: year, included_per: interval}
    meters:
      requests:
        rate: [{limit: 7/9 seconds, algorithm: token-bucket, burst: 100}, 3/second]
        concurrency: 1
        included: 90
        overage: {bill: {cap: 0}}
      tokens:
        rate: [600/7 days, {limit: 500/second, algorithm: token-bucket, burst: 100}]
        included: 900
        overage: deny
      large: {rate: 500/7 days, included: 300, overage: deny, warn_at: [50]}
      jobs: {included: 1, overage: deny}
      plain: {rate: {limit: 20/26 hours, algorithm: fixed-window}, concurrency: 2, included: 0, overage: deny}
  big:
    price: {amount_cents: 0, interval: month}
    meters:
      requests:
        rate:
          - {limit: 12/3 seconds, algorithm: token-bucket, burst: 5}
          - {limit: 5/9 seconds, algorithm: token-bucket}
          - 999_999_999_999_999/day
        included: unlimited
      tokens:
        rate: 999_999_999_999_999/30 days
        included: 999_999_999_999_990
        overage: {bill: {cap: 999_999_999_999_999}}
      jobs: {rate: 999_999_999_999_999/25 hours, included: 900_000_000_000_000, overage: deny}
      plain: {rate: {limit: 999_999_999_999/second, algorithm: token-bucket, burst: 8_000_000_000_000}}
"""  # fmt: skip
PAID_PLANS: Final = """
schema: 1
currency: usd
default_plan: gift
anonymous: {plan: gift, by: ip}
dunning: {grace: 2d, restrict_to: bare, suspend_after: 5d}
billing: {late_usage: dead_letter}
meters:
  calls: {unit: call, stripe: {event_name: calls}}
  words: {unit: word, stripe: {event_name: words, report: usage}}
  images: {unit: image, stripe: {event_name: images}}
  pages: {unit: page}
  notes: {unit: note}
  input_tokens: {unit: token}
  large: {unit: word, from: words, where: {provider: "l*"}, stripe: {event_name: large, report: usage}}
  coded: {unit: word, from: words, where: {provider: "*", model: "yes"}}
prices:
  words: {default: 1 per 64, models: {"*mini": 1 per 500, "big-*": 9, opus: 3 per 4}}
  images: {default: 3, models: {opus: 5, "*ini": 1 per 2}}
credits:
  ai: {costs: {calls: 7 per 16, words: prices.words, images: prices.images}, low_balance: 20%}
  ink: {costs: {pages: 3 per 4}, low_balance: 50%}
  dust: {costs: {notes: 1 per 1_000_000}}
  usd: {unit: money, costs: {tokens: provider_prices}, low_balance: 30%}
plans:
  gift:
    price: {amount_cents: 0, interval: month}
    meters:
      calls: {concurrency: 4, included: 5, overage: deny, warn_at: [40, 90]}
      words:
        warn_at: [100]
        rate: [9000/minute, {limit: 4000/9 seconds, algorithm: token-bucket, burst: 5000}]
        included: 40
        overage: {bill: {cap: 60, per: 4, amount_cents: 10}}
      images: {included: 1, overage: {bill: {per: 4, amount_cents: 2}}}
      pages: {included: 3, overage: deny}
      notes: {included: 1, overage: deny}
      usd_charged: {included: 900_000, warn_at: [50]}
    grants:
      - {credit: ai, quantity: 4, every: period, priority: 20}
      - {credit: ai, quantity: 2, every: period, priority: 5, expires: 45d}
      - {meter: calls, quantity: 3, every: period, priority: 20, expires: 9d}
      - {credit: ink, quantity: 2, every: period}
      - {meter: words, quantity: 10, every: period, id: start, expires: 3d}
  more:
    extends: gift
    rank: 1
    meters:
      calls: {included: 2}
      pages: {included: 0}
      words: {overage: {bill: {cap: 20}}}
      large: {rate: 400/minute, included: 90, overage: deny}
    grants:
      - {credit: ai, quantity: 6, every: period, priority: 20}
      - {credit: ai, quantity: 2, every: period, priority: 5, expires: 45d}
      - {meter: calls, quantity: 4, every: period, priority: 20, expires: 9d}
      - {meter: pages, quantity: 5, every: period, priority: 50}
      - {credit: dust, quantity: 1, every: period}
      - {credit: usd, quantity: 2, every: period, expires: 9d}
      - {meter: words, quantity: 25, every: period, id: start, expires: 40d, priority: 9}
  year:
    extends: gift
    rank: 2
    price: {amount_cents: 0, interval: year, included_per: interval}
    grants:
      - {credit: ai, quantity: 9, every: period, priority: 20}
      - {meter: words, quantity: 30, every: period}
    meters: {large: {included: 30, overage: {bill: {cap: 90}}}}
  bare:
    extends: gift
    rank: 3
    meters: {images: {overage: deny}, usd_charged: {included: 0}}
    grants: []
  vast:
    extends: bare
    rank: 4
    meters:
      words: {rate: unlimited, included: 900_000_000_000_000, overage: {bill: {cap: 999_999_999_999_999}}}
      images: {included: 1, overage: {bill: {cap: 50}}}
    grants:
      - {credit: ai, quantity: 5, every: period, priority: 30}
      - {credit: ai, quantity: 6, every: period, priority: 40}
      - {credit: ai, quantity: 3, every: period, priority: 40}
"""
_LIVING_ON: Final = {
    "ai, quantity: 4, every: period, priority: 20": "rollover: {at_most: 9, for: 2 periods}",
    "ai, quantity: 6, every: period, priority: 20": "rollover: {at_most: 7, for: 1 period}",
    "ai, quantity: 9, every: period, priority: 20": "rollover: {at_most: 30, for: 3 periods}",
    "ink, quantity: 2, every: period": "rollover: {at_most: 2, for: 1 period}",
    "pages, quantity: 5, every: period, priority: 50": "rollover: {at_most: 12, for: 3 periods}",
    "ai, quantity: 5, every: period, priority: 30": "id: base, rollover: {at_most: 8, for: 2 periods}",
}
_ONCE: Final = {
    "- {credit: ink, quantity: 2, every": "{credit: ai, quantity: 3, every: once, expires: 20d}",
    "- {credit: dust, quantity: 1, every": "{credit: ink, quantity: 4, every: once}",
}


def _living_on(text: str) -> str:
    """Plans with grants that live on beyond their period, and with some that are given once."""
    for before, added in _ONCE.items():
        text = text.replace(before, f"- {added}\n      {before}")
    for grant, rollover in _LIVING_ON.items():
        text = text.replace(grant + "}", f"{grant}, {rollover}}}")
    usd = "{credit: usd, quantity: 2, every: period, rollover: {at_most: 3, for: 2 periods}}"
    return text.replace("{credit: usd, quantity: 2, every: period, expires: 9d}", usd)


CATALOG: Final = loads(PLANS)
HUGE: Final = (10**15 - 1, 10**15 - 10, 9 * 10**14, 5 * 10**14, 4 * 10**14 + 7)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sales:
    """A catalog, and what its customers ask for and are changed to."""

    catalog: Catalog
    quantities: Mapping[str, tuple[int, ...]]
    plans: tuple[str, ...]

    @property
    def meters(self) -> tuple[str, ...]:
        return tuple(self.quantities)


PLAIN: Final = Sales(
    catalog=CATALOG,
    quantities={
        "requests": (1, 1, 1, 1, 2, 3, 5, 12),
        "tokens": (1, 1, 3, 40, 60, 61, 99, 100, 101, 700, 1500, 3000),
        "jobs": (1, 1, 7, 300, 999, 2001, 5001),
        "plain": (1, 1, 1, 2, 3, 10, 19, 20, 29, 30),
        "notes": (1, 2, 3),
    },
    plans=("free", "free", "tight", "big"),
)
PAID: Final = Sales(
    catalog=loads(PAID_PLANS),
    quantities={
        "calls": (1, 1, 1, 2, 3, 5, 9),
        "words": (1, 7, 20, 40, 63, 64, 65, 200),
        "images": (1, 1, 1, 2),
        "pages": (1, 1, 2, 3),
        "notes": (1, 1, 250_000, 999_999),
        "usd_charged": (1, 400_000, 1_000_000, 1_000_001, 3_500_000),
    },
    plans=("gift", "more", "more", "year", "bare", "vast"),
)
ROLLING: Final = replace(PAID, catalog=loads(_living_on(PAID_PLANS)))
CUSTOMERS: Final = ("ada", "bob", "cid", "dot")
ANONYMOUS: Final = "2001:db8::/64"
_HOUR_MS: Final = 60 * MINUTE_MS
WINDOWS_MS: Final = (1000, 3000, 9000, MINUTE_MS, SLOT_MS, 25 * _HOUR_MS, 26 * _HOUR_MS, 30 * DAY_MS)
SKEWS: Final = (-3_600_000, 3_600_000)
"""How far a caller's clock may be wrong: it decides nothing."""
START_MS: Final = (
    2_211_580_000_000  # 30 January 2040: expiry goes by the server's own clock, so it must be ahead.
)
SEAL_DELAY_MS: Final = 300_000
