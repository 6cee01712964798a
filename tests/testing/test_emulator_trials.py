"""Trials, pauses and schedules: what a subscription becomes by the clock alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import stripe

from drivers.emulated_account import account
from drivers.emulated_shop import (
    DAY,
    HOUR,
    MAY,
    SECOND,
    amounts,
    invoice_of,
    item_of,
    items_of,
    refusal,
    shop,
    subscribe,
    told,
)

if TYPE_CHECKING:
    from meterkit.testing import Clock, StripeEmulator

pytestmark = pytest.mark.anyio

LATEST: Any = ["latest_invoice"]


def unpaid(action: str) -> Any:
    return {"end_behavior": {"missing_payment_method": action}}


async def test_a_trial_costs_nothing_and_then_the_price(
    client: stripe.StripeClient, emulator: StripeEmulator, clock: Clock
) -> None:
    """https://docs.stripe.com/billing/subscriptions/trials/free-trials."""
    made = await subscribe(client, trial_period_days=14)
    end = SECOND + 14 * DAY
    assert (made.status, made.trial_start, made.trial_end) == ("trialing", SECOND, end)
    assert (made.billing_cycle_anchor, item_of(made).current_period_end) == (end, end)
    invoice = invoice_of(made)
    assert (invoice.total, invoice.status, invoice.lines.data[0].description) == (
        0,
        "paid",
        "Free trial for 1 x Pro",
    )
    clock.advance(timedelta(days=11) - timedelta(seconds=1))
    emulator.advance()
    assert "customer.subscription.trial_will_end" not in told(emulator)
    clock.advance(timedelta(seconds=1))
    emulator.advance()
    assert told(emulator)[-1] == "customer.subscription.trial_will_end"
    clock.advance(timedelta(days=3))
    begun = await client.v1.subscriptions.retrieve_async(made.id, {"expand": LATEST})
    assert (begun.status, invoice_of(begun).status) == ("active", "draft")
    assert invoice_of(begun).billing_reason == "subscription_cycle"
    assert item_of(begun).current_period_start == end
    clock.advance(timedelta(hours=1))
    assert (await client.v1.invoices.retrieve_async(invoice_of(begun).id)).amount_paid == 1000


@pytest.mark.parametrize(
    ("action", "status", "event"),
    [
        ("cancel", "canceled", "customer.subscription.deleted"),
        ("pause", "paused", "customer.subscription.paused"),
        ("create_invoice", "past_due", "invoice.payment_failed"),
    ],
)
async def test_a_trial_without_a_payment_method_ends_as_it_is_set(
    action: str, status: str, event: str
) -> None:
    """https://docs.stripe.com/billing/subscriptions/trials/free-trials#create-free-trials-without-payment."""
    emulator, clock = shop(card=None)
    async with account(emulator) as client:
        made = await subscribe(client, trial_period_days=14, trial_settings=unpaid(action))
        clock.advance(timedelta(days=14, hours=1))
        ended = await client.v1.subscriptions.retrieve_async(made.id)
        assert ended.status == status
        assert ended.trial_settings is not None
        assert ended.trial_settings.end_behavior.missing_payment_method == action
    assert event in told(emulator)


async def test_a_paused_one_is_resumed_and_paid() -> None:
    """https://docs.stripe.com/api/subscriptions/resume: a new cycle, its invoice paid in the request."""
    emulator, clock = shop(card=None)
    async with account(emulator) as client:
        made = await subscribe(client, trial_period_days=14, trial_settings=unpaid("pause"))
        with pytest.raises(stripe.InvalidRequestError, match="only resume a subscription that is paused"):
            await client.v1.subscriptions.resume_async(made.id)
        clock.advance(timedelta(days=60))
        paused = await client.v1.subscriptions.retrieve_async(made.id)
        assert paused.status_details is not None
        assert paused.status_details.paused.subscription.type == "trial_end_without_payment_method"
        assert paused.status_details.paused.transitioned_at == SECOND + 14 * DAY
        assert len((await client.v1.invoices.list_async()).data) == 1
        emulator.add_payment_method("cus_1")
        resumed = await client.v1.subscriptions.resume_async(made.id, {"expand": LATEST})
        assert (resumed.status, invoice_of(resumed).status) == ("active", "paid")
        assert (resumed.billing_cycle_anchor, resumed.status_details) == (clock(), None)
    assert told(emulator)[-2:] == ["customer.subscription.resumed", "customer.subscription.updated"]


