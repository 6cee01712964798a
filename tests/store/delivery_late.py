"""What sealing must come to for usage whose own invoice is final, in plain dictionaries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from meterkit.decisions.keys import meter_token
from store.script_counts import MOST
from store.script_model import NEVER_MS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from store.delivery_model import Shard
    from store.script_model import View

METERS = ("requests", "tokens", "pages", "rows")


@dataclass(frozen=True, slots=True, kw_only=True)
class Invoices:
    """The invoices that a seal goes by (ms), and each meter by token: class, name and price in words."""

    since: int
    before: int
    latest: int
    hour: int
    margin: int
    meters: Mapping[str, tuple[str, str, str]]

    def takes(self, closed: Mapping[str, int], period: str, now: int) -> bool:
        """Whether the invoice of a closed period still takes usage of now."""
        begins, ends = int(period), closed[f"{period}|e"]
        if not self.since <= begins < self.latest:
            return True
        if f"{period}|f" in closed:
            return False
        made = self.latest if begins >= self.before else ends
        return now < max(made + self.hour, closed.get(f"{period}|h", 0)) - self.margin


def overtake(
    shard: Shard, name: str, view: View, events: Mapping[str, str], asked: Invoices, now: int
) -> list[list[bytes | int]]:
    """Count what is late, in the order of the fields; the part of the reply that tells of it."""
    customer, told = shard.customers[name], list[list[bytes | int]]()
    counts = {"included": customer.included, "overage": customer.overage}
    meters = {meter_token(meter): meter for meter in METERS}
    for field in sorted(customer.closed):
        period, token = field.partition("|")[0], field[-5:-1]
        quantity = customer.closed[field] if field[-1] == "p" else 0
        if not quantity or token not in events or asked.takes(customer.closed, period, now):
            continue
        kind, known, price = asked.meters.get(token, ("", events[token], ""))
        meter, late = meters[token], f"{period}|{token}t"
        most = max(customer.marked[meter], customer.pending[meter], counts[kind][meter] if kind else 0)
        is_billed = bool(kind) and most + quantity <= MOST
        customer.closed[late] = customer.closed.get(late, 0) + quantity
        del customer.closed[field]
        if is_billed:
            if customer.period is None:
                customer.begin(now, view)
                customer.seen, customer.lives, customer.cached = now, NEVER_MS, view.rev
            counts[kind][meter] += quantity
            customer.marked[meter] += quantity
            customer.pending[meter] += quantity
        after = "billed in the period that is open" if is_billed else "not billed"
        shard.histories[name].append(
            ["late", str(now), f"{period} {quantity} of {known}{price}", after, "clock"]
        )
        told.append([period.encode(), token.encode(), b"%d" % quantity, int(is_billed)])
    return told
