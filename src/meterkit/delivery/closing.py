"""The close of each period: Stripe has counted all of it, or somebody is told before the invoice is final."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from random import SystemRandom
from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.decisions.periods import from_ms, to_ms
from meterkit.delivery.closing_look import ClosingLook
from meterkit.delivery.reconciling import Reconciler
from meterkit.errors import StoreError
from meterkit.store.closes import CLOSE_AFTER_MS, Close, Closes
from meterkit.store.task_lease import TaskLease

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi

__all__ = ["Closer", "Looked"]

_logger = logging.getLogger("meterkit.delivery")

_jitter = SystemRandom().uniform

# https://docs.stripe.com/billing/subscriptions/usage-based/meters/configure: an invoice stays a draft for an
# hour by default; what comes after that is never billed. A quarter of it is left to whoever is told.
_IN_TIME_MS: Final = 45 * 60_000
_EVERY_S: Final = 60.0
_AGAIN_MS: Final = 5 * 60_000
_LATER_MS: Final = 3_600_000
_GIVEN_UP_MS: Final = 36 * 86_400_000
_LEASE_MS: Final = 60_000
_NAMED_MAX: Final = 5


class Looked(NamedTuple):
    """What became of the closes that were due.

    Attributes:
        confirmed: Stripe has counted what was delivered, and nothing waits.
        open: not yet, and there is time.
        late: not in time, with why; each is said once.
    """

    confirmed: int
    open: int
    late: Sequence[str]


class Closer:
    """Confirms the close of each period; one process at a time does, whichever has the lease.

    Args:
        store: where usage is counted.
        api: the way to Stripe.
    """

    def __init__(self, store: Store, api: Callable[[], StripeApi]) -> None:
        self._store = store
        self._api = api
        self._reconciler = Reconciler(store, api)
        self._lease = TaskLease(store, store.keys.shard(0, "closing"), lasts_ms=_LEASE_MS)
        self._has_failed = False

    async def run(self) -> None:
        """Look each minute, until cancelled."""
        while True:
            await asyncio.sleep(_EVERY_S * _jitter(0.8, 1.2))
            await self.turn()

    async def turn(self) -> None:
        """Look at what is due, unless another process does. Raises nothing but cancellation."""
        try:
            async with self._lease.held() as is_held:
                if is_held:
                    await self.look()
            self._has_failed = False
        except StoreError as error:
            if not self._has_failed:
                _logger.warning("closes of billing periods are confirmed later: %s", error)
            self._has_failed = True
        except Exception:
            _logger.exception("closes of billing periods are confirmed later")

    async def look(self) -> Looked:
        """Look at the closes that are due, and say once which are not confirmed in time.

        Raises:
            StoreError: the store does not answer.
        """
        closes = Closes(self._store, (await self._store.admin()).for_delivery())
        confirmed, left, late = 0, 0, list[str]()
        looking = ClosingLook(self._store, self._api(), self._reconciler)
        async for close in closes.due():
            if not await self._lease.take():
                break
            why, may_wait = await self._why_open(closes, close, looking)
            if why is None:
                confirmed += 1
                continue
            left += 1
            is_late = await self._put_off(closes, close) and not may_wait
            if is_late and await closes.tell(close):
                late.append(f"customer {close.customer!r}, until {close.told_end}: {why}")
        if late:
            self._tell(late)
        return Looked(confirmed, left - len(late), late)

    async def _why_open(self, closes: Closes, close: Close, looking: ClosingLook) -> tuple[str | None, bool]:
        """Why a close is not confirmed, and whether that is no fault yet; None: it is, and is forgotten."""
        try:
            (usage,) = await self._store.usage_of_many([close.customer], at_ms=close.end_ms - 1, former=True)
            end_ms = to_ms(usage["period"]["end"])
            if end_ms > self._store.now_ms():
                # The period goes on: a change of plan or of the subscription has moved its end.
                moved = replace(close, end_ms=end_ms)
                await closes.note(close.shard, {moved.member: end_ms + CLOSE_AFTER_MS})
                await closes.forget(close)
                return None, False
            why, may_wait = await looking.why_open(usage)
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 - what is kept of one customer holds up no other
            return f"it cannot be read: {error!r:.200}", False
        if not why and await closes.forget(close):
            _logger.info(
                "the close of the period of customer %r until %s is confirmed now",
                *(close.customer, from_ms(close.end_ms)),
            )
        return why or None, may_wait

    async def _put_off(self, closes: Closes, close: Close) -> bool:
        """Have a close looked at again later, or no more; whether somebody is to be told of it."""
        now_ms = self._store.now_ms()
        if now_ms > close.end_ms + _GIVEN_UP_MS:
            await closes.forget(close)
            return False
        is_late = now_ms >= close.end_ms + _IN_TIME_MS
        await closes.postpone(close, now_ms + (_LATER_MS if is_late else _AGAIN_MS))
        return is_late

    def _tell(self, late: Sequence[str]) -> None:
        named = "; ".join(late[:_NAMED_MAX])
        more = f"; and {len(late) - _NAMED_MAX:,} more" if len(late) > _NAMED_MAX else ""
        number = len(late)
        what = "the close of 1 billing period is"
        if number > 1:
            what = f"the closes of {number:,} billing periods are"
        _logger.error(
            "%s not confirmed %d minutes after the period's end, and Stripe makes an invoice final after"
            " an hour: %s%s. `meterkit reconcile CUSTOMER --period DATE` has the figures",
            *(what, _IN_TIME_MS // 60_000, named, more),
        )
