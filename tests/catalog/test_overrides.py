from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from limits import (
    RateLimitItemPerHour,
    RateLimitItemPerMinute,
    RateLimitItemPerSecond,
    RateLimitItemPerYear,
    parse,
    parse_many,
)

from meterkit.catalog import Catalog, Overage, load, override
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
    paths = ["request", "requests.rates", "requests.included", "seats.included", "seats.overage"]
    assert [problem.path for problem in caught.value.problems] == paths
    assert str(caught.value).startswith("override request: there is no meter 'request'; declared meters:")


def test_otherwise_what_cannot_be_read_stays_as_the_plan_has_it(catalog: Catalog) -> None:
    free = catalog.plans["free"]
    gone, seats, requests = {"included": 5}, {"rate": "1/day"}, {"included": 9}
    merged = override(catalog, free, {"gone": gone, "seats": seats, "requests": requests})
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

    def overridden(overage: object) -> Overage:
        merged = override(money, pro, {"output_tokens": {"overage": overage}}, strict=True)
        return merged["output_tokens"].overage

    assert overridden("bill") == replace(given, cap=None)
    assert overridden({"bill": {"cap": 5}}) == replace(given, cap=5)
    single = overridden({"bill": {"per": 1000, "amount_cents": 2}})
    assert (single.rows, single.per, single.amount_cents) == (None, 1000, 2)
    with pytest.raises(PlansError, match="prices by model are a plan's; give `per` and `amount_cents`"):
        overridden({"bill": {"price": "prices.output"}})


def test_rates_of_limits_are_read_as_their_notation(catalog: Catalog) -> None:
    plan, fixed = catalog.plans["free"], {"algorithm": "fixed-window"}
    for written, items in (
        ("5/minute", RateLimitItemPerMinute(5)),
        ("5/2 minutes; 1 per month", parse_many("5/2 minutes; 1 per month")),
        (["7/year", "2/second"], (RateLimitItemPerYear(7, namespace="ours"), RateLimitItemPerSecond(2))),
        ({"limit": "9/day", **fixed}, {"limit": parse("9/day"), **fixed}),
    ):
        by_text = override(catalog, plan, {"requests": {"rate": written}}, strict=True)
        assert by_text == override(catalog, plan, {"requests": {"rate": items}}, strict=True)


def test_a_bad_rate_of_limits_is_refused_in_its_notation(catalog: Catalog) -> None:
    given = {"requests": {"rate": RateLimitItemPerHour(-1, 3)}}
    with pytest.raises(
        PlansError, match=r"requests\.rate: found '-1/3 hour'; allowed: a rate such as 100/hour"
    ):
        override(catalog, catalog.plans["free"], given, strict=True)
