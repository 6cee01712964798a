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

BY_ITEM = 2
METERS = ("requests", "tokens", "pages", "rows")


@dataclass(frozen=True, slots=True, kw_only=True)
class Invoices:
    """The invoices that a seal goes by (ms), and each meter by token.

    Of a meter: class, name, price in words, label of the price, token of the meter that has it, whether one
    price of a unit says what it costs. ``item``: what invoice items have in common.
    """

    since: int
    before: int
    latest: int
    hour: int
    margin: int
    meters: Mapping[str, tuple[str, str, str, str, str, int]]
    item: Mapping[str, str] | None

    def takes(self, closed: Mapping[str, int], period: str, now: int) -> bool:
        """Whether the invoice of a closed period still takes usage of now."""
        begins, ends = int(period), closed[f"{period}|e"]
        if f"{period}|f" in closed:
            return False
        if not self.since <= begins < self.latest:
            return True
        made = self.latest if begins >= self.before else ends
        return now < max(made + self.hour, closed.get(f"{period}|h", 0)) - self.margin


def overtake(
    shard: Shard, name: str, view: View, events: Mapping[str, str], asked: Invoices, now: int
) -> list[list[bytes | int]]:
    """Count what is late, in the order of the fields; the part of the reply that tells of it."""
    customer, told_of = shard.customers[name], list[list[bytes | int]]()
    for field in sorted(customer.closed):
        period, token = field.partition("|")[0], field[-5:-1]
        quantity = customer.closed[field] if field[-1] == "p" else 0
        if not quantity or token not in events or asked.takes(customer.closed, period, now):
            continue
        told = asked.meters.get(token, ("", events[token], "", "-", token, 0))
        for label, units in parts_of(customer.closed, period, token, quantity, told[3], told[4]):
            told_of.append(
                _bill(shard, name, view, asked, (period, token, told), (label, units), events, now)
            )
        del customer.closed[field]
    return told_of


def _bill(
    shard: Shard,
    name: str,
    view: View,
    asked: Invoices,
    of: tuple[str, str, tuple[str, str, str, str, str, int]],
    part: tuple[str, int],
    events: Mapping[str, str],
    now: int,
) -> list[bytes | int]:
    """Count what is late at one price; the part of the reply that tells of it."""
    customer, (period, token, told), (label, quantity) = shard.customers[name], of, part
    counts = {"included": customer.included, "overage": customer.overage}
    kind, known, price, open_label, _, is_flat = told
    meter, outcome = {meter_token(one): one for one in METERS}[token], 0
    most = max(customer.marked[meter], customer.pending[meter], counts[kind][meter] if kind else 0)
    if label == open_label and kind and most + quantity <= MOST:
        outcome = 1
        if customer.period is None:
            customer.begin(now, view)
            customer.seen, customer.lives, customer.cached = now, NEVER_MS, view.rev
        for count in (counts[kind], customer.marked, customer.pending):
            count[meter] += quantity
    elif is_flat and asked.item is not None and label[0].isdigit():
        outcome, price = 2, ""
        own = {"customer": name, "period": period, "meter": token, "name": known, "event": events[token]}
        own |= {"label": label, "value": str(quantity), "till": str(customer.closed[f"{period}|e"])}
        shard.queue_item({**own, **asked.item}, now)
    if outcome != BY_ITEM:
        late = f"{period}|{token}t"
        customer.closed[late] = customer.closed.get(late, 0) + quantity
    after = ("not billed", "billed in the period that is open", "billed by an invoice item")[outcome]
    shard.histories[name].append(["late", str(now), f"{period} {quantity} of {known}{price}", after, "clock"])
    return [period.encode(), token.encode(), b"%d" % quantity, outcome]


def parts_of(
    closed: Mapping[str, int], period: str, token: str, quantity: int, label: str, priced: str
) -> list[tuple[str, int]]:
    """The prices of pending units of a closed period, the youngest units first."""
    begun = {
        int(name.partition("|")[0]): str(text)
        for name, text in closed.items()
        if name.endswith(f"|{priced}y") and int(name.partition("|")[0]) > int(period)
    }
    label = begun[min(begun)] if begun else label
    marks = [line.split() for line in str(closed.get(f"{period}|{priced}s", "")).split(";")[:-1]]
    if marks and priced != token:
        return [("?", quantity)]
    parts, recorded = list[tuple[str, int]](), closed.get(f"{period}|{token}o", 0)
    for ended, _, overage in reversed(marks):
        units = min(quantity, max(0, recorded - int(overage)))
        parts += [(label.removesuffix("*"), units)] * bool(units)
        quantity, recorded, label = quantity - units, min(recorded, int(overage)), ended
    return parts + [(label.removesuffix("*"), quantity)] * bool(quantity)
