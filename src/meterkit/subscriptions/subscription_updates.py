"""A fetched subscription, and its idempotent changes at Stripe, immediate or by a schedule."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, cast

from meterkit.errors import StripeError, StripeUnavailableError, SubscriptionError
from meterkit.stripe.idempotency_keys import key_of
from meterkit.stripe.prices import PRICES
from meterkit.stripe.request import ENDED_HERE
from meterkit.subscriptions.invoice_payments import explain_unpaid_period, with_unpaid_invoices
from meterkit.subscriptions.item_changes import CREATE_PRORATIONS, items_of, prices_in
from meterkit.subscriptions.monthly_amount import COUPONS
from meterkit.subscriptions.schedule_phases import (
    has_custom_terms,
    is_bare,
    present_phases,
    restored_schedule,
)
from meterkit.subscriptions.stripe_objects import (
    AWAITS_METHOD,
    CHANGE_MARK,
    MADE_MARK,
    NEVER_BEGAN,
    RELEASED_MARK,
    id_in,
    items_in,
    mark_of,
    part_of,
    text_in,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from meterkit.stripe.api import StripeApi
    from meterkit.stripe.idempotency_keys import IdempotencyKey
    from meterkit.stripe.request import Parameter
    from meterkit.subscriptions.item_changes import LiveItem


_logger = logging.getLogger("meterkit.subscriptions")
_PATH: Final = "/v1/subscriptions"
_SCHEDULES: Final = "/v1/subscription_schedules"
_GONE: Final = frozenset({"canceled", "completed", "released"})
_EXPAND: Final = ("schedule", "latest_invoice", "discounts", "items.data.discounts")
_REPLAYS_MAX: Final = 16
FLEXIBLE: Final[Mapping[str, Parameter]] = {"billing_mode": {"type": "flexible"}}
"""The billing mode in which Stripe bills usage at the price that it was recorded under."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSubscription:
    """A subscription as Stripe shows it, with its schedule, and its changes there.

    Each change raises :class:`~meterkit.errors.StripeError` if Stripe refuses, and
    :class:`~meterkit.errors.StripeUnavailableError` if it does not answer: the outcome is unknown then, and a
    repeat does the rest.

    Attributes:
        api: the Stripe client.
        found: the subscription as Stripe shows it.
    """

    api: StripeApi
    found: Mapping[str, Any]

    @classmethod
    async def fetch(cls, api: StripeApi, subscription: str) -> LiveSubscription | None:
        """Fetch a subscription; None if Stripe does not have it."""
        found = await api.find(f"{_PATH}/{subscription}", {"expand": _EXPAND})
        if found is None:
            return None
        return cls(api=api, found=await with_all_items(api, found))

    @property
    def id(self) -> str:
        """The id, ``sub_…``."""
        return str(self.found["id"])

    @property
    def items(self) -> tuple[LiveItem, ...]:
        """Its items."""
        return items_of(self.found)

    @property
    def prices(self) -> tuple[Mapping[str, Any], ...]:
        """The prices of its items, as Stripe shows them."""
        return prices_in(self.found)

    @property
    def schedule(self) -> Mapping[str, Any] | None:
        """Its schedule; None if it has none."""
        found = part_of(self.found, "schedule")
        return None if not found or found.get("status") in _GONE else found

    @property
    def is_ending(self) -> bool:
        """Whether its end is set, with its period or at another time, as Stripe's portal may do.

        An end that its schedule sets is a part of the schedule, which alone can change it. Stripe shows it as
        ``cancel_at``, too (https://docs.stripe.com/api/subscription_schedules/release).
        """
        is_set = self.found.get("cancel_at_period_end") or self.found.get("cancel_at")
        return self.schedule is None and bool(is_set)

    def is_ending_at(self, end_s: int) -> bool:
        """Whether its end is set to that of its period (Unix seconds)."""
        at_period_end = bool(self.found.get("cancel_at_period_end"))
        return self.is_ending and (at_period_end or self.found.get("cancel_at") == end_s)

    @property
    def released_schedule(self) -> str:
        """The id of the schedule that its cancellation has released; empty: none."""
        return text_in(part_of(self.found, "metadata"), RELEASED_MARK)

    @property
    def is_classic(self) -> bool:
        """Whether it has Stripe's classic billing mode."""
        return part_of(self.found, "billing_mode").get("type") == "classic"

    async def update(self, params: Mapping[str, Parameter]) -> None:
        """Change it now. The change leaves a mark, so that the same change later has another key."""
        if "items" in params:
            await self.make_flexible()
        key = key_of("update", self.id, mark_of(self.found), _item_signatures(self.items), params)
        metadata = {**part_of(params, "metadata"), CHANGE_MARK: key}
        await self._post_change(
            f"{_PATH}/{self.id}",
            {**params, "metadata": metadata},
            key,
            (_change_signature, _change_signature(self)),
        )

    async def release(self) -> None:
        """Release its schedule; it stays as it is now."""
        if self.schedule is not None:
            path = f"{_SCHEDULES}/{self.schedule['id']}"
            key = key_of("release", path)
            await self._post_change(f"{path}/release", {}, key, (_schedule_id, self.schedule["id"]))

    async def open_schedule(self, change_s: int) -> Mapping[str, Any]:
        """Return its schedule; if it has none, create one from its present state.

        Args:
            change_s: end of its period (Unix seconds).
        """
        await self.make_flexible()
        return self.schedule or await self._create_schedule(change_s)

    async def send_phases(
        self,
        schedule: Mapping[str, Any],
        phases: Sequence[Mapping[str, Parameter]],
        *,
        end_behavior: str | None = None,
    ) -> None:
        """Replace the current and future phases of its schedule; the rest of the schedule stays."""
        params: dict[str, Parameter] = {"phases": list(phases), "proration_behavior": CREATE_PRORATIONS}
        if end_behavior is not None:
            params["end_behavior"] = end_behavior
        key = key_of("arrange", schedule["id"], mark_of(schedule), params)
        made = {MADE_MARK: "yes"} if is_bare(schedule) and end_behavior is None else {}
        path, sent = f"{_SCHEDULES}/{schedule['id']}", {**params, "metadata": {**made, CHANGE_MARK: key}}
        try:
            await self._post_change(path, sent, key, (_schedule_id, schedule["id"]))
        except StripeError as error:
            if error.type == "invalid_request_error":
                await self._refuse_archived_prices(phases, error)
            raise

    async def _refuse_archived_prices(
        self, phases: Sequence[Mapping[str, Parameter]], refused: StripeError
    ) -> None:
        """Explain a refusal of phases by archived prices: items keep them, but no phase may name them."""
        lines = [line for phase in phases for line in cast("Sequence[Mapping[str, Any]]", phase["items"])]
        named = {str(line["price"]) for line in lines if "price" in line}
        archived = [price for price in sorted(named) if not await self._is_active(price)]
        if archived:
            raise SubscriptionError(
                f"the subscription {self.id} has prices that are archived at Stripe, which then takes no"
                f" scheduled change: {', '.join(archived)}. Make them active again at Stripe, and ask again"
            ) from refused

    async def _is_active(self, price: str) -> bool:
        found = await self.api.find(f"{PRICES}/{price}")
        return found is None or found.get("active") is not False

    async def _create_schedule(self, change_s: int) -> Mapping[str, Any]:
        """Create a schedule from its present state; skip an ended one that a replayed response names."""
        ended = ""
        for _ in range(_REPLAYS_MAX):
            key = key_of("schedule", self.id, change_s, ended)
            # The schedule inherits the billing mode; sent with `from_subscription` it is refused.
            made = await self._post_change(
                _SCHEDULES, {"from_subscription": self.id}, key, (_schedule_id, None)
            )
            found = await _fetch_schedule(self.api, str(made["id"]))
            if found.get("status") not in _GONE:
                return found
            ended = str(made["id"])
        raise StripeError(
            f"Stripe has ended {_REPLAYS_MAX} schedules of this subscription; try again tomorrow"
        )

    async def cancel_at_end(self, end_s: int) -> None:
        """Let it end with its period, and release its schedule.

        A schedule with terms of its own is recorded on the subscription: :meth:`resume` can restore it.

        Args:
            end_s: of the period of its base price (Unix seconds). With items of shorter intervals Stripe
                would end it at the first end of one.
        """
        live: LiveSubscription | None = self
        if self.schedule is not None and has_custom_terms(self.schedule):
            await self.update({"metadata": {RELEASED_MARK: str(self.schedule["id"])}})
            live = await LiveSubscription.fetch(self.api, self.id)
        if live is not None:
            await live.release()
            ends_s = [int(item.get("current_period_end") or end_s) for item in items_in(self.found)]
            is_one_end = min(ends_s, default=end_s) >= end_s
            await live.update({"cancel_at_period_end": True} if is_one_end else {"cancel_at": end_s})

    async def resume(self, now_s: int) -> None:
        """Resume it, with the future phases of the schedule that its cancellation released."""
        if self.is_ending:
            at_end = bool(self.found.get("cancel_at_period_end"))
            await self.update({"cancel_at_period_end": False} if at_end else {"cancel_at": ""})
        live = await LiveSubscription.fetch(self.api, self.id)
        if live is None or not live.released_schedule:
            return
        kept = await _fetch_schedule(self.api, live.released_schedule)
        is_free = live.schedule is None or is_bare(live.schedule)
        if is_free and any(phase["end_date"] > now_s for phase in kept["phases"]):
            made = await live.open_schedule(max(phase["end_date"] for phase in kept["phases"]))
            drafts = present_phases(restored_schedule(made, kept, now_s), live.found)
            phases = [draft.to_params(draft.lines()) for draft in drafts]
            await live.send_phases(made, phases, end_behavior=str(kept["end_behavior"]))
        live = await LiveSubscription.fetch(self.api, self.id)
        if live is not None:
            await live.update({"metadata": {RELEASED_MARK: ""}})

    async def end_pause(self) -> None:
        """Resume it after a pause: a new period begins now, and is paid at once."""
        path = f"{_PATH}/{self.id}/resume"
        await self.api.post(path, idempotency_key=key_of("unpause", self.id))

    async def end(self, *, give_back: bool = False) -> None:
        """End it now and bill its usage; with ``give_back`` credit the paid rest of the period.

        Usage that meterkit bills by invoice lines is not on this last invoice, which Stripe may finalize at
        once. It is queued by the flush after the end, and gets an invoice of its own if there is no draft.

        Stripe would also credit what was never paid
        (https://docs.stripe.com/billing/subscriptions/prorations).
        """
        status = self.found["status"]
        if status == "incomplete":
            await end_unpaid(self.api, self.found)
            return
        is_credited = give_back and status == "active"
        if is_credited and (reason := await explain_unpaid_period(self.api, self.found)):
            is_credited = False
            _logger.warning(
                "subscription %s ends without a credit for the rest of its period: %s", self.id, reason
            )
        params: dict[str, Parameter] = {
            "invoice_now": True,
            "prorate": is_credited,
            # By this comment the period closer knows that meterkit must collect the last invoice.
            "cancellation_details": {"comment": ENDED_HERE},
        }
        try:
            key = key_of("end", self.id, is_credited)
            await self.api.delete(f"{_PATH}/{self.id}", params, idempotency_key=key)
        except StripeError as error:
            if error.status != HTTPStatus.NOT_FOUND:  # It has ended already.
                raise

    async def make_flexible(self) -> None:
        """Migrate a subscription of the classic billing mode, once, before its items change.

        In classic mode usage before a change of its price is never billed
        (https://docs.stripe.com/billing/subscriptions/billing-mode/compare).

        Raises:
            SubscriptionError: Stripe refuses to migrate it.
        """
        if not self.is_classic:
            return
        path = f"{_PATH}/{self.id}/migrate"
        key = key_of("migrate", path)
        try:
            await self.api.post(path, FLEXIBLE, idempotency_key=key)
        except StripeUnavailableError:
            raise
        except StripeError as error:
            now = await LiveSubscription.fetch(self.api, self.id)
            if now is None or not now.is_classic:
                return  # Another request has migrated it, or it is gone, which the change will report.
            raise SubscriptionError(
                f"the subscription {self.id} has Stripe's classic billing mode, which never bills usage"
                f" before a change of its price, and it cannot be migrated: {error}. Cancel its"
                " scheduled change, or migrate it at Stripe"
                " (https://docs.stripe.com/billing/subscriptions/billing-mode), and ask again"
            ) from error

    async def _post_change(
        self,
        path: str,
        params: Mapping[str, Parameter],
        key: IdempotencyKey,
        seen: tuple[Callable[[LiveSubscription], object], object],
    ) -> dict[str, Any]:
        """Post a change; report whether another change came first.

        Args:
            path: of the changed object.
            params: of the change.
            key: the idempotency key.
            seen: reads the property that the change relies on, and its value in `found`.

        Raises:
            SubscriptionError: Stripe refuses, and that property has changed meanwhile.
        """
        try:
            return await self.api.post(path, params, idempotency_key=key)
        except StripeError as error:
            is_wrong = error.type == "invalid_request_error"
            now = await LiveSubscription.fetch(self.api, self.id) if is_wrong else None
            read_property, before = seen
            if now is not None and read_property(now) != before:
                raise SubscriptionError(
                    f"the subscription {self.id} was changed by another request at the same time:"
                    " fetch it, and ask again",
                    advice="Another request has changed the subscription at the same time. Fetch it, and"
                    " ask again.",
                ) from error
            raise


