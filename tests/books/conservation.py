"""I5 as a check: what was recorded and is reportable is somewhere, once, whenever somebody looks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from drivers.counters import flat_of
from meterkit import MeterKit
from meterkit.decisions.keys import meter_token

# In the plans of delivery.py: meter to what of it is reported, its included units too or only the rest.
REPORTED: Final[Mapping[str, tuple[str, ...]]] = {
    "requests": ("i", "o"),
    "tokens": ("o",),
    "pages": (),
    "rows": (),
}
# Pending or unlinked, queued, leased, parked, delivered, dead, dropped, too late for its own invoice.
SOMEWHERE: Final = "pqlkdxzt"
# In capital letters: of what takes units back that Stripe has.

Sample = dict[tuple[str, str], dict[str, int]]
"""By period (the milliseconds of its first instant) and meter: how much is where."""


async def sample(kit: MeterKit, customer: str) -> Sample:
    """What is kept of a customer, all read in one instant."""
    store = kit.store
    keys, admin = store.keys.customer(customer), await store.admin()
    names = [keys.counters, keys.state, keys.totals, keys.grants, keys.levels]
    reply = await admin.run(store.scripts["read_usage"], names)
    counters, totals = (
        dict(zip([x.decode() for x in flat[::2]], flat[1::2], strict=True)) for flat in reply[3:5]
    )
    counters = flat_of(counters)
    tokens = {meter_token(meter): meter for meter in REPORTED}
    found: Sample = {}
    for name, value in totals.items():
        period, _, field = name.partition("|")
        if field[:4] in tokens and len(field) == 5:
            found.setdefault((period, tokens[field[:4]]), {})[field[4]] = int(value)
    for name, value in counters.items():
        if name[:4] in tokens and name[4:] in {"i", "o", "p"}:
            place = found.setdefault((counters["b"], tokens[name[:4]]), {})
            place[name[4:]] = place.get(name[4:], 0) + int(value)
    return found


async def assert_conserved(kit: MeterKit, customers: Iterable[str]) -> None:
    """See that the sums agree for each customer, period and meter, and that none is below 0."""
    for customer in customers:
        for (period, meter), counts in (await sample(kit, customer)).items():
            reportable = sum(counts.get(kind, 0) for kind in REPORTED[meter])
            kept = sum(counts.get(kind, 0) - counts.get(kind.upper(), 0) for kind in SOMEWHERE)
            assert reportable == kept, (customer, period, meter, counts)
            assert min(counts.values()) >= 0, (customer, period, meter, counts)