async def test_a_resumption_that_is_not_paid() -> None:
    """https://docs.stripe.com/billing/subscriptions/pause#resume-subscriptions: past_due, or paused still."""
    how: Any = {"expand": LATEST, "payment_behavior": "resume_on_payment_success"}
    emulator, clock = shop()
    async with account(emulator) as client:
        made = await subscribe(client)
        emulator.fail_payments("cus_1")
        free: Any = {"bill_for": {"unused_time_from": {"type": "none"}}}
        paused = await client.v1.subscriptions.pause_async(made.id, free)
        assert (paused.status, item_of(paused).current_period_end) == ("paused", SECOND)
        clock.advance(timedelta(days=40))
        waiting = await client.v1.subscriptions.resume_async(made.id, how)
        assert (waiting.status, invoice_of(waiting).status) == ("paused", "open")
        clock.advance(timedelta(hours=23))
        assert (await client.v1.invoices.retrieve_async(invoice_of(waiting).id)).status == "void"
        assert (await client.v1.subscriptions.retrieve_async(made.id)).status == "paused"
        assert (await client.v1.subscriptions.resume_async(made.id)).status == "past_due"


async def test_a_pause_credits_what_is_left_and_may_go_on_in_its_cycle(
    client: stripe.StripeClient, clock: Clock
) -> None:
    """https://docs.stripe.com/billing/subscriptions/pause#pause-subscriptions."""
    made = await subscribe(client)
    clock.advance(timedelta(days=15))
    paused: Any = {"invoicing_behavior": "invoice", "expand": LATEST}
    assert amounts(invoice_of(await client.v1.subscriptions.pause_async(made.id, paused))) == [-500]
    clock.advance(timedelta(days=6))
    unchanged: Any = {
        "billing_cycle_anchor": {"type": "unchanged"},
        "proration_behavior": "always_invoice",
        "expand": LATEST,
    }
    resumed = await client.v1.subscriptions.resume_async(made.id, unchanged)
    assert amounts(invoice_of(resumed)) == [300]
    assert (resumed.billing_cycle_anchor, item_of(resumed).current_period_end) == (SECOND, MAY)
    await client.v1.subscriptions.pause_async(made.id)
    with pytest.raises(stripe.InvalidRequestError, match="cannot be paused"):
        await client.v1.subscriptions.pause_async(made.id)
    quiet: Any = {"billing_cycle_anchor": {"type": "unchanged"}, "proration_behavior": "none"}
    assert (await client.v1.subscriptions.resume_async(made.id, quiet)).status == "active"


async def test_a_trial_is_ended_early_or_added(client: stripe.StripeClient, clock: Clock) -> None:
    """https://docs.stripe.com/api/subscriptions/update#update_subscription-trial_end."""
    made = await subscribe(client, trial_period_days=14)
    clock.advance(timedelta(days=3))
    begun = await client.v1.subscriptions.update_async(made.id, {"trial_end": "now", "expand": LATEST})
    assert (begun.status, amounts(invoice_of(begun)), begun.billing_cycle_anchor) == (
        "active",
        [1000],
        clock(),
    )
    clock.advance(timedelta(days=15))
    until = int(clock()) + 7 * DAY
    tried: Any = {"trial_end": until, "proration_behavior": "always_invoice", "expand": LATEST}
    again = await client.v1.subscriptions.update_async(made.id, tried)
    assert (again.status, again.trial_start, again.trial_end) == ("trialing", clock(), until)
    assert amounts(invoice_of(again)) == [-500, 0]
    longer = await client.v1.subscriptions.update_async(made.id, {"trial_end": until + DAY})
    assert (longer.trial_end, item_of(longer).current_period_end) == (until + DAY, until + DAY)


