"""A subscription as it is at Stripe now, and the changes of it there: each done once."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from meterkit.errors import StripeError
from meterkit.subscriptions.at_stripe.confirming import SECRETS, secret_of
from meterkit.subscriptions.at_stripe.items import as_new, items_of
from meterkit.subscriptions.at_stripe.once import MARK, key_of, mark_of
from meterkit.subscriptions.at_stripe.parts import id_in, part_of
from meterkit.subscriptions.at_stripe.schedules import PRORATED, phases

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.stripe.api import StripeApi
    from meterkit.stripe.request import Parameter
    from meterkit.subscriptions.at_stripe.items import Item

__all__ = ["LiveSubscription", "give_up", "whole"]

_PATH: Final = "/v1/subscriptions"
_SCHEDULES: Final = "/v1/subscription_schedules"
_GONE: Final = frozenset({"canceled", "completed", "released"})
_REPLAYS_MAX: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSubscription:
    """A subscription as Stripe has it, with its schedule, and what changes it there.

    Each change raises :class:`~meterkit.errors.StripeError` where Stripe refuses, and
    :class:`~meterkit.errors.StripeUnavailableError` where it does not answer: whether it was done is not
    known then, and asking again does what is left of it.

    Attributes:
        api: the way to Stripe.
        found: the subscription as Stripe shows it.
        again: which try this is at what Stripe has refused before.
    """

    api: StripeApi
    found: Mapping[str, Any]
    again: int = 0

    @classmethod
    async def fetch(cls, api: StripeApi, subscription: str, again: int = 0) -> LiveSubscription | None:
        """Look at it; None: Stripe does not have it."""
        try:
            found = await api.get(f"{_PATH}/{subscription}", {"expand": ["schedule", *SECRETS]})
        except StripeError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise
        return cls(api=api, found=await whole(api, found), again=again)

    @property
    def id(self) -> str:
        """``sub_…``."""
        return str(self.found["id"])

    @property
    def items(self) -> tuple[Item, ...]:
        """What it consists of."""
        return items_of(self.found)

    @property
    def schedule(self) -> Mapping[str, Any] | None:
        """What is scheduled for it; None: nothing."""
        found = part_of(self.found, "schedule")
        return None if not found or found.get("status") in _GONE else found

    @property
    def is_ending(self) -> bool:
        """Whether it is to end, with its period or at another instant, as Stripe's portal may have it."""
        return bool(self.found.get("cancel_at_period_end") or self.found.get("cancel_at"))

    @property
    def awaited(self) -> tuple[Item, ...] | None:
        """What it will consist of once its customer has confirmed a payment; None: nothing is awaited."""
        update = part_of(self.found, "pending_update")
        return items_of({"items": {"data": update["subscription_items"]}}) if update else None

    @property
    def client_secret(self) -> str | None:
        """With which the customer's browser confirms what is awaited."""
        return secret_of(self.found)

    async def update(self, params: Mapping[str, Parameter]) -> None:
        """Change it at once; the change leaves its mark, so that the same change again later is another."""
        key = key_of("update", self.id, mark_of(self.found), _signs(self.items), params, self.again)
        asked = {**params, "metadata": {MARK: key}}
        await self.api.post(f"{_PATH}/{self.id}", asked, idempotency_key=key)

    async def update_once_paid(self, params: Mapping[str, Parameter]) -> str | None:
        """Change it once its customer has confirmed the payment, within 23 hours; the client secret of that.

        https://docs.stripe.com/billing/subscriptions/pending-updates; no mark can be left with it.
        """
        asked = {**params, "payment_behavior": "pending_if_incomplete", "expand": list(SECRETS)}
        before = [mark_of(self.found), id_in(self.found, "latest_invoice"), _signs(self.items)]
        key = key_of("await", self.id, before, asked, self.again)
        made = await self.api.post(f"{_PATH}/{self.id}", asked, idempotency_key=key)
        return secret_of(made) if made.get("pending_update") else None

    async def forget_awaited(self) -> None:
        """Give up a change that its customer has not confirmed."""
        if self.awaited is not None:
            await _void_latest(self.api, self.found, self.again)

    async def release(self) -> None:
        """Take back what is scheduled; it stays as it is now."""
        if self.schedule is not None:
            path = f"{_SCHEDULES}/{self.schedule['id']}"
            key = key_of("release", path, self.again)
            await self.api.post(f"{path}/release", idempotency_key=key)

    async def arrange(
        self,
        later: Sequence[Mapping[str, Parameter]],
        *,
        change_s: int,
        interval: str,
        now: Sequence[Mapping[str, Parameter]] | None = None,
    ) -> None:
        """Have it changed when its period ends.

        Args:
            later: the items from then on.
            change_s: when its period ends (Unix seconds).
            interval: how often the base price among them is paid.
            now: the items until then; default: those that it has.
        """
        schedule = self.schedule or await self._new_schedule(change_s)
        params: dict[str, Parameter] = {
            "phases": phases(
                schedule,
                now=now or [as_new(item) for item in self.items],
                later=later,
                change_s=change_s,
                interval=interval,
            ),
            "end_behavior": "release",
            "proration_behavior": PRORATED,
        }
        key = key_of("arrange", schedule["id"], mark_of(schedule), params, self.again)
        asked = {**params, "metadata": {MARK: key}}
        await self.api.post(f"{_SCHEDULES}/{schedule['id']}", asked, idempotency_key=key)

    async def _new_schedule(self, change_s: int) -> Mapping[str, Any]:
        """A schedule of what it is now; not one that has ended, which an answer of earlier may name."""
        ended = ""
        for _ in range(_REPLAYS_MAX):
            key = key_of("schedule", self.id, change_s, ended, self.again)
            made = await self.api.post(_SCHEDULES, {"from_subscription": self.id}, idempotency_key=key)
            found = await self.api.get(f"{_SCHEDULES}/{made['id']}")
            if found.get("status") not in _GONE:
                return found
            ended = str(made["id"])
        raise StripeError(
            f"Stripe has ended {_REPLAYS_MAX} schedules of this subscription; try again tomorrow"
        )

    async def cancel_at_end(self) -> None:
        """Have it end with its period; what is scheduled for it gives way."""
        await self.release()
        await self.update({"cancel_at_period_end": True})

    async def resume(self) -> None:
        """Have it go on."""
        at_end = bool(self.found.get("cancel_at_period_end"))
        await self.update({"cancel_at_period_end": False} if at_end else {"cancel_at": ""})

    async def end(self, *, give_back: bool = False) -> None:
        """End it now: what was used is billed, and what was paid in advance may be given back.

        Stripe would give back what was never paid, too
        (https://docs.stripe.com/billing/subscriptions/prorations).
        """
        status = self.found["status"]
        if status == "incomplete":
            await give_up(self.api, self.found, self.again)
            return
        params = {"invoice_now": True, "prorate": give_back and status == "active"}
        try:
            await self.api.delete(f"{_PATH}/{self.id}", params, idempotency_key=key_of("end", self.id))
        except StripeError as error:
            if error.status != HTTPStatus.NOT_FOUND:  # It has ended: that is done.
                raise


async def whole(api: StripeApi, found: dict[str, Any]) -> dict[str, Any]:
    """A subscription with all of its items: Stripe may show only the first of them. Raises StripeError."""
    items = part_of(found, "items")
    if items.get("has_more") is not True:
        return found
    listed = await api.list("/v1/subscription_items", {"subscription": str(found["id"])})
    return {**found, "items": {**items, "data": listed, "has_more": False}}


async def give_up(api: StripeApi, found: Mapping[str, Any], again: int = 0) -> None:
    """End a subscription that is not paid for yet, by voiding its invoice.

    That ends it (https://docs.stripe.com/billing/subscriptions/overview#subscription-statuses), and nobody
    can pay it any more: where the subscription alone is canceled, a page that is open in a browser can.

    Raises:
        StripeError: Stripe refuses, as where it has been paid by now; or does not answer.
    """
    await _void_latest(api, found, again)


async def _void_latest(api: StripeApi, found: Mapping[str, Any], again: int) -> None:
    path = f"/v1/invoices/{id_in(found, 'latest_invoice')}/void"
    await api.post(path, idempotency_key=key_of("void", path, again))


def _signs(items: Sequence[Item]) -> list[list[object]]:
    return [[item.id, item.price, item.quantity] for item in items]
