"""Add-ons in a trial, where nothing is paid: with a maximum, and with the card that the plan requires."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Final

import httpx
import pytest

from drivers.billing_browser import browser
from drivers.plans import plans_text
from drivers.shop import START, Shop, shop
from meterkit import AddonLimitError, PaymentMethodMissingError
from meterkit.catalog import loads
from meterkit.testing import StripeEmulator
from subscriptions.looks import known, linked_of, synced

pytestmark = pytest.mark.anyio

PLANS: Final = (
    plans_text("addon_shop").replace("addons: [storage_pack]\n", "addons: [storage_pack, call_pack]\n", 1)
    + "billing: {portal_url: https://app.example/card}\n"
)
OPTIONAL: Final = PLANS.replace("trial: 14d\n", "trial: 14d\n    payment_method: optional\n")
PAGE: Final[dict[str, Any]] = {"success_url": "https://app.example/paid", "cancel_url": "https://app.example"}
LIMIT: Final = (409, "addon-limit")
MISSING: Final = (402, "payment-method-missing")


def opened(store_url: str, plans: str = PLANS) -> Any:
    return shop(store_url, catalog=loads(plans), selling=StripeEmulator.add_plans)


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Shop]:
    async with opened(store_url) as found:
        yield found


def told(answer: httpx.Response) -> tuple[int, str]:
    """Status and type of a problem document."""
    return answer.status_code, answer.json()["type"].removeprefix("urn:meterkit:problem:")


async def _save_card(at: Shop) -> None:
    at.emulator.add_payment_method(await linked_of(at))


async def _link_customer(at: Shop) -> None:
    await at.kit.customers.link("acme", at.emulator.add_customer("cus_acme"))


async def test_f_30g_a_trial_begins_with_no_addon_without_max(at: Shop) -> None:
    """Any number of them was given away, without a card."""
    await _link_customer(at)
    for has_card in (False, True):
        if has_card:
            await _save_card(at)
        for create in (at.kit.subscriptions.create, at.kit.subscriptions.checkout):
            urls = {} if create == at.kit.subscriptions.create else PAGE
            with pytest.raises(
                AddonLimitError, match="in a trial only add-ons with a `max` are sold"
            ) as raised:
                await create("acme", "tried", addons={"call_pack": 1}, **urls)
            assert (raised.value.limit, raised.value.is_of_trial) == (0, True)
    assert await at.stripe_list("/v1/subscriptions", customer="cus_acme") == []


async def test_f_30g_addons_in_a_trial_need_the_card_of_the_plan(at: Shop) -> None:
    await _link_customer(at)
    asked = {"storage_pack": 5}
    with pytest.raises(PaymentMethodMissingError, match="for add-ons in its trial") as raised:
        await at.kit.subscriptions.create("acme", "tried", addons=asked)
    assert raised.value.url == "https://app.example/card"
    await at.kit.subscriptions.create("acme", "tried")  # By itself the trial needs none yet.
    with pytest.raises(PaymentMethodMissingError):
        await at.kit.subscriptions.set_addons("acme", asked)
    with pytest.raises(AddonLimitError) as over:
        await at.kit.subscriptions.set_addons("acme", {"storage_pack": 6})
    assert not over.value.is_of_trial
    assert (await known(at)).addons == {}
    await _save_card(at)
    assert (await at.kit.subscriptions.set_addons("acme", asked)).subscription.addons == asked


async def test_f_30g_an_optional_card_leaves_the_maximum(store_url: str) -> None:
    async with opened(store_url, OPTIONAL) as at:
        await at.kit.subscriptions.create("acme", "tried", addons={"storage_pack": 2})
        with pytest.raises(AddonLimitError):
            await at.kit.subscriptions.set_addons("acme", {"call_pack": 1})
        assert (await synced(at)).addons == {"storage_pack": 2}


async def test_f_30g_a_page_with_addons_asks_for_the_card_in_a_trial(at: Shop) -> None:
    for addons, collection in (({}, "if_required"), ({"storage_pack": 1}, "always")):
        options: Any = {"payment_method_collection": "if_required"}
        made = await at.kit.subscriptions.checkout("acme", "tried", addons=addons, options=options, **PAGE)
        (page,) = [one for one in await at.stripe_list("/v1/checkout/sessions") if one["id"] == made.id]
        assert page["payment_method_collection"] == collection


async def test_f_30g_clients_are_told_of_the_trial(at: Shop) -> None:
    await _link_customer(at)
    async with browser(at.kit) as client:
        sign_up = {"plan": "tried", "addons": {"call_pack": 999_999}}
        refused = await client.post("/subscription", json=sign_up)
        assert (told(refused), refused.json()["limit"]) == (LIMIT, 0)
        sign_up["addons"] = {"storage_pack": 1}
        refused = await client.post("/subscription", json=sign_up)
        assert (told(refused), refused.json()["url"]) == (MISSING, "https://app.example/card")
        await _save_card(at)
        assert (await client.post("/subscription", json=sign_up)).status_code == 201
        assert told(await client.put("/subscription/addons", json={"call_pack": 1})) == LIMIT
        assert told(await client.get("/subscription/preview?addons=call_pack:1")) == LIMIT
        # A change of plan ends the trial, and is paid.
        assert (await client.get("/subscription/preview?plan=team&addons=call_pack:1")).status_code == 200
        at.go(START.replace(day=20))
        await synced(at)
        bought = await client.put("/subscription/addons", json={"call_pack": 1})
        assert bought.json()["subscription"]["addons"] == {"call_pack": 1, "storage_pack": 1}


async def test_f_30g_an_addon_of_a_person_may_stay_or_go_in_a_trial(at: Shop) -> None:
    await _link_customer(at)
    await _save_card(at)
    made = await at.kit.subscriptions.create("acme", "tried")
    item = {"subscription": made.subscription.id, "price": "price_addon_call_pack", "quantity": "3"}
    await at.stripe_change("/v1/subscription_items", **item)
    assert (await synced(at)).addons == {"call_pack": 3}
    await at.kit.subscriptions.set_addons("acme", {"call_pack": 3, "storage_pack": 1})
    with pytest.raises(AddonLimitError, match="from 0 to 3: in a trial"):
        await at.kit.subscriptions.set_addons("acme", {"call_pack": 4})
    fewer = (await at.kit.subscriptions.set_addons("acme", {"call_pack": 1})).subscription
    assert fewer.pending_change is not None
    assert fewer.pending_change.addons == {"call_pack": 1, "storage_pack": 1}


def test_f_30g_check_names_addons_that_a_trial_does_not_sell() -> None:
    (note,) = [note for note in loads(PLANS).notes if "its trial does not sell" in note.message]
    assert "call_pack" in note.message
    assert not any(
        "its trial does not sell" in note.message for note in loads(plans_text("addon_shop")).notes
    )
