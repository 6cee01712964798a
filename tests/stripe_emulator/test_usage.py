"""Metered prices: which event is charged at which price, until when, and what is charged at none."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from drivers.emulated_shop import amounts, current, invoice_of, items_of, refused, subscribe, use
from drivers.emulated_times import DAY, HOUR, MAY, SECOND
from drivers.sampled import pairs
from stripe_emulator import Clock, StripeEmulator

pytestmark = pytest.mark.anyio

HALF = SECOND + 15 * DAY
FIVE_YEARS = int(datetime(2031, 5, 1, tzinfo=UTC).timestamp())


async def charged(client: Any, made: Any) -> list[tuple[str, int]]:
    """The metered price and the quantity of each usage line of the latest invoice that is not 0."""
    lines = invoice_of(await current(client, made.id)).lines.data
    priced = [(line.pricing.price_details.price, line.quantity) for line in lines if line.quantity]
    return [(price, quantity) for price, quantity in priced if price.startswith("price_tokens")]


async def phases(client: Any, made: Any, *later: str, **how: Any) -> None:
    """Schedule a subscription's items to be others from ``at`` on, or from its period's end."""
    at = how.pop("at", MAY)
    schedule = await client.subscription_schedules.create(from_subscription=made.id)
    items = [{"price": item.price.id} for item in items_of(made)]
    then = {"items": [{"price": price} for price in later], **how}
    await client.subscription_schedules.update(
        schedule.id, phases=[{"start_date": SECOND, "end_date": at, "items": items}, then]
    )


@pytest.mark.parametrize(
    ("later", "by", "behavior"),
    pairs(
        [["price_10"], ["price_10", "price_tokens_2"]],
        ["update", "phase", "phase_at_the_end"],
        ["create_prorations", "always_invoice", "none"],
    ),
)
async def test_without_prorations_a_price_that_goes_bills_nothing(
    client: Any, clock: Clock, later: list[str], by: str, behavior: str
) -> None:
    """ "To remove a metered price without billing for it, set `proration_behavior` to `none`".

    https://docs.stripe.com/billing/subscriptions/usage-based/manage-billing-setup
    """
    made = await subscribe(client, "price_10", "price_tokens_1")
    await use(client, 500, at=SECOND)
    if by == "update":
        clock.set(datetime(2026, 4, 16, tzinfo=UTC))
        item: Any = {"id": items_of(made)[1].id}
        item |= {"deleted": True} if len(later) == 1 else {"price": later[1]}
        await client.subscriptions.update(made.id, items=[item], proration_behavior=behavior)
    else:
        await phases(client, made, *later, proration_behavior=behavior, at=HALF if by == "phase" else MAY)
    clock.set(datetime(2026, 5, 1, tzinfo=UTC))
    await client.subscriptions.retrieve(made.id)
    clock.advance(timedelta(hours=2))
    invoices = (await client.invoices.list(subscription=made.id)).data
    lines = [line for invoice in invoices for line in invoice.lines.data if line.amount not in (0, 1000)]
    found = [(line.pricing.price_details.price, line.amount, line.parent.type) for line in lines]
    assert found == ([("price_tokens_1", 500, "invoice_item_details")] if behavior != "none" else [])


async def test_a_schedule_that_ends_charges_the_last_usage(client: Any, clock: Clock) -> None:
    """https://docs.stripe.com/billing/subscriptions/subscription-schedules: `end_behavior` is `cancel`."""
    made = await subscribe(client, "price_10", "price_tokens_1")
    schedule = await client.subscription_schedules.create(from_subscription=made.id)
    await client.subscription_schedules.update(schedule.id, end_behavior="cancel")
    await use(client, 40, at=SECOND)
    clock.set(datetime(2026, 5, 1, tzinfo=UTC))
    assert await charged(client, made) == [("price_tokens_1", 40)]


async def pending(client: Any, made: Any) -> Any:
    """Have a switch of both prices wait for a payment that fails; the invoice of that."""
    base, tokens = items_of(made)
    items = [{"id": base.id, "price": "price_20"}, {"id": tokens.id, "price": "price_tokens_2"}]
    how = {"payment_behavior": "pending_if_incomplete", "proration_behavior": "always_invoice"}
    changed = await client.subscriptions.update(made.id, items=items, expand=["latest_invoice"], **how)
    assert (changed.pending_update is not None, changed.status) == (True, "active")
    return invoice_of(changed)


