"""Add-ons, grants given once and rollover in plans files, and plans with add-ons composed into them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest

from drivers.plans import free_plan
from meterkit.catalog import (
    QUANTITY_MAX,
    Addon,
    Catalog,
    Overage,
    Plan,
    PlanGrant,
    Price,
    Rollover,
    load,
    loads,
    with_addons,
)

GOOD: Final = Path(__file__).parent / "good"
MB: Final = 10**6


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load(GOOD / "addons.yaml")


def included(plan: Plan) -> dict[str, int | None]:
    return {name: given.included for name, given in plan.entitlements.items()}


def test_add_ons_as_they_are_read(catalog: Catalog) -> None:
    assert catalog.addons["more"] == Addon(
        key="more",
        name="Thousand more requests",
        price=Price(amount_cents=500, interval="month"),
        included={"requests": 1000, "pages": 10, "lookups": 5},
        features=frozenset(),
        grants=(),
        max_quantity=10,
    )
    assert (catalog.addons["disk"].name, catalog.addons["disk"].max_quantity) == ("disk", None)
    assert catalog.addons["yearly"].features == catalog.features
    plans = catalog.plans
    assert plans["free"].addons == plans["bare"].addons == ()
    assert plans["pro"].addons == plans["team"].addons == ("more", "disk", "credits")
    assert plans["annual"].addons == ("yearly",)


def test_a_grant_rolls_over_or_is_given_once(catalog: Catalog) -> None:
    rolling, once = catalog.plans["pro"].grants
    assert rolling.rollover == Rollover(at_most=1000, periods=1)
    assert (once.every, once.rollover) == ("once", None)
    assert rolling.key != once.key
    assert rolling.key == "50-period"


def test_what_add_ons_give_is_added_to_what_the_plan_gives(catalog: Catalog) -> None:
    pro = catalog.plans["pro"]
    plan = with_addons(pro, (("disk", 1), ("more", 3)), catalog)
    assert (plan.key, plan.bought) == ("pro", (("disk", 1), ("more", 3)))
    # Unlimited stays unlimited, and 0 becomes the quantity that is added.
    gained = {"requests": 4500, "pages": 30, "lookups": None, "storage": 15 * MB, "seats": 3}
    assert included(plan) == gained
    assert plan.entitlements["requests"].overage == Overage(mode="deny")
    assert (plan.grants, plan.features, plan.price) == (pro.grants, pro.features, pro.price)
    assert with_addons(pro, (), catalog) == pro


def test_grants_and_features_of_add_ons_join_those_of_the_plan(catalog: Catalog) -> None:
    pro = catalog.plans["pro"]
    plan = with_addons(pro, (("credits", 3),), catalog)
    assert plan.features == {"export", "priority"}
    assert plan.grants[:2] == pro.grants
    rolling, once, pages = plan.grants[2:]
    assert rolling == PlanGrant(
        kind="credit",
        name="ai",
        quantity=300,
        id="credits-50-period",
        rollover=Rollover(at_most=600, periods=2),
    )
    assert (once.id, once.quantity, once.every) == ("hello", 150, "once")
    assert (pages.kind, pages.quantity, pages.priority) == ("meter", 21, 5)
    assert len({(grant.name, grant.key) for grant in plan.grants}) == 5


def test_add_ons_that_the_plan_does_not_list_give_nothing(catalog: Catalog) -> None:
    pro = catalog.plans["pro"]
    assert with_addons(pro, (("gone", 1), ("more", 0), ("yearly", 2)), catalog) == pro
    # Stripe may have more than `max`.
    more = with_addons(pro, (("more", 11), ("yearly", 2)), catalog)
    assert (more.bought, included(more)["requests"]) == ((("more", 11),), 12_500)


def test_quantities_stay_within_bounds(catalog: Catalog) -> None:
    plan = with_addons(catalog.plans["pro"], (("credits", 10**15), ("more", 10**15)), catalog)
    assert included(plan)["requests"] == QUANTITY_MAX
    rolling, _, pages = plan.grants[2:]
    assert (rolling.quantity, pages.quantity) == (9 * 10**9, QUANTITY_MAX)


@pytest.mark.parametrize(
    ("addons", "has_card"),
    [("", "optional"), ("addons: {more: {price: {amount_cents: 1, interval: month}}}", "required")],
)
def test_a_plan_with_add_ons_can_cost_something(addons: str, has_card: str) -> None:
    text = free_plan("{pages: {unit: page}}", top=addons)
    listed = text.replace("    price:", "    addons: [more]\n    price:") if addons else text
    assert loads(listed).plans["free"].payment_method == has_card


def test_an_add_on_that_no_plan_lists_is_named() -> None:
    text = free_plan(
        "{pages: {unit: page}}", top="addons: {more: {price: {amount_cents: 1, interval: month}}}"
    )
    ((place, message),) = [((note.line, note.path), note.message) for note in loads(text).notes]
    assert place == (10, "addons.more")
    assert message == "no plan lists this add-on, so no customer can buy it; write `addons: [more]` in a plan"


@pytest.mark.parametrize(
    ("sold", "notes"),
    [
        ("meters: {pages: {included: 10}}", 1),
        ("meters: {calls: {included: 10}}", 0),
        ("meters: {pages: {included: 10}, calls: {included: 10}}", 0),
        ("meters: {pages: {included: 10}}, grants: [{meter: calls, quantity: 1, every: period}]", 0),
        ("meters: {pages: {included: 10}}, features: [export]", 0),
        ("meters: {pages: {included: 10}}, features: [search]", 1),
        ("max: 3", 0),
    ],
)
def test_an_add_on_that_adds_nothing_to_a_plan_is_named(sold: str, notes: int) -> None:
    text = f"""schema: 1
