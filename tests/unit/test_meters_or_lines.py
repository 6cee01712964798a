"""Which way a customer's usage reaches its invoices, by period, and at which prices: pure tables."""

# Internals: pure tables of instants and prices; a seam shows each as one line of an invoice.

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import Any, Final

import pytest

from meterkit import MeterKit
from meterkit.catalog import Entitlement, loads
from meterkit.catalog.models import Overage
from meterkit.decisions.customer_state import INITIAL_STATE, CustomerState, is_billed_by_lines, line_switches
from meterkit.decisions.item_prices import ItemPrice, ItemPrices, line_prices
from meterkit.decisions.keys import meter_token
from meterkit.decisions.subscription import SubscriptionState, known_line_switches
from meterkit.decisions.told_terms import with_terms
from meterkit.decisions.transitions import TermsInForce
from meterkit.outbox.meters_or_lines import (
    end_dropped_prices,
    has_metered_periods,
    keep_line_terms,
    must_move,
    with_new_models,
    with_usage_billed,
)
from meterkit.outbox.sealing_terms import (
    EndedPeriod,
    deciding_meter,
    format_overage_price,
    invoice_terms,
    is_billed_at,
    item_terms,
    late_class,
    line_products,
    line_terms,
    unit_label,
)
from meterkit.store.event_names import ReportedMeter, list_reported_meters
from meterkit.store.views import CustomerCache, CustomerView
from meterkit.terms.rows import EVER_MS, FREE, PLAN_BY_HAND, PRICES_BY_HAND, Row
from meterkit.terms.rows import LINES as USAGE_LINES

PLANS: Final = """
schema: 1
currency: [usd, eur]
default_plan: free
billing: {usage: lines}
meters:
  words: {unit: word, stripe: {event_name: api_words}}
  pages: {unit: page, stripe: {event_name: api_pages}}
  rows:  {unit: row, stripe: {event_name: api_rows}}
  calls: {unit: call}
plans:
  free:
    price: {amount_cents: {usd: 0, eur: 0}, interval: month}
    meters: {words: {included: 9}, pages: {included: 9}, rows: {included: 9}}
  pro:
    price: {amount_cents: {usd: 900, eur: 800}, interval: month}
    meters:
      words: {included: 9, overage: {bill: {per: 1000, amount_cents: {usd: 12, eur: 11}}}}
      pages: {included: 9, overage: {bill: {per: 1, amount_cents: {usd: 2, eur: 3}}}}
      rows:  {included: 9}
"""
LINES: Final = loads(PLANS)
METERS: Final = loads(PLANS.replace("usage: lines", "usage: meters"))
METERED: Final = "mtr_words=price_1"

BEFORE, START, LATER, END = 1_000_000_000, 2_000_000_000, 3_000_000_000, 4_000_000_000
MINUTES_2: Final = 120_000


def sold(**changed: Any) -> SubscriptionState:
    known: dict[str, Any] = {"id": "sub_1", "status": "active", "plan": "pro", "currency": "usd"}
    known |= {"start_ms": START, "end_ms": END, "anchor_ms": END, **changed}
    return SubscriptionState(**known)


def by_lines(*switches: int, **changed: Any) -> CustomerState:
    """A state whose usage lines, and metered prices again, in turn bill from these instants on."""
    found = sold(**changed)
    told = [at_ms for at_ms in switches if at_ms <= found.start_ms]
    pending_ms = next((at_ms for at_ms in switches if at_ms > found.start_ms), None)
    found = replace(found, by_lines=len(told) % 2 == 1, pending_lines_ms=pending_ms)
    rows = (Row(at_ms, at_ms, "stripe", ((USAGE_LINES, nth % 2 == 0),)) for nth, at_ms in enumerate(told))
    return CustomerState(subscription=found, terms=tuple(rows))


def canceled(at_ms: int, **changed: Any) -> SubscriptionState:
    return sold(status="canceled", ended_at_ms=at_ms, **changed)


@pytest.mark.parametrize(
    ("subscription", "with_lines", "with_meters"),
    [
        pytest.param(None, (0,), (), id="without a subscription the file decides"),
        pytest.param(sold(), (0,), (), id="it decides where nothing of either is known"),
        pytest.param(sold(metered=METERED), (), (), id="metered items bill on"),
        pytest.param(canceled(LATER, metered=METERED), (LATER,), (), id="from its end on the file decides"),
        pytest.param(by_lines(0), (0,), (0,), id="lines bill on"),
        pytest.param(by_lines(0, status="canceled", ended_at_ms=LATER), (0,), (0, LATER), id="until its end"),
        pytest.param(
            by_lines(0, LATER - 1, status="canceled", ended_at_ms=LATER),
            (0, LATER - 1, LATER),
            (0, LATER - 1),
            id="a switch just before the end was made",
        ),
        pytest.param(
            by_lines(0, LATER, status="canceled", ended_at_ms=LATER),
            (0,),
            (0, LATER),
            id="one at the end was not",
        ),
        pytest.param(by_lines(0, END, cancel_at_ms=LATER), (0,), (0, LATER), id="nor will one behind it be"),
        pytest.param(by_lines(LATER, metered=METERED), (LATER,), (LATER,), id="a scheduled one counts"),
    ],
)
def test_which_way_usage_is_billed_from_when_on(
    subscription: SubscriptionState | CustomerState | None,
    with_lines: tuple[int, ...],
    with_meters: tuple[int, ...],
) -> None:
    state = state_of(subscription)
    for catalog, expected in ((LINES, with_lines), (METERS, with_meters)):
        assert line_switches(state, catalog) == expected
        assert has_metered_periods(state, catalog) is (expected != (0,))
        for at_ms in (1, BEFORE, LATER - 2, LATER - 1, LATER, LATER + 1, END):
            is_odd = len([one for one in expected if one <= at_ms]) in {1, 3}
            assert is_billed_by_lines(state, catalog, at_ms) is is_odd


