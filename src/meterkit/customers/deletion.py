"""Deletion of a customer: erase everything that is stored under its id.

Marks of event ids stay until they expire: they hold digests and no id, and keep a repeated job from being
counted twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from meterkit.customers.drift_records import DriftRecords
from meterkit.customers.history import read_links
from meterkit.customers.links import StripeLinker, remember_deleted
from meterkit.customers.states import CustomerStates
from meterkit.decisions.periods import DAY_MS, HOUR_MS
from meterkit.errors import CustomerError, StoreError
from meterkit.store.input_checks import check_customer
from meterkit.store.message_queue import forget_messages
from meterkit.store.provider_jobs import forget_jobs

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from meterkit.store.store import Store

_TRIES: Final = 32
_PAGE: Final = 256
_DONE: Final = 0
_UNDELIVERED: Final = 2
_PARKED_OR_DEAD: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Deleted:
    """The number of erased entries of a customer, by kind.

    Attributes:
        state: 1 if the customer had a record: plan, status, subscription, overrides.
        link: 1 where it was linked to a Stripe customer.
        counters: fields: of a rate or a meter each.
        periods: figures of periods that are over, and of deliveries.
        grants: grants, and figures that belong to them.
        grant_ledger: lines of their ledger.
        gauges: levels.
        idempotency_keys: digests of the customer's own keys of requests.
        history: changes in the ledger of the customer.
        notices: events that were delivered to handlers or waited for it.
        subjects: users, teams and the like with live counters.
        corrections: what was asked and done by ``kit.correct``, of 400 days.
        jobs: of a provider, that its requests began in the last 40 days.
        preferences: 1 if the customer had declined e-mails.
    """

    customer: str
    state: int
    link: int
    counters: int
    periods: int
    grants: int
    grant_ledger: int
    gauges: int
    idempotency_keys: int
    history: int
    notices: int
    corrections: int
    subjects: int
    jobs: int
    preferences: int


async def delete_customer(store: Store, customer: str) -> Deleted:
    """Delete a customer; see :meth:`meterkit.Customers.delete`."""
    customer = check_customer(customer)
    admin, keys, states = (
        await store.admin(),
        store.keys.customer(customer),
        CustomerStates(store),
    )
    names = [
        *(keys.counters, keys.state, keys.totals),
        *(store.keys.shard(keys.shard, "customers"), keys.dirty, keys.unlinked),
        *(keys.grants, keys.ledger, keys.levels, keys.marks, keys.history, store.keys.turns(keys.shard)),
        *(keys.corrections, keys.objects, keys.over),
        *([store.keys.audit(keys.shard), store.keys.audit_sums(keys.shard)] if store.is_audited else ()),
    ]
    links = StripeLinker(store)
    former = await read_links(store, customer)
    await _forget_former_links(store, customer, former)
    for _ in range(_TRIES):
        rev, state = await states.read(customer)
        if state.stripe_customer is not None:
            await links.retire(customer, state.stripe_customer)
        reply: list[Any] = await admin.run(store.scripts["forget_customer"], names, rev, customer)
        if reply[0] == _UNDELIVERED:
            raise CustomerError(
                f"customer {customer!r} has usage that is not delivered yet; {_cure_of(store)}"
            )
        if reply[0] == _PARKED_OR_DEAD:
            raise CustomerError(
                f"customer {customer!r} has usage that is parked or dead, which Stripe does not have;"
                " `meterkit outbox list` names it and says why: redrive it, or drop it"
            )
        if reply[0] == _DONE:
            store.cache.forget(customer)
            await _forget_in_lists(store, customer)
            await forget_messages(store, customer)
            hour = store.now_ms() // HOUR_MS
            await admin.ask(
                admin.client.delete(*(store.keys.presigned(customer, hour - n) for n in range(3)))
            )
            linked = {name for name in former if await links.has_tombstone(customer, name)}
            if state.stripe_customer is not None:
                linked.add(state.stripe_customer)
            for name in sorted(linked):
                await links.retire(customer, name, done=True)
                await remember_deleted(admin, store.keys, name, customer)
            _, counters, set_up, periods, grants, grant_ledger, gauges, idempotency_keys, history, ids = reply
            deleted = Deleted(
                customer=customer,
                state=set_up,
                link=int(bool(linked)),
                counters=counters,
                periods=periods,
                grants=grants,
                grant_ledger=grant_ledger,
                gauges=gauges,
                idempotency_keys=idempotency_keys,
                history=history,
                notices=await _forget_notices(store, customer),
                corrections=await _forget_corrections(store, customer, ids),
                subjects=await _forget_subjects(store, customer),
                jobs=await forget_jobs(store, customer),
                preferences=await admin.ask(admin.client.delete(store.keys.unwanted(customer))),
            )
            # Last: a repeat of a deletion that failed needs it.
            await admin.ask(admin.client.ltrim(keys.history, history, -1))
            return deleted
    raise StoreError(f"customer {customer!r} changed {_TRIES} times while it was deleted; try again")


def _cure_of(store: Store) -> str:
    """Describe how undelivered usage gets delivered."""
    if not store.catalog.billing.is_by_lines:
        return "flush first"
    return (
        "its invoice lines are written at the end of the billing period: end the subscription, or wait; flush"
    )


async def _forget_former_links(store: Store, customer: str, former: Collection[str]) -> None:
    """Replace the customer's id by its shard at the Stripe customers that it was linked to before."""
    admin = await store.admin()
    for stripe_customer in former:
        if await admin.ask(admin.client.hget(store.keys.formers(stripe_customer), customer)):
            await remember_deleted(admin, store.keys, stripe_customer, customer)


