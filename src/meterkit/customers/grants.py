"""Grants (``kit.grants``): give, list and revoke prepaid and promotional quantities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal, cast

from meterkit.catalog.argument_checks import counters_of
from meterkit.catalog.errors import suggestion
from meterkit.catalog.models import CREDITS_MAX, QUANTITY_MAX
from meterkit.customers.granting import put
from meterkit.customers.states import States, ask_anew
from meterkit.decisions.customer_state import effective_plan
from meterkit.decisions.debts import funds_of
from meterkit.decisions.grants import MICRO, Holding, target_of
from meterkit.decisions.periods import check_aware, from_ms, to_ms
from meterkit.decisions.subscription import NEVER_MS
from meterkit.errors import MeterkitError, QuantityError, UnknownMeterError
from meterkit.store.arguments import CUSTOMER_BYTES_MAX, check_customer, is_customer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from meterkit.catalog import Catalog
    from meterkit.store.store import Store

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
        status: ``pending`` before ``effective_at``; ``active``; ``used_up``; ``expired``; ``void``;
            ``refunded`` once all that was left was taken back.
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
    status: Literal["pending", "active", "used_up", "expired", "void", "refunded"]


Entered = Literal["grant", "adjustment", "burn", "debt", "repayment", "expire", "void", "refund"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """One line of the ledger. The lines of a grant add up to its rest, those of a credit to its balance.

    Attributes:
        entry: ``grant`` and ``adjustment`` (a plan that gives more by now) add, ``burn``, ``expire``,
            ``void`` and ``refund`` take away. ``debt`` is use beyond a balance in money. A ``repayment``
            takes from a grant; its second line reduces the debt.
        grant_id: empty for lines of the debt.
        quantity: what it adds, or below 0 what it takes away: units of a meter, micro-credits of a credit.
        meter: for ``burn`` and ``debt``, the meter that was used.
        period_start: for these, the period in which; there is one line a meter and period.
    """

    entry: Entered
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
    entries = [entry for name, text in ledger.items() for entry in _read_entries(name, text)]
    for holding in held:
        # What the plan gives is written down when it first pays for something.
        line = _line("grant", holding.name, holding.quantity)
        given = [entry for entry in entries if _is_of(entry, line)]
        more = holding.left - sum(entry.quantity for entry in given)
        if more:
            has_line = any(entry.entry == "grant" for entry in given)
            entries.append(replace(line, entry="adjustment" if has_line else "grant", quantity=more))
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
    return parts_of(name)[1], *_kind_and_name(name.split(" ", 2)[1])


def _kind_and_name(target: str) -> tuple[Kind, str]:
    return "credit" if target.startswith("c:") else "meter", target[2:]


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
    ends: tuple[tuple[str, Literal["void", "expired", "refunded"]], ...] = (
        ("void", "void"),
        ("expire", "expired"),
        ("refund", "refunded"),
    )
    used_up: Literal["used_up"] = "used_up"
    status = next((status for what, status in ends if f"{what} {name}" in ledger), used_up)
    return replace(_grant(given, 0), status=status, remaining=0)


def _read_entries(field: str, text: str) -> Iterator[LedgerEntry]:
    what, _, rest = field.partition(" ")
    if what == "beyond":
        meter, start_ms, target = rest.split(" ")
        used = _debt_entry("debt", target, -int(text))
        yield replace(used, meter=meter, period_start=from_ms(int(start_ms)))
    elif what == "repay":
        yield _line("repayment", rest, -int(text))
        yield _debt_entry("repayment", rest.split(" ")[1], int(text))
    elif (entry := _read_entry(what, rest, text)) is not None:
        yield entry


def _debt_entry(entry: Entered, target: str, quantity: int) -> LedgerEntry:
    kind, name = _kind_and_name(target)
    return LedgerEntry(entry=entry, grant_id="", kind=kind, name=name, quantity=quantity)


def _read_entry(what: str, rest: str, text: str) -> LedgerEntry | None:
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
    if what == "refund":
        return _line("refund", rest, -int(text.split(" ")[1]))
    return None  # What an id was used for, or a line of a newer release.


def _is_of(entry: LedgerEntry, other: LedgerEntry) -> bool:
    """Whether two lines are of the same grant."""
    return (entry.grant_id, entry.kind, entry.name) == (other.grant_id, other.kind, other.name)


def _line(entry: Entered, name: str, quantity: int) -> LedgerEntry:
    grant_id, kind, target = _named(name)
    return LedgerEntry(entry=entry, grant_id=grant_id, kind=kind, name=target, quantity=quantity)


_PRIORITY_MAX: Final = 1000
_FIRST: Final = datetime(1970, 1, 2, tzinfo=UTC)
_LAST: Final = datetime(9998, 12, 31, tzinfo=UTC)


class Grants:
    """Adds, lists and voids grants.

    Each method raises :class:`~meterkit.errors.CustomerError` for a customer id that is not allowed and
    :class:`~meterkit.errors.StoreError` where the store does not answer.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._states = States(store)

    async def add(
        self,
        customer: str,
        quantities: Mapping[str, int],
        *,
        grant_id: str,
        priority: int = 50,
        effective_at: datetime | None = None,
        expires_at: datetime | None = None,
    ) -> None:
        """Give a customer quantities of meters or of credits; they pay for usage beyond included.

        Binds the next decision of every process. Repeated with the same ``grant_id`` it changes nothing.

        Args:
            customer: the customer's id.
            quantities: meter or credit to a quantity of at least 1, in units of the meter, or in credits.
            grant_id: the app's name for this grant, for example the id of an invoice.
            priority: from 0 to 1000; lower is used up first.
            effective_at: since when it counts (aware); default: now.
            expires_at: when what is left of it vanishes (aware); default: never.

        Raises:
            QuantityError: a quantity is not allowed, or the balance would pass 9 * 10^9 credits or
                9 * 10^15 units.
            UnknownMeterError: a name is neither a counter nor a credit of the plans file.
            MeterkitError: an argument cannot be used, the ``grant_id`` was used for something else, or the
                customer would have more than 256 grants that are neither used up nor ended.
        """
        check_customer(customer)
        now_ms = self._store.now_ms()
        effective_ms = 0 if effective_at is None else _instant("effective_at", effective_at)
        expires_ms = NEVER_MS if expires_at is None else _instant("expires_at", expires_at)
        _check_id(grant_id)
        if type(priority) is not int or not 0 <= priority <= _PRIORITY_MAX:
            raise MeterkitError(f"priority: found {priority!r:.40}; allowed is 0 to {_PRIORITY_MAX}")
        if expires_ms <= max(now_ms, effective_ms):
            found = "" if expires_at is None else expires_at.isoformat()
            raise MeterkitError(
                f"expires_at: found {found}; it must lie in the future, and after effective_at"
            )
        terms = (priority, effective_ms, expires_ms)
        await put(self._store, customer, self._targets(quantities), grant_id=grant_id, terms=terms)

    async def list(self, customer: str) -> Sequence[Grant]:
        """All grants of a customer, the plan's of this period too, in the order in which they are used up.

        Those that ended in an earlier period come last.
        """
        check_customer(customer)
        return grants_of(*await self._read(customer))

    async def void(self, customer: str, grant_id: str) -> None:
        """Take back what a grant of the app's has left; what it has paid stays paid. Repeated: a no-op.

        Raises:
            MeterkitError: there was never such a grant, or it is one of the plan's.
        """
        check_customer(customer)
        _check_id(grant_id)
        admin, keys = await self._store.admin(), self._store.keys.customer(customer)
        held, ledger, _ = await self._read(customer)
        named = {found.name: parts_of(found.name) for found in held}
        names = [name for name, parts in named.items() if parts == ("app", grant_id)]
        if names:
            await admin.run(self._store.scripts["void"], [keys.grants, keys.ledger], *names)
            ask_anew(self._store, customer)
        elif not any(is_grant_of_app(field, grant_id) for field in ledger):
            near = suggestion(grant_id, [own for source, own in named.values() if source == "app"])
            raise MeterkitError(
                f"grant_id: customer {customer!r} has no grant {grant_id!r:.80} that the app added{near}; a"
                " grant of the plan cannot be voided"
            )

    async def ledger(self, customer: str) -> Sequence[LedgerEntry]:
        """The lines of all of a customer's grants; what the live ones have left follows from them."""
        check_customer(customer)
        return ledger_of(*await self._read(customer))

    async def _read(self, customer: str) -> tuple[Sequence[Holding], Mapping[str, str], int]:
        """What a customer holds, the ledger, and when that was."""
        store, keys = self._store, self._store.keys.customer(customer)
        admin = await store.admin()
        pipeline = admin.client.pipeline(transaction=True)
        pipeline.hgetall(keys.grants)
        pipeline.hgetall(keys.ledger)
        fields, ledger = await admin.ask(pipeline.execute())
        _, state = await self._states.read(customer)
        now_ms = store.now_ms()
        effective = effective_plan(state, store.catalog, now_ms)
        prepaid = store.cache.prepaid[effective.plan.key]
        funds, lines = funds_of(_texts(fields), prepaid, effective.bounds, now_ms), _texts(ledger)
        for name, part in funds.repaid.items():
            lines[f"repay {name}"] = str(int(lines.get(f"repay {name}", 0)) + part)
        return funds.held, lines, now_ms

    def _targets(self, quantities: object) -> Sequence[tuple[str, int]]:
        if not isinstance(quantities, Mapping) or not quantities:
            raise MeterkitError(
                "quantities: allowed is a mapping of meters or credits to quantities, with one at least"
            )
        given = cast("Mapping[object, object]", quantities)
        return sorted(_target(name, quantity, self._store.catalog) for name, quantity in given.items())