@pytest.mark.parametrize(
    ("subscription", "to_lines", "to_meters"),
    [
        pytest.param(None, False, False, id="no subscription"),
        pytest.param(canceled(LATER, metered=METERED), False, False, id="one that has ended"),
        pytest.param(sold(metered=METERED), True, False, id="with metered items"),
        pytest.param(by_lines(0), False, True, id="with lines"),
        pytest.param(by_lines(END, metered=METERED), False, True, id="on its way to lines"),
        pytest.param(by_lines(0, END), True, False, id="on its way to meters"),
    ],
)
def test_who_must_move(
    subscription: SubscriptionState | CustomerState | None, to_lines: bool, to_meters: bool
) -> None:
    state = state_of(subscription)
    assert [must_move(state, catalog) for catalog in (LINES, METERS)] == [to_lines, to_meters]


def test_until_it_is_moved_a_customer_has_a_file_of_its_own() -> None:
    for catalog, other in ((LINES, METERS), (METERS, LINES)):
        is_by_lines = catalog.billing.is_by_lines
        assert with_usage_billed(catalog, by_lines=is_by_lines) is catalog
        changed = with_usage_billed(catalog, by_lines=not is_by_lines)
        assert changed.billing == other.billing
        assert changed.in_currency("eur").billing == other.billing
        assert changed.plans == catalog.plans


def state_of(known: SubscriptionState | CustomerState | None) -> CustomerState:
    return known if isinstance(known, CustomerState) else CustomerState(subscription=known)


ITEMS: Final = {"metered": METERED}


@pytest.mark.parametrize(
    ("known", "fetched", "planned_ms", "with_lines", "with_meters"),
    [
        pytest.param(None, {}, None, (0,), (), id="a new one goes by the file"),
        pytest.param(None, ITEMS, None, (), (), id="a new one with metered items has these"),
        pytest.param(None, ITEMS, END, (END,), (), id="they are to be removed"),
        pytest.param(None, {}, END, (0, END), (), id="they are to be added to what lines bill"),
        pytest.param(by_lines(0), {}, None, (0,), (0,), id="lines stay"),
        pytest.param(sold(**ITEMS), ITEMS, None, (), (), id="metered items stay"),
        pytest.param(sold(**ITEMS), {}, None, (START,), (), id="items are gone: lines bill the open period"),
        pytest.param(by_lines(0), ITEMS, None, (0, END), (0, END), id="new items bill the next period"),
        pytest.param(by_lines(0), ITEMS, LATER, (0,), (0,), id="items, and a plan for them"),
        pytest.param(sold(**ITEMS), ITEMS, LATER, (LATER,), (), id="lines are planned, if the file has them"),
        pytest.param(by_lines(LATER, **ITEMS), ITEMS, LATER, (LATER,), (LATER,), id="they stay planned"),
        pytest.param(by_lines(LATER, **ITEMS), ITEMS, None, (), (), id="a plan is called off"),
        pytest.param(sold(**ITEMS), ITEMS, START, (), (), id="what was planned until now is no plan"),
        pytest.param(sold(**ITEMS), ITEMS, START + 1, (START + 1,), (), id="what comes after it is one"),
        pytest.param(by_lines(0), {}, LATER, (0, LATER), (0, LATER), id="items are planned"),
        pytest.param(by_lines(START, **ITEMS), ITEMS, None, (), (), id="what was planned did not happen"),
        pytest.param(by_lines(0, START), {}, None, (0,), (0,), id="nor did the way back happen"),
        pytest.param(
            by_lines(START, **ITEMS),
            {},
            None,
            (START,),
            (START,),
            id="it happened",
        ),
        pytest.param(by_lines(0, id="sub_0"), {}, None, (0,), (0,), id="the next one has lines, too"),
        pytest.param(
            by_lines(0, id="sub_0"), ITEMS, None, (0, START), (0, START), id="the next one has items"
        ),
        pytest.param(sold(**ITEMS, id="sub_0"), {}, None, (START,), (), id="the next one has none"),
        pytest.param(
            by_lines(0, 1, BEFORE),
            {},
            LATER,
            (0, 1, BEFORE, LATER),
            (0, 1, BEFORE, LATER),
            id="lines for the second time",
        ),
        pytest.param(by_lines(0, START + 1), {}, None, (0,), (0,), id="a switch ahead is planned anew"),
        pytest.param(
            by_lines(0, LATER, id="sub_2", start_ms=LATER, metered=METERED),
            {},
            None,
            (0,),
            (0,),
            id="an older one follows",
        ),
    ],
)
def test_when_a_subscription_changes_its_way(
    known: SubscriptionState | CustomerState | None,
    fetched: dict[str, Any],
    planned_ms: int | None,
    with_lines: tuple[int, ...],
    with_meters: tuple[int, ...],
) -> None:
    for catalog, expected in ((LINES, with_lines), (METERS, with_meters)):
        before = state_of(known)
        found = keep_line_terms(sold(**fetched), before, catalog, planned_ms=planned_ms, prices={})
        after = replace(before, subscription=found)
        after = with_terms(before, after, catalog, END, told_ms=END, source="stripe")
        assert known_line_switches(found, after.terms) == expected


