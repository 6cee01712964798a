"""Grants and ledger lines, parsed from stored fields. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from meterkit.decisions.grants import MICRO
from meterkit.decisions.periods import from_ms
from meterkit.decisions.stored_grants import StoredGrant
from meterkit.decisions.subscription import NEVER_MS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

GrantKind = Literal["meter", "credit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A quantity that a customer has besides what the plan includes.

    Attributes:
        grant_id: the app's name for it; for a grant of the plan ``plan/PERIOD/ID``, where the id is that of
            the plans file, otherwise made of its priority and expiry; ``plan/once/ID`` for one that is given
            once.
        kind: whether ``name`` is a meter or a credit.
        quantity: how much it was, in units of the meter, or in credits.
        remaining: what it has left; credits rounded down.
        quantity_micros, remaining_micros: the same in millionths of a credit, exactly; None: of a meter.
        priority: lower is used up first.
        effective_at: since when it counts.
        expires_at: when what is left of it vanishes; None: never.
        source: whether the app added it or the plan gives it.
        status: ``pending`` before ``effective_at``; ``active``; ``used_up``; ``expired``; ``void``;
            ``refunded`` once all that was left was taken back.
    """

    grant_id: str
    kind: GrantKind
    name: str
    quantity: int
    remaining: int
    priority: int
    effective_at: datetime
    expires_at: datetime | None
    created_at: datetime
    source: Literal["app", "plan"]
    status: Literal["pending", "active", "used_up", "expired", "void", "refunded"]
    quantity_micros: int | None = None
    remaining_micros: int | None = None


EntryKind = Literal[
    "grant", "adjustment", "burn", "debt", "repayment", "rollover", "expire", "void", "refund"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """One line of the ledger. The lines of a grant add up to its rest, those of a credit to its balance.

    Attributes:
        entry: ``grant`` and ``adjustment`` (a plan that gives more by now) add, ``burn``, ``expire``,
            ``void`` and ``refund`` take away. ``debt`` is use beyond a balance in money, or of a payment that
            is disputed. A ``repayment`` takes from a grant; its second line reduces the debt. A ``rollover``
            takes what is left of a grant from a period; its second line adds it to the next one.
        grant_id: empty for lines of the debt.
        quantity: what it adds, or below 0 what it takes away: units of a meter, micro-credits of a credit.
        meter: for ``burn`` and ``debt``, the meter that was used.
        period_start: for these, the period in which; there is one line a meter and period. For a
            ``rollover``, the period that it is taken from, or added to.
    """

    entry: EntryKind
    grant_id: str
    kind: GrantKind
    name: str
    quantity: int
    meter: str | None = None
    period_start: datetime | None = None


def build_grants(held: Sequence[StoredGrant], ledger: Mapping[str, str], now_ms: int) -> Sequence[Grant]:
    """All grants: those that are held, in the order in which they are used up, then those that ended before.

    Args:
        held: what the customer holds.
        ledger: as the store keeps it.
        now_ms: now.
    """
    live = [_held_grant(holding, now_ms) for holding in held if not _is_given_before(holding.name, ledger)]
    names = {holding.name for holding in held}
    ended = [
        _ended_grant(name.partition(" ")[2], text, ledger)
        for name, text in ledger.items()
        if name.startswith("grant ") and name.partition(" ")[2] not in names and not text.startswith(_NOTHING)
    ]
    return live + sorted(ended, key=lambda grant: grant.created_at)


def build_ledger(
    held: Sequence[StoredGrant], ledger: Mapping[str, str], now_ms: int
) -> Sequence[LedgerEntry]:
    """The lines of all grants; see :func:`build_grants`."""
    entries = [
        (_grant_name(field), entry)
        for field, text in ledger.items()
        if not (field.startswith("grant ") and text.startswith(_NOTHING))
        for entry in _read_entries(field, text)
    ]
    found = [entry for _, entry in entries]
    for holding in held:
        if _is_given_before(holding.name, ledger):
            continue
        # What the plan gives is written down when it first pays for something.
        own = [entry for name, entry in entries if name == holding.name and entry.grant_id]
        more = holding.left - sum(entry.quantity for entry in own)
        if more:
            has_line = any(entry.entry == "grant" for entry in own)
            found.append(_ledger_entry("adjustment" if has_line else "grant", holding.name, more))
        if holding.expires_ms <= now_ms and holding.left:
            found.append(_ledger_entry("expire", holding.name, -holding.left))
    return found


_WORDS_BEFORE_NAME: Final = {"burn": 2, "raise": 1, "rollover": 2}


def _grant_name(field: str) -> str:
    what, _, rest = field.partition(" ")
    return rest.split(" ", _WORDS_BEFORE_NAME.get(what, 0))[-1]


def source_and_id(name: str) -> tuple[str, str]:
    """A grant's source and its id, from its name in the store."""
    origin, _, own = name.split(" ", 2)
    if origin == "a":
        return "app", own
    key, _, start_ms = own.partition(" ")
    return "plan", f"plan/{'once' if origin == 'o' else f'{from_ms(int(start_ms)):%Y-%m-%d}'}/{key}"


def is_grant_of_app(field: str, grant_id: str) -> bool:
    """Whether a field of the ledger is the first line of a grant of the app's."""
    what, _, name = field.partition(" ")
    return what == "grant" and source_and_id(name) == ("app", grant_id)


def _id_kind_and_name(name: str) -> tuple[str, GrantKind, str]:
    """A grant's id, kind and meter or credit, from its name in the store."""
    return source_and_id(name)[1], *_kind_and_name(name.split(" ", 2)[1])


def _kind_and_name(target: str) -> tuple[GrantKind, str]:
    return "credit" if target.startswith("c:") else "meter", target[2:]


def _held_grant(holding: StoredGrant, now_ms: int) -> Grant:
    grant_id, kind, name = _id_kind_and_name(holding.name)
    unit = MICRO if kind == "credit" else 1
    left = 0 if holding.expires_ms <= now_ms else holding.left
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
        remaining=left // unit,
        priority=holding.priority,
        effective_at=from_ms(holding.effective_ms),
        expires_at=None if holding.expires_ms == NEVER_MS else from_ms(holding.expires_ms),
        created_at=from_ms(holding.created_ms),
        source="app" if holding.name.startswith("a ") else "plan",
        status=status,
        quantity_micros=holding.quantity if kind == "credit" else None,
        remaining_micros=left if kind == "credit" else None,
    )