currency: usd
default_plan: free
meters: {{pages: {{unit: page}}, calls: {{unit: call}}}}
features: [export, search]
addons: {{more: {{price: {{amount_cents: 1, interval: month}}, {sold}}}}}
plans:
  free:
    price: {{amount_cents: 0, interval: month}}
    features: [search]
    meters: {{pages: {{included: unlimited}}, calls: {{included: 5}}}}
    addons: [more]
"""
    message = "more adds nothing to this plan, and is charged; take it out of `addons`"
    found = [note for note in loads(text).notes if note.kind != "no_rate"]
    assert [(note.path, note.message) for note in found] == [("plans.free", message)] * notes


def test_a_request_that_fits_with_an_add_on_is_allowed() -> None:
    top = """routes: [{match: "*", consume: {pages: 20}}]
addons: {more: {price: {amount_cents: 1, interval: month}, meters: {pages: {included: 10}}}}"""
    text = free_plan("{pages: {unit: page}}", "{pages: {included: 10}}", top)
    with pytest.raises(Exception, match="20 never fits the plan free"):
        loads(text)
    assert loads(text.replace("    price:", "    addons: [more]\n    price:")).routes


def test_a_plan_has_room_for_twenty_prices() -> None:
    addons = ", ".join(f"a{nth}: {{price: {{amount_cents: 1, interval: month}}}}" for nth in range(20))
    text = free_plan("{pages: {unit: page}}", top=f"addons: {{{addons}}}")
    names = [f"a{nth}" for nth in range(20)]
    listed = text.replace("    price:", f"    addons: [{', '.join(names)}]\n    price:")
    with pytest.raises(Exception, match="the plan has 21 prices: its own, that of seats, one for each"):
        loads(listed)
    assert len(loads(listed.replace(", a19]", "]")).plans["free"].addons) == 19


def test_files_without_new_keys_keep_their_hash() -> None:
    hashes: Any = {path.stem: load(path).content_hash for path in sorted(GOOD.glob("*.yaml"))}
    new = {hashes.pop(name) for name in ("addons", "currencies")}
    assert len(new) == 2
    assert hashes == HASHES


HASHES: Final = {
    "aliases": "2b0e12f0053ea2fc",
    "blocks": "80e57eb0b0055035",
    "everything": "ec6b750ebc1eb901",
    "inheritance": "aa859265692f9a6b",
    "minimal": "1af45fb74417e799",
    "money": "43db739d489e36ee",
    "prepaid": "84acec3f17ee0ef3",
    "proxies": "108211bdd6e2f238",
    "quoted": "f987cb3c8aad7eb8",
    "rates_only": "1cc95626d2dca838",
}