@pytest.mark.parametrize(
    ("fetched", "has_items"),
    [
        pytest.param({}, False, id="none"),
        pytest.param({"metered": METERED}, True, id="of prices that are not known"),
        pytest.param({"metered": METERED, "prices": (ItemPrice("", "e", "1/2"),)}, False, id="of no meter"),
        pytest.param(
            {"metered": METERED, "prices": (ItemPrice("", "e", "1/2"), ItemPrice("words", "f", "1/2"))},
            True,
            id="one of a meter",
        ),
    ],
)
def test_only_items_of_the_files_meters_count(fetched: dict[str, Any], has_items: bool) -> None:
    found = keep_line_terms(sold(**fetched), CustomerState(), LINES, planned_ms=None, prices={})
    assert found.by_lines is not has_items


WORDS: Final = ItemPrice("words", "api_words", "1000/12")
PAGES: Final = ItemPrice("pages", "api_pages", "1/2")
OWN_WORDS: Final = WORDS._replace(label="1000/10")
OWN_ROWS: Final = ItemPrice("rows", "api_rows", "1/7")
DROPPED: Final = OWN_ROWS._replace(is_dropped=True)
TIERS: Final = ItemPrice("pages", "api_pages", "?tiers")


@pytest.mark.parametrize(
    ("plan", "currency", "own", "expected"),
    [
        pytest.param("pro", "usd", (), (WORDS, PAGES), id="those of the file"),
        pytest.param(
            "pro",
            "eur",
            (),
            (WORDS._replace(label="1000/11"), PAGES._replace(label="1/3")),
            id="in the customer's currency",
        ),
        pytest.param("free", "usd", (), (), id="none of a plan that bills nothing"),
        pytest.param("pro", "usd", (OWN_WORDS,), (OWN_WORDS, PAGES), id="the customer's own stays"),
        pytest.param(
            "pro",
            "usd",
            (OWN_WORDS._replace(meter="letters"),),
            (OWN_WORDS, PAGES),
            id="of a meter that has another name by now",
        ),
        pytest.param("pro", "usd", (OWN_ROWS,), (WORDS, PAGES, DROPPED), id="what is not billed is kept"),
        pytest.param("free", "usd", (OWN_WORDS,), (OWN_WORDS._replace(is_dropped=True),), id="of any plan"),
    ],
)
def test_the_prices_of_lines(plan: str, currency: str, own: ItemPrices, expected: ItemPrices) -> None:
    catalog = LINES.in_currency(currency)
    assert line_prices(catalog.plans[plan], catalog, own) == expected


@pytest.mark.parametrize(
    ("overage", "expected"),
    [
        pytest.param(Overage(mode="bill", amount_cents=12), (WORDS._replace(label="1/12"), PAGES), id="each"),
        pytest.param(Overage(mode="bill"), (PAGES,), id="at a price that is only at Stripe"),
        pytest.param(Overage(mode="deny"), (PAGES,), id="none"),
    ],
)
def test_the_price_of_a_unit_without_a_number_of_units(overage: Overage, expected: ItemPrices) -> None:
    given = LINES.plans["pro"].entitlements
    changed = {**given, "words": replace(given["words"], overage=overage)}
    assert line_prices(replace(LINES.plans["pro"], entitlements=changed), LINES) == expected


def test_at_most_200_prices_are_kept() -> None:
    own = tuple(ItemPrice(f"m{nth}", f"e{nth}", "1/1") for nth in range(210))
    found = line_prices(LINES.plans["pro"], LINES, own)
    assert (len(found), found[:2]) == (200, (WORDS, PAGES))


@pytest.mark.parametrize(
    ("known", "fetched", "prices", "expected"),
    [
        pytest.param(None, {}, {}, (WORDS, PAGES), id="a new one has those of the file"),
        pytest.param(None, {}, {"api_words": "1000/10"}, (OWN_WORDS, PAGES), id="or those it was sold at"),
        pytest.param(
            by_lines(0, prices=(OWN_WORDS, TIERS)),
            {},
            {"api_words": "1000/9"},
            (OWN_WORDS, PAGES),
            id="a known one keeps its unit prices",
        ),
        pytest.param(
            by_lines(0, prices=(OWN_WORDS,), plan="free"),
            {},
            {},
            (WORDS, PAGES),
            id="on another plan it has those of the file",
        ),
        pytest.param(
            by_lines(0, prices=(OWN_WORDS,), id="sub_0"),
            {},
            {},
            (WORDS, PAGES),
            id="so has the next one",
        ),
        pytest.param(
            by_lines(0, prices=(OWN_WORDS,), plan="gone"),
            {"plan": "gone"},
            {},
            (OWN_WORDS,),
            id="a plan that is not in the file keeps them",
        ),
        pytest.param(None, {"plan": "gone", "prices": (PAGES,)}, {}, (PAGES,), id="a new one on such a plan"),
        pytest.param(None, {"plan": None, "prices": (PAGES,)}, {}, (PAGES,), id="or on none"),
        pytest.param(
            None,
            {"currency": "eur"},
            {},
            (WORDS._replace(label="1000/11"), PAGES._replace(label="1/3")),
            id="in the customer's currency",
        ),
        pytest.param(
            by_lines(LATER, **ITEMS),
            {**ITEMS, "prices": (TIERS,)},
            {},
            (TIERS,),
            id="until its move metered items have theirs",
        ),
    ],
)
def test_a_subscription_keeps_the_prices_it_was_sold_at(
    known: SubscriptionState | CustomerState | None,
    fetched: dict[str, Any],
    prices: dict[str, str],
    expected: ItemPrices,
) -> None:
    found = keep_line_terms(sold(**fetched), state_of(known), LINES, planned_ms=None, prices=prices)
    assert found.prices == expected