async def list_subscriptions(api: StripeApi, linked: str, expand: Sequence[str]) -> list[dict[str, Any]]:
    """List the subscriptions of a Stripe customer, ended ones too, each with all its items.

    Raises:
        StripeError: Stripe does not have the customer, refuses otherwise, or does not answer.
    """
    asked = {"customer": linked, "status": "all", "expand": expand}
    return [await with_all_items(api, one) for one in await api.list(_PATH, asked)]


async def with_all_items(api: StripeApi, found: dict[str, Any]) -> dict[str, Any]:
    """Complete a listed subscription: all its items, and the prices of its schedule. Raises StripeError.

    Stripe may show only the first items, and of the prices of a schedule the ids: expanding them in a list of
    subscriptions would go five levels deep, and four are allowed (https://docs.stripe.com/api/expanding_objects).
    """
    items, schedule = part_of(found, "items"), part_of(found, "schedule")
    if schedule and schedule.get("status") not in _GONE:
        found = {**found, "schedule": await _fetch_schedule(api, str(schedule["id"]))}
    if items.get("has_more") is not True:
        return found
    asked: dict[str, Parameter] = {"subscription": str(found["id"]), "expand": ["data.discounts"]}
    listed = await api.list("/v1/subscription_items", asked)
    return {**found, "items": {**items, "data": listed, "has_more": False}}


