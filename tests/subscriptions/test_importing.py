"""Links read the Stripe customer's subscription at once; an import links whole businesses (F-111)."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from drivers.shop import PLANS, Shop, sell_nothing, shop
from drivers.webhooks import DAY, Hooked, hooked
from faults.inner_steps import wrapped
from meterkit import CustomerError, Imported, ImportProgress, MeterkitError, StripeUnavailableError
from meterkit.catalog import loads

pytestmark = pytest.mark.anyio

HOUR = timedelta(hours=1)


def at_stripe(hooks: Hooked, *customers: str, email: str | None = None, **metadata: str) -> None:
    """Customers at Stripe with a card, as a business has them that does not know meterkit."""
    emulator: Any = hooks.emulator
    for customer in customers:
        found = emulator._account.customers.find(hooks.customer(customer))
        found.texts["email"] = email
        found.metadata.update(metadata)


async def paying(
    hooks: Hooked, customer: str, price: str = "price_pro", *, ids: bool = True, **params: Any
) -> str:
    """A customer at Stripe with a subscription; the subscription."""
    at_stripe(hooks, customer, **({"meterkit_customer": customer} if ids else {}))
    return await hooks.subscribe(customer, price, metadata={}, **params)


def why(done: Imported) -> dict[str, str]:
    """Who does not fit: customer at Stripe to the kind of its misfit."""
    return {misfit.stripe_customer: misfit.kind for misfit in done.misfits}


def counts(done: Imported) -> tuple[int, int, int, int]:
    return done.linked, done.known, done.skipped, len(done.misfits)


async def customers(hooks: Hooked) -> set[str]:
    return {one.customer async for one in hooks.kit.customers.list()}


@pytest.fixture
async def hooks(store_url: str) -> AsyncGenerator[Hooked]:
    async with hooked(store_url) as opened:
        yield opened


async def test_paying_customers_are_on_their_plans_after_the_import(hooks: Hooked) -> None:
    first = await paying(hooks, "acme")
    await paying(hooks, "beta", "price_max")
    seven: Any = [{"price": "price_pro", "quantity": 7}]
    await paying(hooks, "seven", items=seven)
    done = await hooks.kit.subscriptions.import_from_stripe()
    assert counts(done) == (3, 0, 0, 1)
    plans = [(await hooks.kit.customers.get(who)).plan for who in ("acme", "beta", "seven")]
    assert plans == ["pro", "max", "pro"]
    known = await hooks.kit.customers.get("acme")
    assert (known.stripe_customer, known.subscription, known.status) == ("cus_acme", first, "active")
    # A quantity above one is reported, and linked.
    assert (done.misfits[0].kind, done.misfits[0].linked) == ("base_quantity", True)


async def test_what_is_stored_is_what_a_look_at_each_customer_stores(hooks: Hooked) -> None:
    await paying(hooks, "acme")
    await paying(hooks, "tried", trial_period_days=14)
    await paying(hooks, "leaver", cancel_at_period_end=True)
    await hooks.client.v1.subscriptions.cancel_async(await paying(hooks, "gone"))
    seats: Any = [{"price": "price_pro"}, {"price": "price_seat", "quantity": 4}]
    at_stripe(hooks, "seated", meterkit_customer="seated")
    await hooks.subscribe("seated", metadata={}, items=seats)
    assert (await hooks.kit.subscriptions.import_from_stripe()).linked == 5
    for customer in ("acme", "tried", "leaver", "gone", "seated"):
        imported = await hooks.state(customer)
        await hooks.kit.subscriptions.sync(customer)
        assert imported == await hooks.state(customer)
        assert imported.subscription is not None


async def test_of_ended_subscriptions_the_last_to_end_is_imported(hooks: Hooked) -> None:
    first = await paying(hooks, "acme")
    hooks.clock.advance(HOUR)
    second = await hooks.subscribe("acme", "price_max")
    for subscription in (second, first):
        hooks.clock.advance(HOUR)
        await hooks.client.v1.subscriptions.cancel_async(subscription)
    hooks.clock.advance(DAY)  # Changes of the last minutes are fetched again.
    await hooks.kit.subscriptions.import_from_stripe()
    assert (await hooks.kit.customers.get("acme")).subscription == first


async def test_a_stopped_import_goes_on_where_it_was(hooks: Hooked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meterkit.subscriptions.service.stripe_import._PAGE", 5)
    for number in range(12):
        await paying(hooks, f"c{number}")
    hooks.emulator.fail_next("error", status=500, path="/v1/subscriptions", times=None)
    with pytest.raises(StripeUnavailableError):
        await hooks.kit.subscriptions.import_from_stripe()
    assert await customers(hooks) == set()
    hooks.emulator.clear_faults()

    def stop(now: ImportProgress) -> None:
        if (now.step, now.done) == ("links", 5):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await hooks.kit.subscriptions.import_from_stripe(progress=stop)
    assert len(await customers(hooks)) == 5
    assert counts(await hooks.kit.subscriptions.import_from_stripe()) == (7, 5, 0, 0)


async def test_who_subscribes_during_an_import_is_on_the_plan_after_it(
    hooks: Hooked, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_stripe(hooks, "acme", user="acme")
    made: list[str] = []

    def subscribe_first(change: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
        async def changed(*args: Any, **how: Any) -> Any:
            if not made:
                made.append(await hooks.subscribe("acme", metadata={}))
            return await change(*args, **how)

        return changed

    wrapped(monkeypatch, "a state is stored", subscribe_first)
    assert (await hooks.kit.subscriptions.import_from_stripe(id_from="metadata.user")).linked == 1
    assert (await hooks.kit.customers.get("acme")).plan == "pro"


async def test_ids_may_stand_at_the_subscription_and_a_file_wins(hooks: Hooked) -> None:
    at_stripe(hooks, "acme", "beta")
    for customer in ("acme", "beta"):
        await hooks.subscribe(customer, metadata={"user": customer})
    done = await hooks.kit.subscriptions.import_from_stripe(
        id_from="metadata.user", ids={"cus_beta": "b", "cus_none": "n"}
    )
    assert (counts(done), why(done)) == ((2, 0, 0, 1), {"cus_none": "no_such_customer"})
    assert await customers(hooks) == {"acme", "b"}
    for id_from in ("metadata.", "phone"):
        with pytest.raises(MeterkitError, match=r"allowed are metadata\.KEY and email"):
            await hooks.kit.subscriptions.import_from_stripe(id_from=id_from)


async def test_named_customers_of_test_clocks_are_imported(hooks: Hooked) -> None:
    """Stripe's lists of all leave them out."""
    frozen = int(hooks.clock.now().timestamp())
    clock = await hooks.client.v1.test_helpers.test_clocks.create_async({"frozen_time": frozen})
    linked = (await hooks.client.v1.customers.create_async({"test_clock": clock.id})).id
    hooks.emulator.add_payment_method(linked)
    given: Any = {"customer": linked, "items": [{"price": "price_pro"}]}
    await hooks.client.v1.subscriptions.create_async(given)
    ids = {linked: "acme", "cus_none": "n", "../customers": "m"}
    done = await hooks.kit.subscriptions.import_from_stripe(ids=ids)
    assert done.linked == 1
    assert why(done) == dict.fromkeys(("cus_none", "../customers"), "no_such_customer")
    assert (await hooks.kit.customers.get("acme")).plan == "pro"


