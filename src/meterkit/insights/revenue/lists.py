"""Who paid on a day, and whose payment changed on it, page by page from the snapshots. Calls block."""

from __future__ import annotations

from datetime import date, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import and_, exists, func, literal, or_, select

from meterkit.insights.revenue.figures import Paying, months_before
from meterkit.insights.revenue.tables import DAYS, PAYING, USED

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from meterkit.insights.audit.database import Database

_COMPARED_MOST: Final = 200_000
"""Payments that a page compares with those of the day before: about a tenth of a second."""


class Move(NamedTuple):
    """How much what a customer brings changed on a day (micro-cents).

    Attributes:
        move: one of :data:`~meterkit.insights.revenue.figures.MOVES`.
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

    def payments(self, day: date, currency: str, plan: str, *, after: str, most: int) -> list[Paying]:
        """Who brought something in a currency on a day, by id.

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
        return [Paying(who, of_plan, money, int(mrr)) for who, of_plan, money, mrr in rows]

    def moves(self, day: date, currency: str, move: str, *, after: str, most: int) -> list[Move]:
        """Whose payment in a currency changed on a day in one way, by id.

        Args:
            day: which.
            currency: of the payments.
            move: one of :data:`~meterkit.insights.revenue.figures.MOVES`.
            after: the last customer of the page before; empty: the first page.
            most: at most so many.
        """
        before, today = (day - timedelta(days=1)).isoformat(), day.isoformat()
        is_lost = move == "churn"
        of, other, asked = _beside(*((before, today) if is_lost else (today, before)), currency)
        asked = asked.where(_has_moved(move, of, other, before), of.customer > after)
        found: list[Move] = []
        for who, plan, own, others in self._database.read(asked.order_by(of.customer).limit(most)):
            was, now = (int(own), int(others)) if is_lost else (int(others), int(own))
            found.append(Move(who, plan, currency, move, was, now, abs(now - was)))
        return found

    def changes(
        self, day: date, currency: str, moves: Sequence[str], *, after: Sequence[str], most: int
    ) -> Changes:
        """Whose payment in a currency changed in the month until a day, by day, kind of change and id.

        A page of many customers may have fewer rows than it could: it ends before it takes long.

        Args:
            day: the last one.
            currency: of the payments.
            moves: which of :data:`~meterkit.insights.revenue.figures.MOVES`.
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

    def kept(self, day: date, currency: str, *, after: str, most: int) -> list[Kept]:
        """What those bring now who brought something in a currency a month before a day, by id.

        Args:
            day: now.
            currency: of the payments.
            after: the last customer of the page before; empty: the first page.
            most: at most so many.
        """
        of, _, asked = _beside(months_before(day, 1).isoformat(), day.isoformat(), currency)
        rows = self._database.read(asked.where(of.customer > after).order_by(of.customer).limit(most))
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


def _place(rows: Sequence[tuple[str, Move]]) -> tuple[str, ...]:
    return (rows[-1][0], rows[-1][1].move, rows[-1][1].customer)


def _beside(day: str, other_day: str, currency: str) -> tuple[Any, Any, Any]:
    """Who brought something on a day: customer, plan, and how much then and on the other day."""
    of, other = PAYING.alias("o"), PAYING.alias("x")
    same = and_(
        other.c.day == other_day, other.c.customer == of.c.customer, other.c.currency == of.c.currency
    )
    asked = (
        select(of.c.customer, of.c.plan, of.c.mrr, func.coalesce(other.c.mrr, literal(0)))
        .select_from(of.outerjoin(other, same))
        .where(of.c.day == day, of.c.currency == currency)
    )
    return of.c, other.c, asked


def _has_moved(move: str, of: Any, other: Any, before: str) -> Any:
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