@pytest.mark.parametrize("how", ["voided", "phase"])
async def test_usage_on_a_pending_updates_invoice_is_lost_with_it(
    client: Any, emulator: StripeEmulator, clock: Clock, how: str
) -> None:
    """Outstanding usage is on that invoice; when it is voided, the usage is discarded for good.

    https://docs.stripe.com/billing/subscriptions/pending-updates
    """
    made = await subscribe(client, "price_10", "price_tokens_1")
    if how == "phase":
        await phases(client, made, "price_10", "price_tokens_1", "price_seat", at=SECOND + DAY + HOUR)
    await use(client, 500, at=SECOND)
    clock.advance(timedelta(days=1))
    emulator.fail_payments("cus_1")
    invoice = await pending(client, made)
    assert [line.amount for line in invoice.lines.data if line.quantity == 500] == [500]
    emulator.mend_payments("cus_1")
    if how == "voided":
        await client.invoices.void_invoice(invoice.id)
    else:
        clock.advance(timedelta(hours=1))
        assert (await client.subscriptions.retrieve(made.id)).pending_update is None
    clock.advance(timedelta(days=1))
    found = await client.subscriptions.retrieve(made.id)
    assert found.pending_update is None
    assert (await client.invoices.retrieve(invoice.id)).status == "void"
    assert items_of(found)[1].price.id == "price_tokens_1"
    await use(client, 70, at=SECOND + 2 * DAY)
    clock.set(datetime(2026, 5, 1, tzinfo=UTC))
    assert await charged(client, made) == [("price_tokens_1", 70)]


async def test_a_paid_update_bills_usage_once(client: Any, emulator: StripeEmulator, clock: Clock) -> None:
    """What is used between the request and the payment is on no line: no page says whose it is."""
    made = await subscribe(client, "price_10", "price_tokens_1")
    await use(client, 500, at=SECOND)
    clock.advance(timedelta(days=1))
    emulator.fail_payments("cus_1")
    invoice = await pending(client, made)
    await use(client, 30, at=SECOND + DAY)
    clock.advance(timedelta(hours=1))
    emulator.mend_payments("cus_1")
    await client.invoices.pay(invoice.id)
    await use(client, 7, at=SECOND + DAY + HOUR)
    clock.set(datetime(2026, 5, 1, tzinfo=UTC))
    assert await charged(client, made) == [("price_tokens_2", 7)]


async def test_a_pending_update_ends_in_time(client: Any, emulator: StripeEmulator, clock: Clock) -> None:
    """ "The trial end time or the current period end, whichever comes first", or 23 hours.

    https://docs.stripe.com/billing/subscriptions/pending-updates-reference#expiration
    """
    made = await subscribe(client, "price_10", "price_tokens_1")
    clock.set(datetime(2026, 4, 30, 12, tzinfo=UTC))
    await use(client, 500, at=SECOND)
    emulator.fail_payments("cus_1")
    await pending(client, made)
    assert (await client.subscriptions.retrieve(made.id)).pending_update.expires_at == MAY
    clock.set(datetime(2026, 5, 1, tzinfo=UTC))
    assert (await client.subscriptions.retrieve(made.id)).pending_update is None


async def test_a_pending_update_deletes_no_items(client: Any) -> None:
    """https://docs.stripe.com/billing/subscriptions/pending-updates-reference#supported-attributes."""
    made = await subscribe(client, "price_10", "price_tokens_1")
    gone = items_of(made)[1].id
    how = {"payment_behavior": "pending_if_incomplete"}
    await refused(
        client.subscriptions.update(made.id, items=[{"id": gone, "deleted": True}], **how),
        "`items\\[deleted]` cannot be set",
    )
    await refused(client.subscription_items.delete(gone, **how), "cannot be set")


async def test_late_usage_counts_until_the_draft_is_finalized(client: Any, clock: Clock) -> None:
    """facts/stripe.md 0.6: "usage for a period whose invoice is finalised is never billed"."""
    made = await subscribe(client, "price_tokens")
    assert (made.status, made.latest_invoice) == ("active", None)
    clock.set(datetime(2026, 5, 1, 0, 59, tzinfo=UTC))
    await use(client, 1000, at=MAY - 60)
    await use(client, 5000, at=MAY)  # Of the next period.
    draft = invoice_of(await current(client, made.id))
    assert (amounts(await client.invoices.retrieve(draft.id)), draft.status) == ([12], "draft")
    await use(client, 1000, at=MAY - 120)
    clock.advance(timedelta(minutes=1))
    done = await client.invoices.retrieve(draft.id)
    assert (amounts(done), done.status, done.ending_balance) == ([24], "paid", 24)
    await use(client, 1000, at=MAY - 180)
    assert amounts(await client.invoices.retrieve(draft.id)) == [24]
    lines = await client.invoices.line_items.list(draft.id)
    assert [line.quantity for line in lines.data] == [2000]
    clock.set(datetime(2026, 6, 1, tzinfo=UTC))
    assert amounts(invoice_of(await current(client, made.id))) == [60]


