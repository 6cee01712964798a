"""Trials, pauses and schedules: what a subscription becomes by the clock alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from drivers.emulated_shop import amounts, current, invoice_of, item_of, refused, subscribe, told
from drivers.emulated_times import DAY, HOUR, MAY, SECOND
from stripe_emulator import Clock, StripeEmulator

pytestmark = pytest.mark.anyio

LATEST: Any = ["latest_invoice"]


def unpaid(action: str) -> Any:
    return {"end_behavior": {"missing_payment_method": action}}


async def test_a_trial_is_free_until_its_end(client: Any, emulator: StripeEmulator, clock: Clock) -> None:
    """https://docs.stripe.com/billing/subscriptions/trials/free-trials."""
    made = await subscribe(client, trial_period_days=14)
    end = SECOND + 14 * DAY
    assert (made.status, made.trial_start, made.trial_end) == ("trialing", SECOND, end)
    assert (made.billing_cycle_anchor, item_of(made).current_period_end) == (end, end)
    invoice = invoice_of(made)
    assert (invoice.total, invoice.status) == (0, "paid")
    assert invoice.lines.data[0].description == "Free trial for 1 x Pro"
    clock.advance(timedelta(days=11) - timedelta(seconds=1))
    emulator.advance()
    assert "customer.subscription.trial_will_end" not in told(emulator)
    clock.advance(timedelta(seconds=1))
    emulator.advance()
    assert told(emulator)[-1] == "customer.subscription.trial_will_end"
    clock.advance(timedelta(days=3))
    begun = await current(client, made.id)
    assert (begun.status, invoice_of(begun).status) == ("active", "draft")
    assert invoice_of(begun).billing_reason == "subscription_cycle"
    assert item_of(begun).current_period_start == end
    clock.advance(timedelta(hours=1))
    assert (await client.invoices.retrieve(invoice_of(begun).id)).amount_paid == 1000


@pytest.mark.parametrize(
    ("action", "status", "event"),
    [
        ("cancel", "canceled", "customer.subscription.deleted"),
        ("pause", "paused", "customer.subscription.paused"),
        ("create_invoice", "past_due", "invoice.payment_failed"),
    ],
)
@pytest.mark.parametrize("opened", [{"card": None}], indirect=True)
async def test_a_trial_without_a_payment_method_ends_as_it_is_set(
    client: Any, emulator: StripeEmulator, clock: Clock, action: str, status: str, event: str
) -> None:
    """https://docs.stripe.com/billing/subscriptions/trials/free-trials#create-free-trials-without-payment."""
    made = await subscribe(client, trial_period_days=14, trial_settings=unpaid(action))
    clock.advance(timedelta(days=14, hours=1))
    ended = await client.subscriptions.retrieve(made.id)
    assert (ended.status, ended.trial_settings.end_behavior.missing_payment_method) == (status, action)
    assert event in told(emulator)


@pytest.mark.parametrize("opened", [{"card": None}], indirect=True)
async def test_a_paused_one_is_resumed_and_paid(client: Any, emulator: StripeEmulator, clock: Clock) -> None:
    """https://docs.stripe.com/api/subscriptions/resume: a new cycle, its invoice paid in the request."""
    made = await subscribe(client, trial_period_days=14, trial_settings=unpaid("pause"))
    await refused(client.subscriptions.resume(made.id), "only resume a subscription that is paused")
    clock.advance(timedelta(days=60))
    paused = await client.subscriptions.retrieve(made.id)
    assert paused.status_details.paused.subscription.type == "trial_end_without_payment_method"
    assert paused.status_details.paused.transitioned_at == SECOND + 14 * DAY
    assert len((await client.invoices.list()).data) == 1
    emulator.add_payment_method("cus_1")
    resumed = await client.subscriptions.resume(made.id, expand=LATEST)
    assert (resumed.status, invoice_of(resumed).status) == ("active", "paid")
    assert (resumed.billing_cycle_anchor, resumed.status_details) == (clock(), None)
    assert told(emulator)[-2:] == ["customer.subscription.resumed", "customer.subscription.updated"]


async def test_a_resumption_that_is_not_paid(client: Any, emulator: StripeEmulator, clock: Clock) -> None:
    """https://docs.stripe.com/billing/subscriptions/pause#resume-subscriptions: past_due, or paused still."""
    made = await subscribe(client)
    emulator.fail_payments("cus_1")
    paused = await client.subscriptions.pause(made.id, bill_for={"unused_time_from": {"type": "none"}})
    assert (paused.status, item_of(paused).current_period_end) == ("paused", SECOND)
    clock.advance(timedelta(days=40))
    resumption = {"expand": LATEST, "payment_behavior": "resume_on_payment_success"}
    waiting = await client.subscriptions.resume(made.id, **resumption)
    assert (waiting.status, invoice_of(waiting).status) == ("paused", "open")
    clock.advance(timedelta(hours=23))
    assert (await client.invoices.retrieve(invoice_of(waiting).id)).status == "void"
    assert (await client.subscriptions.retrieve(made.id)).status == "paused"
    assert (await client.subscriptions.resume(made.id)).status == "past_due"


