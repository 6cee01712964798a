"""Settle what a restore of the store has parked, by what Stripe has: all of it, or what is proven."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from secrets import token_hex
from typing import TYPE_CHECKING, Final, Literal

from meterkit.delivery.lost_deliveries import DeliveryGap, LostDeliveries
from meterkit.errors import MeterkitError, StripeError
from meterkit.outbox.intents import RESTORED, count_members, read_intents_in
from meterkit.outbox.operator_commands import change_state
from meterkit.outbox.sealer import REPORTED
from meterkit.store.event_names import read_meters
from meterkit.store.input_checks import check_customer
from meterkit.store.server_restarts import ServerLives
from meterkit.store.task_lease import TaskLease

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import datetime

    from meterkit.delivery.summaries import Summaries
    from meterkit.outbox.intents import StoredIntent
    from meterkit.outbox.journal import Journal
    from meterkit.store.event_names import ReportedMeter
    from meterkit.store.store import Store

_logger = logging.getLogger("meterkit.delivery")

_REST: Final = "rest"
_HELD: Final = "another process recovers; try again in a minute"
_NOT_THERE: Final = (HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND)
_LEASE_MS: Final = 60_000
_LATER_MS: Final = 600_000
_BY_HAND: Final = (
    "Stripe does not say what it has of this customer ({error}): drop the intents (`meterkit outbox list"
    " --customer`) and bill by hand what its invoices lack"
)
_OF_OTHERS: Final = (
    "{units} of the billed units are not in the journal of deliveries: if something else sends events for"
    " this customer and meter, bill them by an invoice item"
)
_LOST: Final = "; the counters lack {} units more: `meterkit recover` takes them from the audit log"
_UNPROVEN: Final = (
    "Stripe has {unknown} more of {event} than the store knows of: this may be among them; `meterkit recover`"
    " settles it"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveredMeter:
    """What a restore has parked of one customer and meter, and what becomes of it, in the meter's unit.

    Attributes:
        event_name: of the meter at Stripe.
        parked: how many units the restore has parked.
        unknown: how many units Stripe has that the store does not know of; None: Stripe does not say.
        billed: parked units that Stripe has: they count as delivered.
        sent: parked units that Stripe lacks: they are queued for delivery.
        lost: units that Stripe has and the store has lost with their records; nothing is to be billed.
        advice: what a person must do; empty: nothing.
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


@dataclass(slots=True)
class _Line:
    """What a restore has parked of one customer and event name, for one Stripe customer."""

    customer: str
    event_name: str
    stripe_customer: str
    parked: list[StoredIntent] = field(default_factory=list["StoredIntent"])

    @property
    def units(self) -> int:
        return sum(kept.value + _cut_off_units(kept) for kept in self.parked)

    @property
    def gap(self) -> DeliveryGap:
        gaps = [DeliveryGap.read(kept.fields[RESTORED]) for kept in self.parked]
        return DeliveryGap(from_ms=min(one.from_ms for one in gaps), till_ms=max(one.till_ms for one in gaps))


def shares(quantities: Sequence[int], billed: int) -> list[int]:
    """How many units of each intent Stripe has, the first ones first: at most one is in parts. Pure.

    Args:
        quantities: of the intents.
        billed: how many units of all of them Stripe has.
    """
    found: list[int] = []
    for quantity in quantities:
        part = min(quantity, billed)
        found.append(part)
        billed -= part
    return found


