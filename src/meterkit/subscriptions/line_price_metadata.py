"""Prices of usage in the metadata of a subscription that invoice lines bill: a new store reads them. Pure.

Where Stripe has no metered prices, nothing else at Stripe says at which prices a subscription was sold.
"""

from __future__ import annotations

import json
import re
from itertools import count
from typing import TYPE_CHECKING, Any, Final, cast

from meterkit.decisions.subscription import ENDED
from meterkit.subscriptions.stripe_objects import part_of, text_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from meterkit.decisions.subscription import SubscriptionState

PLAN_KEY: Final = "meterkit_line_plan"
"""Key in the metadata of a subscription: the plan of the prices."""
PRICES_KEY: Final = "meterkit_line_prices_"
"""Begins the keys in the metadata of a subscription for JSON objects: event name to label of the price."""
_VALUE_MAX: Final = 500
"""Longest value of metadata (https://docs.stripe.com/metadata)."""
_LABEL: Final = re.compile(r"[1-9]\d{0,17}/\d{1,18}")


def read_line_prices(found: Mapping[str, Any], plan: str | None) -> dict[str, str]:
    """Read the prices at which a plan was sold: event name to label; what is damaged is left out.

    Args:
        found: the subscription as Stripe shows it.
        plan: its plan; the prices of an earlier one do not count.
    """
    metadata, prices = part_of(found, "metadata"), dict[str, str]()
    if plan is None or text_in(metadata, PLAN_KEY) != plan:
        return prices
    for name in metadata:
        if name.startswith(PRICES_KEY):
            prices |= _parse(text_in(metadata, name))
    return prices


def line_price_changes(found: Mapping[str, Any], subscription: SubscriptionState) -> dict[str, str]:
    """Changes of metadata that record the prices of a subscription; empty: it has them, or needs none.

    Args:
        found: the subscription as Stripe shows it.
        subscription: the same as it is stored.
    """
    plan, is_by_lines = subscription.plan, subscription.is_by_lines_at(subscription.start_ms)
    prices = {one.event_name: one.label for one in subscription.prices if one.is_exact}
    if plan is None or not prices or not is_by_lines or subscription.status in ENDED:
        return {}
    known = part_of(found, "metadata")
    stale = {name: "" for name in known if name.startswith(PRICES_KEY)}
    values = (f"{PRICES_KEY}{nth}" for nth in count(1))
    wanted = {**stale, PLAN_KEY: plan, **dict(zip(values, _values_of(prices), strict=False))}
    return {name: value for name, value in wanted.items() if text_in(known, name) != value}


def _values_of(prices: Mapping[str, str]) -> Iterator[str]:
    """Serialize prices into as many values as they need."""
    part: dict[str, str] = {}
    for event, label in prices.items():
        if part and len(_dump({**part, event: label})) > _VALUE_MAX:
            yield _dump(part)
            part = {}
        part[event] = label
    yield _dump(part)


def _dump(prices: Mapping[str, str]) -> str:
    return json.dumps(prices, ensure_ascii=False, separators=(",", ":"))


def _parse(value: str) -> dict[str, str]:
    try:
        found: object = json.loads(value)
    except ValueError:
        return {}
    if not isinstance(found, dict):
        return {}
    prices = cast("dict[str, object]", found)
    return {
        event: label for event, label in prices.items() if isinstance(label, str) and _LABEL.fullmatch(label)
    }
