"""Who paid on a day, and whose payment changed on it, page by page from the snapshots. Calls block."""

from __future__ import annotations

from datetime import date, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import and_, column, exists, func, literal, or_, select, table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from meterkit.insights.audit.database import Database

MOVES: Final = ("new", "expansion", "reactivation", "contraction", "churn")

_COMPARED_MOST: Final = 200_000
"""Payments that a page compares with those of the day before: about a tenth of a second."""
_PAID: Final = ("day", "customer", "plan", "currency", "mrr")
_USED: Final = ("day", "customer", "currency", "amount")


class Payment(NamedTuple):
    """What a customer brought on a day (micro-cents)."""

    customer: str
    plan: str
    currency: str
    mrr: int


class Move(NamedTuple):
    """How much what a customer brings changed on a day (micro-cents).

    Attributes:
        move: one of :data:`MOVES`.
        change: its size, never below 0.
    """

    customer: str
    plan: str
    currency: str
    move: str
    before: int
    after: int
    change: int


class Changes(NamedTuple):
    """A page of changes, each with its day.

    Attributes:
        after: day, kind and customer, behind which the next page begins; empty: there is none.
    """

    rows: Sequence[tuple[str, Move]]
    after: tuple[str, ...]


class Kept(NamedTuple):
    """What a customer of a month before brought then and brings now (micro-cents); now may be 0.

    Attributes:
        plan: a month before.
    """

    customer: str
    plan: str
    currency: str
    before: int
    after: int


class UsageCharge(NamedTuple):
    """What the usage of a period that ended on a day costs (micro-cents)."""

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

    def payments(self, day: date, currency: str, plan: str, *, after: str, most: int) -> list[Payment]:
        """Who brought something in a currency on a day, by id.

        Args:
            day: which.
            currency: of the payments.
            plan: only of this plan; empty: of all plans.
            after: the last customer of the page before; empty: the first page.
            most: at most so many.
        """
        of = _paid("paid")
        asked = select(of.customer, of.plan, of.currency, of.mrr).where(
            of.day == day.isoformat(), of.currency == currency, of.customer > after
        )
        if plan:
            asked = asked.where(of.plan == plan)
        rows = self._database.read(asked.order_by(of.customer).limit(most))
        return [Payment(who, of_plan, money, int(mrr)) for who, of_plan, money, mrr in rows]

    def moves(self, day: date, currency: str, move: str, *, after: str, most: int) -> list[Move]:
        """Whose payment in a currency changed on a day in one way, by id.

        Args:
            day: which.
            currency: of the payments.
            move: one of :data:`MOVES`.
            after: the last customer of the page before; empty: the first page.
            most: at most so many.
        """
        days = (day - timedelta(days=1)).isoformat(), day.isoformat()
        customer, asked = _churned(*days, currency) if move == "churn" else _paying(*days, currency, move)
        rows = self._database.read(asked.where(customer > after).order_by(customer).limit(most))
        return [
            Move(who, plan, currency, move, int(before), int(now), abs(int(now) - int(before)))
            for who, plan, before, now in rows
        ]

    def changes(
        self, day: date, currency: str, moves: Sequence[str], *, after: Sequence[str], most: int
    ) -> Changes:
        """Whose payment in a currency changed in the month until a day, by day, kind of change and id.

        A page of many customers may have fewer rows than it could: it ends before it takes long.

        Args:
            day: the last one.
            currency: of the payments.
            moves: which of :data:`MOVES`.
            after: the place of the page before; empty: the first page.
            most: at most so many.
        """
        found, compared = list[tuple[str, Move]](), 0
        place = tuple(after) or ("", "", "")
        for at, move, customers in self._moved(day, currency, moves):
            if (at, move) < place[:2]:
                continue
            if len(found) == most or compared >= _COMPARED_MOST:
                return Changes(found, _place(found) if len(found) == most else (at, move, ""))
            last = place[2] if (at, move) == place[:2] else ""
            left = most - len(found)
            of_day = self.moves(date.fromisoformat(at), currency, move, after=last, most=left)
            found += [(at, one) for one in of_day]
            compared += customers
        return Changes(found, _place(found) if len(found) == most else ())

    def _moved(self, day: date, currency: str, moves: Sequence[str]) -> Iterator[tuple[str, str, int]]:
        """Days of the month until a day, a kind of change that happened on it, and how many paid."""
        days: Any = table("meterkit_revenue_days", *map(column, ("day", "currency", "customers", *MOVES))).c
        asked = select(days.day, days.customers, *(days[move] for move in moves)).where(
            days.currency == currency,
            days.day > _month_before(day).isoformat(),
            days.day <= day.isoformat(),
            or_(*(days[move] > 0 for move in moves)),
        )
        for at, customers, *sums in self._database.read(asked.order_by(days.day)):
            for move, total in sorted(zip(moves, sums, strict=True)):
                if total:
                    yield at, move, int(customers)

    def kept(self, day: date, currency: str, *, after: str, most: int) -> list[Kept]:
        """What those bring now who brought something in a currency a month before a day, by id.

        Args:
            day: now.
            currency: of the payments.
            after: the last customer of the page before; empty: the first page.
            most: at most so many.
        """
        was, now = (table("meterkit_revenue", *map(column, _PAID)).alias(name) for name in ("w", "n"))
        same = and_(
            now.c.day == day.isoformat(),
            now.c.customer == was.c.customer,
            now.c.currency == was.c.currency,
        )
        asked = (
            select(was.c.customer, was.c.plan, was.c.mrr, func.coalesce(now.c.mrr, literal(0)))
            .select_from(was.outerjoin(now, same))
            .where(
                was.c.day == _month_before(day).isoformat(),
                was.c.currency == currency,
                was.c.customer > after,
            )
        )
        rows = self._database.read(asked.order_by(was.c.customer).limit(most))
        return [Kept(who, plan, currency, int(before), int(mrr)) for who, plan, before, mrr in rows]

    def usage(self, day: date, currency: str, *, after: Sequence[str], most: int) -> list[UsageCharge]:
        """What usage costs that is part of the usage revenue of a day, by customer.

        That is usage of periods that ended in the month until that day.

        Args:
            day: which.
            currency: of the amounts.
            after: customer and day of the last row of the page before; empty: the first page.
            most: at most so many.
        """
        charged: Any = table("meterkit_revenue_usage", *map(column, _USED)).c
        asked = select(charged.customer, charged.day, charged.currency, charged.amount).where(
            charged.currency == currency,
            charged.day > _month_before(day).isoformat(),
            charged.day <= day.isoformat(),
        )
        if after:
            customer, last = after
            asked = asked.where(
                or_(charged.customer > customer, and_(charged.customer == customer, charged.day > last))
            )
        rows = self._database.read(asked.order_by(charged.customer, charged.day).limit(most))
        return [UsageCharge(who, ended, money, int(amount)) for who, ended, money, amount in rows]