async def test_customers_that_do_not_fit_are_named_with_the_reason(hooks: Hooked) -> None:
    await paying(hooks, "nameless", ids=False)
    at_stripe(hooks, "odd", meterkit_customer="a\nb")
    at_stripe(hooks, "torn", meterkit_customer="torn")
    await hooks.subscribe("torn", metadata={"meterkit_customer": "other"})
    await paying(hooks, "double")
    await hooks.subscribe("double", "price_max", metadata={})
    for name in ("twin1", "twin2"):
        at_stripe(hooks, name, meterkit_customer="twin")
        await hooks.subscribe(name, metadata={})
    await paying(hooks, "stranger", "price_other")
    both: Any = [{"price": "price_pro"}, {"price": "price_max"}]
    await paying(hooks, "both", items=both)
    await paying(hooks, "fine")
    await hooks.subscribe("fine", "price_other", metadata={})
    tried = await hooks.kit.subscriptions.import_from_stripe(dry_run=True)
    assert await customers(hooks) == set()
    done = await hooks.kit.subscriptions.import_from_stripe()
    assert (counts(tried), tried.misfits, tried.dry_run) == (counts(done), done.misfits, True)
    assert why(done) == {
        "cus_nameless": "no_id",
        "cus_odd": "id_not_allowed",
        "cus_torn": "two_ids",
        "cus_double": "two_subscriptions",
        "cus_twin1": "two_customers",
        "cus_twin2": "two_customers",
        "cus_stranger": "unknown_price",
        "cus_both": "two_plans",
    }
    assert all(misfit.message and not misfit.linked for misfit in done.misfits)
    assert await customers(hooks) == {"fine"}