BY_MODEL: Final = loads("""
schema: 1
currency: usd
default_plan: pro
billing: {usage: lines}
meters: {tokens: {unit: token, stripe: {event_name: api_tokens}}}
prices: {out: {default: 4 per 1000, models: {big: 9 per 1000}}}
plans:
  pro:
    price: {amount_cents: 900, interval: month}
    meters: {tokens: {included: 9, overage: {bill: {price: prices.out}}}}
""")
DEFAULT: Final = ItemPrice("tokens", "api_tokens", "250/1")
OWN_DEFAULT: Final = DEFAULT._replace(label="1000/3")
BIG: Final = ItemPrice("tokens:big", "api_tokens:big", "1000/9")


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        pytest.param({"prices": (OWN_DEFAULT,)}, (OWN_DEFAULT, BIG), id="a model is newer"),
        pytest.param({"prices": (OWN_DEFAULT, BIG)}, None, id="none is"),
        pytest.param({"prices": (OWN_DEFAULT,), "status": "canceled"}, None, id="it has ended"),
        pytest.param({"prices": (OWN_DEFAULT,), "plan": "gone"}, None, id="its plan is gone"),
        pytest.param({"prices": (OWN_DEFAULT,), "plan": None}, None, id="it has no plan"),
        pytest.param({"prices": (OWN_DEFAULT._replace(label="?tiers"),)}, None, id="it has no unit price"),
    ],
)
def test_a_repair_adds_the_prices_of_new_models(changed: dict[str, Any], expected: ItemPrices | None) -> None:
    state = by_lines(0, **changed)
    found = with_new_models(state, BY_MODEL)
    metered = replace(state, subscription=sold(**changed))
    assert with_new_models(metered, BY_MODEL) is metered
    if expected is None:
        assert found is state
    else:
        assert found == replace(state, subscription=replace(sold(**changed), by_lines=True, prices=expected))


def test_newer_models_cost_the_customers_default() -> None:
    plan = BY_MODEL.plans["pro"]
    assert line_prices(plan, BY_MODEL) == (DEFAULT, BIG)
    assert line_prices(plan, BY_MODEL, (OWN_DEFAULT,)) == (OWN_DEFAULT,)
    assert line_prices(plan, BY_MODEL, (OWN_DEFAULT,), has_new_models=True) == (OWN_DEFAULT, BIG)
    no_customer = CustomerState()
    assert with_new_models(no_customer, BY_MODEL) is no_customer


ROWS_TOKEN, WORDS_TOKEN = meter_token("rows"), meter_token("words")
WITH_ROWS: Final = by_lines(0, prices=(WORDS, OWN_ROWS))
WITHOUT: Final = by_lines(0, prices=(WORDS,))
NOTHING_BILLED: Final = {ROWS_TOKEN: "0"}


def holding(*prices: ItemPrice) -> CustomerState:
    return by_lines(0, prices=prices)


def by_hand(
    plan: str, *prices: ItemPrice, of: CustomerState = INITIAL_STATE, since: int = EVER_MS
) -> CustomerState:
    """A customer whose plan is set by hand, at some prices."""
    facts = (PLAN_BY_HAND, plan), (PRICES_BY_HAND, prices)
    return replace(of, plan=plan, terms=(Row(since, since, "operator", facts),))


@pytest.mark.parametrize(
    ("old", "new", "labels", "expected"),
    [
        pytest.param(WITH_ROWS, WITHOUT, {}, {ROWS_TOKEN: "1/7"}, id="a price that is gone has ended"),
        pytest.param(WITH_ROWS, WITH_ROWS, {}, {}, id="one that goes on has not"),
        pytest.param(
            WITH_ROWS, holding(WORDS, DROPPED), {}, {ROWS_TOKEN: "1/7"}, id="one that is billed no more has"
        ),
        pytest.param(
            WITH_ROWS,
            WITHOUT,
            {ROWS_TOKEN: "1/9", WORDS_TOKEN: "1/8"},
            {ROWS_TOKEN: "1/9", WORDS_TOKEN: "1/8"},
            id="what ends by the file ends at the file's price",
        ),
        pytest.param(
            WITH_ROWS,
            WITH_ROWS,
            NOTHING_BILLED,
            {ROWS_TOKEN: "1/7"},
            id="what the file bills no more",
        ),
        pytest.param(holding(DROPPED), WITHOUT, {}, {}, id="a price that had ended before"),
        pytest.param(holding(TIERS), WITHOUT, {}, {}, id="one that is no unit price"),
        pytest.param(
            replace(WITH_ROWS, overrides={"rows": {"overage": "deny"}}), WITHOUT, {}, {}, id="one overridden"
        ),
        pytest.param(
            replace(WITH_ROWS, overrides={"rows": {"included": 5}}),
            WITHOUT,
            {},
            {ROWS_TOKEN: "1/7"},
            id="an override of something else",
        ),
        pytest.param(
            CustomerState(subscription=sold(**ITEMS, prices=(OWN_ROWS,))),
            WITHOUT,
            NOTHING_BILLED,
            NOTHING_BILLED,
            id="metered items end at Stripe",
        ),
        pytest.param(
            by_hand("pro", OWN_ROWS),
            by_hand("pro", OWN_ROWS),
            NOTHING_BILLED,
            {ROWS_TOKEN: "1/7"},
            id="of a plan set by hand, without a subscription",
        ),
    ],
)
def test_prices_of_lines_end_that_the_file_does_not_bill(
    old: CustomerState, new: CustomerState, labels: dict[str, str], expected: dict[str, str]
) -> None:
    then, now = TermsInForce(plan="pro", at_ms=START), TermsInForce(plan="pro", at_ms=LATER)
    assert end_dropped_prices(labels, (old, then), (new, now), LINES) == expected


