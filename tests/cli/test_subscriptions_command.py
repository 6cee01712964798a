"""``meterkit subscriptions``: what ``kit.subscriptions`` does, for an operator."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest

from drivers.command_line import Shell
from drivers.shop import CATALOG, PLANS, sell
from meterkit.testing import StripeEmulator

pytestmark = pytest.mark.anyio


@pytest.fixture
async def subscribed(stored: Shell) -> AsyncGenerator[StripeEmulator]:
    """A shell whose Stripe is an emulator, where acme pays for 12 seats of pro."""
    emulator = StripeEmulator()
    sell(emulator, CATALOG)
    emulator.add_customer("cus_acme", name="Acme")
    emulator.add_payment_method("cus_acme", "pm_card_visa")
    (stored.directory / "plans.yaml").write_text(PLANS)
    with emulator.running() as url:
        key = "sk_test_1"
        stored.environment |= {"METERKIT_STRIPE_API_KEY": key, "METERKIT_STRIPE_API_BASE": url}
        async with stored.kit(stripe_api_key=key, stripe_api_base=url) as kit:
            await kit.customers.link("acme", "cus_acme")
            made = await kit.subscriptions.create("acme", "pro", 12)
            assert made.client_secret is not None
            emulator.confirm_payment(made.client_secret)
        yield emulator


@pytest.mark.dear("a subscription is changed by sixteen commands")
@pytest.mark.usefixtures("subscribed")
async def test_a_subscription_is_shown_changed_and_ended(stored: Shell) -> None:
    """F-116: there were no such commands."""
    assert stored.run("subscriptions", "show", "acme", "--json").json["status"] == "incomplete"
    synced = stored.run("subscriptions", "sync", "acme", "--json").json
    assert (synced["status"], synced["plan"], synced["seats"]) == ("active", "pro", 12)
    shown = stored.run("subscriptions", "show", "acme")
    assert shown.code == 0
    assert {"acme", "pro", "active", "full", "12"} <= set(shown.out.split())

    history = stored.run("customers", "history", "acme").out
    assert ("$" in history, "000000 usd" in history) == (True, False)

    asked = stored.run("subscriptions", "preview", "acme", "--seats", "13")
    assert (asked.code, asked.out[:18]) == (0, "12 to 13 seats now")
    assert "$" in asked.out
    assert "cents" not in asked.out
    as_json = stored.run("subscriptions", "preview", "acme", "--plan", "team", "--json").json
    assert (as_json["proration"]["net_cents"], as_json["over_limit"]) == (0, [])

    more = stored.run("subscriptions", "seats", "acme", "13", "--json")
    assert (more.code, more.json["subscription"]["seats"]) == (0, 13)
    assert more.json["proration"]["currency"] == "usd"
    later = stored.run("subscriptions", "change", "acme", "team")
    assert (later.code, "pro to team" in later.out, "scheduled" in later.out) == (0, True, True)

    ending = stored.run("subscriptions", "cancel", "acme", "--json").json
    assert ending["cancel_at_period_end"] is True
    assert stored.run("subscriptions", "resume", "acme", "--json").json["cancel_at_period_end"] is False
    listed = stored.run("subscriptions", "invoices", "acme")
    assert "$47.00" in listed.out  # 29.00 and two seats at 9.00.
    assert {one["status"] for one in stored.run("subscriptions", "invoices", "acme", "--json").json} == {
        "paid"
    }
    gone = stored.run("subscriptions", "cancel", "acme", "--immediately", "--give-back", "--json")
    assert (gone.code, gone.json["status"]) == (0, "canceled")
    ended = stored.run("subscriptions", "show", "acme")
    assert {"full", "access"}.isdisjoint(ended.out.split())
    assert "this subscription has ended; acme is on plan free, access full" in ended.err
    assert stored.run("subscriptions", "resume", "acme").code == 1


def test_what_cannot_be_done_is_said(stored: Shell) -> None:
    for words, code, said in (
        ("show acme", 1, "no active subscription"),
        ("sync acme", 1, "unknown customer acme"),
        ("preview acme", 2, "--plan PLAN"),
        ("change acme", 2, "give PLAN"),
        ("change acme gold", 1, "gold"),
        ("seats acme some", 2, "whole number"),
        ("cancel acme --give-back", 2, "--immediately"),
    ):
        done = stored.run("subscriptions", *words.split())
        assert (done.code, done.out, said in done.err) == (code, "", True), done.err


@pytest.mark.dear("a subscription is changed by twelve commands")
async def test_subscription_drift_is_found_and_repaired(stored: Shell, subscribed: StripeEmulator) -> None:
    """F-105: doctor knew of none, and there was nothing that mended it."""
    assert stored.run("subscriptions", "sync", "acme").code == 0
    sound = stored.run("subscriptions", "check")
    assert (sound.code, sound.out) == (0, "")
    assert "all subscriptions agree with the plans file" in sound.err
    subscription = subscription_of(subscribed)
    subscription.items[0].quantity = 7
    found = stored.run("subscriptions", "check")
    assert found.code == 1
    assert "the base price price_pro has quantity 7; the plans file sells 1" in found.out
    as_json = stored.run("subscriptions", "check", "--json").json
    assert [drift["kind"] for drift in as_json["acme"]] == ["base_quantity"]
    assert stored.run("subscriptions", "check", "acme", "--json").json == as_json
    other = stored.run("subscriptions", "check", "zoe", "--json")
    assert (other.code, other.json, "unknown customer zoe" in other.err) == (0, {}, True)
    without = stored.run("subscriptions", "check", "zoe")
    assert ("zoe has no subscription" in without.err, "agrees" in without.err) == (True, False)
    findings = stored.run("doctor", "--json").json["findings"]
    assert "1 subscription differs from the plans file: of customer acme" in next(
        finding["problem"] for finding in findings if finding["check"] == "subscriptions"
    )
    tried = stored.run("subscriptions", "repair", "acme", "--dry-run")
    assert (tried.code, subscription_of(subscribed).items[0].quantity) == (0, 7)
    assert "to be repaired" in tried.out
    done = stored.run("subscriptions", "repair", "acme", "--json")
    assert (done.code, [drift["kind"] for drift in done.json["mended"]]) == (0, ["base_quantity"])
    assert subscription_of(subscribed).items[0].quantity == 1
    again = stored.run("subscriptions", "repair", "acme")
    assert "agrees with the plans file" in again.err
    assert "subscriptions" not in {
        finding["check"] for finding in stored.run("doctor", "--json").json["findings"]
    }
    path = f"{stored.environment['METERKIT_STRIPE_API_BASE']}/v1/subscriptions/{subscription.id}"
    async with httpx.AsyncClient(headers={"authorization": "Bearer sk_test_1"}) as dashboard:
        paused = await dashboard.post(path, data={"pause_collection[behavior]": "void"})
    assert paused.status_code == 200
    left = stored.run("subscriptions", "repair", "acme", "--json")
    assert (left.code, [drift["kind"] for drift in left.json["left"]]) == (1, ["collection_paused"])


def subscription_of(emulator: StripeEmulator) -> Any:
    """The only subscription of the account, as a person in Stripe's dashboard can change it."""
    account: Any = emulator
    (found,) = list(account._account.subscriptions)
    return found


@pytest.mark.usefixtures("subscribed")
async def test_a_customer_price_is_shown_with_its_start(stored: Shell) -> None:
    """F-22h: the price was shown, and Stripe billed the plan's."""
    end = stored.run("subscriptions", "sync", "acme", "--json").json["current_period_end"]
    price = "overage={{bill: {{per: 1, amount_cents: {}}}}}"
    dearer = stored.run("customers", "override", "acme", "tokens", price.format(9), "--json").json
    assert dearer["price_changes"] == {"tokens": end}
    shown = " ".join(stored.run("customers", "show", "acme").out.split())
    assert f"amount_cents: 9, per: 1}}}}, price from {end.replace('T', ' ')}" in shown
    cheaper = stored.run("customers", "override", "acme", "tokens", price.format(1), "--json").json
    assert cheaper["price_changes"] == {}
    assert cheaper["overrides"]["tokens"]["overage"]["bill"] == {"per": 1, "amount_cents": 1}
