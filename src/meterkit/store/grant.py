"""Grants and the lines of their ledger, as they are shown. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from meterkit.decisions.balance import Holding
from meterkit.decisions.customer_state import NEVER_MS
from meterkit.decisions.periods import from_ms
from meterkit.decisions.prepaid import MICRO

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

__all__ = ["Grant", "Kind", "LedgerEntry", "grants_of", "is_grant_of_app", "ledger_of", "parts_of"]

Kind = Literal["meter", "credit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A quantity that a customer has besides what the plan includes.

    Attributes:
        grant_id: the app's name for it; for a grant of the plan ``plan/PERIOD/ID``, where the id is that of
            the plans file, or else made of its priority and expiry.
        kind: whether ``name`` is a meter or a credit.
        quantity: how much it was, in units of the meter, or in credits.
        remaining: what it has left; credits rounded down.
        priority: lower is used up first.
        effective_at: since when it counts.
        expires_at: when what is left of it vanishes; None: never.
        source: whether the app added it or the plan gives it.
        status: ``pending`` before ``effective_at``; ``active``; ``used_up``; ``expired``; ``void``.
    """

    grant_id: str
    kind: Kind
    name: str
    quantity: int
    remaining: int
    priority: int
    effective_at: datetime
    expires_at: datetime | None
    created_at: datetime
    source: Literal["app", "plan"]
    status: Literal["pending", "active", "used_up", "expired", "void"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """One line of the ledger; the lines of a grant add up to what it has left.

    Attributes:
        entry: ``grant`` and ``adjustment`` (a plan that gives more by now) add, ``burn``, ``expire`` and
            ``void`` take away.
        quantity: what it adds, or below 0 what it takes away: units of a meter, micro-credits of a credit.
        meter: for ``burn``, the meter that was paid.
        period_start: for ``burn``, the period in which; there is one line a meter and period.
    """

    entry: Literal["grant", "adjustment", "burn", "expire", "void"]
    grant_id: str
    kind: Kind
    name: str
    quantity: int
    meter: str | None = None
    period_start: datetime | None = None


def grants_of(held: Sequence[Holding], ledger: Mapping[str, str], now_ms: int) -> Sequence[Grant]:
    """All grants: those that are held, in the order in which they are used up, then those that ended before.

    Args:
        held: what the customer holds.
        ledger: as the store keeps it.
        now_ms: now.
    """
    live = [_grant(holding, now_ms) for holding in held]
    names = {holding.name for holding in held}
    ended = [
        _ended(name.partition(" ")[2], text, ledger)
        for name, text in ledger.items()
        if name.startswith("grant ") and name.partition(" ")[2] not in names
    ]
    return live + sorted(ended, key=lambda grant: grant.created_at)


def ledger_of(held: Sequence[Holding], ledger: Mapping[str, str], now_ms: int) -> Sequence[LedgerEntry]:
    """The lines of all grants; see :func:`grants_of`."""
    entries = [entry for name, text in ledger.items() if (entry := _entry(name, text)) is not None]
    for holding in held:
        # What the plan gives is written down when it first pays for something.
        line = _line("grant", holding.name, holding.quantity)
        given = [entry for entry in entries if _is_of(entry, line)]
        more = holding.left - sum(entry.quantity for entry in given)
        if more:
            entries.append(replace(line, entry="adjustment" if given else "grant", quantity=more))
        if holding.expires_ms <= now_ms and holding.left:
            entries.append(_line("expire", holding.name, -holding.left))
    return entries


def parts_of(name: str) -> tuple[str, str]:
    """A grant's source and its id, from its name in the store."""
    origin, _, own = name.split(" ", 2)
    if origin == "a":
        return "app", own
    key, _, start_ms = own.partition(" ")
    return "plan", f"plan/{from_ms(int(start_ms)):%Y-%m-%d}/{key}"


def is_grant_of_app(field: str, grant_id: str) -> bool:
    """Whether a field of the ledger is the first line of a grant of the app's."""
    what, _, name = field.partition(" ")
    return what == "grant" and parts_of(name) == ("app", grant_id)


def _named(name: str) -> tuple[str, Kind, str]:
    """A grant's id, kind and meter or credit, from its name in the store."""
    target = name.split(" ", 2)[1]
    kind: Kind = "credit" if target.startswith("c:") else "meter"
    return parts_of(name)[1], kind, target[2:]


def _grant(holding: Holding, now_ms: int) -> Grant:
    grant_id, kind, name = _named(holding.name)
    unit = MICRO if kind == "credit" else 1
    status: Literal["pending", "active", "used_up", "expired", "void"] = "active"
    if holding.expires_ms <= now_ms:
        status = "expired"
    elif not holding.left:
        status = "used_up"
    elif holding.effective_ms > now_ms:
        status = "pending"
    return Grant(
        grant_id=grant_id,
        kind=kind,
        name=name,
        quantity=holding.quantity // unit,
        remaining=0 if status == "expired" else holding.left // unit,
        priority=holding.priority,
        effective_at=from_ms(holding.effective_ms),
        expires_at=None if holding.expires_ms == NEVER_MS else from_ms(holding.expires_ms),
        created_at=from_ms(holding.created_ms),
        source="app" if holding.name.startswith("a ") else "plan",
        status=status,
    )


def _ended(name: str, text: str, ledger: Mapping[str, str]) -> Grant:
    quantity, priority, effective, expires, created = text.split(" ")
    target = name.split(" ", 2)[1]
    terms = f"{priority} {effective} {expires} {created}"
    given = Holding.parse(name, f"{target} {quantity} {quantity} {terms} {expires}")
    is_void, is_expired = f"void {name}" in ledger, f"expire {name}" in ledger
    return replace(
        _grant(given, 0), status="void" if is_void else "expired" if is_expired else "used_up", remaining=0
    )


def _entry(field: str, text: str) -> LedgerEntry | None:
    what, _, rest = field.partition(" ")
    if what == "burn":
        meter, start_ms, name = rest.split(" ", 2)
        burned = _line("burn", name, -int(text))
        return replace(burned, meter=meter, period_start=from_ms(int(start_ms)))
    if what == "raise":
        return _line("adjustment", rest.partition(" ")[2], int(text))
    if what == "grant":
        return _line("grant", rest, int(text.partition(" ")[0]))
    if what in {"expire", "void"}:
        return _line("expire" if what == "expire" else "void", rest, -int(text.partition(" ")[0]))
    return None  # What an id was used for, or a line of a newer release.


def _is_of(entry: LedgerEntry, other: LedgerEntry) -> bool:
    """Whether two lines are of the same grant."""
    return (entry.grant_id, entry.kind, entry.name) == (other.grant_id, other.kind, other.name)


def _line(
    entry: Literal["grant", "adjustment", "burn", "expire", "void"], name: str, quantity: int
) -> LedgerEntry:
    grant_id, kind, target = _named(name)
    return LedgerEntry(entry=entry, grant_id=grant_id, kind=kind, name=target, quantity=quantity)
