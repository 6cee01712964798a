"""Plans files in several currencies: one catalog for each, in which only amounts differ."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from drivers.plans import free_plan
from meterkit.catalog import Catalog, Price, SeatPrice, enforced, loads, override
from meterkit.errors import PlansError

GOOD: Final = (Path(__file__).parent / "good" / "currencies.yaml").read_text("utf-8")
SPEND: Final = "spend"
MICROS: Final = {"usd": 10_000, "eur": 10_000, "jpy": 10**6}


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return loads(GOOD)


def test_the_first_currency_is_that_of_whoever_names_none(catalog: Catalog) -> None:
    assert (catalog.currency, catalog.currencies) == ("usd", ("usd", "eur", "jpy"))
    assert catalog.in_currency("") is catalog.in_currency("usd") is catalog
    assert (catalog.in_currency("gbp").currency, catalog.in_currency("gbp").has_amounts) == ("gbp", False)
    assert catalog.in_currency("jpy").currency == "jpy"


@pytest.mark.parametrize(
    ("code", "amounts"),
    [
        ("usd", (2900, 900, "price_u", 500, 12, 4, 1, 5000, 100)),
        ("eur", (2700, 800, "price_e", 450, 11, 3, 2, 4500, 90)),
        ("jpy", (4000, 1200, "price_j", 700, 15, 1000, 3, None, 130)),
    ],
)
def test_each_amount_is_that_of_the_currency(catalog: Catalog, code: str, amounts: tuple[Any, ...]) -> None:
    found = catalog.in_currency(code)
    price, seat, seat_id, addon, words, default, model, budget, subject = amounts
    pro = found.plans["pro"]
    assert pro.price == Price(amount_cents=price, interval="month", stripe_price="price_all")
    assert pro.seat_price == SeatPrice(amount_cents=seat, stripe_price=seat_id)
    assert found.addons["more"].price.amount_cents == addon
    bill = pro.entitlements["words"].overage
    assert (bill.per, bill.amount_cents) == (1000, words)
    by_default = pro.entitlements["tokens:(default)"].overage
    assert (by_default.amount_cents or 0) * 1000 // (by_default.per or 1) == default
    assert pro.entitlements["tokens:a-*"].overage.amount_cents == model
    spend = pro.entitlements[SPEND].included
    assert spend == (None if budget is None else budget * MICROS[code])
    limit = pro.subjects["user"].budget
    assert limit is not None
    assert limit.micros == subject * MICROS[code]
    assert found.meters[SPEND].unit == f"micro-{code.upper()}"


def test_extended_plans_inherit_amounts_by_currency(catalog: Catalog) -> None:
    prices = [catalog.in_currency(code).plans["max"].price for code in catalog.currencies]
    assert [price.amount_cents for price in prices] == [5900, 2700, 4000]
    assert [price.stripe_price for price in prices] == [None] * 3
    assert catalog.in_currency("eur").plans["max"].entitlements[SPEND].included is None


def test_what_is_no_amount_is_shared(catalog: Catalog) -> None:
    euros = catalog.in_currency("eur")
    assert euros.routes is catalog.routes
    assert (euros.content_hash, euros.notes) == (catalog.content_hash, catalog.notes)
    assert euros.credits == catalog.credits
    shadowed = enforced(catalog, "shadow")
    assert shadowed.in_currency("eur").enforcement == "shadow"
    assert shadowed.in_currency("eur").routes is shadowed.routes


def test_an_amount_in_any_currency_changes_the_hash(catalog: Catalog) -> None:
    assert loads(GOOD.replace("jpy: 1200", "jpy: 1300")).content_hash != catalog.content_hash
    assert loads(GOOD + "# the same\n").content_hash == catalog.content_hash
    text = free_plan("{pages: {unit: page}}")
    assert loads(text).content_hash == loads(text.replace("usd", "[usd]")).content_hash


def test_notes_are_made_once(catalog: Catalog) -> None:
    budgets = [note for note in catalog.notes if "balance in money" in note.message]
    paths = ["plans.pro.budget", "plans.pro.subjects.user.budget", "plans.max.budget"]
    assert [note.path for note in budgets] == paths
    assert "in eur, jpy this budget counts overage only" in budgets[0].message
    assert len({(note.line, note.column, note.path) for note in catalog.notes}) == len(catalog.notes)


@pytest.mark.parametrize(
    ("codes", "refused"),
    [
        ("[usd, eur, jpy, eur]", "'eur' is listed twice; keep one"),
        ("[usd, eur, jpyen]", "found 'jpyen'; allowed: the three small letters of a currency, such as usd"),
        ("[usd, eur, JPY]", "found 'JPY'; allowed: .* did you mean jpy"),
    ],
)
def test_a_wrong_code_is_refused_once_and_not_at_each_amount(codes: str, refused: str) -> None:
    with pytest.raises(PlansError, match=refused) as caught:
        loads(GOOD.replace("[usd, eur, jpy]", codes))
    assert len(str(caught.value).splitlines()) == 1


def test_a_balance_in_money_needs_dollars() -> None:
    text = GOOD.replace("[usd, eur, jpy]", "[gbp, eur, jpy]").replace("usd: ", "gbp: ")
    with pytest.raises(PlansError, match="are in US dollars, and this file's amounts in gbp, eur, jpy"):
        loads(text)


def test_a_price_at_stripe_names_one_plan_in_all_currencies() -> None:
    free, own = "jpy: 0}, interval: month", "stripe_price: {usd: price_1, eur: price_all, jpy: price_2}"
    assert free in GOOD
    text = GOOD.replace(free, f"{free}, {own}")
    with pytest.raises(PlansError, match="'price_all' is already used in line"):
        loads(text)


def own_price(amount: object) -> dict[str, object]:
    return {"overage": {"bill": {"per": 1000, "amount_cents": amount}}}


def test_overrides_are_in_the_customers_currency(catalog: Catalog) -> None:
    euros = catalog.in_currency("eur")
    pro = euros.plans["pro"]
    given = override(euros, pro, {"words": own_price(9)}, strict=True)["words"].overage
    assert given == replace(pro.entitlements["words"].overage, amount_cents=9)
    limits = override(euros, pro, {SPEND: {"period": 10}}, strict=True)[SPEND]
    assert limits.included == 10 * MICROS["eur"]
    with pytest.raises(PlansError, match="amount_cents: found a map"):
        override(euros, pro, {"words": own_price({"usd": 9, "eur": 8, "jpy": 9})}, strict=True)


@pytest.mark.parametrize("code", ["usd", "isk", "kwd", "xcg", "cny"])
def test_currencies_of_stripe_are_known(code: str) -> None:
    assert loads(free_plan("{pages: {unit: page}}").replace("usd", code)).currency == code


@pytest.mark.parametrize(
    ("code", "wrong", "step", "words"),
    [("kwd", 705, 10, "KWD in steps of KWD 0.010"), ("isk", 750, 100, "ISK in steps of ISK 1.00")],
)
def test_an_amount_is_one_that_stripe_charges(code: str, wrong: int, step: int, words: str) -> None:
    text = GOOD.replace("jpy", code)
    assert loads(text).in_currency(code).plans["pro"].price.amount_cents == 4000
    with pytest.raises(PlansError) as found:
        loads(text.replace(f"{code}: 4000", f"{code}: 4001").replace(f"{code}: 700", f"{code}: {wrong}"))
    places = [problem.partition(": ")[0].partition(" ")[2] for problem in str(found.value).splitlines()]
    assert places == [f"addons.more.price.amount_cents.{code}", f"plans.pro.price.amount_cents.{code}"]
    assert f"found 4001; Stripe charges {words}; allowed: multiples of {step}" in str(found.value)