async def test_a_pause_credits_what_is_left_and_may_go_on_in_its_cycle(client: Any, clock: Clock) -> None:
    """https://docs.stripe.com/billing/subscriptions/pause#pause-subscriptions."""
    made = await subscribe(client)
    clock.advance(timedelta(days=15))
    paused = await client.subscriptions.pause(made.id, invoicing_behavior="invoice", expand=LATEST)
    assert amounts(invoice_of(paused)) == [-500]
    clock.advance(timedelta(days=6))
    unchanged: Any = {"billing_cycle_anchor": {"type": "unchanged"}, "proration_behavior": "always_invoice"}
    resumed = await client.subscriptions.resume(made.id, **unchanged, expand=LATEST)
    assert amounts(invoice_of(resumed)) == [300]
    assert (resumed.billing_cycle_anchor, item_of(resumed).current_period_end) == (SECOND, MAY)
    await client.subscriptions.pause(made.id)
    await refused(client.subscriptions.pause(made.id), "cannot be paused")
    quiet = unchanged | {"proration_behavior": "none"}
    assert (await client.subscriptions.resume(made.id, **quiet)).status == "active"


async def test_a_trial_is_ended_early_or_added(client: Any, clock: Clock) -> None:
    """https://docs.stripe.com/api/subscriptions/update#update_subscription-trial_end."""
    made = await subscribe(client, trial_period_days=14)
    clock.advance(timedelta(days=3))
    begun = await client.subscriptions.update(made.id, trial_end="now", expand=LATEST)
    assert (begun.status, amounts(invoice_of(begun))) == ("active", [1000])
    assert begun.billing_cycle_anchor == clock()
    clock.advance(timedelta(days=15))
    until = int(clock()) + 7 * DAY
    tried = {"trial_end": until, "proration_behavior": "always_invoice", "expand": LATEST}
    again = await client.subscriptions.update(made.id, **tried)
    assert (again.status, again.trial_start, again.trial_end) == ("trialing", clock(), until)
    assert amounts(invoice_of(again)) == [-500, 0]
    longer = await client.subscriptions.update(made.id, trial_end=until + DAY)
    assert (longer.trial_end, item_of(longer).current_period_end) == (until + DAY, until + DAY)


@pytest.mark.parametrize("until", [None, SECOND + 20 * DAY])
async def test_a_cycle_begins_anew_after_its_trial(client: Any, clock: Clock, until: int | None) -> None:
    """https://docs.stripe.com/changelog/endive/2026-10-28/error-code-billing-cycle-trial-end-validation-subscriptions."""
    anew: Any = {"billing_cycle_anchor": {"type": "now"}}
    made = await subscribe(client, **({} if until else {"trial_period_days": 14}))
    clock.advance(timedelta(days=3))
    later = {} if until is None else {"trial_end": until}
    error = await refused(client.subscriptions.update(made.id, **anew, **later))
    assert error.code == "subscription_update_trial_after_billing_cycle_anchor"
    same = await client.subscriptions.retrieve(made.id)
    assert (same.status, same.billing_cycle_anchor) == (made.status, made.billing_cycle_anchor)
    begun = await client.subscriptions.update(made.id, **anew, trial_end="now")
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
async def test_what_a_new_subscription_cannot_be(client: Any, params: Any, message: str) -> None:
    """https://docs.stripe.com/api/subscriptions/create; nothing is made of what is refused."""
    await refused(subscribe(client, **params), message)
    assert (await client.subscriptions.list(status="all")).data == []


async def test_a_cycle_may_be_anchored_ahead(client: Any, clock: Clock) -> None:
    """https://docs.stripe.com/billing/subscriptions/billing-cycle: until then it costs a part, or nothing."""
    anchor = SECOND + 15 * DAY
    made = await subscribe(client, billing_cycle_anchor=anchor)
    assert (made.billing_cycle_anchor, item_of(made).current_period_end) == (anchor, anchor)
    assert amounts(invoice_of(made)) == [round(1000 * 15 / 31)]  # Of 16 March to 16 April.
    free = await subscribe(client, billing_cycle_anchor=anchor, proration_behavior="none")
    assert (free.latest_invoice, free.status) == (None, "active")
    clock.advance(timedelta(days=15))
    assert amounts(invoice_of(await current(client, free.id))) == [1000]


