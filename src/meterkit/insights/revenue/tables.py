"""Tables of daily revenue snapshots beside the audit log, and paged lists of them; calls block."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, fields
from datetime import date, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import (
    BigInteger,
    Column,
    MetaData,
    Table,
    Text,
    and_,
    case,
    delete,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    tuple_,
)

from meterkit.insights.revenue.revenue_formulas import (
    CustomerPayment,
    DayFigures,
    RetainedSums,
    months_before,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from sqlalchemy import Connection

    from meterkit.insights.audit.database import Database
    from meterkit.insights.revenue.revenue_formulas import OverageAmount


_FIGURES: Final = tuple(field.name for field in fields(DayFigures))
_NO_CURRENCY: Final = ""
_WRITTEN_AT_ONCE: Final = 1_000

_METADATA: Final = MetaData()


def _make_table(
    name: str, *, keys: Sequence[str], texts: Sequence[str] = (), numbers: Sequence[str]
) -> Table:
    """A table whose rows have all their values; ``keys`` are texts that name a row."""
    columns = [Column(key, Text, primary_key=True) for key in keys]
    columns += [Column(text, Text, nullable=False) for text in texts]
    return Table(name, _METADATA, *columns, *(Column(of, BigInteger, nullable=False) for of in numbers))


PAYING: Final = _make_table(
    "meterkit_revenue", keys=("day", "customer"), texts=("plan", "currency"), numbers=("mrr",)
)
"""A row for each customer and day on which the customer brought something."""

DAYS: Final = _make_table("meterkit_revenue_days", keys=("day", "currency"), numbers=_FIGURES)
"""A row for each day and currency, and one without a currency for each day, which says that it was made."""

USED: Final = _make_table(
    "meterkit_revenue_usage", keys=("day", "customer"), texts=("currency",), numbers=("amount",)
)
"""A row for each customer and day on which a period ended whose usage costs something."""

_SPEND: Final = _make_table("meterkit_spend", keys=("day",), numbers=("cents",))
"""Spend of a day to win customers, in the currency of the plans file."""


class RevenueTables:
    """Snapshots by day. Each method raises :class:`~meterkit.errors.MeterkitError` where the database fails.

    Args:
        database: of the audit log.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def write(self, day: date, paying: Iterable[CustomerPayment], used: Iterable[OverageAmount]) -> None:
        """Replace the payments, overage and figures of a day, all or none; some rows are held at once."""
        with self._database.begun(PAYING) as connection:
            for table, rows in ((PAYING, paying), (USED, used)):
                connection.execute(delete(table).where(table.c.day == _key(day)))
                found = ({"day": _key(day), **one._asdict()} for one in rows)
                while page := [*islice(found, _WRITTEN_AT_ONCE)]:
                    connection.execute(insert(table), page)
            _write_figures(connection, day)

    def compute(self, day: date) -> None:
        """Compute the figures of a day anew: the day before is another one now."""
        with self._database.begun(PAYING) as connection:
            _write_figures(connection, day)

    def retained(self, start: date, end: date) -> dict[str, RetainedSums]:
        """Payments of a day, and of the same customers on a later one, by currency."""
        of, left, joined = _join_payments(end)
        kept = func.coalesce(left.mrr, 0)
        asked = (
            select(
                of.currency,
                func.sum(of.mrr),
                func.sum(kept),
                func.sum(case((kept < of.mrr, kept), else_=of.mrr)),
            )
            .select_from(joined)
            .where(of.day == _key(start))
        )
        rows = self._database.read(asked.group_by(of.currency).order_by(of.currency), PAYING)
        return {currency: RetainedSums(*map(int, sums)) for currency, *sums in rows}

    def usage(self, first: date, last: date) -> dict[str, int]:
        """Overage of periods that ended from the first day to the last, by currency."""
        table = USED.c
        asked = select(table.currency, func.sum(table.amount)).where(
            table.day.between(_key(first), _key(last))
        )
        rows = self._database.read(asked.group_by(table.currency), PAYING)
        return {currency: int(amount) for currency, amount in rows}

    def has_snapshots(self) -> bool:
        """Check whether any snapshot exists; creates no table."""
        return self._database.can_read(DAYS)

    def by_plan(self, day: date) -> dict[tuple[str, str], int]:
        """Revenue on a day (micro-cents), by plan and currency."""
        table = PAYING.c
        asked = select(table.plan, table.currency, func.sum(table.mrr)).where(table.day == _key(day))
        rows = self._database.read(asked.group_by(table.plan, table.currency), PAYING)
        return {(plan, currency): int(amount) for plan, currency, amount in rows}

    def days(self, first: date, last: date) -> dict[date, Mapping[str, DayFigures]]:
        """The days that were made, from the first to the last, and what each came to by currency."""
        found: dict[date, dict[str, DayFigures]] = {}
        asked = select(DAYS).where(DAYS.c.day.between(_key(first), _key(last)))
        rows = self._database.read(asked.order_by(DAYS.c.day, DAYS.c.currency), PAYING)
        for day, currency, *figures in rows:
            of = found.setdefault(date.fromisoformat(day), {})
            if currency != _NO_CURRENCY:
                of[currency] = DayFigures(**dict(zip(_FIGURES, map(int, figures), strict=True)))
        return dict(found)

    def last(self, until: date) -> date | None:
        """The last day until then that was made; None: there is none."""
        asked = select(DAYS.c.day).where(DAYS.c.day <= _key(until)).order_by(DAYS.c.day.desc()).limit(1)
        with self._database.begun(PAYING) as connection:
            found: str | None = connection.execute(asked).scalar()
            return None if found is None else date.fromisoformat(found)

    def missing(self, last: date) -> list[date]:
        """The days until then that were not made, since the first that was; just the last one if none was."""
        days = DAYS.c.day
        asked = select(days).where(days <= _key(last)).distinct().order_by(days)
        with self._database.begun(PAYING) as connection:
            made = [date.fromisoformat(day) for day in connection.execute(asked).scalars()]
        first = made[0] if made else last
        span = (first + timedelta(days=nth) for nth in range((last - first).days + 1))
        return sorted(set(span) - set(made))

    def spend(self, day: date, cents: int) -> None:
        """Keep what was spent on a day, in place of what was kept of it."""
        with self._database.begun(PAYING) as connection:
            connection.execute(delete(_SPEND).where(_SPEND.c.day == _key(day)))
            connection.execute(insert(_SPEND), [{"day": _key(day), "cents": cents}])

    def spent(self, first: date, last: date) -> int:
        """The spend from the first day to the last (cents)."""
        asked = select(func.sum(_SPEND.c.cents)).where(_SPEND.c.day.between(_key(first), _key(last)))
        with self._database.begun(PAYING) as connection:
            return int(connection.execute(asked).scalar() or 0)