def _target(name: object, quantity: object, catalog: Catalog) -> tuple[str, int]:
    kind = _kind_of(name, catalog)
    most = QUANTITY_MAX if kind == "meter" else CREDITS_MAX
    if type(quantity) is not int or not 1 <= quantity <= most:
        raise QuantityError(
            f"quantity of {name}: found {quantity!r:.40}; allowed is an integer from 1 to {most}"
        )
    return target_of(kind, str(name)), quantity * (MICRO if kind == "credit" else 1)


def _kind_of(name: object, catalog: Catalog) -> Kind:
    meters = counters_of(catalog.meters)
    if name in catalog.credits:
        return "credit"
    if name not in meters:
        raise UnknownMeterError.of(
            str(name),
            (*meters, *catalog.credits),
            kind="meter or credit",
            allowed="the counters and credits",
        )
    return "meter"


def _instant(what: str, moment: datetime) -> int:
    check_aware(what, moment)
    if not _FIRST <= moment <= _LAST:
        raise MeterkitError(f"{what}: found {moment.isoformat()}; allowed are instants from 1970 to 9998")
    return to_ms(moment)


def _check_id(grant_id: object) -> None:
    # The rule of customer ids, and nothing in it that cannot be seen.
    if is_customer(grant_id) and grant_id.isprintable():
        return
    raise MeterkitError(
        f"grant_id: allowed is a text of 1 to {CUSTOMER_BYTES_MAX} bytes of UTF-8 without control characters"
    )


def _texts(fields: Mapping[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): text.decode() for name, text in fields.items()}
