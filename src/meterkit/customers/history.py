"""History of a customer: a list of changes to plan, status, link and more, with their causes."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.catalog.value_parsers import rounded_money
from meterkit.decisions.customer_state import CustomerState
from meterkit.decisions.periods import from_ms
from meterkit.decisions.subscription import NEVER_MS
from meterkit.store.unreadable_data import UNREADABLE, UnreadableDataError, refuse_unreadable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from meterkit.store.store import Store

HISTORY_BOUND: Final = 2_000
"""Most lines of a ledger. A change of the state leaves a thousand; see ``append_history.lua``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry:
    """One change of a customer.

    Attributes:
        kind: ``plan``, ``status``, active ``access``, ``seats`` or ``addons`` (``2 words, 1 backups``);
            ``mrr``: what the subscription brings in a month, in millionths of the currency's smallest unit,
            and for which plan, while another one is active;
            ``subscription``: another one;
            ``cancellation``: when it ends; ``scheduled``: what is to change in it; ``link`` to Stripe;
            ``overrides``; ``intent``: what became of usage on its way to Stripe, by a person's word or a
            comparison with Stripe's summaries; ``correction``: units that were to be taken back;
            ``rebuilt``: units that were lost and are recorded again, from the audit log; ``late``: units
            that the invoice of their period could no longer have, and whether a later one has them;
            ``redrive``: a dead webhook or message that an operator had tried again.
        at: from when on it holds (UTC).
        before, after: in words; None: there was, or is, none.
        cause: the id of an event of Stripe's, ``clock`` (it was scheduled, or a span was over), ``operator``,
            ``api``, ``import``, ``reconcile``, ``plans_file`` (that has changed); of an ``intent``, a
            ``correction`` and a ``redrive`` who did it.
    """

    kind: str
    at: datetime
    before: str | None
    after: str | None
    cause: str


def show_value(kind: str, value: str | None) -> str | None:
    """Word a value of a change for people: that of ``mrr`` as an amount of money."""
    if kind != "mrr" or not value:
        return value
    micros, currency, *plan = value.split()
    return " ".join([rounded_money(int(micros), currency), *plan])


async def read_history(store: Store, customer: str) -> Sequence[HistoryEntry]:
    """The history of a customer whose id is valid, oldest first.

    Raises:
        StoreError: the store does not answer.
        UnreadableDataError: a line cannot be read.
    """
    with refuse_unreadable("history", customer):
        return [parse_entry(line) for line in await _read_lines(store, customer)]


async def read_links(store: Store, customer: str) -> set[str]:
    """The Stripe customers that the history names, without lines that cannot be read.

    Raises:
        StoreError: the store does not answer.
    """
    found = set[str]()
    for line in await _read_lines(store, customer):
        with suppress(*UNREADABLE):
            entry = parse_entry(line)
            found |= {name for name in (entry.before, entry.after) if name and entry.kind == "link"}
    return found


async def read_all_links(store: Store, customer: str, stripe_customer: str | None) -> list[str]:
    """List all Stripe customers that a customer was ever linked to, with the present one.

    Raises:
        StoreError: the store does not answer.
    """
    return sorted({*await read_links(store, customer), *filter(None, [stripe_customer])})


class LinkSpan(NamedTuple):
    """A span in which a customer was linked to a Stripe customer.

    Attributes:
        since_s: when it began (Unix seconds); 0: not known.
        until_s: when it ended.
    """

    stripe_customer: str
    since_s: int
    until_s: int


async def read_former_links(store: Store, customer: str) -> Sequence[LinkSpan]:
    """The links of a customer that have ended, oldest first.

    Raises:
        StoreError: the store does not answer.
        UnreadableDataError: a line of the history cannot be read.
    """
    found, begun_s = list[LinkSpan](), 0
    for entry in await read_history(store, customer):
        if entry.kind == "link":
            at_s = int(entry.at.timestamp())
            if entry.before:
                found.append(LinkSpan(entry.before, begun_s, at_s))
            begun_s = at_s
    return found


async def read_billed_links(
    store: Store, customer: str, stripe_customer: str | None, start_s: int, end_s: int
) -> Sequence[LinkSpan]:
    """Read which Stripe customers got the usage of a span, by its parts, oldest first.

    Usage goes to the link of its time; without one it waits for the next link.

    Args:
        store: has the history.
        customer: the customer's id.
        stripe_customer: linked now; None: there is none.
        start_s: the first second of the span.
        end_s: the first second after it.

    Raises:
        StoreError: the store does not answer.
        UnreadableDataError: a line of the history cannot be read.
    """
    links = [(one.stripe_customer, one.until_s) for one in await read_former_links(store, customer)]
    links += [] if stripe_customer is None else [(stripe_customer, end_s)]
    found, since_s = list[LinkSpan](), start_s
    for linked, until_s in links:
        if since_s < min(until_s, end_s):
            found.append(LinkSpan(linked, since_s, min(until_s, end_s)))
            since_s = until_s
    return found