@pytest.mark.parametrize("is_linked", [True, False])
@pytest.mark.parametrize("part", ["state", "history"])
async def test_damaged_customers_are_named_and_others_imported(
    hooks: Hooked, part: str, is_linked: bool
) -> None:
    for customer in ("acme", "beta"):
        await paying(hooks, customer)
    if is_linked:
        linked = await hooks.kit.customers.link("acme", "cus_acme")
        await hooks.client.v1.subscriptions.cancel_async(linked.subscription or "")
    keys, admin = hooks.kit.store.keys.customer("acme"), await hooks.kit.store.admin()
    key = {"state": keys.state, "history": keys.history}[part]
    await admin.ask(admin.client.delete(key))
    await admin.ask(admin.client.set(key, "of another program", px=600_000))
    done = await hooks.kit.subscriptions.import_from_stripe()
    assert (why(done), done.linked) == ({"cus_acme": "unreadable"}, 1)
    assert (await hooks.kit.customers.get("beta")).plan == "pro"


async def test_an_import_brings_no_deleted_customer_back(hooks: Hooked) -> None:
    for customer in ("acme", "beta"):
        await paying(hooks, customer)
    await hooks.kit.subscriptions.import_from_stripe()
    for customer in ("acme", "beta"):
        await hooks.kit.customers.delete(customer, cancel=True)
    await hooks.subscribe("acme", metadata={})
    tried = await hooks.kit.subscriptions.import_from_stripe(dry_run=True)
    done = await hooks.kit.subscriptions.import_from_stripe()
    assert counts(tried) == counts(done) == (0, 0, 1, 1)
    assert (why(done), await customers(hooks)) == ({"cus_acme": "deleted"}, set())
    # A file says that it should come back.
    named = await hooks.kit.subscriptions.import_from_stripe(ids={"cus_acme": "acme"})
    assert (named.linked, await customers(hooks)) == (1, {"acme"})


async def subscribed_at_stripe(at: Shop) -> str:
    linked = at.emulator.add_customer(name="Acme")
    at.emulator.add_payment_method(linked)
    await at.stripe_change("/v1/subscriptions", customer=linked, **{"items[0][price]": "price_pro"})
    return linked


async def test_a_paying_customer_is_on_its_plan_when_the_link_returns(at: Shop) -> None:
    """F-111: the customer was ``free`` for up to a day."""
    found = await at.kit.customers.link("acme", await subscribed_at_stripe(at))
    assert (found.plan, found.status, found.access) == ("pro", "active", "full")
    assert await at.kit.allows("acme", "full")


@pytest.mark.parametrize("deleted", [False, True])
async def test_a_stripe_customer_that_does_not_exist_is_not_linked(at: Shop, deleted: bool) -> None:
    if deleted:
        at.emulator.add_customer("cus_typo")
        await at.stripe_delete("/v1/customers/cus_typo")
    why = "has deleted this customer" if deleted else "has no such customer"
    with pytest.raises(CustomerError, match=f"'carol' is not linked .*cus_typo.*{why}.*--force"):
        await at.kit.customers.link("carol", "cus_typo")
    assert (await at.kit.customers.get("carol")).stripe_customer is None
    at.emulator.add_customer("cus_carol")
    assert (await at.kit.customers.link("carol", "cus_carol")).stripe_customer == "cus_carol"


async def test_a_forced_link_reads_plans_that_name_no_price(store_url: str) -> None:
    catalog = loads(re.sub(r", stripe_price: \w+", "", PLANS))
    async with shop(store_url, catalog=catalog, selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        linked = (await at.kit.customers.get((await at.subscribed(plan="pro")).customer)).stripe_customer
        assert linked is not None
        await at.kit.customers.unlink("acme")
        assert (await at.kit.customers.link("bob", linked, force=True)).plan == "pro"
        assert (await at.kit.customers.link("carol", "cus_typo", force=True)).plan == "free"


async def test_in_an_outage_a_forced_link_queues_its_look(at: Shop) -> None:
    linked = await subscribed_at_stripe(at)
    at.emulator.fail_next("error", status=503, path="*", times=None)
    with pytest.raises(StripeUnavailableError, match=r"'acme' is not linked: .* try again, or .*--force"):
        await at.kit.customers.link("acme", linked)
    assert (await at.kit.customers.get("acme")).stripe_customer is None
    with pytest.raises(StripeUnavailableError, match="retried in the background"):
        await at.kit.customers.link("acme", linked, force=True)
    assert (await at.kit.customers.get("acme")).stripe_customer == linked
    assert (await at.kit.webhooks.backlog()).entries == 1
    at.emulator.clear_faults()
    at.clock.advance(timedelta(minutes=10))
    await at.kit.webhooks.work_off()
    assert (await at.kit.customers.get("acme")).plan == "pro"
