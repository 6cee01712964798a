"""Comparison of ambiguous intents with Stripe's summaries: each is delivered, replaced, or left parked."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from decimal import Decimal
from secrets import token_hex
from typing import TYPE_CHECKING, Final, Literal

from meterkit.customers.late_usage_on_price_change import MISSED, mark_intent_late
from meterkit.delivery.delivery_outcome import CLOCKS_APART_S, log_kept_parked, log_not_comparable
from meterkit.delivery.late_usage_withdrawal import LateIntents
from meterkit.delivery.lost_deliveries import LostDeliveries
from meterkit.delivery.restore_recovery import RestoreRecoverer
from meterkit.errors import MeterkitError, StripeError, StripeUnavailableError
from meterkit.outbox.intents import COMPARABLE_AFTER_MS, RESTORED, count_members, read_intents
from meterkit.outbox.operator_commands import change_state, withdraw
from meterkit.stripe.request import KEY_REFUSALS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from meterkit.delivery.flush_report import FlushReport
    from meterkit.delivery.summaries import StripeSummaries
    from meterkit.outbox.intents import StoredIntent
    from meterkit.outbox.journal import Journal
    from meterkit.store.store import Store

_logger = logging.getLogger("meterkit.delivery")
# https://docs.stripe.com/api/billing/meter-event/create: "within the past 35 calendar days"; less an hour.
_PAST_MS: Final = 35 * 86_400_000 - 3_600_000
# Larger pending usage of a closed period is split into several intents of one minute.
_SPLIT_AT: Final = 10**15 - 1
READS_APART_MS: Final = 600_000
"""Pause between the two reads of a summary."""
Verdict = Literal["again", "delivered", "replace", "person"]
"""Verdicts: compare again; Stripe has it; Stripe lacks it, so send a replacement; an operator must decide."""
CAUSE: Final = "reconcile"
"""Cause of a change by a comparison, in the customer's ledger."""
_PAGE: Final = 100
_LATER_MS: Final = 600_000
_MINUTE_S: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryReading:
    """Stripe's summary of an intent's minute (None: it has no such meter), and when it was read."""

    counted: Decimal | None
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Verdict on an ambiguous intent.

    Attributes:
        why: in words, for the customer's ledger or the operator.
        wait_ms: ``again``: time until the next comparison.
        keep: ``again``: the reading that the next one is compared with; None: there is none yet.
    """

    verdict: Verdict
    why: str = ""
    wait_ms: int = 0
    keep: SummaryReading | None = None


def judge(
    *,
    value: int,
    span: str = "its minute",
    minute_ms: int,
    first_attempt_ms: int,
    before: SummaryReading | None,
    now: SummaryReading,
) -> Judgement:
    """Judge an intent that Stripe may have, by two readings of the summary. Pure.

    Args:
        value: its quantity, with those of all intents in the same summary; below 0: a negative event.
        span: the span of the summary, in words.
        minute_ms: its timestamp.
        first_attempt_ms: when it was first tried.
        before: the previous reading; None: there was none.
        now: this reading.
    """
    if now.at_ms < first_attempt_ms + COMPARABLE_AFTER_MS:
        return Judgement(verdict="again", wait_ms=first_attempt_ms + COMPARABLE_AFTER_MS - now.at_ms)
    if value >= _SPLIT_AT:
        return Judgement(
            verdict="person",
            why=f"its minute may have another intent of {value}: its summary does not tell them apart",
        )
    if now.counted is None:
        return Judgement(verdict="person", why="Stripe has no meter with its event name, so no summary of it")
    if before is None:
        return Judgement(verdict="again", wait_ms=READS_APART_MS, keep=now)
    if now.at_ms < before.at_ms + READS_APART_MS:
        return Judgement(verdict="again", wait_ms=before.at_ms + READS_APART_MS - now.at_ms, keep=before)
    return _judge_readings(value, span, minute_ms, before, now)


def _judge_readings(
    value: int, span: str, minute_ms: int, before: SummaryReading, now: SummaryReading
) -> Judgement:
    if before.counted != now.counted:
        why = f"Stripe's summary of {span} said {before.counted}, and {now.counted} later"
        return Judgement(verdict="person", why=why)
    if now.counted == value:
        return Judgement(verdict="delivered", why=f"Stripe's summary of {span} said {value}, twice")
    if now.counted != 0:
        why = f"Stripe's summary of {span} says {now.counted}, and it is {value}"
        return Judgement(verdict="person", why=why)
    if value < 0:
        why = (
            "it is a negative event, and Stripe's summary of its minute says 0, as it may of a negative sum:"
            " check the customer's meter at Stripe; if the units are still counted, credit them by hand; then"
            " drop it"
        )
        return Judgement(verdict="person", why=why)
    if minute_ms < now.at_ms - _PAST_MS:
        why = "Stripe does not have it, and takes nothing older than 35 days: bill it by hand"
        return Judgement(verdict="person", why=why)
    return Judgement(verdict="replace", why=f"Stripe's summary of {span} said 0, twice")


class IntentComparer:
    """Compares the intents that are due; see :func:`meterkit.delivery.intent_comparer.judge`.

    Several may work at once: an intent changes only if it is still as it was read.

    Args:
        store: has the intents.
        summaries: what Stripe has counted.
        journal: the journal of deliveries; None: there is none.
    """

    def __init__(self, store: Store, summaries: StripeSummaries, journal: Journal | None = None) -> None:
        self._store = store
        self._summaries = summaries
        self._late = LateIntents(store)
        self._lost = LostDeliveries(store, summaries, journal)
        self._recoverer = RestoreRecoverer(store, summaries, journal)

    async def compare_due(self, report: FlushReport) -> None:
        """Compare all due intents; those that Stripe has count as delivered in the report.

        If Stripe does not answer, or the store's clock differs from Stripe's, the others wait.

        Raises:
            StoreError: the store does not answer.
        """
        is_refreshed = False
        async for intent in self._due():
            try:
                if not is_refreshed:
                    await self._summaries.refresh()
                    is_refreshed = True
                if not self._is_clock_right():
                    await self._postpone(intent)
                    return
                report.delivered += await self.compare(intent) == "delivered"
            except StripeError as error:
                _logger.warning("intents are not compared with Stripe's summaries: %s", error)
                await self._postpone(intent)
                return
            except MeterkitError as error:
                # Damaged records of one customer do not stop the others.
                log_not_comparable(intent.identifier, intent.customer, error)
                await self._postpone(intent)

    def _is_clock_right(self) -> bool:
        """Whether the store's clock agrees with Stripe's, as the age of first tries requires; log if not."""
        server_time_s = self._summaries.server_time_s
        apart_s = 0.0 if server_time_s is None else abs(server_time_s - self._store.clock())
        if apart_s > CLOCKS_APART_S:
            _logger.error(
                "the store's clock and Stripe's differ by %d s: intents are compared once they agree",
                apart_s,
            )
        return apart_s <= CLOCKS_APART_S

    async def compare(self, intent: StoredIntent) -> Verdict:
        """Compare an intent with the summary of its minute, and apply the verdict.

        Returns:
            The verdict; ``again`` also if the intent has changed meanwhile.

        Raises:
            StripeError: Stripe does not answer, or refuses the key.
            StoreError: the store does not answer.
        """
        store = self._store
        if RESTORED in intent.fields:
            return await self._recoverer.settle_proven(intent, by=CAUSE)
        judgement = await self._judge_intent(intent)
        if judgement.verdict == "again":
            fields = {"why": intent.fields.get("why", "")}
            if judgement.keep is not None:
                fields |= {"look": f"{judgement.keep.counted}", "looked": f"{judgement.keep.at_ms}"}
            is_changed = await change_state(
                store, intent, "parked", cause=CAUSE, compare_in_ms=judgement.wait_ms, fields=fields
            )
        elif judgement.verdict == "delivered":
            is_changed = await change_state(
                store, intent, "delivered", cause=CAUSE, after=f"delivered: {judgement.why}"
            )
        elif judgement.verdict == "replace" and MISSED in intent.fields:
            is_changed = await mark_intent_late(store, intent, cause=CAUSE)
        elif judgement.verdict == "replace" and await self._late.is_late(intent):
            why = f"{judgement.why}, and the invoice of its period is final"
            is_changed = await withdraw(store, intent, cause=CAUSE, why=why)
        elif judgement.verdict == "replace":
            new = intent.renamed(f"{token_hex(16)}-1", store.now_ms())
            after = f"queued as {new.identifier}: {judgement.why}"
            is_changed = await change_state(
                store, intent, "queued", cause=CAUSE, replacement=new, after=after
            )
        else:
            log_kept_parked(intent.identifier, intent.customer, judgement.why)
            after, fields = f"parked: {judgement.why}", {"why": judgement.why}
            is_changed = await change_state(store, intent, "parked", cause=CAUSE, after=after, fields=fields)
        return judgement.verdict if is_changed else "again"

    async def _judge_intent(self, intent: StoredIntent) -> Judgement:
        fields, start_s = intent.fields, intent.minute_s
        span_s, value, span = (start_s, start_s + _MINUTE_S), intent.value, "its minute"
        if intent.is_rebuilt:  # It was rebuilt from many minutes, less the known ones.
            span_s = (int(fields["since"]), int(fields.get("till", start_s)))
            value = int(fields.get("together", value))
            span = "what was rebuilt of its event name"
        try:
            counted = await self._summaries.counted(fields["event"], fields["stripe"], *span_s)
        except StripeUnavailableError:
            raise
        except StripeError as error:
            if error.status in KEY_REFUSALS:
                raise
            return Judgement(verdict="person", why=f"Stripe gives no summary of its minute: {error}")
        if counted is not None:
            counted -= int(fields.get("base", "0"))
            if intent.is_rebuilt:  # The base includes units sent to the customer's earlier Stripe customers.
                names = (intent.customer, fields["event"], fields["stripe"])
                counted += await self._lost.units_of_other_customers(*names, span_s)
        now = SummaryReading(counted=counted, at_ms=self._store.now_ms())
        before = None
        if "looked" in fields:
            before = SummaryReading(counted=Decimal(fields["look"]), at_ms=int(fields["looked"]))
        return judge(
            value=value,
            span=span,
            minute_ms=start_s * 1000,
            first_attempt_ms=intent.tried_since_ms,
            before=before,
            now=now,
        )

    async def _due(self) -> AsyncGenerator[StoredIntent]:
        store, admin = self._store, (await self._store.admin()).for_delivery()
        for shard, _ in await count_members(store, admin, ("compare",), limit=store.now_ms()):
            compare = store.keys.shard(shard, "compare")
            due: list[bytes] = await admin.ask(
                admin.client.zrangebyscore(compare, "-inf", store.now_ms(), start=0, num=_PAGE)
            )
            if not due:  # Another flusher has compared them since they were counted.
                continue
            for intent in await read_intents(store, admin, shard, [member.decode() for member in due]):
                if intent.fields["state"] == "parked":
                    yield intent

    async def _postpone(self, intent: StoredIntent) -> None:
        admin = (await self._store.admin()).for_delivery()
        later_ms = self._store.now_ms() + _LATER_MS
        compare = self._store.keys.shard(intent.shard, "compare")
        await admin.ask(admin.client.zadd(compare, {intent.identifier: later_ms}, xx=True))
