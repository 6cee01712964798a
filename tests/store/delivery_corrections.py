"""What taking recorded units back must come to; for grants see test_corrections.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from meterkit.decisions.keys import meter_token
from store.delivery_model import TOTALS_MS, stand

if TYPE_CHECKING:
    from collections.abc import Mapping

    from store.delivery_model import Shard
    from store.script_model import Times, View

ONCE = "r:1"
CLASSES = ("overage", "credited", "granted", "included")


@dataclass(frozen=True, slots=True, kw_only=True)
class Restore:
    """What is to be taken back: meter to quantity; whether included units are reported too."""

    quantities: Mapping[str, int]
    included_too: bool
    text: str
    digest: str
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
    start = customer.period[0] if customer.period else view.period_at(now)[0]
    for meter, quantity in asked.quantities.items():
        left, taken, sent, owed = quantity, dict[str, int](), 0, 0
        known = f"{start}|{meter_token(meter)}"
        sealed = sum(customer.closed.get(known + letter, 0) for letter in "qlkdxz")
        going = sum(customer.closed.get(known + letter, 0) for letter in "qlkd")
        repaid = customer.closed.get(f"{known}r", 0)
        behind = customer.included[meter] if asked.included_too else 0
        for kind in CLASSES:
            counts = getattr(customer, kind)
            most = counts[meter] - (repaid if kind == "overage" else 0)
            part = min(left, max(0, most))
            left -= part
            missing = 0
            if kind == "overage" or (kind == "included" and asked.included_too):
                off = min(part, customer.pending[meter])
                first = behind if kind == "overage" else 0
                unsent = max(0, counts[meter] + first - customer.pending[meter] - sealed)
                customer.pending[meter] -= off
                missing = part - off - min(part - off, unsent, counts[meter])
            if kind == "overage":
                owed = max(0, min(missing, going - behind - repaid))
            taken[kind], sent = part - missing, sent + missing
            counts[meter] -= part - missing
        if owed:
            customer.closed[f"{known}r"] = repaid + owed
            shard.keep(f"t:{name}", TOTALS_MS)
        done[meter] = " ".join(map(str, (*taken.values(), sent, owed, left, 0, 0)))
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
    shard.corrections.setdefault(name, set()).add(asked.digest)
    shard.keep(f"k:{name}", TOTALS_MS)
    ends = view.period_at(now)[1]
    return [0, now], {"asked": asked.text, "done": done, "ends": str(ends)}