async def test_a_released_schedule_keeps_plan(client: Any, emulator: StripeEmulator, clock: Clock) -> None:
    """https://docs.stripe.com/api/subscription_schedules/release."""
    made = await subscribe(client, "price_20")
    schedules = client.subscription_schedules
    schedule = (await schedules.create(from_subscription=made.id)).id
    now = {"items": [{"price": "price_20", "quantity": 1}], "start_date": SECOND, "end_date": MAY}
    then = {"items": [{"price": "price_10"}], "duration": {"interval": "month"}}
    await schedules.update(schedule, phases=[now, then], end_behavior="release")
    cancelled = client.subscriptions.update(made.id, cancel_at_period_end=True)
    await refused(cancelled, f"managed by the subscription schedule `{schedule}`")
    await refused(schedules.create(from_subscription=made.id), "already attached to a schedule")
    released = await schedules.release(schedule)
    assert (released.status, released.released_at) == ("released", SECOND)
    await refused(schedules.release(schedule), "currently in the `released` status")
    clock.set(datetime(2026, 5, 1, tzinfo=UTC))
    kept = await client.subscriptions.retrieve(made.id)
    assert (item_of(kept).price.id, kept.schedule) == ("price_20", None)
    assert (await client.subscriptions.update(made.id, cancel_at_period_end=True)).cancel_at
    assert "subscription_schedule.released" in told(emulator)


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        ({}, "Missing required param: phases.0..start_date"),
        ({"start_date": MAY}, "start date of the current phase"),
        ({"start_date": SECOND, "iterations": 1}, "unknown parameter: phases.0..iterations"),
        ({"start_date": SECOND, "end_date": SECOND}, "must be in the future"),
        (
            {"start_date": SECOND, "end_date": MAY, "duration": {"interval": "month"}},
            "only specify one of these parameters",
        ),
    ],
)
async def test_phases_that_are_refused(client: Any, phase: Any, message: str) -> None:
    """https://docs.stripe.com/api/subscription_schedules/update; `iterations` are gone since clover."""
    made = await subscribe(client)
    schedule = await client.subscription_schedules.create(from_subscription=made.id)
    phases = [{"items": [{"price": "price_10"}], **phase}]
    await refused(client.subscription_schedules.update(schedule.id, phases=phases), message)
    ended = client.subscription_schedules.create(from_subscription=made.id, end_behavior="cancel")
    await refused(ended, "You cannot set `end_behavior`")


async def test_the_end_may_be_any_instant(client: Any, clock: Clock) -> None:
    """https://docs.stripe.com/api/subscriptions/update#update_subscription-cancel_at: credited from there."""
    made = await subscribe(client)
    ending = await client.subscriptions.update(made.id, cancel_at=SECOND + 15 * DAY)
    assert (ending.cancel_at, ending.cancel_at_period_end) == (SECOND + 15 * DAY, False)
    kept = await client.subscriptions.update(made.id, cancel_at_period_end=False)
    assert kept.cancel_at == SECOND + 15 * DAY
    assert (await client.subscriptions.update(made.id, cancel_at="")).cancel_at is None
    last = await client.subscriptions.update(made.id, cancel_at="max_period_end")
    first = await client.subscriptions.update(made.id, cancel_at="min_period_end")
    assert last.cancel_at == first.cancel_at == MAY
    await client.subscriptions.update(made.id, cancel_at=SECOND + 15 * DAY)
    clock.advance(timedelta(days=15, hours=2))
    ended = await current(client, made.id)
    assert (ended.status, ended.ended_at) == ("canceled", SECOND + 15 * DAY)
    assert amounts(invoice_of(ended)) == [-500]
    assert invoice_of(ended).status_transitions.finalized_at == SECOND + 15 * DAY + HOUR


async def test_what_cannot_have_a_schedule(client: Any) -> None:
    """https://docs.stripe.com/api/subscription_schedules/create."""
    create, change = client.subscription_schedules.create, client.subscription_schedules.update
    await refused(create(customer="cus_1"), "Missing required param: phases")
    await refused(create(from_subscription="sub_x"), "No such subscription: 'sub_x'")
    made = await subscribe(client, payment_behavior="default_incomplete")
    await refused(create(from_subscription=made.id), "in the `incomplete` status")
    paid = await subscribe(client)
    schedule = await create(from_subscription=paid.id)
    same = {"items": [{"price": "price_10"}], "start_date": SECOND}
    await refused(change(schedule.id, phases=[same] * 11), "at most 10 current and future phases")
    assert (await change(schedule.id, metadata={"a": "b"})).metadata.to_dict() == {"a": "b"}
    none = client.subscription_schedules.retrieve("sub_sched_x")
    await refused(none, "No such subscription schedule: 'sub_sched_x'")
    await refused(client.subscriptions.pause(paid.id), "its status is `active` and it has a schedule")
