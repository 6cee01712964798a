"""The close of a period, and its invoices: pure tables."""

# Internals: pure tables of periods, drafts and invoice lines.

# pyright: reportPrivateUsage=false

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pytest

from drivers.delivery import NOW
from drivers.kept_intents import NOW_MS, ObjectsAtStripe, keep, kit_alone, subscription
from meterkit.decisions.customer_state import CustomerState
from meterkit.delivery.closing import Closer
from meterkit.delivery.invoice_advice import advice_on_invoices
from meterkit.delivery.invoices import (
    MADE_WITHIN_MS,
    Invoiced,
    Invoicing,
    invoicing_of,
)
from meterkit.delivery.late_usage import late_in_words
from meterkit.delivery.reconciling import Reconciler
from meterkit.delivery.report import LateUsage
from meterkit.errors import StripeError
from meterkit.outbox.closes import Close, Closes
from meterkit.outbox.invoice_ends import finalized_ms
from meterkit.testing import Clock

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from meterkit import MeterKit
    from meterkit.decisions.subscription import SubscriptionState

pytestmark = pytest.mark.anyio

# When the closer looks at a close again, and when it reports one: by the second.


JULY: Final = datetime(2031, 7, 1, tzinfo=UTC)
JULY_MS: Final = int(JULY.timestamp() * 1000)
MINUTE: Final = timedelta(minutes=1)
SECOND: Final = timedelta(seconds=1)


async def note(kit: MeterKit) -> None:
    """Note the close of acme's June for the closer."""
    closes = Closes(kit.store, await kit.store.admin())
    close = Close(shard=0, customer="acme", end_ms=JULY_MS)
    await closes.note(0, {close.member: JULY_MS})


@asynccontextmanager
async def unconfirmed() -> AsyncGenerator[tuple[Closer, Clock]]:
    """A close that Stripe does not confirm."""
    clock = Clock(NOW)
    async with kit_alone(clock=clock) as kit:
        await kit.record("acme", "requests", 2)
        await note(kit)
        yield Closer(kit.store, lambda: ObjectsAtStripe({"/v1/billing/meters": 401})), clock


async def test_a_close_is_checked_each_5_minutes_told_after_45() -> None:
    async with unconfirmed() as (closer, clock):
        for after, found in (
            (11 * MINUTE, (1, 0)),
            (16 * MINUTE - SECOND, (0, 0)),
            (16 * MINUTE, (1, 0)),
            (45 * MINUTE - SECOND, (1, 0)),
            (50 * MINUTE - SECOND, (0, 1)),
            (110 * MINUTE - 2 * SECOND, (0, 0)),
            (110 * MINUTE - SECOND, (1, 0)),
        ):
            clock.set(JULY + after)
            looked = await closer.look()
            assert (looked.confirmed, looked.open, len(looked.late)) == (0, *found)


async def test_at_45_minutes_it_is_late() -> None:
    async with unconfirmed() as (closer, clock):
        clock.set(JULY + 45 * MINUTE)
        assert len((await closer.look()).late) == 1


# Books against Stripe's: what waits and is parked, and which subscription's invoice has a period.


HOUR_MS: Final = 3_600_000

subscribed: Final = partial(subscription, id="sub_new")


async def test_what_is_parked_is_compared_where_a_repair_is_asked_for() -> None:
    async with kit_alone() as kit:
        await keep(kit, "one", 5, first=NOW_MS - 30 * HOUR_MS)
        reconciler = Reconciler(kit.store, lambda: ObjectsAtStripe({}))
        for repair in (False, True):
            await reconciler.reconcile("acme", repair=repair)
            (intent,) = await kit.outbox.list()
            # Stripe has no such meter: the comparison will say so.
            assert (intent.state, "no meter with its event name" in intent.why) == ("parked", repair)


async def invoicing(
    kit: MeterKit, stripe: ObjectsAtStripe, known: SubscriptionState | None, at_ms: int
) -> Invoicing | None:
    (usage,) = await kit.store.usage_of_many(["acme"], at_ms=at_ms)
    state = CustomerState(stripe_customer="cus_acme", subscription=known)
    return await invoicing_of(kit.store, stripe, usage, state)


async def formerly(kit: MeterKit, *subscriptions: str) -> None:
    """Have acme have had subscriptions before."""
    admin, key = await kit.store.admin(), kit.store.keys.customer("acme").history
    for name in subscriptions:
        entry = json.dumps(["subscription", f"{NOW_MS - HOUR_MS}", name, "another one", "api"])
        await admin.ask(admin.client.rpush(key, entry))


NEW: Final = subscribed(created_ms=NOW_MS - HOUR_MS, start_ms=NOW_MS - HOUR_MS)
"""It began within the compared period."""