def test_what_a_fallback_plan_denies_it_denies_by_lines_too() -> None:
    then, now = TermsInForce(plan="free", at_ms=START), TermsInForce(plan="free", at_ms=LATER)
    found = end_dropped_prices(NOTHING_BILLED, (WITH_ROWS, then), (WITH_ROWS, now), LINES)
    assert found == NOTHING_BILLED


# The terms of the lines of a period that is over.


@cache
def customers_of(file: str) -> CustomerCache:
    catalog = {"lines": LINES, "meters": METERS}[file]
    return MeterKit(catalog, redis_url="memory://", flush=False).store.cache


def terms_of(
    state: CustomerState,
    *periods: tuple[int, int],
    now_ms: int = END + 5,
    reported: dict[str, ReportedMeter] | None = None,
    file: str = "lines",
) -> dict[str, Any]:
    view = CustomerView(
        customers_of(file), "ada", now_ms, anonymous=False, rev="2:1", data=state.dump().encode()
    )
    found: dict[str, Any] = json.loads(
        line_terms(view, [EndedPeriod(*one) for one in periods], reported or {}, now_ms)
    )
    return found


def lines_of(**changed: Any) -> CustomerState:
    return by_lines(0, **({"created_ms": START} | changed))


WHOLE: Final = (START, END)
RENEWED: Final = {"start_ms": END, "end_ms": 2 * END, "anchor_ms": END}


def free(state: CustomerState, why: str, from_ms: int = START, till_ms: int = LATER) -> CustomerState:
    """A state in whose terms a time was one of a trial, or of a pause."""
    edges = ((from_ms, why), (till_ms, None))
    return replace(state, terms=tuple(Row(at_ms, at_ms, "stripe", ((FREE, of),)) for at_ms, of in edges))


IN_TRIAL: Final = free(lines_of(**RENEWED), "trial")


@pytest.mark.parametrize(
    ("state", "period", "expected"),
    [
        pytest.param(lines_of(**RENEWED), WHOLE, ("sub_1", False), id="of a subscription"),
        pytest.param(lines_of(**RENEWED), (START - 1, END), ("", False), id="begun just before it"),
        pytest.param(
            lines_of(**RENEWED, created_ms=0), (END, END + 1), ("sub_1", False), id="begun with its period"
        ),
        pytest.param(
            lines_of(**RENEWED, created_ms=0),
            (END - 1, END),
            ("", False),
            id="begun before its period, where its creation is not known",
        ),
        pytest.param(
            lines_of(status="canceled", ended_at_ms=LATER),
            (LATER - 1, LATER),
            ("sub_1", False),
            id="begun just before its end",
        ),
        pytest.param(
            lines_of(status="canceled", ended_at_ms=LATER), (LATER, END), ("", False), id="begun at its end"
        ),
        pytest.param(lines_of(status="incomplete"), WHOLE, ("", False), id="of one that was never paid for"),
        pytest.param(IN_TRIAL, WHOLE, ("sub_1", True), id="of a trial"),
        pytest.param(
            IN_TRIAL,
            (LATER - 1, LATER),
            ("sub_1", True),
            id="begun as a trial ended",
        ),
        pytest.param(IN_TRIAL, (LATER, END), ("sub_1", False), id="begun after a trial"),
        pytest.param(
            free(lines_of(**RENEWED), "trial", START + MINUTES_2 - 1, END),
            WHOLE,
            ("sub_1", True),
            id="of a trial that begins less than two minutes later",
        ),
        pytest.param(
            free(lines_of(**RENEWED), "trial", START + MINUTES_2, END),
            (START, START + MINUTES_2),
            ("sub_1", False),
            id="used up before a trial that begins two minutes later",
        ),
        pytest.param(
            free(lines_of(**RENEWED, created_ms=LATER), "trial"),
            WHOLE,
            ("", True),
            id="of a trial of an earlier subscription",
        ),
        pytest.param(free(lines_of(**RENEWED), "pause"), WHOLE, ("sub_1", True), id="of a pause"),
        pytest.param(
            free(lines_of(**RENEWED, created_ms=LATER), "pause"),
            WHOLE,
            ("", True),
            id="of a pause of an earlier subscription",
        ),
        pytest.param(
            lines_of(**RENEWED, void_from_ms=END), WHOLE, ("sub_1", True), id="whose invoice is voided"
        ),
        pytest.param(
            lines_of(**RENEWED, void_from_ms=END + 1), WHOLE, ("sub_1", False), id="one of later is voided"
        ),
        pytest.param(CustomerState(), WHOLE, ("", False), id="without a subscription"),
    ],
)
def test_which_subscription_has_the_lines_of_a_period(
    state: CustomerState, period: tuple[int, int], expected: tuple[str, bool]
) -> None:
    """The subscription, and whether the lines cost nothing."""
    (found,) = terms_of(state, period)["periods"].values()
    assert (found["subscription"], found["free"]) == expected


