"""Grants as the store has them: added once by their id, and taken back where their payment was refunded."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.catalog.models import CREDITS_MAX
from meterkit.customers.states import States, ask_anew
from meterkit.decisions.stored_grants import find_moved_grants
from meterkit.decisions.subscription import NEVER_MS
from meterkit.errors import MeterkitError, QuantityError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.decisions.periods import Bounds
    from meterkit.store.store import Store

_GRANTS_MAX: Final = 256
_USED_OTHERWISE: Final = 1
_TOO_MUCH: Final = 2
_TOO_MANY: Final = 3


async def put(
    store: Store,
    customer: str,
    targets: Sequence[tuple[str, int]],
    *,
    grant_id: str,
    terms: tuple[int, int, int] = (50, 0, NEVER_MS),
) -> None:
    """Give a customer quantities; a grant of the same id is given once.

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
    await States(store).change(customer, lambda state: replace(state, granted=True))
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


async def is_given(store: Store, customer: str, grant_id: str) -> bool:
    """Whether a customer was given a grant of that id, used up or not. Raises StoreError."""
    admin, keys = await store.admin(), store.keys.customer(customer)
    return await admin.ask(admin.client.hget(keys.ledger, f"id {grant_id}")) is not None


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


class Reclaimed(NamedTuple):
    """The result of a refund of a grant's payment, in units of its meter, or in micro-credits.

    Attributes:
        more: how much more was refunded than was known.
        taken: how much of that the grant had left; it was taken back.
    """

    more: int
    taken: int


async def reclaim(
    store: Store, customer: str, target: str, *, grant_id: str, refunded: int, is_all: bool
) -> Reclaimed:
    """Take back of a grant the refunded part, as far as it is left. Repeated: a no-op.

    Args:
        store: where the customer is.
        customer: the customer's id.
        target: of the grant, as the store writes it.
        grant_id: the name of the grant.
        refunded: how much of it was refunded in all, in units of a meter, or in micro-credits.
        is_all: whether that is the whole payment: automatic top-ups stop until the next one is paid.

    Raises:
        StoreError: the store does not answer.
    """
    admin, keys = await store.admin(), store.keys.customer(customer)
    name, script = f"a {target} {grant_id}", store.scripts["reclaim_grant"]
    more, taken = await admin.run(script, [keys.grants, keys.ledger], name, refunded, int(is_all))
    ask_anew(store, customer)
    return Reclaimed(more=more, taken=taken)
