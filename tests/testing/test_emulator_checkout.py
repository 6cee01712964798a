"""Checkout and portal sessions are made, refused and expired as Stripe does it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import stripe

from drivers.emulated_account import account
from meterkit.testing import Clock, StripeEmulator

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
SECOND = int(NOW.timestamp())
DAY_S = 86_400
SUCCESS = "https://app.example/done?session={CHECKOUT_SESSION_ID}"


def ready() -> tuple[StripeEmulator, Clock]:
    clock = Clock(NOW)
    emulator = StripeEmulator(clock=clock)
    emulator.add_customer("cus_1")
    emulator.add_price(
        2_900, price_id="price_pro", product=emulator.add_product("Pro", product_id="prod_pro")
    )
    emulator.add_price(900, price_id="price_seat", product="prod_pro")
    emulator.add_price(12, price_id="price_tokens", product="prod_pro", meter=emulator.add_meter("tokens"))
    emulator.add_price(5_000, price_id="price_once", product="prod_pro", interval=None)
    emulator.add_price(2_500, price_id="price_euro", product="prod_pro", currency="eur")
    return emulator, clock


def offer(**others: Any) -> Any:
    return {
        "mode": "subscription",
        "line_items": [{"price": "price_pro", "quantity": 1}],
        "success_url": SUCCESS,
        **others,
    }


def only(price: str, quantity: int | None = 1) -> list[dict[str, Any]]:
    return [{"price": price} if quantity is None else {"price": price, "quantity": quantity}]


async def test_a_session_offers_prices_for_a_day() -> None:
    """https://docs.stripe.com/api/checkout/sessions/object; open for 24 hours unless told otherwise."""
    emulator, _ = ready()
    async with account(emulator) as client:
        sessions = client.v1.checkout.sessions
        made = await sessions.create_async(
            offer(
                line_items=[
                    {"price": "price_pro", "quantity": 1},
                    {"price": "price_seat", "quantity": 3},
                    {"price": "price_tokens"},
                ],
                client_reference_id="ada",
                customer="cus_1",
                cancel_url="https://app.example/back",
                metadata={"a": "1"},
                subscription_data={"metadata": {"meterkit_customer": "ada"}},
            )
        )
        assert made.id.startswith("cs_test_")
        assert (made.status, made.payment_status, made.mode) == ("open", "unpaid", "subscription")
        assert (made.amount_total, made.currency) == (2_900 + 3 * 900, "usd")
        assert (made.client_reference_id, made.customer) == ("ada", "cus_1")
        assert (made.created, made.expires_at) == (SECOND, SECOND + DAY_S)
        assert (made.subscription, made.invoice) == (None, None)
        assert made.url is not None
        assert made.url.endswith(f"/c/pay/{made.id}")
        items = (await sessions.line_items.list_async(made.id)).data
        assert [(item.description, item.quantity, item.amount_total) for item in items] == [
            ("Pro", 1, 2_900),
            ("Pro", 3, 2_700),
            ("Pro", None, 0),
        ]
        assert items[0].price is not None
        assert items[0].price.unit_amount == 2_900
        seen = await sessions.retrieve_async(made.id, {"expand": ["line_items"]})
        assert seen.line_items is not None
        assert [item.id for item in seen.line_items.data] == [item.id for item in items]
        assert [made.id] == [each.id for each in (await sessions.list_async({"customer": "cus_1"})).data]
        assert (await sessions.list_async({"status": "complete"})).data == []
        with pytest.raises(stripe.InvalidRequestError, match=r"No such checkout\.session: 'cs_none'"):
            await sessions.retrieve_async("cs_none")