FILE_LABELS: Final = {"words": "1000/12", "pages": "1/2", "rows": "0"}
DENIED: Final = {"words": "0", "pages": "0", "rows": "0"}


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        pytest.param(lines_of(**RENEWED), FILE_LABELS, id="those of the plan"),
        pytest.param(
            lines_of(**RENEWED, prices=(OWN_WORDS, OWN_ROWS)),
            FILE_LABELS | {"words": "1000/10", "rows": "1/7"},
            id="its own prices go before these",
        ),
        pytest.param(lines_of(**RENEWED, prices=(TIERS,)), FILE_LABELS, id="only unit prices do"),
        pytest.param(
            lines_of(**RENEWED, currency="eur"), FILE_LABELS, id="the customer's state has the currency"
        ),
        pytest.param(
            replace(lines_of(**RENEWED, currency="eur"), currency="eur"),
            FILE_LABELS | {"words": "1000/11", "pages": "1/3"},
            id="in the customer's currency",
        ),
        pytest.param(
            lines_of(plan="gone", prices=(OWN_WORDS,)),
            {"words": "1000/10", "pages": "-", "rows": "-"},
            id="a plan that left the file has its own alone",
        ),
        pytest.param(
            lines_of(plan=None), dict.fromkeys(FILE_LABELS, "-"), id="no plan has no price that is known"
        ),
        pytest.param(
            by_hand("free", of=lines_of(**RENEWED)), DENIED, id="a plan set by hand goes before its own"
        ),
        pytest.param(
            by_hand("free", of=lines_of(status="canceled", ended_at_ms=END), since=END),
            FILE_LABELS,
            id="but not one set since the period",
        ),
        pytest.param(CustomerState(), DENIED, id="the default plan without a subscription"),
        pytest.param(CustomerState(plan="pro"), FILE_LABELS, id="a plan set by hand without one"),
        pytest.param(
            by_hand("pro", OWN_WORDS),
            FILE_LABELS | {"words": "1000/10"},
            id="at the prices that it was set at",
        ),
        pytest.param(
            lines_of(**RENEWED, pending_plan="free", pending_at_ms=END),
            FILE_LABELS,
            id="until its end",
        ),
        pytest.param(
            lines_of(**RENEWED, pending_plan="free", pending_at_ms=END - 1),
            DENIED,
            id="of its last instant",
        ),
    ],
)
def test_the_labels_of_the_lines_of_a_period(state: CustomerState, expected: dict[str, str]) -> None:
    (found,) = terms_of(state, WHOLE)["periods"].values()
    assert found["meters"] == {meter_token(name): [name, label] for name, label in expected.items()}


def test_a_period_that_another_one_cut_has_the_terms_of_the_cut() -> None:
    """A plan that begins with the next period is none of the one before."""
    state = lines_of(
        start_ms=LATER, end_ms=2 * END, anchor_ms=LATER, pending_plan="free", pending_at_ms=LATER
    )
    terms = terms_of(state, WHOLE, (START, LATER), now_ms=LATER + 5)
    assert terms["periods"].keys() == {str(START)}
    for period in (WHOLE, (START, LATER)):
        (found,) = terms_of(state, period, now_ms=LATER + 5)["periods"].values()
        assert found["meters"][WORDS_TOKEN] == ["words", "1000/12"]
    (found,) = terms_of(state, (LATER, END), now_ms=END)["periods"].values()
    assert found["meters"][WORDS_TOKEN] == ["words", "0"]


def test_a_period_that_is_open_has_the_terms_of_its_last_instant() -> None:
    state = lines_of(
        start_ms=LATER, end_ms=2 * END, anchor_ms=LATER, pending_plan="free", pending_at_ms=LATER + 1
    )
    (found,) = terms_of(state, (LATER, END), now_ms=LATER + 5)["periods"].values()
    assert found["meters"][WORDS_TOKEN] == ["words", "0"]


def test_a_meter_that_left_the_file_has_the_price_of_its_event() -> None:
    reported = {
        "aaaa": ReportedMeter(meter="old_words", event_name="api_words"),
        "bbbb": ReportedMeter(meter="letters", event_name="api_letters"),
        "cccc": ReportedMeter(meter="gone", event_name="api_gone"),
        "dddd": ReportedMeter(meter="old_rows", event_name="api_rows"),
        WORDS_TOKEN: ReportedMeter(meter="words", event_name="api_words"),
    }
    own = (ItemPrice("letters", "api_letters", "1/4"), ItemPrice("gone", "api_gone", "?tiers"))
    (found,) = terms_of(lines_of(**RENEWED, prices=own), WHOLE, reported=reported)["periods"].values()
    assert {token: tuple(found["meters"][token]) for token in reported} == {
        "aaaa": ("old_words", "1000/12"),
        "bbbb": ("letters", "1/4"),
        "cccc": ("gone", ""),
        "dddd": ("old_rows", ""),
        WORDS_TOKEN: ("words", "1000/12"),
    }


