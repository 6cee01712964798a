"""Intents that Stripe may have are compared with its summaries: delivered, replaced, or left to a person."""

from __future__ import annotations

import logging
from decimal import Decimal
from http import HTTPStatus
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final

from meterkit.delivery.forgotten import Forgotten, Gap
from meterkit.delivery.late_intents import LateIntents
from meterkit.delivery.outcomes import CLOCKS_APART_S
from meterkit.delivery.report import REPORTED
from meterkit.delivery.verdicts import Judged, Look, judge
from meterkit.errors import StoreError, StripeError, StripeUnavailableError
from meterkit.store.event_names import read_meters
from meterkit.store.kept_intents import RESTORED, Kept, intents_of
from meterkit.store.steering import steer
from meterkit.store.stranding import MISSED, strand_intent
from meterkit.store.waiting import count_members
from meterkit.store.withdrawing import withdraw

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from meterkit.delivery.report import FlushReport
    from meterkit.delivery.summaries import Summaries
    from meterkit.delivery.verdicts import Verdict
    from meterkit.store.journal import Journal
    from meterkit.store.store import Store

__all__ = ["CAUSE", "Comparer"]

_logger = logging.getLogger("meterkit.delivery")

CAUSE: Final = "reconcile"
"""Of what a comparison has changed, in the ledger of the customer."""

_PAGE: Final = 100
_LATER_MS: Final = 600_000
_OF_THE_KEY: Final = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_MINUTE_S: Final = 60