@pytest.mark.parametrize(
    ("change", "message", "param"),
    [
        ({"mode": "setup"}, "modes payment and subscription only", "mode"),
        ({"success_url": None}, "Missing required param: success_url", "success_url"),
        ({"success_url": "/done"}, "Not a valid URL", "success_url"),
        ({"customer": "cus_none"}, "No such customer: 'cus_none'", "customer"),
        ({"customer": "cus_1", "customer_email": "a@x"}, "You may only specify one of", "customer"),
        ({"client_reference_id": "x" * 201}, "at most 200 characters", "client_reference_id"),
        ({"line_items": only("price_once")}, "at least one recurring price", "line_items"),
        ({"line_items": only("price_pro", None)}, r"Add `quantity` to `line_items\[0\]`", "line_items"),
        (
            {"line_items": only("price_tokens")},
            r"where usage_type is `metered`. Remove quantity from `line_items\[0\]`",
            "line_items[0][quantity]",
        ),
        ({"line_items": only("price_pro") + only("price_euro")}, "same currency", "line_items"),
        ({"expires_at": SECOND + 1_799}, "at least 30 minutes", "expires_at"),
        ({"expires_at": SECOND + DAY_S}, "less than 24 hours", "expires_at"),
        ({"subscription_data": {"items": "x"}}, "unknown parameter", "subscription_data[items]"),
    ],
)  # fmt: skip
async def test_what_stripe_refuses(change: Mapping[str, Any], message: str, param: str) -> None:
    """The words on quantities: invertase/stripe-firebase-extensions#134, stripe-java#1584; on the life of a
    session: skillrecordings/products#344, alexmorrisnz/moodle-paygw_stripe#72."""
    emulator, _ = ready()
    async with account(emulator) as client:
        wanted: Any = {name: value for name, value in offer(**change).items() if value is not None}
        with pytest.raises(stripe.InvalidRequestError, match=message) as caught:
            await client.v1.checkout.sessions.create_async(wanted)
        assert caught.value.error is not None
        assert param == caught.value.error.to_dict()["param"]


async def test_a_session_nobody_completes_expires_at_its_second() -> None:
    """``checkout.session.expired``, and no page any more (https://docs.stripe.com/api/checkout/sessions)."""
    emulator, clock = ready()
    async with account(emulator) as client:
        sessions = client.v1.checkout.sessions
        whole = await sessions.create_async(offer())
        short = await sessions.create_async(offer(expires_at=SECOND + 1_800))
        clock.advance(timedelta(days=1, seconds=-1))
        assert (await sessions.retrieve_async(whole.id)).status == "open"
        clock.advance(timedelta(hours=5))
        over = await sessions.retrieve_async(whole.id)
        assert (over.status, over.url) == ("expired", None)
    told = [event for event in emulator.webhook_events if event.type == "checkout.session.expired"]
    assert [(short.id, SECOND + 1_800), (whole.id, SECOND + DAY_S)] == [
        (event.object["id"], event.created) for event in told
    ]


async def test_only_an_open_session_is_expired() -> None:
    """The words: Sylius/PayumStripePlugin#70."""
    emulator, _ = ready()
    async with account(emulator) as client:
        made = await client.v1.checkout.sessions.create_async(offer())
        assert (await client.v1.checkout.sessions.expire_async(made.id)).status == "expired"
        refused = r'Only Checkout Sessions with a status in \["open"\].*status of `expired`'
        with pytest.raises(stripe.InvalidRequestError, match=refused):
            await client.v1.checkout.sessions.expire_async(made.id)
    assert [event.type for event in emulator.webhook_events][-1] == "checkout.session.expired"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"return_url": "https://x"}, "Missing required param: customer"),
        ({"customer": "cus_1", "return_url": "x"}, "Not a valid URL"),
        ({"customer": "cus_1", "flow_data": {"type": "dance"}}, "must be one of customer_update"),
        (
            {"customer": "cus_1", "flow_data": {"type": "subscription_cancel"}},
            r"Missing required param: flow_data\[subscription_cancel\]",
        ),
        (
            {
                "customer": "cus_1",
                "flow_data": {"type": "subscription_cancel", "subscription_cancel": {"retention": "x"}},
            },
            r"Missing required param: flow_data\[subscription_cancel\]\[subscription\]",
        ),
    ],
)  # fmt: skip
async def test_portal_sessions_need_what_they_need(params: Any, message: str) -> None:
    emulator, _ = ready()
    async with account(emulator) as client:
        with pytest.raises(stripe.InvalidRequestError, match=message):
            await client.v1.billing_portal.sessions.create_async(params)
