"""Comparison of the store's counters with the audit log: finds usage that a restart or failover has lost.

A healthy store never has less than the log: usage is counted and entered into the stream of the log in one
step, and reaches the database later. Only a correction or a deletion lowers a counter before the database
knows of it. So a customer with such an entry in the stream, or with new rows since the first reading, is not
compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import func, select, text

from meterkit.decisions.periods import DAY_MS, to_ms
from meterkit.insights.audit.database import COUNTED, TABLE
from meterkit.insights.audit.entries import parse_rows
from meterkit.redis.daemon_thread import in_thread
from meterkit.store.unreadable_data import UNREADABLE, read_each

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from meterkit.insights.audit.database import Database
    from meterkit.store.customer_usage import CustomerUsage
    from meterkit.store.store import Store

CUSTOMERS_MAX: Final = 1_000
_PAGE: Final = 100
_ENTRIES_MAX: Final = 1_000
_WINDOW_MS: Final = DAY_MS
_LONGEST_MS: Final = 400 * DAY_MS  # More than any period.
_SAME_PERIOD_MS: Final = 120_000
_NO_UNITS: Final[Mapping[str, int]] = {}

LoggedUnits = dict[str, dict[int, dict[str, int]]]
"""By customer, period (its first instant, ms) and meter, the recorded units."""


class LostUsage(NamedTuple):
    """Units of a customer and meter in the open period that the log has and the store lacks."""

    customer: str
    meter: str
    units: int


class CounterComparison(NamedTuple):
    """Result of a comparison.

    Attributes:
        compared: number of customers that were compared.
        unsettled: number of customers that were not: a correction or deletion is on its way into the log, or
            their stored data cannot be read.
        is_sample: whether more customers had usage than a comparison takes.
        lost: what the store lacks.
    """

    compared: int
    unsettled: int
    is_sample: bool
    lost: Sequence[LostUsage]


async def compare_counters(store: Store, database: Database, until_ms: int) -> CounterComparison:
    """Compare the open periods of the customers with the latest usage in the day before an instant (ms).

    Raises:
        StoreError: the store does not answer.
        MeterkitError: the database does not answer.
    """
    names = await in_thread(read_latest_customers, database, until_ms)
    compared, lost = 0, list[LostUsage]()
    for first in range(0, min(len(names), CUSTOMERS_MAX), _PAGE):
        page = names[first : min(first + _PAGE, CUSTOMERS_MAX)]
        settled, lacking = await _compare_page(store, database, page)
        compared, lost = compared + settled, [*lost, *lacking]
    is_sample = len(names) > CUSTOMERS_MAX
    return CounterComparison(compared, min(len(names), CUSTOMERS_MAX) - compared, is_sample, lost)


async def _compare_page(
    store: Store, database: Database, names: Sequence[str]
) -> tuple[int, Sequence[LostUsage]]:
    """Compare customers; how many were compared, and what the store lacks of their usage."""
    skipped = set[str]()

    async def skip(customer: str, _: Exception) -> None:
        skipped.add(customer)

    since_ms = store.now_ms() - _LONGEST_MS
    logged = await in_thread(sum_units, database, names, since_ms)
    usages = await read_each(names, store.usage_of_many, skip)
    lacking = {usage["customer"]: find_lacking(usage, logged.get(usage["customer"], {})) for usage in usages}
    suspects = [customer for customer, lost in lacking.items() if lost]
    if suspects:
        skipped |= await _find_lowered(store, suspects)
        again = await in_thread(sum_units, database, suspects, since_ms)
        skipped |= {one for one in suspects if again.get(one) != logged.get(one)}
    lost = [one for customer in suspects if customer not in skipped for one in lacking[customer]]
    return len(names) - len(skipped), lost


def find_lacking(usage: CustomerUsage, logged: Mapping[int, Mapping[str, int]]) -> Sequence[LostUsage]:
    """Find units of the open period that the log has and the counters lack. Pure.

    A meter that neither the plans file nor the usage has is left out: its counter cannot be read.
    """
    start_ms = to_ms(usage["period"]["start"])
    begun_ms = next((begun for begun in logged if abs(begun - start_ms) < _SAME_PERIOD_MS), start_ms)
    return [
        LostUsage(usage["customer"], meter, units - usage["meters"][meter]["recorded"])
        for meter, units in logged.get(begun_ms, _NO_UNITS).items()
        if meter in usage["meters"] and units > usage["meters"][meter]["recorded"]
    ]


async def _find_lowered(store: Store, customers: Collection[str]) -> set[str]:
    """Find customers that have an entry in the stream that may lower their sums in the log."""
    admin, found = await store.admin(), set[str]()
    for shard in {store.keys.customer(customer).shard for customer in customers}:
        own = {one for one in customers if store.keys.customer(one).shard == shard}
        entries, has_sums = await admin.ask_all(
            (
                ("xrange", store.keys.audit(shard), "-", "+", _ENTRIES_MAX),
                ("exists", store.keys.audit_sums(shard)),
            )
        )
        if has_sums or len(entries) == _ENTRIES_MAX:
            found |= own
        else:
            found |= own & _customers_of(shard, entries, own)
    return found


def _customers_of(shard: int, entries: Sequence[Any], own: set[str]) -> set[str]:
    """Customers of the entries other than recorded usage; all, if an entry cannot be read."""
    try:
        return {
            row.customer
            for name, fields in entries
            if b"k" in fields
            for row in parse_rows(shard, name.decode(), fields, str)
        }
    except UNREADABLE:
        return own


def read_latest_customers(database: Database, until_ms: int) -> list[str]:
    """Read the customers with usage in the day before an instant, the latest first.

    Raises:
        MeterkitError: the database does not answer.
    """
    table = TABLE.c
    # Grouped by the column, SQLite would walk over the whole table in the order of the index by customer.
    customer = table.customer + ""
    asked = (
        select(customer)
        .where(
            table.recorded_at_ms > until_ms - _WINDOW_MS,
            table.recorded_at_ms <= until_ms,
            table.kind.in_(COUNTED),
        )
        .group_by(text("1"))  # PostgreSQL takes expressions with parameters for different ones.
        .order_by(func.max(table.recorded_at_ms).desc())
        .limit(CUSTOMERS_MAX + 1)
    )
    return [str(name) for (name,) in database.read(asked)]


def sum_units(database: Database, customers: Collection[str], since_ms: int) -> LoggedUnits:
    """Sum the recorded units of customers since their last deletion, in periods that began since then.

    Raises:
        MeterkitError: the database does not answer.
    """
    table = TABLE.c
    deletions = TABLE.alias().c
    deleted = (
        select(deletions.customer, func.max(deletions.recorded_at_ms).label("at_ms"))
        .where(deletions.customer.in_(customers), deletions.kind == "deleted")
        .group_by(deletions.customer)
        .subquery()
    )
    of = (table.customer, table.period_start_ms, table.meter)
    asked = (
        select(*of, func.sum(table.quantity))
        .select_from(TABLE.outerjoin(deleted, deleted.c.customer == table.customer))
        .where(
            table.customer.in_(customers),
            table.period_start_ms >= since_ms,
            table.kind.in_(COUNTED),
            table.recorded_at_ms > func.coalesce(deleted.c.at_ms, 0),
        )
        .group_by(*of)
    )
    found: LoggedUnits = {}
    for customer, period_ms, meter, units in database.read(asked):
        found.setdefault(str(customer), {}).setdefault(int(period_ms), {})[str(meter)] = int(units)
    return found