class Comparer:
    """Compares what is due to be compared; see :func:`meterkit.delivery.verdicts.judge`.

    Any number may work at once: an intent changes only where it is still as it was read.

    Args:
        store: where the intents are.
        summaries: what Stripe says.
        journal: has what Stripe has accepted; None: there is none.
    """

    def __init__(self, store: Store, summaries: Summaries, journal: Journal | None = None) -> None:
        self._store = store
        self._summaries = summaries
        self._late = LateIntents(store)
        self._forgotten = Forgotten(store, summaries, journal)

    async def compare_due(self, report: FlushReport) -> None:
        """Compare all that is due; what Stripe has counts as delivered in the report.

        Where Stripe does not answer, or this host's clock is not Stripe's, the rest of them waits.

        Raises:
            StoreError: the store does not answer.
        """
        is_refreshed = False
        async for kept in self._due():
            try:
                if not is_refreshed:
                    await self._summaries.refresh()
                    is_refreshed = True
                if not self._is_clock_right():
                    await self._postpone(kept)
                    return
                report.delivered += await self.compare(kept) == "delivered"
            except StripeError as error:
                _logger.warning("intents are not compared with Stripe's summaries: %s", error)
                await self._postpone(kept)
                return
            except StoreError as error:
                # What is kept of one customer may be damaged; that holds up nobody else.
                _logger.warning(
                    "intent %s of customer %r cannot be compared: %s",
                    *(kept.identifier, kept.customer, error),
                    extra=REPORTED,
                )
                await self._postpone(kept)

    def _is_clock_right(self) -> bool:
        """Whether this host's clock is Stripe's: it says how long ago a first try was. Else that is said."""
        server_time_s = self._summaries.server_time_s
        apart_s = 0.0 if server_time_s is None else abs(server_time_s - self._store.clock())
        if apart_s > CLOCKS_APART_S:
            _logger.error(
                "this host's clock and Stripe's differ by %d s: what Stripe may have is compared when they"
                " agree",
                apart_s,
            )
        return apart_s <= CLOCKS_APART_S

    async def compare(self, kept: Kept) -> Verdict:
        """Look at the summary of an intent's minute, and do what follows.

        Returns:
            The verdict; ``again``, too, where the intent has changed meanwhile.

        Raises:
            StripeError: Stripe does not answer, or refuses the key.
            StoreError: the store does not answer.
        """
        store = self._store
        if RESTORED in kept.fields:
            return await self._compare_restored(kept)
        judged = await self._judged(kept)
        if judged.verdict == "again":
            more = {"why": kept.fields.get("why", "")}
            if judged.keep is not None:
                more |= {"look": f"{judged.keep.counted}", "looked": f"{judged.keep.at_ms}"}
            is_so = await steer(store, kept, "parked", cause=CAUSE, compare_in_ms=judged.wait_ms, more=more)
        elif judged.verdict == "delivered":
            is_so = await steer(store, kept, "delivered", cause=CAUSE, after=f"delivered: {judged.why}")
        elif judged.verdict == "replace" and MISSED in kept.fields:
            is_so = await strand_intent(store, kept, cause=CAUSE)
        elif judged.verdict == "replace" and await self._late.is_late(kept):
            why = f"{judged.why}, and the invoice of its period is final"
            is_so = await withdraw(store, kept, cause=CAUSE, why=why)
        elif judged.verdict == "replace":
            anew = kept.renamed(f"{token_hex(16)}-1", store.now_ms())
            after = f"queued as {anew.identifier}: {judged.why}"
            is_so = await steer(store, kept, "queued", cause=CAUSE, to_be=anew, after=after)
        else:
            _logger.error(
                "intent %s of customer %r stays parked: %s",
                *(kept.identifier, kept.customer, judged.why),
                extra=REPORTED,
            )
            more = {"why": judged.why}
            is_so = await steer(store, kept, "parked", cause=CAUSE, after=f"parked: {judged.why}", more=more)
        return judged.verdict if is_so else "again"

    async def _compare_restored(self, kept: Kept) -> Verdict:
        """Send what a restore has parked only where Stripe has nothing that the store does not know of."""
        fields, admin = kept.fields, (await self._store.admin()).for_delivery()
        meters = await read_meters(admin, self._store.keys, self._store.catalog)
        unknown = await self._forgotten.unknown(
            *(kept.customer, fields["event"], fields["stripe"]),
            since_ms=int(fields["period"]),
            gap=Gap.read(fields[RESTORED]),
            names={token: counted.event_name for token, counted in meters.items()},
        )
        if unknown <= 0:
            anew = kept.renamed(kept.identifier, self._store.now_ms())
            after = "queued: Stripe has nothing that the store does not know of"
            is_so = await steer(self._store, kept, "queued", cause=CAUSE, to_be=anew, after=after)
            return "replace" if is_so else "again"
        why = (
            f"Stripe has {unknown} more of {fields['event']} than the store knows of: this may be among them"
        )
        more = {"why": f"{why}; see `meterkit recover`"}
        is_so = await steer(self._store, kept, "parked", cause=CAUSE, after=f"parked: {why}", more=more)
        return "person" if is_so else "again"

    async def _judged(self, kept: Kept) -> Judged:
        fields, start_s = kept.fields, kept.minute_s
        span_s, value, span = (start_s, start_s + _MINUTE_S), kept.value, "its minute"
        if "since" in fields:  # It stands for usage of many minutes, but for what was known of.
            span_s = (int(fields["since"]), int(fields.get("till", start_s)))
            value = int(fields.get("together", value))
            span = "what was rebuilt of its event name"
        try:
            counted = await self._summaries.counted(fields["event"], fields["stripe"], *span_s)
        except StripeUnavailableError:
            raise
        except StripeError as error:
            if error.status in _OF_THE_KEY:
                raise
            return Judged(verdict="person", why=f"Stripe gives no summary of its minute: {error}")
        if counted is not None:
            counted -= int(fields.get("base", "0"))
            if "since" in fields:  # The base has what was sent for a Stripe customer of before, too.
                names = (kept.customer, fields["event"], fields["stripe"])
                counted += await self._forgotten.elsewhere(*names, span_s)
        now = Look(counted=counted, at_ms=self._store.now_ms())
        before = None
        if "looked" in fields:
            before = Look(counted=Decimal(fields["look"]), at_ms=int(fields["looked"]))
        return judge(
            value=value,
            span=span,
            minute_ms=start_s * 1000,
            first_attempt_ms=kept.tried_since_ms,
            before=before,
            now=now,
        )

    async def _due(self) -> AsyncGenerator[Kept]:
        store, admin = self._store, (await self._store.admin()).for_delivery()
        for shard, _ in await count_members(store, admin, ("compare",), limit=store.now_ms()):
            compare = store.keys.shard(shard, "compare")
            due: list[bytes] = await admin.ask(
                admin.client.zrangebyscore(compare, "-inf", store.now_ms(), start=0, num=_PAGE)
            )
            if not due:  # Another flusher has compared them since they were counted.
                continue
            texts: list[Any] = await admin.ask(admin.client.hmget(store.keys.shard(shard, "intents"), due))
            names = [member.decode() for member in due]
            found = intents_of(admin, shard, names, texts)
            for name, data, fields in zip(names, texts, found, strict=True):
                if fields and fields["state"] == "parked":
                    yield Kept(identifier=name, shard=shard, text=data.decode(), fields=fields)

    async def _postpone(self, kept: Kept) -> None:
        admin = (await self._store.admin()).for_delivery()
        later_ms = self._store.now_ms() + _LATER_MS
        compare = self._store.keys.shard(kept.shard, "compare")
        await admin.ask(admin.client.zadd(compare, {kept.identifier: later_ms}, xx=True))
