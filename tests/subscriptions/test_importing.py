"""A business that has subscribers at Stripe already: they are linked, and on their plans at once (F-111)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from drivers.webhooks import hooked
from meterkit import MeterkitError, StripeUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from drivers.webhooks import Hooked
    from meterkit import Imported, ImportProgress

pytestmark = pytest.mark.anyio


def at_stripe(at: Hooked, *customers: str, email: str | None = None, **metadata: str) -> None:
    """Customers at Stripe with a card, as a business has them that does not know meterkit."""
    emulator: Any = at.emulator
    for customer in customers:
        found = emulator._account.customers.find(at.customer(customer))
        found.texts["email"] = email
        found.metadata.update(metadata)


async def paying(
    at: Hooked, customer: str, price: str = "price_pro", *, ids: bool = True, **params: Any
) -> str:
    """A customer at Stripe with a subscription; the subscription."""
    at_stripe(at, customer, **({"meterkit_customer": customer} if ids else {}))
    return await at.subscribe(customer, price, metadata={}, **params)


def why(done: Imported) -> dict[str, str]:
    """Who does not fit: customer at Stripe to the kind of its misfit."""
    return {misfit.stripe_customer: misfit.kind for misfit in done.misfits}


def counts(done: Imported) -> tuple[int, int, int, int]:
    return done.linked, done.known, done.skipped, len(done.misfits)


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Hooked]:
    async with hooked(store_url) as opened:
        yield opened


async def test_paying_customers_are_on_their_plans_after_the_import(at: Hooked) -> None:
    first = await paying(at, "acme")
    await paying(at, "beta", "price_max")
    done = await at.kit.subscriptions.import_from_stripe()
    assert counts(done) == (2, 0, 0, 0)
    assert [(await at.kit.customers.get(who)).plan for who in ("acme", "beta")] == ["pro", "max"]
    known = await at.kit.customers.get("acme")
    assert (known.stripe_customer, known.subscription, known.status) == ("cus_acme", first, "active")


async def test_what_is_stored_is_what_a_look_at_each_customer_stores(at: Hooked) -> None:
    await paying(at, "acme")
    await paying(at, "tried", trial_period_days=14)
    await paying(at, "leaver", cancel_at_period_end=True)
    gone = await paying(at, "gone")
    await at.client.v1.subscriptions.cancel_async(gone)
    seats: Any = [{"price": "price_pro"}, {"price": "price_seat", "quantity": 4}]
    at_stripe(at, "seated", meterkit_customer="seated")
    await at.subscribe("seated", metadata={}, items=seats)
    assert (await at.kit.subscriptions.import_from_stripe()).linked == 5
    for customer in ("acme", "tried", "leaver", "gone", "seated"):
        imported = await at.state(customer)
        await at.kit.subscriptions.sync(customer)
        assert imported == await at.state(customer)
        assert imported.subscription is not None


async def test_an_import_that_was_stopped_goes_on_where_it_was(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meterkit.subscriptions.service.importing._PAGE", 5)
    async with hooked(store_url) as at:
        for number in range(12):
            await paying(at, f"c{number}")

        def stop(now: ImportProgress) -> None:
            if (now.step, now.done) == ("links", 5):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            await at.kit.subscriptions.import_from_stripe(progress=stop)
        assert len([one async for one in at.kit.customers.list()]) == 5
        assert counts(await at.kit.subscriptions.import_from_stripe()) == (7, 5, 0, 0)


async def test_an_import_without_stripe_fails_and_changes_nothing(at: Hooked) -> None:
    await paying(at, "acme")
    at.emulator.fail_next("error", status=500, path="/v1/subscriptions", times=None)
    with pytest.raises(StripeUnavailableError):
        await at.kit.subscriptions.import_from_stripe()
    assert [one async for one in at.kit.customers.list()] == []


async def test_ids_may_stand_at_the_subscription_and_a_file_wins(at: Hooked) -> None:
    at_stripe(at, "acme", "beta")
    for customer in ("acme", "beta"):
        await at.subscribe(customer, metadata={"user": customer})
    done = await at.kit.subscriptions.import_from_stripe(
        id_from="metadata.user", ids={"cus_beta": "b", "cus_none": "n"}
    )
    assert counts(done) == (2, 0, 0, 1)
    assert why(done) == {"cus_none": "no_such_customer"}
    assert {one.customer async for one in at.kit.customers.list()} == {"acme", "b"}
    for id_from in ("metadata.", "phone"):
        with pytest.raises(MeterkitError, match=r"allowed are metadata\.KEY and email"):
            await at.kit.subscriptions.import_from_stripe(id_from=id_from)


async def test_customers_that_do_not_fit_are_named_with_the_reason(at: Hooked) -> None:
    await paying(at, "nameless", ids=False)
    at_stripe(at, "odd", meterkit_customer="a\nb")
    at_stripe(at, "torn", meterkit_customer="torn")
    await at.subscribe("torn", metadata={"meterkit_customer": "other"})
    await paying(at, "double")
    await at.subscribe("double", "price_max", metadata={})
    for name in ("twin1", "twin2"):
        at_stripe(at, name, meterkit_customer="twin")
        await at.subscribe(name, metadata={})
    await paying(at, "stranger", "price_other")
    both: Any = [{"price": "price_pro"}, {"price": "price_max"}]
    await paying(at, "both", items=both)
    await paying(at, "fine")
    tried = await at.kit.subscriptions.import_from_stripe(dry_run=True)
    assert [one async for one in at.kit.customers.list()] == []
    done = await at.kit.subscriptions.import_from_stripe()
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
    assert [one.customer async for one in at.kit.customers.list()] == ["fine"]


async def test_a_quantity_above_one_is_reported_and_linked(at: Hooked) -> None:
    seven: Any = [{"price": "price_pro", "quantity": 7}]
    await paying(at, "acme", items=seven)
    done = await at.kit.subscriptions.import_from_stripe()
    assert counts(done) == (1, 0, 0, 1)
    assert (done.misfits[0].kind, done.misfits[0].linked) == ("base_quantity", True)
    assert (await at.kit.customers.get("acme")).plan == "pro"