def test_what_all_lines_of_a_customer_share() -> None:
    linked = replace(lines_of(**RENEWED), stripe_customer="cus_1", currency="eur")
    terms = terms_of(linked, WHOLE)
    assert (terms["by_lines"], terms["switches"], terms["most"]) == (1, [0], 200)
    assert terms["item"] == {"stripe": "cus_1", "currency": "eur", "metered": ""}
    assert "late" not in terms
    assert terms_of(lines_of(**RENEWED))["item"] == {"stripe": "", "currency": "usd", "metered": ""}
    assert terms_of(lines_of(**RENEWED))["periods"] == {}
    moved = replace(by_lines(END, created_ms=START, **RENEWED), stripe_customer="cus_1")
    assert terms_of(moved)["late"]["item"]["subscription"] == "sub_1"
    assert "late" not in terms_of(CustomerState(), file="meters")


def test_the_products_of_lines() -> None:
    found = [(meter.name, product) for meter, product in line_products(LINES)]
    assert found == [
        (name, {"id": f"meterkit_meter_{name}", "name": name.title()}) for name in ("words", "pages", "rows")
    ]
    silent = loads(PLANS.replace("event_name: api_pages", "event_name: api_pages, report: none"))
    assert [meter.name for meter, _ in line_products(silent)] == ["words", "rows"]


# The terms of usage that is late for its invoice, where metered prices bill it.


@pytest.mark.parametrize(
    ("subscription", "at_ms", "expected"),
    [
        pytest.param(None, START, False, id="none"),
        pytest.param(sold(), START, True, id="active"),
        pytest.param(sold(status="past_due"), START, True, id="past due"),
        pytest.param(sold(status="unpaid"), START, True, id="unpaid"),
        pytest.param(sold(status="paused"), START, False, id="paused"),
        pytest.param(sold(status="incomplete"), START, False, id="incomplete"),
        pytest.param(canceled(LATER), START, False, id="over"),
        pytest.param(sold(cancel_at_ms=LATER), LATER - 1, True, id="until its end"),
        pytest.param(sold(cancel_at_ms=LATER), LATER, False, id="at its end"),
        pytest.param(sold(status="trialing", trial_end_ms=LATER), LATER - 1, False, id="on trial"),
        pytest.param(sold(status="trialing", trial_end_ms=LATER), LATER, True, id="as its trial ends"),
    ],
)
def test_whether_a_subscription_bills_usage(
    subscription: SubscriptionState | None, at_ms: int, expected: bool
) -> None:
    assert is_billed_at(subscription, at_ms) is expected


LINKED: Final = CustomerState(stripe_customer="cus_1", subscription=sold(metered=METERED))


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        pytest.param(CustomerState(stripe_customer="cus_1"), None, id="without a subscription"),
        pytest.param(replace(LINKED, stripe_customer=None), None, id="unlinked"),
        pytest.param(LINKED, ("cus_1", "sub_1", "usd", METERED), id="of a subscription"),
        pytest.param(
            replace(LINKED, currency="eur"), ("cus_1", "sub_1", "eur", METERED), id="in its currency"
        ),
    ],
)
def test_what_invoice_items_of_a_customer_share(
    state: CustomerState, expected: tuple[str, ...] | None
) -> None:
    found = item_terms(state, METERS)
    names = ("stripe", "subscription", "currency", "metered")
    assert found == (None if expected is None else dict(zip(names, expected, strict=True)))


GIVEN: Final = METERS.plans["pro"].entitlements


def beyond(**overage: Any) -> Entitlement:
    return replace(GIVEN["words"], overage=Overage(**overage))


@pytest.mark.parametrize(
    ("entitlement", "currency", "expected"),
    [
        pytest.param(None, "usd", "", id="of no plan"),
        pytest.param(beyond(mode="deny"), "usd", "", id="denied"),
        pytest.param(beyond(mode="bill", per=1), "usd", "", id="only at Stripe"),
        pytest.param(beyond(mode="bill", amount_cents=2), "usd", "", id="of no number of units"),
        pytest.param(beyond(mode="bill", per=1, amount_cents=2), "usd", " at $0.02 each", id="of one"),
        pytest.param(beyond(mode="bill", per=2, amount_cents=0), "usd", " at $0.00 per 2", id="free"),
        pytest.param(
            beyond(mode="bill", per=1000, amount_cents=120), "jpy", " at ¥120 per 1,000", id="of many"
        ),
    ],
)
def test_a_price_of_overage_in_words(entitlement: Entitlement | None, currency: str, expected: str) -> None:
    assert format_overage_price(entitlement, currency) == expected


@pytest.mark.parametrize(
    ("mode", "report", "expected"),
    [
        pytest.param(None, "overage", "", id="of no plan"),
        pytest.param("bill", "overage", "overage", id="overage"),
        pytest.param("bill", "usage", "overage", id="all, as overage"),
        pytest.param("deny", "usage", "included", id="what is included is sent"),
        pytest.param("deny", "overage", "", id="nothing is billed"),
        pytest.param("bill", "none", "", id="nothing is sent"),
    ],
)
def test_how_late_usage_is_recorded_again(mode: str | None, report: Any, expected: str) -> None:
    meter = METERS.meters["words"]
    assert meter.stripe is not None
    told = replace(meter, stripe=replace(meter.stripe, report=report))
    entitlement = None if mode is None else beyond(mode=mode, per=1, amount_cents=2)
    assert late_class(entitlement, told) == expected
    assert late_class(entitlement, replace(meter, stripe=None)) == ""


