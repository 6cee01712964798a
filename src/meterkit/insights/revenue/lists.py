"""Who paid on a day, and whose payment changed on it, page by page from the snapshots. Calls block."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import and_, column, exists, func, literal, or_, select, table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date

    from meterkit.insights.audit.database import Database

__all__ = ["MOVES", "Move", "Payment", "RevenueLists", "UsageCharge"]

MOVES: Final = ("new", "expansion", "reactivation", "contraction", "churn")

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
        rows = self._read(asked.order_by(of.customer).limit(most))
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
        rows = self._read(asked.where(customer > after).order_by(customer).limit(most))
        return [
            Move(who, plan, currency, move, int(before), int(now), abs(int(now) - int(before)))
            for who, plan, before, now in rows
        ]

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
        rows = self._read(asked.order_by(charged.customer, charged.day).limit(most))
        return [UsageCharge(who, ended, money, int(amount)) for who, ended, money, amount in rows]

    def _read(self, asked: Any) -> Sequence[Any]:
        with self._database.begun() as connection:
            found: Sequence[Any] = connection.execute(asked).all()
        return found


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
