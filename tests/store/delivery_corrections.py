"""What taking recorded units back must come to; for grants see test_corrections.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from store.delivery_model import TOTALS_MS, stand

if TYPE_CHECKING:
    from collections.abc import Mapping

    from store.delivery_model import Shard
    from store.script_model import Times, View

ONCE = "r:1"
CLASSES = ("overage", "credited", "granted", "included")


@dataclass(frozen=True, slots=True, kw_only=True)
class Restore:
    """What is to be taken back: meter to quantity; which of included and overage is reported."""

    quantities: Mapping[str, int]
    reported: Mapping[str, bool]
    text: str
    entries: tuple[str, str]


def restore(shard: Shard, name: str, view: View, asked: Restore, times: Times) -> tuple[list[Any], Any]:
    """The reply but for its last, and what that says."""
    customer = shard.customers[name]
    now, ending = stand(customer, view, times)
    if ending:
        return ending, None
    if ONCE in shard.strings:
        return [1, now], None
    closed = dict(customer.closed)
    customer.roll(now, view)
    if closed != customer.closed:
        shard.keep(f"t:{name}", TOTALS_MS)
    done: dict[str, str] = {}
    for meter, quantity in asked.quantities.items():
        left, taken, sent = quantity, dict[str, int](), 0
        for kind in CLASSES:
            counts = getattr(customer, kind)
            part = min(left, counts[meter])
            left -= part
            missing = max(0, part - customer.pending[meter]) if asked.reported.get(kind) else 0
            taken[kind], sent = part - missing, sent + missing
            counts[meter] -= part - missing
            customer.pending[meter] -= part - missing if asked.reported.get(kind) else 0
        done[meter] = " ".join(map(str, (*taken.values(), sent, left, 0, 0)))
        words = f"{sum(taken.values())} taken back, {sent} sent to Stripe before, {left} never recorded: "
        reason, by = asked.entries
        shard.histories[name].append(
            ["correction", str(now), f"{quantity} of {meter} to be taken back", words + reason, by]
        )
    waits = any(customer.pending.values()) or any(
        count for field, count in customer.closed.items() if field[-1] == "p"
    )
    if not waits:
        shard.unlinked.pop(name, None)
    shard.keep(ONCE, TOTALS_MS)
    ends = view.period_at(now)[1]
    return [0, now], {"asked": asked.text, "done": done, "ends": str(ends)}