@pytest.mark.parametrize(("now", "lines"), [(True, [[-500, 24], [1000]]), (False, [[1000]])])
async def test_a_cancellation_at_once_charges_usage_only_if_told_so(
    client: Any, clock: Clock, now: bool, lines: list[list[int]]
) -> None:
    """facts/stripe.md 6.4: "discards un-invoiced metered usage unless `invoice_now=True`"."""
    made = await subscribe(client, "price_10", "price_tokens")
    clock.advance(timedelta(days=15))
    await use(client, 2000, at=SECOND)
    await client.subscriptions.cancel(made.id, invoice_now=now, prorate=now)
    clock.advance(timedelta(hours=2))
    invoices = await client.invoices.list(subscription=made.id)
    assert [amounts(invoice) for invoice in invoices.data] == lines


async def test_negative_usage_and_tiers(client: Any, emulator: StripeEmulator, clock: Clock) -> None:
    """A sum below 0 is billed as 0 (facts/stripe.md 0.7); each graduated tier has a line."""
    (meter,) = (await client.billing.meters.list()).data
    emulator.add_price(
        price_id="price_tiers",
        meter=meter.id,
        billing_scheme="tiered",
        tiers_mode="graduated",
        tiers=[{"up_to": 1000, "unit_amount": 0}, {"up_to": "inf", "unit_amount_decimal": "0.1"}],
    )
    made = await subscribe(client, "price_tiers")
    clock.advance(timedelta(days=1))
    await use(client, -5, at=SECOND)
    shown = await client.invoices.create_preview(subscription=made.id)
    assert [(line.quantity, line.amount) for line in shown.lines.data] == [(0, 0)]
    await use(client, 3005, at=SECOND + HOUR)
    shown = await client.invoices.create_preview(subscription=made.id)
    assert [(line.quantity, line.amount) for line in shown.lines.data] == [(1000, 0), (2000, 200)]
    assert shown.lines.data[1].description == "2000 × price_tiers (Tier 2 at 0.001 USD)"  # noqa: RUF001


async def renewal(client: Any, clock: Clock, *prices: str) -> Any:
    """The draft of the renewal on 1 May."""
    made = await subscribe(client, *prices)
    clock.set(datetime(2026, 5, 1, tzinfo=UTC))
    return invoice_of(await current(client, made.id))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"automatically_finalizes_at": MAY}, "must be in the future, and at most 5 years"),
        ({"automatically_finalizes_at": FIVE_YEARS + 1}, "must be in the future, and at most 5 years"),
        (
            {"auto_advance": False, "automatically_finalizes_at": MAY + DAY},
            "can only be set where `auto_advance` is `true`",
        ),
    ],
)
async def test_times_that_are_refused(client: Any, clock: Clock, params: Any, message: str) -> None:
    """The same page: "you must have automatic invoice advancement enabled", "up to 5 years in the future"."""
    draft = await renewal(client, clock)
    await refused(client.invoices.update(draft.id, description="held", **params), message)
    same = await client.invoices.retrieve(draft.id)
    assert (same.auto_advance, same.automatically_finalizes_at, same.description) == (True, MAY + HOUR, None)
    await client.invoices.update(draft.id, automatically_finalizes_at=FIVE_YEARS)


async def test_a_line_of_usage_keeps_its_id_until_it_is_final(client: Any, clock: Clock) -> None:
    """A line of a draft is changed by its id: https://docs.stripe.com/api/invoice-line-item/update."""
    draft = await renewal(client, clock, "price_tokens_1", "price_tokens_2")
    named = [line.id for line in draft.lines.data]
    await use(client, 3, at=MAY - 60)
    seen = await client.invoices.retrieve(draft.id)
    done = await client.invoices.finalize_invoice(draft.id)
    assert [[line.id for line in shown.lines.data] for shown in (seen, done)] == [named, named]
    assert len({*named}) == 2, "each line has its own id"


@pytest.mark.parametrize(
    ("opened", "billed"), [({"invoice_lag_s": 59}, [30]), ({"invoice_lag_s": 61}, [0])], indirect=["opened"]
)
async def test_an_invoice_may_not_have_yet_what_a_summary_shows(
    client: Any, emulator: StripeEmulator, clock: Clock, billed: list[int]
) -> None:
    """Events are counted later, and no page says when: an invoice that is finalized before lacks them.

    https://docs.stripe.com/billing/subscriptions/usage-based/recording-usage-api
    """
    draft = await renewal(client, clock, "price_tokens_1")
    await use(client, 30, at=MAY - 60)
    assert amounts(await client.invoices.retrieve(draft.id)) == [0]
    clock.advance(timedelta(seconds=60))
    assert emulator.accepted("cus_1", "tokens") == 30
    assert amounts(await client.invoices.finalize_invoice(draft.id)) == billed
    clock.advance(timedelta(days=1))
    assert amounts(await client.invoices.retrieve(draft.id)) == billed
