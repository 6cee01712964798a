from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from meterkit.catalog import Catalog, load, override
from meterkit.errors import PlansError


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load(Path(__file__).parent / "good" / "everything.yaml")


def test_strictly_everything_wrong_is_told_at_once(catalog: Catalog) -> None:
    wrong: dict[str, dict[str, object]] = {
        "request": {"included": 5},
        "requests": {"included": 1.5, "rates": "5/second"},
        "seats": {"included": True, "overage": None},
    }
    with pytest.raises(PlansError) as caught:
        override(catalog, catalog.plans["free"], wrong, strict=True)
    assert [problem.path for problem in caught.value.problems] == [
        "request",
        "requests.rates",
        "requests.included",
        "seats.included",
        "seats.overage",
    ]
    assert str(caught.value).startswith("override request: there is no meter 'request'; declared meters:")


def test_otherwise_what_cannot_be_read_stays_as_the_plan_has_it(catalog: Catalog) -> None:
    free = catalog.plans["free"]
    merged = override(
        catalog, free, {"gone": {"included": 5}, "seats": {"rate": "1/day"}, "requests": {"included": 9}}
    )
    assert replace(free.entitlements["requests"], included=9) == merged["requests"]
    assert free.entitlements["seats"] == merged["seats"]
    assert list(free.entitlements) == list(merged)


def test_a_value_that_holds_itself_is_refused(catalog: Catalog) -> None:
    endless: dict[str, object] = {}
    endless["rate"] = [endless]
    with pytest.raises(PlansError):
        override(catalog, catalog.plans["free"], {"requests": endless}, strict=True)


def test_overage_without_a_price_keeps_the_prices_of_the_plan() -> None:
    money = load(Path(__file__).parent / "good" / "money.yaml")
    pro = money.plans["pro"]
    given = pro.entitlements["output_tokens"].overage
    for written, cap in (("bill", None), ({"bill": {"cap": 5}}, 5)):
        merged = override(money, pro, {"output_tokens": {"overage": written}}, strict=True)
        assert replace(given, cap=cap) == merged["output_tokens"].overage
    single = {"bill": {"per": 1000, "amount_cents": 2}}
    overage = override(money, pro, {"output_tokens": {"overage": single}}, strict=True)[
        "output_tokens"
    ].overage
    assert (overage.rows, overage.per, overage.amount_cents) == (None, 1000, 2)
    with pytest.raises(PlansError, match="prices by model are a plan's; give `per` and `amount_cents`"):
        override(
            money, pro, {"output_tokens": {"overage": {"bill": {"price": "prices.output"}}}}, strict=True
        )