async def _expand_item_coupons(api: StripeApi, found: dict[str, Any]) -> dict[str, Any]:
    """Expand the coupons of the discounts of items. Raises StripeError.

    They are fetched separately: in a list of subscriptions they would be six levels deep.
    """
    items = part_of(found, "items")
    shown = cast("Sequence[Mapping[str, Any]]", items.get("data") or [])
    if not any(item.get("discounts") for item in shown):
        return found
    asked: dict[str, Parameter] = {"subscription": str(found["id"]), "expand": [f"data.{COUPONS}"]}
    listed = await api.list("/v1/subscription_items", asked)
    return {**found, "items": {**items, "data": listed, "has_more": False}}


async def with_unlisted_parts(api: StripeApi, found: dict[str, Any]) -> dict[str, Any]:
    """Add what a list of subscriptions leaves out: coupons of items, and invoices that are owed.

    Raises StripeError.
    """
    return await with_unpaid_invoices(api, await _expand_item_coupons(api, found))


async def _fetch_schedule(api: StripeApi, schedule: str) -> dict[str, Any]:
    """Fetch a schedule with the prices of its phases. Raises StripeError."""
    return await api.get(f"{_SCHEDULES}/{schedule}", {"expand": ["phases.items.price"]})


async def end_unpaid(api: StripeApi, found: Mapping[str, Any]) -> dict[str, Any]:
    """End an unpaid subscription by voiding its invoice; return it as it is then.

    That ends it (https://docs.stripe.com/billing/subscriptions/overview#subscription-statuses), and it can no
    longer be paid; after a cancellation alone, an open page could still pay it. One that waits for a payment
    method has no such invoice: it is canceled, and so is its SetupIntent, which Stripe leaves open (https://docs.stripe.com/billing/subscriptions/deferred-payment).

    Raises:
        StripeError: Stripe refuses, for example because it has been paid meanwhile; or does not answer.
    """
    if found.get(AWAITS_METHOD) is True:
        return await _cancel_unpaid(api, found)
    path = f"/v1/invoices/{id_in(found, 'latest_invoice')}/void"
    await api.post(path, idempotency_key=key_of("void", path))
    return {**found, "status": "incomplete_expired"}