def _key(day: date) -> str:
    return day.isoformat()


def _write_figures(connection: Connection, day: date) -> None:
    """Replace the figures of a day by those of its payments, and of the day before, if that is kept."""
    made = {_NO_CURRENCY: DayFigures(), **_sum_figures(connection, day)}
    connection.execute(delete(DAYS).where(DAYS.c.day == _key(day)))
    connection.execute(
        insert(DAYS),
        [{"day": _key(day), "currency": currency, **asdict(of)} for currency, of in made.items()],
    )


def _sum_figures(connection: Connection, day: date) -> dict[str, DayFigures]:
    """The figures of a day, for each currency with revenue on this day or the day before.

    A customer who changes the currency churns in one, and is new in the other.
    """
    found: defaultdict[str, dict[str, int]] = defaultdict(dict)

    def add(names: Sequence[str], asked: Any) -> None:
        for currency, *sums in connection.execute(asked):
            found[currency] |= zip(names, map(int, sums), strict=True)

    before = day - timedelta(days=1)
    of, other, joined = _join_payments(before)
    more, is_first = of.mrr - other.mrr, other.customer.is_(None)
    add(
        ("mrr", "customers", "expansion", "contraction", "new", "new_customers"),
        select(
            of.currency,
            func.sum(of.mrr),
            func.count(),
            func.sum(case((more > 0, more), else_=0)),
            func.sum(case((more < 0, -more), else_=0)),
            func.sum(case((is_first, of.mrr), else_=0)),
            func.sum(case((is_first, 1), else_=0)),
        )
        .select_from(joined)
        .where(of.day == _key(day))
        .group_by(of.currency),
    )
    first_ones = select(of.customer, of.currency, of.mrr).select_from(joined)
    first = first_ones.where(of.day == _key(day), is_first).cte("first")
    ever, asked = PAYING.alias("e").c, select(first.c.customer, first.c.currency)
    known = select(ever.customer, ever.currency).distinct()
    former = known.where(ever.day < _key(day), tuple_(ever.customer, ever.currency).in_(asked)).cte("former")
    is_back = and_(first.c.customer == former.c.customer, first.c.currency == former.c.currency)
    add(
        ("reactivation", "back"),
        select(first.c.currency, func.sum(first.c.mrr), func.count())
        .select_from(first.join(former, is_back))
        .group_by(first.c.currency),
    )
    of, other, joined = _join_payments(day)
    add(
        ("churn", "churned_customers"),
        select(of.currency, func.sum(of.mrr), func.count())
        .select_from(joined)
        .where(of.day == _key(before), other.customer.is_(None))
        .group_by(of.currency),
    )
    for sums in found.values():
        sums["new"] = sums.get("new", 0) - sums.get("reactivation", 0)
        sums["new_customers"] = sums.get("new_customers", 0) - sums.pop("back", 0)
    return {currency: DayFigures(**sums) for currency, sums in sorted(found.items())}