@pytest.mark.parametrize("until", [None, SECOND + 20 * DAY])
async def test_a_cycle_does_not_begin_anew_before_the_end_of_its_trial(
    client: stripe.StripeClient, clock: Clock, until: int | None
) -> None:
    """https://docs.stripe.com/changelog/endive/2026-10-28/error-code-billing-cycle-trial-end-validation-subscriptions."""
    anew: Any = {"billing_cycle_anchor": {"type": "now"}}
    made = await subscribe(client, **({} if until else {"trial_period_days": 14}))
    clock.advance(timedelta(days=3))
    later = {} if until is None else {"trial_end": until}
    error = await refusal(client, made.id, **anew, **later)
    assert error.code == "subscription_update_trial_after_billing_cycle_anchor"
    same = await client.v1.subscriptions.retrieve_async(made.id)
    assert (same.status, same.billing_cycle_anchor) == (made.status, made.billing_cycle_anchor)
    ended: Any = {**anew, "trial_end": "now"}
    begun = await client.v1.subscriptions.update_async(made.id, ended)
    assert (begun.status, begun.billing_cycle_anchor) == ("active", clock())


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"trial_end": SECOND - 1}, "must be an integer Unix timestamp in the future"),
        ({"trial_end": SECOND + 731 * DAY}, "no more than two years"),
        ({"trial_period_days": 731}, "between 1 and 730"),
        ({"trial_period_days": 7, "trial_end": SECOND + DAY}, "only specify one of these parameters"),
        ({"billing_cycle_anchor": SECOND - 1}, "in the future"),
        ({"billing_cycle_anchor": MAY + 1}, "cannot be later than next natural billing date"),
        ({"cancel_at": SECOND}, "in the future"),
        ({"collection_method": "send_invoice"}, "`days_until_due` must be set"),
        ({"items": []}, "Missing required param: items"),
        ({"backdate_start_date": SECOND - DAY}, "`backdate_start_date` is not emulated"),
    ],
)
async def test_what_a_new_subscription_cannot_be(
    client: stripe.StripeClient, params: Any, message: str
) -> None:
    """https://docs.stripe.com/api/subscriptions/create; nothing is made of what is refused."""
    with pytest.raises(stripe.InvalidRequestError, match=message):
        await subscribe(client, **params)
    assert (await client.v1.subscriptions.list_async({"status": "all"})).data == []


async def test_a_cycle_may_be_anchored_ahead(client: stripe.StripeClient, clock: Clock) -> None:
    """https://docs.stripe.com/billing/subscriptions/billing-cycle: until then it costs a part, or nothing."""
    anchor = SECOND + 15 * DAY
    made = await subscribe(client, billing_cycle_anchor=anchor)
    assert (made.billing_cycle_anchor, item_of(made).current_period_end) == (anchor, anchor)
    assert amounts(invoice_of(made)) == [round(1000 * 15 / 31)]  # Of 16 March to 16 April.
    free = await subscribe(client, billing_cycle_anchor=anchor, proration_behavior="none")
    assert (free.latest_invoice, free.status) == (None, "active")
    clock.advance(timedelta(days=15))
    whole = await client.v1.subscriptions.retrieve_async(free.id, {"expand": LATEST})
    assert amounts(invoice_of(whole)) == [1000]


async def downgrade(client: stripe.StripeClient, made: stripe.Subscription, to: str, **params: Any) -> str:
    """A schedule that has a subscription change at its period's end."""
    schedules = client.v1.subscription_schedules
    schedule = await schedules.create_async({"from_subscription": made.id})
    current = schedule.phases[0]
    phases: Any = [
        {
            "items": [{"price": item.price.id, "quantity": item.quantity} for item in items_of(made)],
            "start_date": current.start_date,
            "end_date": current.end_date,
        },
        {"items": [{"price": to}], "duration": {"interval": "month"}, "metadata": {"plan": to}},
    ]
    wanted: Any = {"phases": phases, "end_behavior": "release", **params}
    await schedules.update_async(schedule.id, wanted)
    return schedule.id


async def test_a_schedule_is_released_and_the_plan_stays(
    client: stripe.StripeClient, emulator: StripeEmulator, clock: Clock
) -> None:
    """https://docs.stripe.com/api/subscription_schedules/release."""
    made = await subscribe(client, "price_20")
    schedule_id = await downgrade(client, made, "price_10")
    error = await refusal(client, made.id, cancel_at_period_end=True)
    assert error.user_message is not None
    assert f"managed by the subscription schedule `{schedule_id}`" in error.user_message
    with pytest.raises(stripe.InvalidRequestError, match="already attached to a schedule"):
        await client.v1.subscription_schedules.create_async({"from_subscription": made.id})
    released = await client.v1.subscription_schedules.release_async(schedule_id)
    assert (released.status, released.released_at) == ("released", SECOND)
    with pytest.raises(stripe.InvalidRequestError, match="currently in the `released` status"):
        await client.v1.subscription_schedules.release_async(schedule_id)
    clock.set(datetime(2026, 5, 1, tzinfo=UTC))
    kept = await client.v1.subscriptions.retrieve_async(made.id)
    assert (item_of(kept).price.id, kept.schedule) == ("price_20", None)
    assert (await client.v1.subscriptions.update_async(made.id, {"cancel_at_period_end": True})).cancel_at
    assert "subscription_schedule.released" in told(emulator)


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([{"items": [{"price": "price_10"}]}], "Missing required param: phases.0..start_date"),
        ([{"items": [{"price": "price_10"}], "start_date": MAY}], "start date of the current phase"),
        (
            [{"items": [{"price": "price_10"}], "start_date": SECOND, "iterations": 1}],
            "unknown parameter: phases.0..iterations",
        ),
        (
            [{"items": [{"price": "price_10"}], "start_date": SECOND, "end_date": SECOND}],
            "must be in the future",
        ),
        (
            [
                {
                    "items": [{"price": "price_10"}],
                    "start_date": SECOND,
                    "end_date": MAY,
                    "duration": {"interval": "month"},
                }
            ],
            "only specify one of these parameters",
        ),
    ],
)
async def test_phases_that_are_refused(client: stripe.StripeClient, phases: Any, message: str) -> None:
    """https://docs.stripe.com/api/subscription_schedules/update; `iterations` are gone since clover."""
    made = await subscribe(client)
    schedule = await client.v1.subscription_schedules.create_async({"from_subscription": made.id})
    wanted: Any = {"phases": phases}
    with pytest.raises(stripe.InvalidRequestError, match=message):
        await client.v1.subscription_schedules.update_async(schedule.id, wanted)
    with pytest.raises(stripe.InvalidRequestError, match="You cannot set `end_behavior`"):
        await client.v1.subscription_schedules.create_async(
            {"from_subscription": made.id, "end_behavior": "cancel"}
        )