async def _forget_in_lists(store: Store, customer: str) -> None:
    """Erase the customer from lists that name many customers; `test_deletion_traces.py` has them all."""
    admin, keys, now_ms = await store.admin(), store.keys, store.now_ms()
    await DriftRecords(store).forget(customer)
    shard = keys.customer(customer).shard
    for key in (keys.hooks("changes"), keys.hooks("prices"), keys.relist(shard)):
        await admin.ask(admin.client.zrem(key, customer))
    # The keys of a day are kept for two days after its last spike.
    for key in (keys.spikes(shard, now_ms - days * DAY_MS) for days in range(3)):
        names: list[bytes] = await admin.ask(admin.client.hkeys(key))
        own = [name for name in names if name.decode().partition(" ")[2] == customer]
        if own:
            await admin.ask(admin.client.hdel(key, *own))


async def _forget_corrections(store: Store, customer: str, digests: Sequence[bytes]) -> int:
    """Erase what was done under the ids of corrections; how many there were."""
    if not digests:
        return 0
    admin, shard = await store.admin(), store.keys.customer(customer).shard
    names = [store.keys.correction(shard, digest.decode()) for digest in digests]
    erased = int(await admin.ask(admin.client.delete(*names)))
    await admin.ask(admin.client.srem(store.keys.customer(customer).corrections, *digests))
    return erased


async def _forget_subjects(store: Store, customer: str) -> int:
    """Erase the counters of a customer's users, teams and the like; how many of them had live ones."""
    admin, keys = await store.admin(), store.keys
    index = keys.subjects(customer)
    members: list[bytes] = await admin.ask(admin.client.zrange(index, 0, -1))
    erased = 0
    for at in range(0, len(members), _PAGE):
        parts = [member.decode().partition(":") for member in members[at : at + _PAGE]]
        names = [keys.subject(customer, kind, subject) for kind, _, subject in parts]
        erased += await admin.ask(admin.client.delete(*names))  # Of expired ones there are none.
    await admin.ask(admin.client.delete(index))
    return erased


async def _forget_notices(store: Store, customer: str) -> int:
    """Erase the notices about a customer, delivered or not; how many there were."""
    admin, key = await store.admin(), store.keys.customer(customer).notices
    begin, erased = "-", 0
    while True:
        page: list[Any] = await admin.ask(admin.client.xrange(key, min=begin, max="+", count=_PAGE))
        own = [entry for entry, fields in page if fields.get(b"customer") == customer.encode()]
        if own:
            erased += await admin.ask(admin.client.xdel(key, *own))
        if len(page) < _PAGE:
            return erased
        begin = f"({page[-1][0].decode()}"
