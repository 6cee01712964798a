"""Draft invoices: when they are finalized, what they show until then, and what a cancellation leaves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import stripe

from drivers.emulated_account import account
from drivers.emulated_shop import DAY, HOUR, MAY, amounts, invoice_of, shop, subscribe

if TYPE_CHECKING:
    from meterkit.testing import Clock, StripeEmulator

pytestmark = pytest.mark.anyio

LATEST: Any = ["latest_invoice"]
FIVE_YEARS = int(datetime(2031, 5, 1, tzinfo=UTC).timestamp())


def metered(**options: Any) -> tuple[StripeEmulator, Clock]:
    """The shop, with tokens at 1 and at 2 cents."""
    emulator, clock = shop(**options)
    meter = emulator.add_meter("tokens")
    for cents in (1, 2):
        emulator.add_price(cents, price_id=f"price_tokens_{cents}", meter=meter)
    return emulator, clock


async def use(client: stripe.StripeClient, value: str, *, at: int) -> None:
    payload = {"stripe_customer_id": "cus_1", "value": value}
    await client.v1.billing.meter_events.create_async(
        {"event_name": "tokens", "payload": payload, "timestamp": at}
    )


async def change(client: stripe.StripeClient, invoice: stripe.Invoice, **params: Any) -> stripe.Invoice:
    wanted: Any = params
    return await client.v1.invoices.update_async(invoice.id, wanted)


async def renewal(client: stripe.StripeClient, clock: Clock, *prices: str) -> stripe.Invoice:
    """The draft of the renewal on 1 May."""
    made = await subscribe(client, *prices)
    clock.set(datetime(2026, 5, 1, tzinfo=UTC))
    return invoice_of(await client.v1.subscriptions.retrieve_async(made.id, {"expand": LATEST}))


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
async def test_times_that_are_refused(params: Any, message: str) -> None:
    """The same page: "you must have automatic invoice advancement enabled", "up to 5 years in the future"."""
    emulator, clock = metered()
    async with account(emulator) as client:
        draft = await renewal(client, clock)
        with pytest.raises(stripe.InvalidRequestError, match=message):
            await change(client, draft, description="held", **params)
        same = await client.v1.invoices.retrieve_async(draft.id)
        assert (same.auto_advance, same.automatically_finalizes_at, same.description) == (
            True,
            MAY + HOUR,
            None,
        )
        await change(client, draft, automatically_finalizes_at=FIVE_YEARS)


async def test_a_finalized_invoice_takes_no_time() -> None:
    """The same page is about drafts."""
    emulator, clock = metered()
    async with account(emulator) as client:
        draft = await renewal(client, clock)
        await client.v1.invoices.finalize_invoice_async(draft.id, {"auto_advance": False})
        for at in (MAY + DAY, ""):
            with pytest.raises(stripe.InvalidRequestError) as refused:
                await change(client, draft, automatically_finalizes_at=at)
            assert refused.value.code == "invoice_not_editable"


async def test_a_line_of_usage_keeps_its_id_until_it_is_final() -> None:
    """A line of a draft is changed by its id: https://docs.stripe.com/api/invoice-line-item/update."""
    emulator, clock = metered()
    async with account(emulator) as client:
        draft = await renewal(client, clock, "price_tokens_1", "price_tokens_2")
        named = [line.id for line in draft.lines.data]
        await use(client, "3", at=MAY - 60)
        seen = await client.v1.invoices.retrieve_async(draft.id)
        done = await client.v1.invoices.finalize_invoice_async(draft.id)
        assert [[line.id for line in shown.lines.data] for shown in (seen, done)] == [named, named]
        assert len({*named}) == 2, "each line has its own id"


@pytest.mark.parametrize(("lag", "billed"), [(59, [30]), (61, [0])])
async def test_an_invoice_may_not_have_yet_what_a_summary_shows(lag: int, billed: list[int]) -> None:
    """Events are counted later, and no page says when: an invoice that is finalized before lacks them.

    https://docs.stripe.com/billing/subscriptions/usage-based/recording-usage-api
    """
    emulator, clock = metered(invoice_lag_s=lag)
    async with account(emulator) as client:
        draft = await renewal(client, clock, "price_tokens_1")
        await use(client, "30", at=MAY - 60)
        assert amounts(await client.v1.invoices.retrieve_async(draft.id)) == [0]
        clock.advance(timedelta(seconds=60))
        assert emulator.accepted("cus_1", "tokens") == 30
        done = await client.v1.invoices.finalize_invoice_async(draft.id)
        assert amounts(done) == billed
        clock.advance(timedelta(days=1))
        assert amounts(await client.v1.invoices.retrieve_async(draft.id)) == billed