async def test_the_end_may_be_any_instant(client: stripe.StripeClient, clock: Clock) -> None:
    """https://docs.stripe.com/api/subscriptions/update#update_subscription-cancel_at: credited from there."""
    made = await subscribe(client)
    ending = await client.v1.subscriptions.update_async(made.id, {"cancel_at": SECOND + 15 * DAY})
    assert (ending.cancel_at, ending.cancel_at_period_end) == (SECOND + 15 * DAY, False)
    kept = await client.v1.subscriptions.update_async(made.id, {"cancel_at_period_end": False})
    assert kept.cancel_at == SECOND + 15 * DAY
    none: Any = {"cancel_at": ""}
    assert (await client.v1.subscriptions.update_async(made.id, none)).cancel_at is None
    last = await client.v1.subscriptions.update_async(made.id, {"cancel_at": "max_period_end"})
    first = await client.v1.subscriptions.update_async(made.id, {"cancel_at": "min_period_end"})
    assert last.cancel_at == first.cancel_at == MAY
    await client.v1.subscriptions.update_async(made.id, {"cancel_at": SECOND + 15 * DAY})
    clock.advance(timedelta(days=15, hours=2))
    ended = await client.v1.subscriptions.retrieve_async(made.id, {"expand": LATEST})
    assert (ended.status, ended.ended_at) == ("canceled", SECOND + 15 * DAY)
    assert amounts(invoice_of(ended)) == [-500]
    assert invoice_of(ended).status_transitions.finalized_at == SECOND + 15 * DAY + HOUR


async def test_what_cannot_have_a_schedule(client: stripe.StripeClient) -> None:
    """https://docs.stripe.com/api/subscription_schedules/create."""
    create = client.v1.subscription_schedules.create_async
    with pytest.raises(stripe.InvalidRequestError, match="Missing required param: phases"):
        await create({"customer": "cus_1"})
    with pytest.raises(stripe.InvalidRequestError, match="No such subscription: 'sub_x'"):
        await create({"from_subscription": "sub_x"})
    made = await subscribe(client, payment_behavior="default_incomplete")
    with pytest.raises(stripe.InvalidRequestError, match="in the `incomplete` status"):
        await create({"from_subscription": made.id})
    paid = await subscribe(client)
    schedule = await create({"from_subscription": paid.id})
    same: Any = {"items": [{"price": "price_10"}], "start_date": SECOND}
    with pytest.raises(stripe.InvalidRequestError, match="at most 10 current and future phases"):
        await client.v1.subscription_schedules.update_async(schedule.id, {"phases": [same] * 11})
    renamed = await client.v1.subscription_schedules.update_async(schedule.id, {"metadata": {"a": "b"}})
    assert renamed.metadata is not None
    assert renamed.metadata.to_dict() == {"a": "b"}
    with pytest.raises(stripe.InvalidRequestError, match="No such subscription schedule: 'sub_sched_x'"):
        await client.v1.subscription_schedules.retrieve_async("sub_sched_x")
    with pytest.raises(stripe.InvalidRequestError, match="its status is `active` and it has a schedule"):
        await client.v1.subscriptions.pause_async(paid.id)