DERIVED: Final = loads("""
schema: 1
currency: usd
default_plan: pro
meters:
  words: {unit: word, stripe: {event_name: api_words}}
  long_words: {unit: word, from: words, where: {model: "*-long*"}, stripe: {event_name: api_long_words}}
  longest: {unit: word, from: long_words, where: {model: "*-longest"}}
  tokens: {unit: token, stripe: {event_name: api_tokens}}
prices: {out: {default: 4 per 1000, models: {big: 9 per 1000}}}
plans:
  pro:
    price: {amount_cents: 900, interval: month}
    meters:
      words: {included: 9, overage: {bill: {per: 1000, amount_cents: 12}}}
      tokens: {included: 9, overage: {bill: {price: prices.out}}}
""")


@pytest.mark.parametrize(
    ("meter", "expected"),
    [
        pytest.param("words", "words", id="itself"),
        pytest.param("long_words", "words", id="a derived one's source"),
        pytest.param("longest", "words", id="its source's source"),
        pytest.param("tokens:big", "tokens:big", id="a price by model itself"),
    ],
)
def test_which_meter_says_whether_units_are_billed(meter: str, expected: str) -> None:
    assert deciding_meter(meter, DERIVED) == expected


@pytest.mark.parametrize(
    ("meter", "is_of_a_plan", "prices", "expected"),
    [
        pytest.param("words", True, (), ("1000/12", "words"), id="the plan's"),
        pytest.param("long_words", True, (), ("1000/12", "words"), id="of its source"),
        pytest.param("words", False, (), ("-", "words"), id="of no plan"),
        pytest.param("words", True, (WORDS,), ("1000/12", "words"), id="a unit price"),
        pytest.param("words", True, (WORDS._replace(label="?tiers"),), ("-", "words"), id="tiers"),
        pytest.param("words", True, (TIERS,), ("1000/12", "words"), id="tiers of another meter"),
        pytest.param("words", False, (WORDS,), ("-", "words"), id="of no plan, at a unit price"),
    ],
)
def test_the_label_of_a_late_units_price(
    meter: str, is_of_a_plan: bool, prices: ItemPrices, expected: tuple[str, str]
) -> None:
    given = DERIVED.plans["pro"].entitlements if is_of_a_plan else None
    assert unit_label(meter, given, prices, DERIVED) == expected


def late_terms(state: CustomerState, now_ms: int = START + 5) -> Any:
    cache = customers_of("meters")
    view = CustomerView(cache, "ada", now_ms, anonymous=False, rev="2:1", data=state.dump().encode())
    return json.loads(invoice_terms(view, list_reported_meters(cache.catalog), now_ms) or "null")


@pytest.mark.parametrize(
    ("state", "kinds"),
    [
        pytest.param(LINKED, {"words": "overage", "pages": "overage", "rows": ""}, id="billed"),
        pytest.param(
            replace(LINKED, subscription=sold(status="paused", metered=METERED)),
            dict.fromkeys(FILE_LABELS, ""),
            id="in a pause nothing is",
        ),
        pytest.param(
            replace(LINKED, subscription=sold(plan="gone", metered=METERED)),
            dict.fromkeys(FILE_LABELS, ""),
            id="of a plan that left the file nothing is",
        ),
        pytest.param(
            replace(LINKED, plan="free"),
            {"words": "overage", "pages": "overage", "rows": ""},
            id="by the subscription's plan, not one set by hand",
        ),
    ],
)
def test_late_usage_is_billed_by_the_subscriptions_plan(state: CustomerState, kinds: dict[str, str]) -> None:
    terms = late_terms(state)
    assert {name: terms["meters"][meter_token(name)][0] for name in kinds} == kinds
    assert ("item" in terms) is (state.subscription is not None and state.subscription.status == "active")


def test_the_terms_of_late_usage() -> None:
    assert late_terms(CustomerState(stripe_customer="cus_1")) is None
    terms = late_terms(LINKED, END + 5)
    assert [terms[name] for name in ("since", "before", "latest", "hour", "margin")] == [
        START, START, END, 3_600_000, 300_000,
    ]  # fmt: skip
    assert terms["meters"].keys() == {meter_token(name) for name in FILE_LABELS}
    assert terms["meters"][WORDS_TOKEN] == [
        "overage", "words", " at $0.12 per 1,000", "1000/12", WORDS_TOKEN, 1, 0,
    ]  # fmt: skip
    on_trial = replace(LINKED, subscription=sold(status="trialing", trial_end_ms=END, metered=METERED))
    assert [late_terms(on_trial)[name] for name in ("since", "before", "latest")] == [0, 0, 0]
    unlinked = late_terms(replace(LINKED, stripe_customer=None))
    assert "item" not in unlinked
    in_euros = late_terms(replace(LINKED, currency="eur"))["meters"][WORDS_TOKEN]
    assert in_euros[2:4] == [" at €0.11 per 1,000", "1000/11"]
    tiers = replace(LINKED, subscription=sold(metered=METERED, prices=(WORDS._replace(label="?tiers"),)))
    assert late_terms(tiers)["meters"][WORDS_TOKEN][3] == "-"
    free_tier = replace(LINKED, subscription=sold(metered=METERED, prices=(WORDS._replace(free=9),)))
    assert late_terms(free_tier)["meters"][WORDS_TOKEN][::5] == ["", 1]
    assert late_terms(free_tier)["meters"][WORDS_TOKEN][6] == 1