async def _cancel_unpaid(api: StripeApi, found: Mapping[str, Any]) -> dict[str, Any]:
    """Cancel a subscription that was never active, without a last invoice, and its SetupIntent."""
    details: dict[str, Parameter] = {"comment": NEVER_BEGAN}
    asked: dict[str, Parameter] = {"cancellation_details": details}
    ended: dict[str, Any] = {}
    try:
        ended = await api.delete(f"{_PATH}/{found['id']}", asked, idempotency_key=key_of("end", found["id"]))
    except StripeError as error:
        if error.status != HTTPStatus.NOT_FOUND:  # It has ended already.
            raise
    intent = id_in(found, "pending_setup_intent")
    if intent:
        try:
            await api.post(f"/v1/setup_intents/{intent}/cancel", idempotency_key=key_of("cancel", intent))
        except StripeUnavailableError:
            raise
        except StripeError:
            pass  # It has ended already.
    times = {name: ended.get(name) for name in ("canceled_at", "ended_at")}
    return {**found, **times, "status": "canceled", "cancellation_details": details, AWAITS_METHOD: False}


def _schedule_id(live: LiveSubscription) -> object:
    """The id of its schedule; None: it has none."""
    return None if live.schedule is None else live.schedule["id"]


def _change_signature(live: LiveSubscription) -> object:
    """Values of a subscription that differ after a change."""
    return [
        live.found["status"],
        mark_of(live.found),
        _item_signatures(live.items),
        _schedule_id(live),
        live.is_ending,
    ]


def _item_signatures(items: Sequence[LiveItem]) -> list[list[object]]:
    return [[item.id, item.price, item.quantity] for item in items]
