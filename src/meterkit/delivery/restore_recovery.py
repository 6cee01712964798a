"""Recovery after a restore of the store: settle the parked intents by the units that Stripe has."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from secrets import token_hex
from typing import TYPE_CHECKING, Final, Literal

from meterkit.decisions.periods import to_ms
from meterkit.delivery.lost_deliveries import DeliveryGap, LostDeliveries, group_by_line
from meterkit.errors import MeterkitError, StoreError, StripeError
from meterkit.outbox.intents import RESTORED, count_members, read_intents_in
from meterkit.outbox.operator_commands import change_state
from meterkit.outbox.sealer import REPORTED
from meterkit.store.event_names import read_meters
from meterkit.store.input_checks import check_customer
from meterkit.store.server_restarts import ServerLives
from meterkit.store.task_lease import TaskLease
from meterkit.store.unreadable_data import UNREADABLE, is_of_the_store
from meterkit.stripe.request import UNKNOWN_CUSTOMER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import datetime

    from meterkit.delivery.lost_deliveries import IntentLine
    from meterkit.delivery.summaries import StripeSummaries
    from meterkit.outbox.intents import StoredIntent
    from meterkit.outbox.journal import Journal
    from meterkit.store.event_names import ReportedMeter
    from meterkit.store.store import Store

_logger = logging.getLogger("meterkit.delivery")

_REST: Final = "rest"
_HELD: Final = "another process recovers; try again in a minute"
_LEASE_MS: Final = 60_000
_LATER_MS: Final = 600_000
_BY_HAND: Final = (
    "Stripe shows no usage of this customer ({error}): drop the intents (`meterkit outbox list --customer`)"
    " and bill by hand the units that its invoices lack"
)
_OF_OTHERS: Final = (
    "{units} of the billed units are not in the journal of deliveries: if something else sends events for"
    " this customer and meter, bill them by an invoice item"
)
_LOST: Final = "; the counters lack {} units more: `meterkit recover` restores them from the audit log"
_UNREADABLE: Final = (
    "nothing is settled: the stored data cannot be read: {error}; correct them by hand, and run this again"
)
_UNPROVEN: Final = (
    "Stripe has {unknown} units of {event} more than the store knows of: this may be among them; `meterkit"
    " recover` settles it"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveredMeter:
    """Units of one customer and meter that a restore has parked, and their outcome, in the meter's unit.

    Attributes:
        event_name: of the meter at Stripe.
        parked: units that the restore has parked.
        unknown: units that Stripe has and the store does not know of; None: Stripe does not say.
        billed: parked units that Stripe has: they count as delivered.
        sent: parked units that Stripe lacks: they are queued for delivery.
        lost: units that Stripe has and the store has lost with their records; nothing is to be billed.
        advice: for an operator; empty: none.
    """

    customer: str
    meter: str
    event_name: str
    parked: int
    unknown: int | None
    billed: int = 0
    sent: int = 0
    lost: int = 0
    advice: str = ""


def distribute_billed(quantities: Sequence[int], billed: int) -> list[int]:
    """Distribute billed units to intents in order, so that at most one is billed in part. Pure.

    Args:
        quantities: of the intents.
        billed: units of all of them that Stripe has.
    """
    found: list[int] = []
    for quantity in quantities:
        part = min(quantity, billed)
        found.append(part)
        billed -= part
    return found


class RestoreRecoverer:
    """Settles intents that a restore has parked, customer by customer and meter by meter.

    Of the parked units, Stripe has at most as many as it has units that the store does not know of. So many
    count as delivered. Stripe certainly lacks the others, and they are sent. No unit is billed twice.

    Args:
        store: has the intents.
        summaries: what Stripe has counted.
        journal: the journal of deliveries; None: there is none.
    """

    def __init__(self, store: Store, summaries: StripeSummaries, journal: Journal | None = None) -> None:
        self._store = store
        self._summaries = summaries
        self._lost = LostDeliveries(store, summaries, journal)
        self._lives = ServerLives(store)

    async def not_compared(self) -> int:
        """Count the shards whose waiting intents the flusher has still to compare. Raises StoreError."""
        admin, shards = (await self._store.admin()).for_delivery(), set[int]()
        for shard, place in await count_members(self._store, admin, ("dirty", "outbox"), limit="+inf"):
            life = await self._lives.read_life(shard)
            # Usage pending at the restart is sealed when the server is met; the rest came later.
            is_sealed = life.is_noticed and life.sealed_ms > 0 and place == "dirty"
            if life.known and not life.is_known and not is_sealed:
                shards.add(shard)
        return len(shards)

    async def doubt(self, since: datetime) -> None:
        """Make the flusher compare all waiting intents, as after a restore of a backup.

        Args:
            since: instant of the backup.

        Raises:
            MeterkitError: it is in the future.
            StoreError: the store does not answer.
        """
        if to_ms(since) > self._store.now_ms():
            raise MeterkitError(
                f"since: found {since.isoformat()}, which is in the future; name the instant of the backup"
            )
        await self._lives.mark_doubted(int(since.timestamp() * 1000))

    async def recover(
        self,
        customer: str | None = None,
        *,
        dry_run: bool = False,
        by: str = "api",
        progress: Callable[[int, int], object] | None = None,
    ) -> Sequence[RecoveredMeter]:
        """Settle the intents that a restore has parked; customers whose stored data are damaged get advice.

        Args:
            customer: only of this customer; default: of all.
            dry_run: only report what would be done.
            by: the operator, for the customer's ledger.
            progress: called with the number of customers and meters that are done, and the number of all.

        Raises:
            CustomerError: the id is not allowed.
            MeterkitError: another process recovers.
            StripeError: Stripe refuses, or does not answer.
            StoreError: the store does not answer.
        """
        if customer is not None:
            customer = check_customer(customer)
        lease = self._lease()
        async with lease.held() as is_held:
            if not is_held:
                raise MeterkitError(_HELD)
            lines = await self._read_lines(customer)
            if lines or not self._store.catalog.billing.is_by_lines:
                await self._summaries.refresh()
            admin = (await self._store.admin()).for_delivery()
            found: list[RecoveredMeter] = []
            for line in lines:
                try:
                    meters = await read_meters(admin, self._store.keys, self._store.catalog, line.customer)
                    found.append(await self._recover_line(line, meters, lease, dry_run=dry_run, by=by))
                except (StoreError, *UNREADABLE) as error:
                    if is_of_the_store(error):
                        raise
                    found.append(replace(_unsettled(line), advice=_UNREADABLE.format(error=error)))
                if progress is not None:
                    progress(len(found), len(lines))
            return found

    async def settle_proven(
        self, one: StoredIntent, *, by: str
    ) -> Literal["again", "delivered", "replace", "person"]:
        """Settle the line of a parked intent as far as the journal of deliveries proves it.

        Parked units count as delivered only if the journal has as many. Units that Stripe lacks are sent. The
        others stay parked, with the reason. If the journal does not answer, the line is due again in ten
        minutes.

        Args:
            one: an intent parked by a restore.
            by: the author, for the customer's ledger.

        Returns:
            Outcome of the line; ``again``: it has changed, or another process settles it.

        Raises:
            StripeError: Stripe refuses the key, or does not answer.
            StoreError: the store does not answer.
        """
        store, admin = self._store, (await self._store.admin()).for_delivery()
        lease = self._lease()
        async with lease.held() as is_held:
            lines = await self._read_lines(one.customer) if is_held else ()
            line = next((line for line in lines if one in line.intents), None)
            if line is None:
                return "again"
            meters = await read_meters(admin, store.keys, store.catalog, line.customer)
            done = await self._recover_line(line, meters, lease, dry_run=False, by=by, only_proven=True)
        if done.billed:
            _logger.warning(
                "the journal of deliveries settles %d units of %s that a restore had parked of customer %r:"
                " Stripe has %d, and %d are sent%s",
                done.parked,
                done.event_name,
                done.customer,
                done.billed,
                done.sent,
                _LOST.format(done.lost) if done.lost else "",
                extra=REPORTED,
            )
        if done.billed + done.sent < done.parked:
            return "again" if self._lost.is_journal_down else "person"
        return "delivered" if done.billed else "replace"

    def _lease(self) -> TaskLease:
        return TaskLease(self._store, self._store.keys.shard(0, "recover:lease"), lasts_ms=_LEASE_MS)

    async def _read_lines(self, customer: str | None) -> Sequence[IntentLine]:
        """Read parked intents of a restore, line by line, sorted."""
        admin = (await self._store.admin()).for_delivery()
        found = [
            intent
            for shard in await self._shards(customer)
            async for page in read_intents_in(self._store, admin, shard, "parked")
            for intent in page
            if RESTORED in intent.fields and customer in {None, intent.customer}
        ]
        return sorted(group_by_line(found), key=lambda line: line.names)

    async def _shards(self, customer: str | None) -> Iterable[int]:
        """List the shards that may have parked intents of a customer; None: of all."""
        if customer is not None:
            return (self._store.keys.customer(customer).shard,)
        admin = (await self._store.admin()).for_delivery()
        return [shard for shard, _ in await count_members(self._store, admin, ("parked",), limit="+inf")]

    async def _recover_line(
        self,
        line: IntentLine,
        meters: Mapping[str, ReportedMeter],
        lease: TaskLease,
        *,
        dry_run: bool,
        by: str,
        only_proven: bool = False,
    ) -> RecoveredMeter:
        counted, units, gap = meters.get(line.intents[0].fields["meter"]), _parked_units(line), _gap_of(line)
        found = _unsettled(line)
        if counted is not None:
            found = replace(found, meter=counted.meter)
        try:
            unknown = await self._lost.count_unknown(
                line,
                gap=gap,
                names={token: one.event_name for token, one in meters.items()},
                is_exact=True,
            )
            billed = min(max(0, unknown), units)
            ordered = await self._order_by_proof(line) if 0 < billed < units else line.intents
        except StripeError as error:
            if error.status not in UNKNOWN_CUSTOMER:
                raise
            found = replace(found, advice=_BY_HAND.format(error=error))
            if only_proven:
                await self._leave_parked(line.intents, found.advice, by)
            return found
        in_journal = await self._lost.units_in_journal(line, gap, billed) if billed else 0
        sent, lost = units - billed, max(0, unknown - billed)
        found = replace(found, unknown=unknown, billed=billed, sent=sent, lost=lost)
        if in_journal is not None and in_journal < billed:
            found = replace(found, advice=_OF_OTHERS.format(units=billed - in_journal))
        is_proven = not only_proven or (in_journal is not None and in_journal >= billed)
        if not is_proven:
            found = replace(found, billed=0, sent=0 if in_journal is None else sent)
        if not await lease.acquire():  # A long gap takes minutes to compare.
            raise MeterkitError(_HELD)
        why = _UNPROVEN.format(unknown=unknown, event=line.event_name)
        if not is_proven and in_journal is None:
            await self._leave_parked(line.intents, why, by)
        elif not dry_run:
            ordered = [await self._rejoin_intent(intent) for intent in ordered]
            for intent, part in zip(
                ordered, distribute_billed([intent.value for intent in ordered], billed), strict=True
            ):
                await self._settle_intent(intent, part, by, why="" if is_proven else why)
        return found

    async def _leave_parked(self, intents: Iterable[StoredIntent], why: str, by: str) -> None:
        """Leave intents parked for an operator; if the journal does not answer, they are compared again."""
        later_ms = _LATER_MS if self._lost.is_journal_down else None
        for intent in intents:
            fields = {"why": why, _REST: intent.fields.get(_REST, "")}
            after = "" if intent.fields.get("why") == why else f"parked: {why}"
            await change_state(
                self._store, intent, "parked", cause=by, after=after, compare_in_ms=later_ms, fields=fields
            )

    async def _order_by_proof(self, line: IntentLine) -> list[StoredIntent]:
        """Sort the line's intents: first those whose own minute has just their units at Stripe."""
        is_there = {
            intent.identifier: await self._lost.read_minute(intent) == intent.value + _cut_off_units(intent)
            for intent in line.intents
        }
        return sorted(line.intents, key=lambda intent: not is_there[intent.identifier])

    async def _settle_intent(self, intent: StoredIntent, billed: int, by: str, why: str = "") -> None:
        """Count billed units as delivered and queue the others; with ``why``, billed ones stay parked."""
        store, left = self._store, intent.value - billed
        if billed and left:
            intent = await self._split_intent(intent, billed, by)
        if billed and why:
            await self._leave_parked((intent,), why, by)
        elif billed:
            after = f"delivered: Stripe has {billed} units of it that the store had lost"
            await change_state(store, intent, "delivered", cause=by, after=after)
        else:
            # Under the same identifier: if Stripe has just this one, it counts once.
            untried = intent.renamed(intent.identifier, store.now_ms())
            after = "queued: Stripe does not have it"
            await change_state(store, intent, "queued", cause=by, replacement=untried, after=after)

    async def _split_intent(self, intent: StoredIntent, billed: int, by: str) -> StoredIntent:
        """Split off the units that Stripe lacks and queue them as a new intent; return the billed part.

        The first step stores both parts in one text. If the process ends between the steps, the next run
        joins them again.
        """
        store, keys = self._store, self._store.keys
        left = intent.value - billed
        why = intent.fields.get("why", "")
        cut = replace(intent, fields={**intent.fields, "value": f"{billed}"})
        more = {"why": why, _REST: f"{left}"}
        if not await change_state(store, intent, "parked", cause=by, replacement=cut, fields=more):
            raise MeterkitError(f"intent {intent.identifier} has changed meanwhile; run this again")
        rest = replace(intent, fields={**intent.fields, "value": f"{left}", "why": why})
        identifier = f"{token_hex(16)}-1"
        fields = {name: text for name, text in cut.fields.items() if name != _REST} | {"why": why}
        texts = {
            intent.identifier: json.dumps(fields),
            identifier: json.dumps({**rest.fields, "key": identifier}),
        }
        admin = (await store.admin()).for_delivery()
        pipe = (await admin.at(keys.shard(intent.shard, "intents"))).client.pipeline(transaction=True)
        pipe.hset(keys.shard(intent.shard, "intents"), mapping=texts)
        pipe.zadd(keys.shard(intent.shard, "parked"), {identifier: store.now_ms()})
        await admin.ask(pipe.execute())
        new = replace(rest, identifier=identifier, text=texts[identifier])
        await self._settle_intent(new, 0, by)
        return replace(intent, fields=fields, text=texts[intent.identifier])

    async def _rejoin_intent(self, intent: StoredIntent) -> StoredIntent:
        """Add the units that an earlier run has split off an intent without making a new one."""
        if not _cut_off_units(intent):
            return intent
        fields = {name: text for name, text in intent.fields.items() if name != _REST}
        fields["value"] = f"{intent.value + _cut_off_units(intent)}"
        text = json.dumps(fields)
        admin = (await self._store.admin()).for_delivery()
        key = self._store.keys.shard(intent.shard, "intents")
        await admin.ask(admin.client.hset(key, intent.identifier, text))
        return replace(intent, fields=fields, text=text)


def _unsettled(line: IntentLine) -> RecoveredMeter:
    return RecoveredMeter(
        customer=line.customer,
        meter=line.event_name,
        event_name=line.event_name,
        parked=_parked_units(line),
        unknown=None,
    )


def _cut_off_units(intent: StoredIntent) -> int:
    return int(intent.fields.get(_REST, "0"))


def _parked_units(line: IntentLine) -> int:
    return sum(intent.value + _cut_off_units(intent) for intent in line.intents)


def _gap_of(line: IntentLine) -> DeliveryGap:
    """Span that covers the gaps of all intents of a line."""
    gaps = [DeliveryGap.read(intent.fields[RESTORED]) for intent in line.intents]
    return DeliveryGap(from_ms=min(one.from_ms for one in gaps), till_ms=max(one.till_ms for one in gaps))