_COMPARED_MOST: Final = 200_000
"""Payments that a page compares with those of the day before: about a tenth of a second."""


class PaymentMove(NamedTuple):
    """Change of a customer's payment on a day (micro-cents).

    Attributes:
        move: one of :data:`~meterkit.insights.revenue.revenue_formulas.MOVES`.
        change: its size, never below 0.
    """

    customer: str
    plan: str
    currency: str
    move: str
    before: int
    after: int
    change: int


class PaymentMovePage(NamedTuple):
    """A page of changes, each with its day.

    Attributes:
        after: day, kind and customer, behind which the next page begins; empty: there is none.
    """

    rows: Sequence[tuple[str, PaymentMove]]
    after: tuple[str, ...]


class RetainedPayment(NamedTuple):
    """Payment of a customer a month before and now (micro-cents); now may be 0.

    Attributes:
        plan: a month before.
    """

    customer: str
    plan: str
    currency: str
    before: int
    after: int


class UsageCharge(NamedTuple):
    """Overage of a period that ended on a day (micro-cents)."""

    customer: str
    day: str
    currency: str
    amount: int


class RevenueLists:
    """Each method raises :class:`~meterkit.errors.MeterkitError` where the database fails.

    They are read only where there is a snapshot: the tables exist then.

    Args:
        database: of the audit log.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def payments(
        self, day: date, currency: str, plan: str, *, after: str, most: int
    ) -> list[CustomerPayment]:
        """Payments in a currency on a day, by customer id.

        Args:
            day: which.
            currency: of the payments.
            plan: only of this plan; empty: of all plans.
            after: the last customer of the page before; empty: the first page.
            most: at most so many.
        """
        of = PAYING.c
        asked = select(of.customer, of.plan, of.currency, of.mrr).where(
            of.day == day.isoformat(), of.currency == currency, of.customer > after
        )
        if plan:
            asked = asked.where(of.plan == plan)
        rows = self._database.read(asked.order_by(of.customer).limit(most))
        return [CustomerPayment(who, of_plan, money, int(mrr)) for who, of_plan, money, mrr in rows]

    def moves(self, day: date, currency: str, move: str, *, after: str, most: int) -> list[PaymentMove]:
        """Changes of payments of one kind on a day, by customer id.

        Args:
            day: which.
            currency: of the payments.
            move: one of :data:`~meterkit.insights.revenue.revenue_formulas.MOVES`.
            after: the last customer of the page before; empty: the first page.
            most: at most so many.
        """
        before, is_lost = day - timedelta(days=1), move == "churn"
        of, other, asked = _select_two_days(*((before, day) if is_lost else (day, before)), currency)
        asked = asked.where(_moved_clause(move, of, other, _key(before)), of.customer > after)
        found: list[PaymentMove] = []
        for who, plan, own, others in self._database.read(asked.order_by(of.customer).limit(most)):
            was, now = (int(own), int(others)) if is_lost else (int(others), int(own))
            found.append(PaymentMove(who, plan, currency, move, was, now, abs(now - was)))
        return found

    def changes(
        self, day: date, currency: str, moves: Sequence[str], *, after: Sequence[str], most: int
    ) -> PaymentMovePage:
        """Changes of payments in the month until a day, by day, kind and customer id.

        A page of many customers may have fewer rows than it could: it ends before it takes long.

        Args:
            day: the last one.
            currency: of the payments.
            moves: which of :data:`~meterkit.insights.revenue.revenue_formulas.MOVES`.
            after: the place of the page before; empty: the first page.
            most: at most so many.
        """
        found, compared = list[tuple[str, PaymentMove]](), 0
        place = tuple(after) or ("", "", "")
        for at, move, customers in self._list_moves(day, currency, moves):
            if (at, move) < place[:2]:
                continue
            if len(found) == most or compared >= _COMPARED_MOST:
                return PaymentMovePage(found, _last_place(found) if len(found) == most else (at, move, ""))
            last = place[2] if (at, move) == place[:2] else ""
            left = most - len(found)
            of_day = self.moves(date.fromisoformat(at), currency, move, after=last, most=left)
            found += [(at, one) for one in of_day]
            compared += customers
        return PaymentMovePage(found, _last_place(found) if len(found) == most else ())

    def _list_moves(self, day: date, currency: str, moves: Sequence[str]) -> Iterator[tuple[str, str, int]]:
        """Days of the month until a day, a kind of change that happened on it, and how many paid."""
        days = DAYS.c
        asked = select(days.day, days.customers, *(days[move] for move in moves)).where(
            days.currency == currency,
            days.day > months_before(day, 1).isoformat(),
            days.day <= day.isoformat(),
            or_(*(days[move] > 0 for move in moves)),
        )
        for at, customers, *sums in self._database.read(asked.order_by(days.day)):
            for move, total in sorted(zip(moves, sums, strict=True)):
                if total:
                    yield at, move, int(customers)

    def kept(self, day: date, currency: str, *, after: str, most: int) -> list[RetainedPayment]:
        """Payments a month before a day and now, by customer id.

        Args:
            day: now.
            currency: of the payments.
            after: the last customer of the page before; empty: the first page.
            most: at most so many.
        """
        of, _, asked = _select_two_days(months_before(day, 1), day, currency)
        rows = self._database.read(asked.where(of.customer > after).order_by(of.customer).limit(most))
        return [
            RetainedPayment(who, plan, currency, int(before), int(mrr)) for who, plan, before, mrr in rows
        ]

    def usage(self, day: date, currency: str, *, after: Sequence[str], most: int) -> list[UsageCharge]:
        """Overage that is part of a day's usage revenue, by customer.

        That is usage of periods that ended in the month until that day.

        Args:
            day: which.
            currency: of the amounts.
            after: customer and day of the last row of the page before; empty: the first page.
            most: at most so many.
        """
        charged = USED.c
        asked = select(charged.customer, charged.day, charged.currency, charged.amount).where(
            charged.currency == currency,
            charged.day > months_before(day, 1).isoformat(),
            charged.day <= day.isoformat(),
        )
        if after:
            customer, last = after
            asked = asked.where(
                or_(charged.customer > customer, and_(charged.customer == customer, charged.day > last))
            )
        rows = self._database.read(asked.order_by(charged.customer, charged.day).limit(most))
        return [UsageCharge(who, ended, money, int(amount)) for who, ended, money, amount in rows]


def _last_place(rows: Sequence[tuple[str, PaymentMove]]) -> tuple[str, ...]:
    return (rows[-1][0], rows[-1][1].move, rows[-1][1].customer)


def _join_payments(other_day: date) -> tuple[Any, Any, Any]:
    """Payments, the same customers' on another day (NULL where there is none), and both joined."""
    of, other = PAYING.alias("o"), PAYING.alias("x")
    same = and_(
        other.c.day == _key(other_day), other.c.customer == of.c.customer, other.c.currency == of.c.currency
    )
    return of.c, other.c, of.outerjoin(other, same)


def _select_two_days(day: date, other_day: date, currency: str) -> tuple[Any, Any, Any]:
    """Select customer, plan and payment of a day, and the payment of another day."""
    of, other, joined = _join_payments(other_day)
    asked = (
        select(of.customer, of.plan, of.mrr, func.coalesce(other.mrr, literal(0)))
        .select_from(joined)
        .where(of.day == _key(day), of.currency == currency)
    )
    return of, other, asked


def _moved_clause(move: str, of: Any, other: Any, before: str) -> Any:
    """Whether what a customer brings differs in one way from the other day; ``before``: the day before."""
    if move == "expansion":
        return of.mrr > other.mrr
    if move == "contraction":
        return of.mrr < other.mrr
    if move == "churn":
        return other.customer.is_(None)
    ever = PAYING.alias("e").c
    former = exists().where(ever.day < before, ever.customer == of.customer, ever.currency == of.currency)
    return and_(other.customer.is_(None), former if move == "reactivation" else ~former)