async def test_the_latest_begun_subscription_at_stripe_has_it() -> None:
    async with kit_alone() as kit:
        await formerly(kit, "sub_1", "sub_2", "sub_3", "sub_gone")
        stripe = ObjectsAtStripe({
            "/v1/subscriptions/sub_1": {"id": "sub_1"},
            "/v1/subscriptions/sub_2": {"id": "sub_2"},
            "/v1/subscriptions/sub_3": {"id": "sub_3", "start_date": NOW_MS // 1000 - 7_200},
        })  # fmt: skip
        found = await invoicing(kit, stripe, NEW, NOW_MS)
        assert (found and found.subscription, len(stripe.asked)) == ("sub_2", 3)
        stripe.shown["/v1/subscriptions/sub_gone"] = 500
        with pytest.raises(StripeError):
            await invoicing(kit, stripe, NEW, NOW_MS)


# What a person must do about an invoice, when it became final, and what becomes of late usage.


MADE_MS: Final = 1_800_000_000_000
FINAL: Final = Invoiced(quantity=Decimal(100), state="final", invoices=["in_1"], subscriptions=["sub_1"])


def advice(
    invoiced: Invoiced, counted: int, *, late: int = 0, after_ms: int = MADE_WITHIN_MS, price: str = ""
) -> str:
    return advice_on_invoices(
        invoiced, counted, late=late, price=price, made_ms=MADE_MS, now_ms=MADE_MS + after_ms
    )


def test_a_draft_is_waited_for() -> None:
    assert advice(replace(FINAL, state="draft"), 120) == (
        "the draft in_1 has 100 of 120: Stripe brings it up to date when it becomes final"
    )


def test_an_invoice_that_is_not_made_yet_is_waited_for() -> None:
    none = Invoiced(state="none")
    assert advice(none, 7, after_ms=MADE_WITHIN_MS - 1) == (
        "7 are on no invoice yet: Stripe makes it within an hour or two"
    )
    assert "(no invoice line has them)" in advice(none, 7, after_ms=MADE_WITHIN_MS)
    assert advice(FINAL, 107, after_ms=0).startswith("7 of 107 units")


def test_what_is_too_much_is_credited() -> None:
    assert advice(FINAL, 93) == "in_1 has 100, and Stripe has counted 93: credit 7 units"
    assert advice(FINAL, -3).endswith("counted 0: credit 100 units")
    twice = replace(FINAL, subscriptions=["sub_1", "sub_2"], invoices=["in_1", "in_2"])
    assert advice(twice, 50) == (
        "billed twice: in_1, in_2 have 100, and Stripe has counted 50: the subscriptions sub_1, sub_2 bill"
        " the same meter; end one, and credit 50 units"
    )


@pytest.mark.parametrize(
    ("invoice", "expected"),
    [
        ({"status": "draft", "created": 5, "status_transitions": {"finalized_at": 7}}, 0),
        ({"status": "open", "created": 5, "status_transitions": {"finalized_at": 7}}, 7_000),
        ({"status": "void", "status_transitions": {"voided_at": 9}}, 9_000),
        ({"status": "uncollectible", "status_transitions": {"marked_uncollectible_at": 8}}, 8_000),
        ({"status": "void", "status_transitions": {"marked_uncollectible_at": 8, "voided_at": 9}}, 8_000),
        ({"status": "open", "created": 5}, 5_000),
    ],
)
def test_when_an_invoice_became_final(invoice: dict[str, Any], expected: int) -> None:
    assert finalized_ms(invoice) == expected


def late(meter: str, quantity: int, *, is_billed: bool) -> LateUsage:
    return LateUsage(
        customer="ada", meter=meter, quantity=quantity, period="2031-05-01T00:00:00Z", is_billed=is_billed
    )


def test_what_becomes_of_late_usage_in_words() -> None:
    billed, lost = late("tokens", 5, is_billed=True), late("pages", 7, is_billed=False)
    assert late_in_words([billed]) == "5 of tokens: the invoice of the open period bills it"
    assert late_in_words([lost]) == "7 of pages: no invoice bills it"
    assert late_in_words([lost, billed, late("rows", 1, is_billed=False)]) == (
        "5 of tokens: the invoice of the open period bills it; 7 of pages, 1 of rows: no invoice bills it"
    )


def test_units_of_a_void_invoice_are_named_by_it() -> None:
    found = Invoiced(voided={"in_2": Decimal(7)})
    assert advice(found, 7, after_ms=0) == (
        "7 of 7 units that Stripe has counted are on no invoice (no invoice line has them; in_2 had 7 and is"
        " void): see who voided it, and why"
    )