def _place(rows: Sequence[tuple[str, Move]]) -> tuple[str, ...]:
    return (rows[-1][0], rows[-1][1].move, rows[-1][1].customer)


def _paid(name: str) -> Any:
    return table("meterkit_revenue", *map(column, _PAID)).alias(name).c


def _paying(before: str, day: str, currency: str, move: str) -> tuple[Any, Any]:
    """Who brought something on a day, and something else, or nothing, the day before."""
    now, was, ever = (table("meterkit_revenue", *map(column, _PAID)).alias(name) for name in ("n", "w", "e"))
    same = and_(was.c.day == before, was.c.customer == now.c.customer, was.c.currency == now.c.currency)
    asked: Any = (
        select(now.c.customer, now.c.plan, func.coalesce(was.c.mrr, literal(0)), now.c.mrr)
        .select_from(now.outerjoin(was, same))
        .where(now.c.day == day, now.c.currency == currency)
    )
    if move == "expansion":
        return now.c.customer, asked.where(now.c.mrr > was.c.mrr)
    if move == "contraction":
        return now.c.customer, asked.where(now.c.mrr < was.c.mrr)
    former = exists().where(
        ever.c.day < before, ever.c.customer == now.c.customer, ever.c.currency == now.c.currency
    )
    asked = asked.where(was.c.customer.is_(None))
    return now.c.customer, asked.where(former if move == "reactivation" else ~former)


def _churned(before: str, day: str, currency: str) -> tuple[Any, Any]:
    """Who brought something the day before, and nothing on a day."""
    was, now = (table("meterkit_revenue", *map(column, _PAID)).alias(name) for name in ("w", "n"))
    same = and_(now.c.day == day, now.c.customer == was.c.customer, now.c.currency == was.c.currency)
    asked: Any = (
        select(was.c.customer, was.c.plan, was.c.mrr, literal(0))
        .select_from(was.outerjoin(now, same))
        .where(was.c.day == before, was.c.currency == currency, now.c.customer.is_(None))
    )
    return was.c.customer, asked


def _month_before(day: date) -> date:
    """The same day of the month before, or that month's last."""
    last = day.replace(day=1) - timedelta(days=1)
    return last.replace(day=min(day.day, last.day))