async def read_last_link(
    store: Store, customer: str, stripe_customer: str | None, start_s: int, end_s: int
) -> str | None:
    """Read which Stripe customer got the last usage of a span; see :func:`read_billed_links`."""
    found = await read_billed_links(store, customer, stripe_customer, start_s, end_s)
    return found[-1].stripe_customer if found else None


async def _read_lines(store: Store, customer: str) -> Sequence[bytes]:
    lines: list[bytes] = await store.ask("lrange", store.keys.customer(customer).history, 0, -1)
    return lines


async def read_states_and_histories(
    store: Store, customers: Iterable[str], skipped: dict[str, str] | None = None
) -> dict[str, tuple[CustomerState, list[HistoryEntry]]]:
    """The state of each of some customers and its history, oldest first, in one round trip.

    Args:
        store: has both.
        customers: their ids.
        skipped: gets the customers whose record cannot be read, which are left out, and why.

    Raises:
        StoreError: the store does not answer.
        UnreadableDataError: the record of one cannot be read, and ``skipped`` is not given.
    """
    admin, asked = (await store.admin()).for_delivery(), list(customers)
    replies = await admin.ask_each(
        command
        for keys in map(store.keys.customer, asked)
        for command in (("hget", keys.state, "data"), ("lrange", keys.history, 0, -1))
    )
    found: dict[str, tuple[CustomerState, list[HistoryEntry]]] = {}
    for customer, data, lines in zip(asked, replies[::2], replies[1::2], strict=True):
        try:
            found[customer] = CustomerState.parse(data or b""), [parse_entry(line) for line in lines]
        except UNREADABLE as error:  # The reply of a damaged key is an error, which is read as little.
            damage = next((reply for reply in (data, lines) if isinstance(reply, Exception)), error)
            if skipped is None:
                raise UnreadableDataError(
                    f"the record of customer {customer!r} cannot be read: {damage}"
                ) from error
            skipped[customer] = str(damage)
    return found


async def is_relinked(store: Store, customer: str, since: datetime, until: datetime | None = None) -> bool:
    """Check whether the link changed in a span, so that another Stripe customer may have usage.

    Raises:
        StoreError: the store does not answer.
    """
    ended = (one.at for one in await read_history(store, customer) if one.kind == "link" and one.before)
    return any(since <= at and (until is None or at < until) for at in ended)


def plan_until(entries: Iterable[HistoryEntry], end: datetime) -> str | None:
    """Find the plan that was active until an instant; None: none, or no change since.

    Args:
        entries: of the ledger, the oldest first.
        end: the first instant that does not count any more.
    """
    later = (entry.before for entry in entries if entry.kind == "plan" and entry.at >= end)
    return next(later, None)


def known_subscriptions(
    state: CustomerState, entries: Iterable[HistoryEntry], until_ms: int = NEVER_MS
) -> set[str] | None:
    """List the subscriptions that a customer has, or had by the ledger; none of another product.

    Args:
        state: the customer's.
        entries: of the ledger.
        until_ms: the end of a time; None: nothing is known of it, as it is before the first of them.
    """
    former = {entry.before for entry in entries if entry.kind == "subscription" and entry.before}
    if state.subscription is None:
        return former
    return former | {state.subscription.id} if former or state.subscription.created_ms < until_ms else None


def parse_entry(entry: bytes) -> HistoryEntry:
    """Parse a stored line of the history."""
    kind, at_ms, before, after, cause = json.loads(entry)
    if kind == "late":
        period, _, units = before.partition(" ")
        before = f"{units}, of the period from {from_ms(int(period)):%Y-%m-%d %H:%M} UTC"
    return HistoryEntry(
        kind=kind, at=from_ms(int(at_ms)), before=before or None, after=after or None, cause=cause
    )


async def add_entry(store: Store, customer: str, *, kind: str, before: str, after: str, cause: str) -> bool:
    """Add a line to the history of a customer whose id is valid; False: the customer has none.

    A customer without a state has none, as one who was deleted.

    Raises:
        StoreError: the store does not answer.
    """
    keys, admin = store.keys.customer(customer), await store.admin()
    if not await admin.ask(admin.client.exists(keys.state)):
        return False
    pipe = admin.client.pipeline(transaction=True)
    pipe.rpush(keys.history, json.dumps((kind, str(store.now_ms()), before, after, cause)))
    pipe.ltrim(keys.history, -HISTORY_BOUND, -1)
    await admin.ask(pipe.execute())
    return True