class RestoreRecoverer:
    """Settles intents that a restore has parked, customer by customer and meter by meter.

    Stripe has at most as many of the parked units as it has units that the store does not know of. So many
    count as delivered; the rest is certainly not there, and is sent. Stripe never gets more than the truth.

    Args:
        store: where the intents are.
        summaries: what Stripe says.
        journal: has what Stripe has accepted; None: there is none.
    """

    def __init__(self, store: Store, summaries: Summaries, journal: Journal | None = None) -> None:
        self._store = store
        self._summaries = summaries
        self._forgotten = LostDeliveries(store, summaries, journal)
        self._lives = ServerLives(store)

    async def not_compared(self) -> int:
        """In how many shards the flusher has still to compare what waits. Raises StoreError."""
        admin, shards = (await self._store.admin()).for_delivery(), set[int]()
        for shard, place in await count_members(self._store, admin, ("dirty", "outbox"), limit="+inf"):
            life = await self._lives.of(shard)
            # Usage pending then is sealed as soon as the server is met: the rest came later.
            is_sealed = life.is_met and life.sealed_ms > 0 and place == "dirty"
            if life.known and not life.is_known and not is_sealed:
                shards.add(shard)
        return len(shards)

    async def doubt(self, since: datetime) -> None:
        """Have all that waits compared, as after a restore of a backup of that instant. Raises StoreError."""
        await self._lives.doubt(int(since.timestamp() * 1000))

    async def recover(
        self,
        customer: str | None = None,
        *,
        dry_run: bool = False,
        by: str = "api",
        progress: Callable[[int, int], object] | None = None,
    ) -> Sequence[RecoveredMeter]:
        """Settle what a restore has parked.

        Args:
            customer: whose; default: of all.
            dry_run: say what would be done.
            by: who does it, for the ledger of the customer.
            progress: called with how many customers and meters are done, and of how many.

        Raises:
            CustomerError: the id is not allowed.
            MeterkitError: another process does the same.
            StripeError: Stripe refuses, or does not answer.
            StoreError: the store does not answer.
        """
        if customer is not None:
            check_customer(customer)
        lease = self._lease()
        async with lease.held() as is_held:
            if not is_held:
                raise MeterkitError(_HELD)
            await self._summaries.refresh()
            admin = (await self._store.admin()).for_delivery()
            found: list[RecoveredMeter] = []
            lines = await self._lines(customer)
            for line in lines:
                meters = await read_meters(admin, self._store.keys, self._store.catalog, line.customer)
                found.append(await self._recover_line(line, meters, lease, dry_run=dry_run, by=by))
                if progress is not None:
                    progress(len(found), len(lines))
            return found

    async def settle_proven(
        self, one: StoredIntent, *, by: str
    ) -> Literal["again", "delivered", "replace", "person"]:
        """Settle the line of a parked intent without a person, as far as the journal of deliveries proves it.

        Parked units count as delivered only if the journal has as many. Units that Stripe lacks are sent. The
        rest stays parked, and says so. If the journal does not answer, the line is due again in ten minutes.

        Args:
            one: parked by a restore.
            by: who does it, for the ledger of the customer.

        Returns:
            What became of the line: ``again``, if it has changed or another process settles it.

        Raises:
            StripeError: Stripe refuses the key, or does not answer.
            StoreError: the store does not answer.
        """
        store, admin = self._store, (await self._store.admin()).for_delivery()
        lease = self._lease()
        async with lease.held() as is_held:
            lines = await self._lines(one.customer) if is_held else ()
            line = next((line for line in lines if one in line.parked), None)
            if line is None:
                return "again"
            meters = await read_meters(admin, store.keys, store.catalog, line.customer)
            done = await self._recover_line(line, meters, lease, dry_run=False, by=by, only_proven=True)
        if done.billed:
            _logger.warning(
                "the journal of deliveries settles %d units of %s that a restore had parked of customer %r:"
                " Stripe has %d, and %d are sent%s",
                *(done.parked, done.event_name, done.customer, done.billed, done.sent),
                _LOST.format(done.lost) if done.lost else "",
                extra=REPORTED,
            )
        if done.billed + done.sent < done.parked:
            return "again" if self._forgotten.is_journal_down else "person"
        return "delivered" if done.billed else "replace"

    def _lease(self) -> TaskLease:
        return TaskLease(self._store, self._store.keys.shard(0, "recover:lease"), lasts_ms=_LEASE_MS)

    async def _lines(self, customer: str | None) -> Sequence[_Line]:
        admin = (await self._store.admin()).for_delivery()
        lines: dict[tuple[str, str, str], _Line] = {}
        for shard in await self._shards(customer):
            async for page in read_intents_in(self._store, admin, shard, "parked"):
                for kept in page:
                    if RESTORED in kept.fields and customer in {None, kept.customer}:
                        names = (kept.customer, kept.fields["event"], kept.fields["stripe"])
                        lines.setdefault(names, _Line(*names)).parked.append(kept)
        return [lines[names] for names in sorted(lines)]

    async def _shards(self, customer: str | None) -> Iterable[int]:
        """The shards that may have parked intents of a customer; None: of all."""
        if customer is not None:
            return (self._store.keys.customer(customer).shard,)
        admin = (await self._store.admin()).for_delivery()
        return [shard for shard, _ in await count_members(self._store, admin, ("parked",), limit="+inf")]

    async def _recover_line(
        self,
        line: _Line,
        meters: Mapping[str, ReportedMeter],
        lease: TaskLease,
        *,
        dry_run: bool,
        by: str,
        only_proven: bool = False,
    ) -> RecoveredMeter:
        counted = meters.get(line.parked[0].fields["meter"])
        told = RecoveredMeter(
            customer=line.customer,
            meter=line.event_name if counted is None else counted.meter,
            event_name=line.event_name,
            parked=line.units,
            unknown=None,
        )
        try:
            unknown = await self._forgotten.unknown(
                line.customer,
                line.event_name,
                line.stripe_customer,
                since_ms=min(int(kept.fields["period"]) for kept in line.parked),
                gap=line.gap,
                names={token: one.event_name for token, one in meters.items()},
                is_exact=True,
            )
            billed = min(max(0, unknown), line.units)
            ordered = await self._order_by_proof(line) if 0 < billed < line.units else line.parked
        except StripeError as error:
            if error.status not in _NOT_THERE:
                raise
            told = replace(told, advice=_BY_HAND.format(error=error))
            if only_proven:
                await self._leave_parked(line.parked, told.advice, by)
            return told
        names = (line.customer, line.event_name, line.stripe_customer)
        units_in_journal = await self._forgotten.units_in_journal(*names, line.gap, billed) if billed else 0
        sent, lost = line.units - billed, max(0, unknown - billed)
        told = replace(told, unknown=unknown, billed=billed, sent=sent, lost=lost)
        if units_in_journal is not None and units_in_journal < billed:
            told = replace(told, advice=_OF_OTHERS.format(units=billed - units_in_journal))
        is_proven = not only_proven or (units_in_journal is not None and units_in_journal >= billed)
        if not is_proven:
            told = replace(told, billed=0, sent=0 if units_in_journal is None else sent)
        if not await lease.take():  # A long gap takes minutes to compare.
            raise MeterkitError(_HELD)
        why = _UNPROVEN.format(unknown=unknown, event=line.event_name)
        if not is_proven and units_in_journal is None:
            await self._leave_parked(line.parked, why, by)
        elif not dry_run:
            ordered = [await self._rejoin_intent(kept) for kept in ordered]
            for kept, part in zip(ordered, shares([kept.value for kept in ordered], billed), strict=True):
                await self._settle_intent(kept, part, by, why="" if is_proven else why)
        return told

    async def _leave_parked(self, intents: Iterable[StoredIntent], why: str, by: str) -> None:
        """Leave parked intents to a person; if the journal does not answer, they are compared again first."""
        later_ms = _LATER_MS if self._forgotten.is_journal_down else None
        for kept in intents:
            more = {"why": why, _REST: kept.fields.get(_REST, "")}
            after = "" if kept.fields.get("why") == why else f"parked: {why}"
            await change_state(
                self._store, kept, "parked", cause=by, after=after, compare_in_ms=later_ms, fields=more
            )

    async def _order_by_proof(self, line: _Line) -> list[StoredIntent]:
        """Those first whose own minute has their quantity at Stripe: it has just these."""
        is_there: dict[str, bool] = {}
        for kept in line.parked:
            counted = await self._summaries.counted(
                line.event_name, line.stripe_customer, kept.minute_s, kept.minute_s + 60
            )
            is_there[kept.identifier] = counted == kept.value + _cut_off_units(kept)
        return sorted(line.parked, key=lambda kept: not is_there[kept.identifier])

    async def _settle_intent(self, kept: StoredIntent, billed: int, by: str, why: str = "") -> None:
        """Count so many units of an intent as delivered, and queue the rest; ``why``: those stay parked."""
        store, left = self._store, kept.value - billed
        if billed and left:
            kept = await self._split_intent(kept, billed, by)
        if billed and why:
            await self._leave_parked((kept,), why, by)
        elif billed:
            after = f"delivered: Stripe has {billed} of it that the store had forgotten"
            await change_state(store, kept, "delivered", cause=by, after=after)
        else:
            # Under the same identifier: should Stripe have just this, it counts that once.
            anew = kept.renamed(kept.identifier, store.now_ms())
            after = "queued: Stripe does not have it"
            await change_state(store, kept, "queued", cause=by, replacement=anew, after=after)

    async def _split_intent(self, kept: StoredIntent, billed: int, by: str) -> StoredIntent:
        """Cut off what Stripe lacks, and queue it as an intent of its own; the part that Stripe has.

        The first step keeps in one text what the intent is cut down to and what is cut off: a process that
        ends between the steps leaves that to the next run, which joins both again.
        """
        store, keys = self._store, self._store.keys
        left = kept.value - billed
        why = kept.fields.get("why", "")
        cut = replace(kept, fields={**kept.fields, "value": f"{billed}"})
        more = {"why": why, _REST: f"{left}"}
        if not await change_state(store, kept, "parked", cause=by, replacement=cut, fields=more):
            raise MeterkitError(f"intent {kept.identifier} has changed meanwhile; run this again")
        rest = replace(kept, fields={**kept.fields, "value": f"{left}", "why": why})
        identifier = f"{token_hex(16)}-1"
        fields = {name: text for name, text in cut.fields.items() if name != _REST} | {"why": why}
        texts = {
            kept.identifier: json.dumps(fields),
            identifier: json.dumps({**rest.fields, "key": identifier}),
        }
        admin = (await store.admin()).for_delivery()
        pipe = (await admin.at(keys.shard(kept.shard, "intents"))).client.pipeline(transaction=True)
        pipe.hset(keys.shard(kept.shard, "intents"), mapping=texts)
        pipe.zadd(keys.shard(kept.shard, "parked"), {identifier: store.now_ms()})
        await admin.ask(pipe.execute())
        new = replace(rest, identifier=identifier, text=texts[identifier])
        await self._settle_intent(new, 0, by)
        return replace(kept, fields=fields, text=texts[kept.identifier])

    async def _rejoin_intent(self, kept: StoredIntent) -> StoredIntent:
        """An intent with what an earlier run has cut off of it and not made an intent of."""
        if not _cut_off_units(kept):
            return kept
        fields = {name: text for name, text in kept.fields.items() if name != _REST}
        fields["value"] = f"{kept.value + _cut_off_units(kept)}"
        text = json.dumps(fields)
        admin = (await self._store.admin()).for_delivery()
        key = self._store.keys.shard(kept.shard, "intents")
        await admin.ask(admin.client.hset(key, kept.identifier, text))
        return replace(kept, fields=fields, text=text)


def _cut_off_units(kept: StoredIntent) -> int:
    return int(kept.fields.get(_REST, "0"))
