"""``top_up:`` of a balance in money: what customers can buy, and what is bought by itself."""

from __future__ import annotations

import re
from typing import Final

from meterkit.catalog.amount_texts import money
from meterkit.catalog.billing import URL
from meterkit.catalog.errors import RefusedError
from meterkit.catalog.model_prices import AutoTopUp, TopUps
from meterkit.catalog.shapes import Key, ListOf, Scalar, Table
from meterkit.catalog.value_parsers import AMOUNT_CENTS_MAX, integer

CHARGE_CENTS_MIN: Final = 50
"""https://docs.stripe.com/currencies#minimum-and-maximum-charge-amounts"""
_AT_MOST_MAX: Final = 100
_TIMES: Final = re.compile(r"([1-9][0-9]{0,2}) per month")
_ALLOWED: Final = f"a number of top-ups such as 3 per month, at most {_AT_MOST_MAX}"
_CENTS: Final = integer(
    least=CHARGE_CENTS_MIN,
    most=AMOUNT_CENTS_MAX,
    allowed="a whole number of cents such as 2000; Stripe charges 50 at least",
)


def _parse_times(written: str) -> int:
    found = _TIMES.fullmatch(written)
    if found is None or int(found[1]) > _AT_MOST_MAX:
        raise RefusedError(f"allowed: {_ALLOWED}")
    return int(found[1])


class AutoTable(Table, what="an automatic top-up"):
    """``auto:`` of ``top_up:``."""

    below_cents = Key(_CENTS, "Balance below which it is bought, in cents.", name="below", required=True)
    amount_cents = Key(_CENTS, "What is bought, in cents; at least `below`.", name="amount", required=True)
    at_most: Key[int] = Key(
        Scalar(_parse_times, _ALLOWED, {"type": "string", "pattern": "^[1-9][0-9]{0,2} per month$"}),
        "How many in a month of UTC.",
        required=True,
    )


class TopUpTable(Table, what="top-ups"):
    """``top_up:`` of a credit."""

    packs = Key(ListOf(_CENTS, "amounts", 1), "Amounts that customers can buy, in cents.", required=True)
    auto = Key(AutoTable, "What is bought by itself, with the saved card.")
    url = Key(URL, "Page where customers buy them, named in 402 answers; default: `billing.portal_url`.")


def build_top_ups(values: TopUpTable) -> TopUps | None:
    """What a credit's table says; None where it was refused."""
    packs, auto = values.packs or (), values.auto
    if len(set(packs)) < len(packs):
        values.refuse("packs", "an amount is listed twice; keep one")
    if auto is None:
        return TopUps(packs=tuple(sorted(packs)), url=values.url)
    below, amount, at_most = auto.below_cents, auto.amount_cents, auto.at_most
    if below is None or amount is None or at_most is None:
        return None
    if amount < below:
        auto.refuse(
            "amount_cents",
            f"a top-up of {money(amount, 'usd')} leaves a balance of 0 below {money(below, 'usd')}; write at"
            f" least {below}",
        )
    return TopUps(
        packs=tuple(sorted(packs)),
        auto=AutoTopUp(below_cents=below, amount_cents=amount, at_most=at_most),
        url=values.url,
    )
