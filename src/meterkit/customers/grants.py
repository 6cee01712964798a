"""Grants (``kit.grants``): give, list, void, move and reclaim prepaid and promotional quantities."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from meterkit.catalog.errors import suggestion
from meterkit.catalog.meters import counters_of
from meterkit.catalog.models import CREDITS_MAX, QUANTITY_MAX
from meterkit.customers.grant_ledger import (
    Grant,
    LedgerEntry,
    build_grants,
    build_ledger,
    is_grant_of_app,
    source_and_id,
)
from meterkit.customers.states import CustomerStates, drop_allotments
from meterkit.decisions.grants import MICRO, target_of
from meterkit.decisions.packed import text_fields
from meterkit.decisions.periods import aware_ms
from meterkit.decisions.stored_grants import find_moved_grants, read_funds
from meterkit.decisions.subscription import NEVER_MS
from meterkit.errors import MeterkitError, QuantityError, UnknownMeterError
from meterkit.safe_text import plain_text
from meterkit.store.input_checks import CUSTOMER_BYTES_MAX, check_customer, is_customer
from meterkit.store.unreadable_data import refuse_unreadable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.catalog import Catalog
    from meterkit.customers.grant_ledger import GrantKind
    from meterkit.decisions.periods import Bounds
    from meterkit.decisions.stored_grants import StoredGrant
    from meterkit.store.store import Store


_GRANTS_MAX: Final = 256
_USED_OTHERWISE: Final = 1
_TOO_MUCH: Final = 2
_TOO_MANY: Final = 3


async def add_grant(
    store: Store,
    customer: str,
    targets: Sequence[tuple[str, int]],
    *,
    grant_id: str,
    terms: tuple[int, int, int] = (50, 0, NEVER_MS),
) -> None:
    """Add a grant of quantities; repeated with the same id, it changes nothing.

    Args:
        store: where the customer is.
        customer: the customer's id.
        targets: each with its quantity, in units of a meter, or in micro-credits.
        grant_id: the name of this grant.
        terms: the priority; since when it counts, 0 for now, and when it ends (Unix milliseconds).

    Raises:
        QuantityError: the balance would be too large.
        MeterkitError: the id was used for something else, or the customer has too many grants.
        StoreError: the store does not answer.
    """
    words = [str(word) for target in targets for word in target]
    admin, keys = await store.admin(), store.keys.customer(customer)
    await CustomerStates(store).change(customer, lambda state: replace(state, granted=True))
    asked: tuple[str | int, ...] = (grant_id, _GRANTS_MAX, *terms, *words)
    reply = await admin.run(store.scripts["add_grant"], [keys.grants, keys.ledger], *asked)
    if reply[0] == _USED_OTHERWISE:
        is_other = reply[1].decode().split(" ")[::2] != words[::2]
        what = "other meters or credits" if is_other else "another quantity"
        raise MeterkitError(
            f"grant_id: {grant_id!r} was used for {what} already; nothing was granted, take another id"
        )
    if reply[0] == _TOO_MUCH:
        raise QuantityError(
            f"quantity: the balance would pass {CREDITS_MAX} credits or {9 * 10**15} units; nothing was"
            " granted"
        )
    if reply[0] == _TOO_MANY:
        raise MeterkitError(
            f"grants: customer {customer!r} has {reply[1]} grants that are neither used up nor ended, "
            f"one for each meter or credit; allowed are at most {_GRANTS_MAX}; nothing was granted. Void "
            "some (`meterkit grants list` shows them), or give the same in fewer, larger ones"
        )


async def read_granted(store: Store, customer: str, target: str, grant_id: str) -> int:
    """Read the quantity that a grant of the app's was added with; 0: there was never such a grant.

    Args:
        store: where the customer is.
        customer: the customer's id.
        target: of the grant, as the store writes it.
        grant_id: the name of the grant.

    Raises:
        StoreError: the store does not answer.
    """
    admin, keys = await store.admin(), store.keys.customer(customer)
    line: bytes | None = await admin.ask(admin.client.hget(keys.ledger, f"grant a {target} {grant_id}"))
    return int((line or b"0").split()[0])


async def move_grants(store: Store, customer: str, before: Bounds, after: Bounds) -> None:
    """End recurring grants with their period, whose edges Stripe has moved.

    Args:
        store: where the customer is.
        customer: the customer's id.
        before: the period as it was known.
        after: the period now.

    Raises:
        StoreError: the store does not answer.
    """
    if before == after:
        return
    admin, keys = await store.admin(), store.keys.customer(customer)
    found: dict[bytes, bytes] = await admin.ask(admin.client.hgetall(keys.grants))
    fields = {name.decode(): text.decode() for name, text in found.items()}
    moved = find_moved_grants(fields, store.catalog, before, after)
    if moved:
        asked = [(one.name, f"{one.expires_ms}", f"{one.until_ms}", one.given_as) for one in moved]
        await admin.run(store.scripts["move_grants"], [keys.grants, keys.ledger], json.dumps(asked))


class ReclaimedQuantity(NamedTuple):
    """The result of a refund of a grant's payment, in units of its meter, or in micro-credits.

    Attributes:
        more: how much was refunded that :func:`mark_reclaim_reported` does not know of.
        taken: how much of that the grant had left, or the customer owes.
    """

    more: int
    taken: int


async def reclaim_grant(
    store: Store,
    customer: str,
    target: str,
    *,
    grant_id: str,
    refunded: int,
    stops_automatic: bool,
    owes: bool,
) -> ReclaimedQuantity:
    """Take back of a grant the refunded part, as far as it is left; or have the rest owed.

    Repeated, it changes nothing and replies the same.

    Args:
        store: where the customer is.
        customer: the customer's id.
        target: of the grant, as the store writes it.
        grant_id: the name of the grant.
        refunded: how much of it was refunded in all, in units of a meter, or in micro-credits.
        stops_automatic: whether automatic top-ups stop until the next one is paid.
        owes: whether what the grant has not left is owed.

    Raises:
        StoreError: the store does not answer.
    """
    admin, keys = await store.admin(), store.keys.customer(customer)
    name, script = f"a {target} {grant_id}", store.scripts["reclaim_grant"]
    more, taken = await admin.run(
        script, [keys.grants, keys.ledger], name, refunded, int(stops_automatic), int(owes)
    )
    drop_allotments(store, customer)
    return ReclaimedQuantity(more=more, taken=taken)


async def mark_reclaim_reported(store: Store, customer: str, target: str, grant_id: str) -> None:
    """Mark all that was taken back of a grant as reported. Raises StoreError: the store does not answer."""
    admin, keys = await store.admin(), store.keys.customer(customer)
    await admin.ask(admin.client.hdel(keys.ledger, f"unreported a {target} {grant_id}"))


_PRIORITY_MAX: Final = 1000
_FIRST: Final = datetime(1970, 1, 2, tzinfo=UTC)
_LAST: Final = datetime(9998, 12, 31, tzinfo=UTC)


class Grants:
    """Adds, lists and voids grants.

    Each method raises :class:`~meterkit.errors.CustomerError` for a customer id that is not allowed and
    :class:`~meterkit.errors.StoreError` where the store does not answer; a customer whose stored grants are
    damaged is named by a :class:`~meterkit.errors.MeterkitError`.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._states = CustomerStates(store)

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
        customer = check_customer(customer)
        now_ms = self._store.now_ms()
        effective_ms = 0 if effective_at is None else _check_instant("effective_at", effective_at)
        expires_ms = NEVER_MS if expires_at is None else _check_instant("expires_at", expires_at)
        grant_id = _check_id(grant_id)
        if type(priority) is not int or not 0 <= priority <= _PRIORITY_MAX:
            raise MeterkitError(f"priority: found {priority!r:.40}; allowed is 0 to {_PRIORITY_MAX}")
        is_over = expires_ms <= max(now_ms, effective_ms)
        if is_over and not await self._was_given(customer, grant_id):  # A repeat may come after the end.
            found = "" if expires_at is None else expires_at.isoformat()
            raise MeterkitError(
                f"expires_at: found {found}; it must lie in the future, and after effective_at"
            )
        terms = (priority, effective_ms, expires_ms)
        await add_grant(self._store, customer, self._targets(quantities), grant_id=grant_id, terms=terms)

    async def list(self, customer: str) -> Sequence[Grant]:
        """All grants of a customer, the plan's of this period too, in the order in which they are used up.

        Those that ended in an earlier period come last.
        """
        customer = check_customer(customer)
        with refuse_unreadable("grants", customer):
            return build_grants(*await self._read(customer))

    async def void(self, customer: str, grant_id: str) -> None:
        """Take back what a grant of the app's has left; what it has paid stays paid. Repeated: a no-op.

        A later correction returns nothing to it.

        Raises:
            MeterkitError: there was never such a grant, or it is one of the plan's.
        """
        customer, grant_id = check_customer(customer), _check_id(grant_id)
        admin, keys = await self._store.admin(), self._store.keys.customer(customer)
        with refuse_unreadable("grants", customer):
            held, ledger, _ = await self._read(customer)
        # A used-up grant is in the ledger only.
        names = [field.partition(" ")[2] for field in ledger if is_grant_of_app(field, grant_id)]
        if names:
            await admin.run(self._store.scripts["void_grants"], [keys.grants, keys.ledger], *names)
            drop_allotments(self._store, customer)
        else:
            known = (source_and_id(found.name) for found in held)
            near = suggestion(grant_id, [own for source, own in known if source == "app"])
            raise MeterkitError(
                f"grant_id: customer {customer!r} has no grant {grant_id!r:.80} that the app added{near}; a"
                " grant of the plan cannot be voided"
            )

    async def ledger(self, customer: str) -> Sequence[LedgerEntry]:
        """The lines of all of a customer's grants; what the live ones have left follows from them."""
        customer = check_customer(customer)
        with refuse_unreadable("grants", customer):
            return build_ledger(*await self._read(customer))

    async def _read(self, customer: str) -> tuple[Sequence[StoredGrant], Mapping[str, str], int]:
        """Read a customer's grants, the ledger, and the time of reading."""
        reply = await self._store.read_grants(customer)
        with refuse_unreadable("grants", customer):
            funds, lines = read_funds(reply.funds), text_fields(reply.ledger)
            for line, part in funds.unwritten.items():
                lines[line] = str(int(lines.get(line, "0").partition(" ")[0]) + part)
        return funds.held, lines, reply.now_ms

    async def _was_given(self, customer: str, grant_id: str) -> bool:
        admin, keys = await self._store.admin(), self._store.keys.customer(customer)
        return await admin.ask(admin.client.hget(keys.ledger, f"id {grant_id}")) is not None

    def _targets(self, quantities: object) -> Sequence[tuple[str, int]]:
        if not isinstance(quantities, Mapping) or not quantities:
            raise MeterkitError(
                "quantities: allowed is a mapping of meters or credits to quantities, with one at least"
            )
        given = cast("Mapping[object, object]", quantities)
        return sorted(_check_target(name, quantity, self._store.catalog) for name, quantity in given.items())


def _check_target(name: object, quantity: object, catalog: Catalog) -> tuple[str, int]:
    kind = _kind_of(name, catalog)
    most = QUANTITY_MAX if kind == "meter" else CREDITS_MAX
    if type(quantity) is not int or not 1 <= quantity <= most:
        raise QuantityError(
            f"quantity of {name}: found {quantity!r:.40}; allowed is an integer from 1 to {most}"
        )
    return target_of(kind, plain_text(cast("str", name))), quantity * (MICRO if kind == "credit" else 1)


def _kind_of(name: object, catalog: Catalog) -> GrantKind:
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


def _check_instant(what: str, moment: datetime) -> int:
    found_ms = aware_ms(what, moment)
    if not _FIRST <= moment <= _LAST:
        raise MeterkitError(f"{what}: found {moment.isoformat()}; allowed are instants from 1970 to 9998")
    return found_ms


def _check_id(grant_id: object) -> str:
    # The rule of customer ids, and nothing in it that cannot be seen.
    if is_customer(grant_id) and grant_id.isprintable():
        return plain_text(grant_id)
    raise MeterkitError(
        f"grant_id: allowed is a text of 1 to {CUSTOMER_BYTES_MAX} bytes of UTF-8 without control characters"
    )
