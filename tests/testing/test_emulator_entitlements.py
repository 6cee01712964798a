"""Features of products, and what customers are entitled to by their subscriptions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import stripe

from emulated import account
from meterkit.testing import StripeEmulator

if TYPE_CHECKING:
    from meterkit.testing.emulator.protocol import JsonObject

pytestmark = pytest.mark.anyio

SUMMARY = "entitlements.active_entitlement_summary.updated"


def subscription(*products: str, status: str = "active", name: str = "sub_1") -> JsonObject:
    items = [{"id": f"si_{product}", "price": {"product": product}} for product in products]
    return {"id": name, "customer": "cus_1", "status": status, "items": {"object": "list", "data": items}}


async def entitled(client: stripe.StripeClient) -> list[str]:
    found = await client.v1.entitlements.active_entitlements.list_async({"customer": "cus_1", "limit": 100})
    return [entitlement.lookup_key async for entitlement in found.auto_paging_iter()]


async def feature(client: stripe.StripeClient, key: str, product: str) -> str:
    made = await client.v1.entitlements.features.create_async({"lookup_key": key, "name": key.title()})
    await client.v1.products.features.create_async(product, {"entitlement_feature": made.id})
    return made.id


async def test_features_live_and_rest() -> None:
    """An archived one is not listed, and its key is free (https://docs.stripe.com/api/entitlements/feature)."""
    async with account(StripeEmulator()) as client:
        features = client.v1.entitlements.features
        made = await features.create_async({"lookup_key": "sso", "name": "SSO", "metadata": {"a": "1"}})
        assert (made.lookup_key, made.active, made.metadata["a"]) == ("sso", True, "1")
        with pytest.raises(stripe.InvalidRequestError, match="already uses the lookup key sso"):
            await features.create_async({"lookup_key": "sso", "name": "Again"})
        assert (await features.update_async(made.id, {"name": "Single sign-on"})).name == "Single sign-on"
        assert [made.id] == [each.id for each in (await features.list_async({"lookup_key": "sso"})).data]
        await features.update_async(made.id, {"active": False})
        assert (await features.list_async()).data == []
        assert [made.id] == [each.id for each in (await features.list_async({"archived": True})).data]
        again = await features.create_async({"lookup_key": "sso", "name": "New"})
        assert again.id != made.id
        assert (await features.retrieve_async(made.id)).active is False
        with pytest.raises(stripe.InvalidRequestError, match="at most 80"):
            await features.create_async({"lookup_key": "x" * 81, "name": "x"})
        with pytest.raises(stripe.InvalidRequestError, match="No such entitlement feature: 'feat_none'"):
            await features.retrieve_async("feat_none")


async def test_products_have_features() -> None:
    """https://docs.stripe.com/api/product-feature."""
    emulator = StripeEmulator()
    product = emulator.add_product("Pro")
    async with account(emulator) as client:
        made = await client.v1.entitlements.features.create_async({"lookup_key": "sso", "name": "SSO"})
        attached = client.v1.products.features
        one = await attached.create_async(product, {"entitlement_feature": made.id})
        assert one.entitlement_feature.lookup_key == "sso"
        with pytest.raises(stripe.InvalidRequestError, match="already attached"):
            await attached.create_async(product, {"entitlement_feature": made.id})
        assert (await attached.retrieve_async(product, one.id)).entitlement_feature.id == made.id
        assert [one.id] == [each.id for each in (await attached.list_async(product)).data]
        assert (await attached.delete_async(product, one.id)).deleted
        assert (await attached.list_async(product)).data == []
        with pytest.raises(stripe.InvalidRequestError, match="No such product feature"):
            await attached.delete_async(product, one.id)
        await client.v1.entitlements.features.update_async(made.id, {"active": False})
        with pytest.raises(stripe.InvalidRequestError, match="archived feature cannot"):
            await attached.create_async(product, {"entitlement_feature": made.id})
        with pytest.raises(stripe.InvalidRequestError, match="No such entitlement feature: 'feat_none'"):
            await attached.create_async(product, {"entitlement_feature": "feat_none"})


async def test_a_subscription_entitles_until_it_ends() -> None:
    """https://docs.stripe.com/billing/entitlements; the event has the summary, where that has changed."""
    emulator = StripeEmulator()
    pro, team = emulator.add_product("Pro"), emulator.add_product("Team")
    async with account(emulator) as client:
        await feature(client, "sso", pro)
        await feature(client, "audit", team)
        began, both = subscription(pro, status="incomplete"), subscription(pro, team)
        emulator.emit("customer.subscription.created", began)
        assert await entitled(client) == []
        emulator.emit("customer.subscription.updated", subscription(pro), previous=began)
        assert await entitled(client) == ["sso"]
        emulator.emit("customer.subscription.updated", both, previous=subscription(pro))
        assert await entitled(client) == ["sso", "audit"]
        paused = subscription(pro, team, status="paused")
        emulator.emit("customer.subscription.updated", paused, previous=both)
        assert await entitled(client) == ["sso", "audit"], "a paused one keeps them"
        emulator.emit("customer.subscription.created", subscription(pro, name="sub_2"))
        emulator.emit("customer.subscription.deleted", paused)
        assert await entitled(client) == ["sso"], "by the other subscription"
        (one,) = (await client.v1.entitlements.active_entitlements.list_async({"customer": "cus_1"})).data
        assert (await client.v1.entitlements.active_entitlements.retrieve_async(one.id)).lookup_key == "sso"
        with pytest.raises(stripe.InvalidRequestError, match="No such active entitlement"):
            await client.v1.entitlements.active_entitlements.retrieve_async("ent_none")
    told: list[Any] = [event.object for event in emulator.webhook_events if event.type == SUMMARY]
    assert [[each["lookup_key"] for each in summary["entitlements"]["data"]] for summary in told] == [
        ["sso"],
        ["sso", "audit"],
        ["sso"],
    ]
    assert {summary["customer"] for summary in told} == {"cus_1"}


async def test_a_feature_that_comes_later_counts_from_the_next_period() -> None:
    """Observed: https://sgtpepperoni.substack.com/p/working-around-a-stripe-entitlements."""
    emulator = StripeEmulator()
    pro = emulator.add_product("Pro")
    async with account(emulator) as client:
        before = subscription(pro) | {"current_period_start": 1}
        emulator.emit("customer.subscription.created", before)
        await feature(client, "sso", pro)
        after = before | {"metadata": {"a": "1"}}
        emulator.emit("customer.subscription.updated", after, previous=before)
        assert await entitled(client) == []
        emulator.emit("customer.subscription.updated", after | {"current_period_start": 2}, previous=after)
        assert await entitled(client) == ["sso"]


async def test_the_event_has_the_first_ten() -> None:
    """The embedded list is cut, so that a receiver must ask for all."""
    emulator = StripeEmulator()
    pro = emulator.add_product("Pro")
    async with account(emulator) as client:
        for number in range(12):
            await feature(client, f"f{number}", pro)
        emulator.emit("customer.subscription.created", subscription(pro))
        assert len(await entitled(client)) == 12
    (summary,) = (event.object for event in emulator.webhook_events if event.type == SUMMARY)
    shown: Any = summary["entitlements"]
    assert (len(shown["data"]), shown["has_more"]) == (10, True)