def _ended_grant(name: str, text: str, ledger: Mapping[str, str]) -> Grant:
    quantity, priority, effective, expires, created = text.split(" ")
    target = name.split(" ", 2)[1]
    terms = f"{priority} {effective} {expires} {created}"
    given = StoredGrant.parse(name, f"{target} {quantity} {quantity} {terms} {expires}")
    ends: tuple[tuple[str, Literal["void", "expired", "refunded"]], ...] = (
        ("void", "void"),
        ("expire", "expired"),
        ("refund", "refunded"),
    )
    used_up: Literal["used_up"] = "used_up"
    status = next((status for what, status in ends if f"{what} {name}" in ledger), used_up)
    ended = _held_grant(given, 0)
    rest = None if ended.remaining_micros is None else 0
    return replace(ended, status=status, remaining=0, remaining_micros=rest)


def _read_entries(field: str, text: str) -> Iterator[LedgerEntry]:
    what, _, rest = field.partition(" ")
    if what == "beyond":
        meter, start_ms, target = rest.split(" ")
        used = _debt_entry("debt", target, -int(text))
        yield replace(used, meter=meter, period_start=from_ms(int(start_ms)))
    elif what == "repay":
        yield _ledger_entry("repayment", rest, -int(text))
        yield _debt_entry("repayment", rest.split(" ")[1], int(text))
    elif what == "rollover":
        *edges, name = rest.split(" ", 2)
        for at_ms, quantity in zip(edges, (-int(text), int(text)), strict=True):
            yield replace(_ledger_entry("rollover", name, quantity), period_start=from_ms(int(at_ms)))
    elif what == "refund":
        _, taken, _, owed = map(int, text.split(" "))
        yield _ledger_entry("refund", rest, -taken)
        if owed:
            yield _debt_entry("debt", rest.split(" ")[1], -owed)
    elif (entry := _read_entry(what, rest, text)) is not None:
        yield entry


def _debt_entry(entry: EntryKind, target: str, quantity: int) -> LedgerEntry:
    kind, name = _kind_and_name(target)
    return LedgerEntry(entry=entry, grant_id="", kind=kind, name=name, quantity=quantity)


def _read_entry(what: str, rest: str, text: str) -> LedgerEntry | None:
    if what == "burn":
        meter, start_ms, name = rest.split(" ", 2)
        burned = _ledger_entry("burn", name, -int(text))
        return replace(burned, meter=meter, period_start=from_ms(int(start_ms)))
    if what == "raise":
        return _ledger_entry("adjustment", rest.partition(" ")[2], int(text))
    if what == "grant":
        return _ledger_entry("grant", rest, int(text.partition(" ")[0]))
    if what in {"expire", "void"}:
        return _ledger_entry("expire" if what == "expire" else "void", rest, -int(text.partition(" ")[0]))
    return None  # What an id was used for, or a line of a newer release.


_NOTHING: Final = "0 "
"""Prefix of the first line of a grant that was given in the same period before; see ``move_grants.lua``."""


def _is_given_before(name: str, ledger: Mapping[str, str]) -> bool:
    """Whether a grant on file only says that its period was given it by another name."""
    is_raised = any(field.startswith("raise ") and _grant_name(field) == name for field in ledger)
    return ledger.get(f"grant {name}", "").startswith(_NOTHING) and not is_raised


def _ledger_entry(entry: EntryKind, name: str, quantity: int) -> LedgerEntry:
    grant_id, kind, target = _id_kind_and_name(name)
    return LedgerEntry(entry=entry, grant_id=grant_id, kind=kind, name=target, quantity=quantity)
