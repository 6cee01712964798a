"""What plans, overrides, grants and prices come to for one customer: pure tables."""

# Internals: pure tables of quantities and amounts.

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final, Literal, NamedTuple, get_args

import pytest

from drivers.plans import free_plan, plans_text
from drivers.read_funds import funds_by_script
from drivers.subscribed_customer import subscription
from meterkit.catalog import Catalog, Plan, loads
from meterkit.catalog.addons import with_addons
from meterkit.catalog.models import QUANTITY_MAX, Bought, Overage, Rollover
from meterkit.customers.drift_records import Drift, DriftKind
from meterkit.decisions.allowance import (
    Allowance,
    EarlierPeriod,
    OnceGrant,
    PeriodGrants,
    RollRule,
    Rolls,
)
from meterkit.decisions.compiled_decision import derived_from, sends_included
from meterkit.decisions.customer_overrides import (
    next_end_ms,
    overrides_at,
    with_overage_until,
    with_overrides,
    with_subject_override,
    without_ended,
)
from meterkit.decisions.customer_state import (
    NO_STATE,
    CustomerState,
    effective_plan,
    entitlements_of,
    entitlements_on,
    with_seats,
    with_subscription,
)
from meterkit.decisions.gauges import GaugeLimit, StoredLevel
from meterkit.decisions.grants import MICRO, Prepaid, PrepaidPlans, grant_lines, once_lines, prepaid_of
from meterkit.decisions.item_prices import (
    FixedPrice,
    ItemPrice,
    base_interval,
    dump_item_prices,
    exact_label,
    interval_of,
    parse_item_prices,
    prices_by_meter,
    with_item_prices,
)
from meterkit.decisions.keys import meter_token
from meterkit.decisions.limit_policies import keep_ms_of, rate_numbers
from meterkit.decisions.packed import MeterCounts, merge_json, unpack_field
from meterkit.decisions.periods import Bounds, to_ms
from meterkit.decisions.plan_shares import (
    PlansHad,
    cut_of,
    effective_terms,
    spend_before_subscription,
    uncut_period,
)
from meterkit.decisions.price_segments import PriceSegment, ended_labels, overage_cents, segments_of
from meterkit.decisions.rollover import (
    PlanHistory,
    find_once,
    find_rolls,
    grant_reach,
    living_lines,
    mark_rolled,
    roll_rules,
)
from meterkit.decisions.spending import UnitPrice, price_of
from meterkit.decisions.stored_grants import GrantBalance, GrantFunds, StoredGrant, rolled_over
from meterkit.decisions.subscription import NEVER_MS
from meterkit.decisions.subscription_periods import CountingCycle, Interval
from meterkit.decisions.told_terms import terms_of, with_terms
from meterkit.errors import MeterkitError
from meterkit.terms.cuts import Cut
from meterkit.terms.plan_spans import PlanSpan
from meterkit.terms.rows import (
    ADDONS,
    CUT,
    EVER_MS,
    PLAN,
    PLAN_BY_HAND,
    SPENT,
    SUBSCRIPTION,
    UNKNOWN_PLAN,
    USED,
    Terms,
    in_force,
    tell,
)

# F-223: what each plan of a period gives by its share of it.


START: Final = datetime(2031, 6, 1, tzinfo=UTC)
END: Final = datetime(2031, 7, 1, tzinfo=UTC)
HALF: Final = datetime(2031, 6, 16, tzinfo=UTC)
DAY: Final = timedelta(days=1)
PLANS: Final = """
schema: 1
currency: usd
default_plan: free
meters:
  calls: {unit: call}
credits: {ai: {costs: {calls: 1 per 1}}}
addons:
  pack: {price: {amount_cents: 10, interval: month}, meters: {calls: {included: 10}}}
  odd: {price: {amount_cents: 10, interval: month}, meters: {calls: {included: 1}}}
plans:
  free: {price: {amount_cents: 0, interval: month}, meters: {calls: {included: 10, overage: deny}}}
  a:
    rank: 1
    addons: [pack, odd]
    price: {amount_cents: 100, interval: month}
    meters: {calls: {included: 100, overage: deny}}
    grants:
      - {credit: ai, quantity: 7, every: period}
      - {meter: calls, quantity: 3, every: period, priority: 1}
  b:
    rank: 2
    addons: [pack, odd]
    price: {amount_cents: 200, interval: month}
    meters: {calls: {included: 1_000, overage: deny}}
    grants: [{credit: ai, quantity: 70, every: period, priority: 9}]
  endless: {rank: 3, price: {amount_cents: 300, interval: month}, meters: {calls: {included: unlimited}}}
  annual:
    rank: 4
    price: {amount_cents: 1000, interval: year, included_per: interval}
    meters: {calls: {included: 12_000, overage: deny}}
"""
CATALOG: Final = loads(PLANS)


def paid(plan: str, **changed: Any) -> CustomerState:
    """A customer with a subscription from the beginning of June."""
    given = {"start_ms": START, "end_ms": END, "anchor_ms": START, "created_ms": START, **changed}
    return CustomerState(subscription=subscription(plan=plan, **given))


def moved(state: CustomerState, plan: str, at: datetime, **changed: Any) -> CustomerState:
    """The same after its subscription changed to another plan."""
    assert state.subscription is not None
    after = with_subscription(state, replace(state.subscription, plan=plan, **changed))
    return with_terms(state, after, CATALOG, to_ms(at), told_ms=to_ms(at), source="stripe")


class Had(NamedTuple):
    """A plan that a customer had until an instant, and whether its subscription changed it then."""

    plan: str
    until_ms: int
    is_within: bool
    used: tuple[tuple[str, int], ...] = ()
    bought: Bought = ()


def with_had(state: CustomerState, *plans: Had) -> CustomerState:
    """A state with terms that say which plans it had before, the oldest first."""
    now_ms = plans[-1].until_ms
    facts = in_force(terms_of(state, CATALOG, now_ms), now_ms)
    terms: Terms = ()
    since_ms = EVER_MS
    used: tuple[tuple[str, int], ...] = ()
    for nth, one in enumerate(plans):
        later = sum(not following.is_within for following in plans[nth:])
        own = f"sub_{later + 1}" if later else facts[SUBSCRIPTION]
        sold = {SUBSCRIPTION: own, PLAN: one.plan, ADDONS: one.bought, USED: used}
        terms = tell(terms, sold, since_ms, since_ms, "stripe")
        since_ms, used = one.until_ms, one.used
    return replace(state, terms=tell(terms, {**facts, USED: used}, since_ms, since_ms, "stripe"))


def with_cut(state: CustomerState, cut: Cut, fact: str = CUT) -> CustomerState:
    return replace(state, terms=tell(state.terms, {fact: cut}, cut.cut_ms, cut.cut_ms, "stripe"))


def calls_of(state: CustomerState, at: datetime) -> int | None:
    return entitlements_of(effective_terms(state, CATALOG, to_ms(at)), CATALOG)["calls"].included


def test_each_plan_counts_for_its_time() -> None:
    cases: tuple[tuple[list[tuple[str, datetime]], int | None], ...] = (
        ([("b", HALF)], 550),
        ([("b", END - timedelta(seconds=1))], 101),  # Rounded up.
        ([("b", START + timedelta(seconds=59))], 1_000),
        ([("b", START + 10 * DAY), ("a", START + 20 * DAY), ("b", START + 25 * DAY)], 550),
        ([("endless", HALF)], None),
        ([("endless", HALF), ("b", HALF + 6 * DAY)], 350),  # 15 days of a, 9 of b.
    )
    last_instant = END - timedelta(milliseconds=1)
    for changes, expected in cases:
        state = paid("a")
        for plan, at in changes:
            state = moved(state, plan, at)
        assert calls_of(state, last_instant) == expected, changes
        assert calls_of(CustomerState.parse(state.dump()), last_instant) == expected, changes
        assert calls_of(state, END) == {"b": 1_000, "endless": None}[changes[-1][0]]


def test_a_plan_by_the_year_is_prorated_within_a_month() -> None:
    changed = moved(paid("annual", end_ms=START.replace(year=2032)), "b", HALF, end_ms=to_ms(END))
    # A year of 12,000 gives half a month 500.
    assert calls_of(changed, END - DAY) == 1_000


def test_a_cancellation_ahead_leaves_the_shares_of_plans() -> None:
    """They are of the period that is paid for, though it will be cut short."""
    changed = moved(paid("a"), "b", HALF, cancel_at_ms=to_ms(END - 5 * DAY))
    assert calls_of(changed, HALF + DAY) == 550


def test_each_of_many_changes_counts_for_its_time() -> None:
    """From the 64th change on, the oldest ones gave nothing: each purchase of an add-on took units away."""
    state, share = paid("a"), Fraction(0)
    changes = [(START + timedelta(hours=4 * place), "aab"[place % 3], place) for place in range(1, 151)]
    for (at, plan, bought), until in zip(changes, [at for at, _, _ in changes[1:]] + [END], strict=True):
        state = moved(state, plan, at, addons=(("odd", bought % 7), ("pack", bought)))
        included = {"a": 100, "b": 1_000}[plan] + 10 * bought + bought % 7
        share += included * Fraction((until - at) // timedelta(hours=1), 720)
        # Until the next change, as if this were the last one.
        rest = included * Fraction((END - until) // timedelta(hours=1), 720)
        first = Fraction(100 * 4, 720)
        assert calls_of(state, at) == -(-(first + share + rest) // 1), bought
    assert len(state.terms) <= 256
    assert calls_of(CustomerState.parse(state.dump()), END - DAY) == calls_of(state, END - DAY)


def test_grants_are_whole_credits_within_the_rounded_sum() -> None:
    changed = moved(paid("a"), "b", START + 10 * DAY)
    allowance = effective_terms(changed, CATALOG, to_ms(HALF)).allowance
    assert allowance is not None
    assert allowance.grants is not None
    # A third of 7 is 2.33, two thirds of 70 are 46.67, together 49; a third of 3 units is 1.
    lines = {name: quantity for name, _, quantity, _, _ in allowance.grants.lines}
    credit = {"p c:ai 50-period": 3_000_000, "p c:ai 9-period": 47_000_000}
    assert lines == {"p m:calls 1-period": 1, **credit}
    assert dict(allowance.grants.limits) == {"c:ai": 49_000_000, "m:calls": 1}


def test_a_scheduled_change_counts_from_its_millisecond() -> None:
    state = paid("a", pending_plan="b", pending_at_ms=HALF)
    done = moved(state, "b", HALF + 5 * DAY, pending_plan=None, pending_at_ms=None)
    before = calls_of(state, HALF - timedelta(milliseconds=1))
    assert (before, calls_of(state, HALF), calls_of(done, END - DAY)) == (100, 550, 550)


NOW_MS: Final = 1_800_000_000_000
PRICE_SEGMENTS_CATALOG: Final = loads("""
schema: 1
currency: usd
default_plan: free
meters:
  tokens: {unit: token, stripe: {event_name: ai_tokens}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters: {tokens: {included: 5, overage: deny}}
  pro:
    price: {amount_cents: 2900, interval: month}
    meters: {tokens: {included: 5, overage: {bill: {per: 1_000, amount_cents: 12}}}}
  top:
    extends: pro
    meters: {tokens: {included: 5, overage: {bill: {per: 1, amount_cents: 12}}}}
""")
FREE, PRO, TOP = (PRICE_SEGMENTS_CATALOG.plans[name] for name in ("free", "pro", "top"))
TOKENS: Final = meter_token("tokens")
OWN: Final = {"tokens": {"overage": {"bill": {"per": 1, "amount_cents": 2}}}}


def test_a_price_ends_where_the_plans_differ_in_it() -> None:
    for before, after, expected in (
        (FREE, PRO, {TOKENS: "0"}),
        (PRO, TOP, {TOKENS: "1000/12"}),
        (PRO, replace(PRO, key="same"), {}),
    ):
        assert ended_labels(before.entitlements, after.entitlements, PRICE_SEGMENTS_CATALOG) == expected


def test_a_customers_own_price_outlasts_a_change_of_plan() -> None:
    """The price of an override that ends was not seen: units were booked at the plan's."""
    for until_ms, expected in ((None, {}), (NOW_MS + 1, {}), (NOW_MS, {TOKENS: "1/2"})):
        given = with_overrides({}, OWN, {}, until_ms=until_ms, now_ms=NOW_MS - 1)
        own = replace(paid("pro", created_ms=datetime(2026, 1, 1, tzinfo=UTC)), overrides=given)
        before, after = (
            entitlements_on(plan, own, PRICE_SEGMENTS_CATALOG, at_ms)
            for plan, at_ms in ((PRO, NOW_MS - 1), (TOP, NOW_MS))
        )
        assert ended_labels(before, after, PRICE_SEGMENTS_CATALOG) == expected, until_ms


def test_without_ended_leaves_what_holds_now() -> None:
    later = with_overage_until({"tokens": {"included": 7}}, "tokens", "deny", until_ms=NOW_MS + 1)
    ended = with_overrides({}, {"calls": {"included": 1}}, {}, until_ms=NOW_MS, now_ms=NOW_MS - 1)
    assert without_ended(ended | later, NOW_MS) == later
    assert without_ended(later, NOW_MS + 1) == {"tokens": {"included": 7}}
    features = with_overrides({}, {}, {"extra": True}, until_ms=None, now_ms=NOW_MS)
    assert without_ended(features, NOW_MS) == features


def test_500_subjects_of_a_customer_have_overrides() -> None:
    def given(stored: dict[str, dict[str, object]], member: str) -> dict[str, dict[str, object]]:
        return with_subject_override(stored, member, {"calls": {"rate": 1}}, until_ms=None, now_ms=NOW_MS)

    subjects: dict[str, object] = {f"user:{number}": {"calls": {}} for number in range(500)}
    full = {"@subjects": subjects}
    assert len(given(full, "user:0")["@subjects"]) == 500
    with pytest.raises(MeterkitError, match="500 subjects of this customer have overrides"):
        given(full, "user:500")


def test_items_price_overridden_usage_where_meters_bill_it() -> None:
    sold = (ItemPrice("tokens", "ai_tokens", "1/3"),)
    own = replace(
        paid("pro", prices=sold), overrides=with_overrides({}, OWN, None, until_ms=None, now_ms=NOW_MS)
    )
    more = replace(own, overrides={"tokens": {"included": 9}})
    usages: tuple[tuple[Literal["meters", "lines"], CustomerState, int], ...] = (
        ("meters", own, 3),
        ("lines", own, 2),
        ("lines", more, 3),
    )
    for usage, state, expected in usages:
        billing = replace(PRICE_SEGMENTS_CATALOG.billing, usage=usage)
        catalog = replace(PRICE_SEGMENTS_CATALOG, billing=billing)
        found = entitlements_on(PRO, state, catalog, to_ms(HALF))["tokens"].overage
        assert (found.per, found.amount_cents) == (1, expected), usage


def test_an_override_prices_the_first_instant_of_its_items() -> None:
    overrides = with_overrides({}, OWN, None, until_ms=None, now_ms=NOW_MS)
    subscribed = replace(paid("pro"), overrides=overrides)
    assert subscribed.subscription is not None
    made_ms = to_ms(HALF)
    state = replace(subscribed, subscription=replace(subscribed.subscription, prices=(), created_ms=made_ms))
    found = [
        entitlements_on(PRO, state, PRICE_SEGMENTS_CATALOG, at_ms)["tokens"].overage.amount_cents
        for at_ms in (made_ms - 1, made_ms)
    ]
    assert found == [PRO.entitlements["tokens"].overage.amount_cents, 2]


def test_a_plan_is_read_in_the_customers_currency_with_addons() -> None:
    bill = "{included: 5, overage: {bill: {per: 1, amount_cents: {usd: 12, eur: 11}}}}"
    text = free_plan("{tokens: {unit: token, stripe: {event_name: ai_tokens}}}", f"{{tokens: {bill}}}")
    text = text.replace("currency: usd", "currency: [usd, eur]").replace(
        "cents: 0", "cents: {usd: 0, eur: 0}"
    )
    pack = "{price: {amount_cents: {usd: 9, eur: 8}, interval: month}, meters: {tokens: {included: 10}}}"
    catalog = loads(f"{text}\n    addons: [pack]\naddons: {{pack: {pack}}}")
    plan = catalog.plans["free"]
    for currency, bought, expected in (
        ("", (), (5, 12)),
        ("eur", (), (5, 11)),
        ("eur", (("pack", 2),), (25, 11)),
        ("usd", (("pack", 2),), (25, 12)),
    ):
        sold = with_addons(plan, bought, catalog) if bought else plan
        found = entitlements_on(sold, CustomerState(currency=currency), catalog, NOW_MS)["tokens"]
        assert (found.included, found.overage.amount_cents) == expected, (currency, bought)


ITEMS: Final = loads(
    free_plan(
        """
  tokens: {unit: token, stripe: {event_name: ai_tokens}}
  words:  {unit: word, stripe: {event_name: ai_words, report: usage}}
  large:  {unit: token, from: tokens, where: {model: big}, stripe: {event_name: ai_large}}
  silent: {unit: word, stripe: {event_name: ai_silent, report: none}}
  calls:  {unit: call}""",
        """
      tokens: {included: 5, overage: {bill: {per: 1_000, amount_cents: 12}}}
      words:  {included: 5, overage: {bill: {per: 1_000, amount_cents: 12}}}""",
    )
)
ITEMS_GIVEN: Final = ITEMS.plans["free"].entitlements
NONE_INCLUDED: Final = {"included": 0}


@pytest.mark.parametrize(
    ("meter", "on_plan", "label", "free", "expected"),
    [
        pytest.param("tokens", {}, "10/7", 0, (5, None, 10, 7), id="flat, as the file sends overage alone"),
        pytest.param("tokens", {}, "10/7", 1, (1, True, 10, 7), id="a free tier sends all units"),
        pytest.param("words", {}, "10/7", 8, (8, None, 10, 7), id="a free tier, as the file sends all"),
        pytest.param("words", {}, "10/7", 0, (5, False, 10, 7), id="flat, it sends overage alone"),
        pytest.param("words", {"included": 1}, "10/7", 0, (1, False, 10, 7), id="with one unit included"),
        pytest.param("words", NONE_INCLUDED, "10/7", 0, (0, None, 10, 7), id="nothing included to send"),
        pytest.param("tokens", {}, "500/6", 0, (5, None, 1_000, 12), id="the same price otherwise spelled"),
        pytest.param("tokens", {}, "?volume", 9, (5, None, 1_000, 12), id="no unit price applies"),
        pytest.param("tokens", {"included": None}, "10/7", 0, (None, None, 1_000, 12), id="unlimited"),
        pytest.param("large", {}, "10/7", 0, (None, None, 10, 7), id="a derived meter's own price"),
        pytest.param("silent", {}, "10/7", 9, (0, None, None, None), id="of a meter that sends nothing"),
    ],
)
def test_what_an_items_price_makes_of_a_plan(
    meter: str, on_plan: dict[str, Any], label: str, free: int, expected: tuple[int | bool | None, ...]
) -> None:
    given = {**ITEMS_GIVEN, meter: replace(ITEMS_GIVEN[meter], **on_plan)}
    sold = (ItemPrice(meter, f"ai_{meter}", label, free),)
    found = with_item_prices(given, sold, ITEMS)
    terms = found[meter]
    per_and_cents = terms.overage.per, terms.overage.amount_cents
    assert (terms.included, terms.sends_included, *per_and_cents) == expected
    assert {name: one for name, one in found.items() if name != meter} == {
        name: one for name, one in given.items() if name != meter
    }


def test_an_items_price_is_none_of_a_plan_that_refuses_overage() -> None:
    refusing = replace(ITEMS_GIVEN["tokens"], overage=Overage(mode="deny"))
    sold = (ItemPrice("tokens", "ai_tokens", "10/7"),)
    given = {**ITEMS_GIVEN, "tokens": refusing}
    assert with_item_prices(given, sold, ITEMS) == given
    assert with_item_prices(given, (), ITEMS) is given


def test_an_item_bills_the_meter_of_its_event() -> None:
    for meter, event, found in (
        ("renamed", "ai_tokens", ["tokens"]),
        ("words", "ai_tokens", ["tokens"]),
        ("tokens", "before", ["tokens"]),
        ("renamed", "before", []),
        ("silent", "ai_silent", []),
        ("calls", "before", []),
    ):
        sold = ItemPrice(meter, event, "1/2")
        assert prices_by_meter((sold,), ITEMS) == dict.fromkeys(found, sold), (meter, event)
    by_event, by_name = ItemPrice("", "ai_tokens", "1/2"), ItemPrice("tokens", "before", "1/3")
    assert prices_by_meter((by_name, by_event), ITEMS) == {"tokens": by_event}


def test_an_equal_price_keeps_the_files_spelling() -> None:
    for per, amount_cents, label, expected in (
        (500, 1, "1000/2", (500, 1)),
        (None, 2, "10/20", (None, 2)),
        (500, 1, "1000/3", (1000, 3)),
        (None, None, "1000/2", (1000, 2)),
        (500, 0, "1/0", (500, 0)),
    ):
        given = Overage(mode="bill", per=per, amount_cents=amount_cents, cap=9)
        found = ItemPrice("tokens", "ai_tokens", label).apply_to(given)
        assert found == replace(given, per=expected[0], amount_cents=expected[1]), label


def test_a_label_has_as_many_decimals_as_stripe_shows() -> None:
    labels = {
        "12": "1/12",
        "1200": "1/1200",
        "0.5": "10/5",
        "12.0250": "1000/12025",
        "0.000000000001": "1000000000000/1",
        "0.00": "1/0",
    }
    assert {amount: exact_label(Decimal(amount)) for amount in labels} == labels


def test_item_prices_are_stored_without_their_defaults() -> None:
    kept: dict[ItemPrice, list[str | int]] = {
        ItemPrice("tokens", "ai_tokens", "1/2"): ["tokens", "ai_tokens", "1/2"],
        ItemPrice("tokens", "ai_tokens", "1/2", 7): ["tokens", "ai_tokens", "1/2", 7],
        ItemPrice("tokens", "ai_tokens", "1/2", 0, is_dropped=True): ["tokens", "ai_tokens", "1/2", 0, True],
    }
    assert dump_item_prices(kept) == [*kept.values()]
    assert parse_item_prices(kept.values()) == (*kept,)
    assert parse_item_prices([["tokens", "ai_tokens", "1/2", 0, True, "newer"]]) == (*kept,)[2:]


BY_MODEL: Final = loads(plans_text("overage_by_model"))
DEFAULT_ROW, MINI_ROW, GPT_ROW, O_ROW, CLAUDE_ROW = (
    f"output_tokens:{name}" for name in ("(default)", "gpt-5-mini*", "gpt-5*", "o*", "claude*")
)


@pytest.mark.parametrize(
    ("sold", "rows", "highest"),
    [
        # By the file: 1, 2, 3 and 6 cents for 1,000, and 4 for the default.
        pytest.param({GPT_ROW: "1000/5"}, (MINI_ROW, GPT_ROW, O_ROW, CLAUDE_ROW), CLAUDE_ROW, id="one model"),
        pytest.param(
            {MINI_ROW: "1000/9"}, (MINI_ROW, GPT_ROW, O_ROW, CLAUDE_ROW), MINI_ROW, id="the dearest model"
        ),
        pytest.param({"output_tokens": "1000/4", O_ROW: "1000/3"}, (O_ROW,), DEFAULT_ROW, id="the default"),
        pytest.param(
            {"output_tokens": "1000/4", O_ROW: "1/0"}, (O_ROW,), DEFAULT_ROW, id="a model costs nothing"
        ),
        pytest.param(
            {"output_tokens": "1/0", GPT_ROW: "1000/1", O_ROW: "1/0"},
            (GPT_ROW, O_ROW),
            GPT_ROW,
            id="all else costs nothing",
        ),
        pytest.param({}, (MINI_ROW, GPT_ROW, O_ROW, CLAUDE_ROW), CLAUDE_ROW, id="without items"),
    ],
)
def test_models_without_an_item_have_the_default_price(
    sold: dict[str, str], rows: tuple[str, ...], highest: str
) -> None:
    given = BY_MODEL.plans["other"].entitlements
    items = tuple(ItemPrice(event, event, label) for event, label in sold.items())
    found = with_item_prices(given, items, BY_MODEL)
    terms = found["output_tokens"].overage.rows
    assert terms is not None
    assert tuple(row for _, row in terms.models) == rows
    assert (terms.highest, terms.default) == (highest, DEFAULT_ROW)
    for event, label in sold.items():
        priced = found[DEFAULT_ROW if event == "output_tokens" else event].overage
        per, amount_cents = map(int, label.split("/"))
        assert Fraction(priced.amount_cents or 0, priced.per or 1) == Fraction(amount_cents, per)
    # A plan without overage has no price of any model.
    free = BY_MODEL.plans["free"].entitlements
    assert with_item_prices(free, items, BY_MODEL) == free


def test_fixed_prices_are_rounded_half_up_and_periods_named() -> None:
    for amount, quantity, cents in (("1/2", 1, 1), ("1/2", 3, 2), ("2/5", 1, 0), ("29", 2, 58)):
        price = FixedPrice.parse(f"{amount} eur 3 months")
        assert price == FixedPrice(Fraction(amount), "eur", "3 months")
        assert price is not None
        assert price.cents(quantity) == cents
    assert FixedPrice(Fraction(7), "eur", "month").cents() == 7
    assert FixedPrice.parse("") is None
    labels = {"2900 usd month": "month", "2900 usd year": "year", "2900 usd 3 months": None, "": None}
    assert {label: base_interval(label) for label in labels} == labels
    month_ms = 31 * DAY_MS
    assert [interval_of(7, 7 + span_ms) for span_ms in (month_ms, month_ms + 1)] == ["month", "year"]


def test_a_price_sends_included_units_of_its_own_meter_only() -> None:
    meter = PRICE_SEGMENTS_CATALOG.meters["tokens"]
    assert meter.stripe is not None
    by_file = meter.stripe.report == "usage"
    for sends in (True, False):
        found = replace(PRO.entitlements["tokens"], sends_included=sends)
        assert sends_included(found, meter) is sends
        assert sends_included(found, replace(meter, name="words")) is by_file


def test_each_unit_is_of_the_segment_in_which_it_was_counted() -> None:
    for marks, sealed, overage, expected in (
        ("", 7, 9, [("now", 7, 9)]),
        ("1/5 3 4;1/3 5 9", 7, 9, [("1/5", 3, 4), ("1/3", 2, 5), ("now", 2, 0)]),
        # A correction took back units of segments that have ended.
        ("1/5 3 4;1/3 5 9", 2, 1, [("1/5", 2, 1), ("1/3", 0, 0), ("now", 0, 0)]),
        ("1/5 3 4;1/3 2 2", 7, 9, [("1/5", 3, 4), ("1/3", 0, 0), ("now", 4, 5)]),
    ):
        assert segments_of(marks, label="now", sealed=sealed, overage=overage) == expected


def test_overage_costs_what_its_segments_cost() -> None:
    cases: tuple[tuple[list[tuple[str, int, int]], int | None], ...] = (
        ([("1/5", 0, 3), ("1/3", 0, 2)], 21),
        ([("1000/12", 0, 125)], 2),  # 1.5: half up.
        ([("1000/12", 0, 375)], 5),  # 4.5
        ([("1000/1", 0, 500), ("1000/2", 0, 250)], 2),  # Half a cent each: each has a line.
        ([("1/5", 0, 3), ("-", 0, 2)], None),
        ([("-", 9, 0), ("1/5", 0, 3)], 15),
        ([("0", 0, 3)], None),
        ([("0", 0, 2), ("1/5", 0, 3), ("0", 0, 4)], 15),
        ([], 0),
    )
    for segments, expected in cases:
        assert overage_cents([PriceSegment(*one) for one in segments]) == expected, segments


def test_a_clock_behind_a_plan_set_by_hand_reads_its_terms() -> None:
    """A server's clock may go back over the instant at which plan and cycle began."""
    catalog, at_ms = loads(PLANS), to_ms(HALF)
    changes = Had("a", at_ms - 9 * DAY_MS, True), Had("free", at_ms, False)
    state = with_had(CustomerState(plan="a", anchor_ms=at_ms), *changes)
    for now_ms in (at_ms - 300_000, at_ms - 1, at_ms, at_ms + 1):
        assert effective_terms(state, catalog, now_ms).plan.key == "a"


DAY_MS: Final = 86_400_000
START_MS: Final = 1_800_000_000_000
END_MS: Final = START_MS + 30 * DAY_MS
BOUNDS: Final = Bounds(start_ms=START_MS, end_ms=END_MS, next_end_ms=END_MS + 31 * DAY_MS)
BALANCE_NOW_MS: Final = START_MS + DAY_MS
BALANCE_CATALOG: Final = loads(
    free_plan(
        "{asked: {unit: token}, answered: {unit: token}, pages: {unit: page}}",
        """
      asked:    {included: 100, overage: deny}
      answered: {included: 50, overage: deny}
      pages:    {included: 10, overage: deny}
    grants:
      - {credit: ai, quantity: 500, every: period, priority: 10}
      - {meter: pages, quantity: 20, every: period, priority: 5, expires: 90d}""",
        "credits: {ai: {costs: {asked: 1 per 1000, answered: 4 per 1000}}}",
    )
)
BALANCE_PRO: Final = BALANCE_CATALOG.plans["free"]
PREPAID: Final = Prepaid.of(BALANCE_PRO, BALANCE_CATALOG)
NAMES: Final = {target: name for name, target, *_ in PREPAID.recurring}


def holding(name: str, target: str, quantity: int, *, used: int = 0, expires_ms: int = END_MS) -> StoredGrant:
    begun = {"priority": 50, "effective_ms": START_MS, "created_ms": START_MS}
    ends = {"expires_ms": expires_ms, "until_ms": expires_ms}
    return StoredGrant(name=name, target=target, quantity=quantity, used=used, **begun, **ends)


def given(*on_file: StoredGrant, prepaid: Prepaid = PREPAID) -> list[StoredGrant]:
    fields = {
        one.name: f"{one.target} {one.quantity} {one.used} {one.priority} {one.effective_ms}"
        f" {one.expires_ms} {one.created_ms} {one.until_ms}"
        for one in on_file
    }
    return [*funds_by_script(fields, prepaid, BOUNDS, BALANCE_NOW_MS).held]


def test_two_grants_of_one_target_are_given_whole_or_the_rest() -> None:
    pages = next(grant for grant in BALANCE_PRO.grants if grant.name == "pages")
    both = replace(BALANCE_PRO, grants=(pages, replace(pages, quantity=3, priority=6)))
    prepaid = Prepaid.of(both, BALANCE_CATALOG)
    assert [one.quantity for one in given(prepaid=prepaid)] == [20, 3]
    first, second = (f"{name} {START_MS}" for name, *_ in prepaid.recurring)
    for on_file, expected in (
        ((holding(first, "m:pages", 19),), {first: 20, second: 3}),
        ((holding(first, "m:pages", 23),), {first: 23}),
        ((holding(first, "m:pages", 22),), {first: 22, second: 1}),
        ((holding(f"p m:pages other {START_MS}", "m:pages", 21),), {first: 2}),
        ((holding(first, "m:pages", 5), holding(second, "m:pages", 1)), {first: 20, second: 3}),
    ):
        found = {one.name: one.quantity for one in given(*on_file, prepaid=prepaid)}
        found.pop(f"p m:pages other {START_MS}", None)
        assert found == expected


def test_of_an_earlier_period_all_grants_count_in_any_order() -> None:
    """The store has two of one name where a billing cycle began anew within that period."""
    line, start = ("p m:pages start", "m:pages", 25, 9, 40 * DAY_MS), START_MS - 30 * DAY_MS
    older = replace(holding(f"p m:pages start {start}", "m:pages", 25), effective_ms=start)
    younger_start = start + DAY_MS
    younger = replace(holding(f"p m:pages start {younger_start}", "m:pages", 10), effective_ms=younger_start)
    for limits, expected in (((), 35), ((("m:pages", 40),), 40), ((("m:pages", 30),), 30)):
        earlier = EarlierPeriod(start, START_MS, PeriodGrants((line,), limits), is_certain=True)
        prepaid = replace(Prepaid.of(BALANCE_PRO, BALANCE_CATALOG), allowance=Allowance(earlier=(earlier,)))
        for on_file in ((older, younger), (younger, older)):
            found = given(*on_file, prepaid=prepaid)
            assert sum(one.quantity for one in found if "start" in one.name) == expected, limits


def test_grants_of_other_periods_or_the_app_lessen_none() -> None:
    for name in ("p c:ai other 17", f"a c:ai {START_MS}"):
        found = [one.quantity for one in given(holding(name, "c:ai", 450 * MICRO)) if one.target == "c:ai"]
        assert sorted(found) == [450 * MICRO, 500 * MICRO]


def test_an_addition_extends_a_grant_only_while_it_lives() -> None:
    for expires_ms, expected in (
        (BALANCE_NOW_MS + 1, END_MS),  # Alive: it lives as long as the longer of both.
        (END_MS + 9, END_MS + 9),
        (BALANCE_NOW_MS, BALANCE_NOW_MS),  # Over: it stays so.
    ):
        on_file = holding(f"{NAMES['c:ai']} {START_MS}", "c:ai", MICRO, expires_ms=expires_ms)
        (credit,) = (one for one in given(replace(on_file, until_ms=END_MS + 9)) if one.target == "c:ai")
        assert credit.expires_ms == expected


def test_grants_count_from_their_beginning_to_their_end() -> None:
    both = (holding("a m:pages one", "m:pages", 10, used=3), holding("a m:pages two", "m:pages", 8))
    for now_ms, left in {START_MS - 1: 0, START_MS: 15, END_MS - 1: 15, END_MS: 0}.items():
        balance = GrantBalance(both, PREPAID, now_ms)
        assert (balance.of("m:pages"), balance.of("c:ai")) == (left, 0)


def more(meter: str, *holdings: StoredGrant, held: int = 0, prepaid: Prepaid | None = PREPAID) -> int:
    """With ``held`` held of each other meter."""
    balance = GrantBalance(holdings, prepaid, BALANCE_NOW_MS)
    plan = BALANCE_PRO.entitlements
    used, on_hold = ({name: 10**6 if name == meter else n for name in plan} for n in (0, held))
    return balance.units_beyond_plan(meter, plan, used.__getitem__, on_hold.__getitem__, lambda _: 0)


CREDIT: Final = holding("a c:ai one", "c:ai", 2 * MICRO, used=MICRO)
"""One credit is left: 1,000 tokens that are asked with, 250 that are answered with."""


def test_credit_adds_what_it_pays_less_other_holds() -> None:
    assert [more(meter, CREDIT) for meter in ("asked", "pages")] == [1_000, 0]
    # Holds of the other meter beyond its included quantity claim credit, at its cost.
    assert [more("asked", CREDIT, held=held) for held in (50, 51, 10_000)] == [1_000, 996, 0]
    assert more("answered", CREDIT, held=101) == 249


def test_grants_of_a_meter_come_before_credit() -> None:
    pages, answered = (holding(f"a m:{name} one", f"m:{name}", 30) for name in ("pages", "answered"))
    assert more("pages", pages, CREDIT) == 30
    assert more("answered", answered, CREDIT) == 280
    # Its own grant covers the holds of the other meter.
    assert more("asked", answered, CREDIT, held=80) == 1_000
    assert more("asked", answered, CREDIT, held=81) == 996
    assert more("pages", pages, prepaid=None) == 30
    assert more("asked", replace(CREDIT, used=0, quantity=1), held=51) == 0
    cheapest = replace(PREPAID, paid_with={**PREPAID.paid_with, "asked": ("c:ai", 1)})
    assert more("asked", CREDIT, held=10_000, prepaid=cheapest) == 0
    # Without credit the cheapest meter gets nothing.
    assert more("asked", prepaid=replace(PREPAID, paid_with={"asked": ("c:ai", 1)})) == 0


def test_the_settlement_script_is_told_what_pays_for_which_meter() -> None:
    told = json.loads(PREPAID.payment_terms([("asked", True), ("pages", True), ("answered", False)], {}))
    asked, pages, answered = told["paying"]
    assert (asked, pages) == (["asked", "m:asked", "c:ai", 1_000], ["pages", "m:pages", "", 0])
    assert answered == ["answered", "", "", 0]


def test_the_decision_script_is_told_what_backs_each_ceiling() -> None:
    asked = ("asked", "pages"), {"answered": 5}, {"asked": 2, "answered": 3}
    told = json.loads(PREPAID.backing_terms(*asked, {}, {}, BALANCE_PRO.entitlements))
    assert told["asked"] == [["m:asked", 1], ["m:pages", 0]]
    of_asked, of_answered = told["backed"]
    assert of_asked == ["c:ai", 1_000, 100, "m:asked", 2, 0]
    assert of_answered == ["c:ai", 4_000, 50, "m:answered", 3, 5]


def test_what_the_grants_of_a_period_pay_for() -> None:
    limits = (("m:pages", 15), ("c:ai", 100 * MICRO))
    high = tuple((target, 10**12) for target, _ in limits)
    cheap = replace(PREPAID, paid_with={**PREPAID.paid_with, "asked": ("c:ai", 1)})
    free = replace(PREPAID, paid_with={**PREPAID.paid_with, "asked": ("c:ai", 0)})
    # A balance in money may owe, which its grants pay first.
    money = replace(PREPAID, money="c:ai")

    def limited(most: tuple[tuple[str, int], ...]) -> Prepaid:
        return replace(PREPAID, allowance=Allowance(grants=PeriodGrants(PREPAID.recurring, most)))

    for prepaid, pages, asked, answered in (
        (PREPAID, 20, 500_000, 125_000),
        (limited(limits), 15, 100_000, 25_000),
        (limited(high), 20, 500_000, 125_000),
        (cheap, 20, 500 * MICRO, 125_000),
        (free, 20, 500 * MICRO, 125_000),
        (money, 20, 0, 0),
    ):
        found = [prepaid.recurring_units(meter) for meter in ("pages", "asked", "answered")]
        assert found == [pages, asked, answered]


OF_MODELS: Final = loads(
    free_plan(
        "{asked: {unit: token}, pages: {unit: page}}",
        """
      asked: {included: 100, overage: deny}
    grants:
      - {meter: pages, quantity: 4, every: period, id: b}
      - {meter: pages, quantity: 1, every: period, id: a}
      - {meter: pages, quantity: 7, every: period, priority: 10}
      - {meter: pages, quantity: 2, every: period, priority: 10}
      - {meter: pages, quantity: 3, every: period, priority: 10, expires: 10d}
      - {credit: ai, quantity: 9, every: once, id: hello}""",
        """credits: {ai: {costs: {asked: prices.models}, low_balance: 20%}}
prices: {models: {unknown_model: free, models: {"big*": 9 per 1000, "mini*": 1 per 1000}}}""",
    )
)
OF_MODELS_PREPAID: Final = Prepaid.of(OF_MODELS.plans["free"], OF_MODELS)


def test_lines_that_differ_in_the_quantity_alone_are_one_grant() -> None:
    """By priority, then what has an end of its own, the soonest first, then by name."""
    found = [tuple(line[1:]) for line in grant_lines(OF_MODELS.plans["free"])]
    by_period = [("m:pages", 9, 10, 0), ("m:pages", 1, 50, 0), ("m:pages", 4, 50, 0)]
    assert found == [("m:pages", 3, 10, 10 * DAY_MS), *by_period]


def test_a_cost_by_model_is_the_highest_of_unknown_models() -> None:
    prepaid = OF_MODELS_PREPAID
    for model, cost in (("", 9_000), ("big-2", 9_000), ("mini", 1_000), ("other", 0), (None, 0)):
        assert prepaid.costs_of(model) == {"asked": cost}, model
        assert prepaid.decision_costs(model) == {"asked": max(cost, 1)}, model
    for models, cost in (
        ((), 9_000),
        (("mini", ""), 9_000),
        (("mini", "mini-2"), 1_000),
        (("m*", "x"), 1_000),
    ):
        assert prepaid.held_costs(models) == {"asked": cost}, models
    known = {"asked": 7, "of another file": 8}
    assert [prepaid.all_costs(of) for of in (None, known)] == [{"asked": 9_000}, {"asked": 7}]


def test_only_named_customers_are_known_for_what_was_given_once() -> None:
    for prepaid, is_named, fleeting in (
        (OF_MODELS_PREPAID, True, None),
        (OF_MODELS_PREPAID, False, 1),
        (PREPAID, False, None),
    ):
        told = json.loads(prepaid.payment_terms([("pages", True)], {}, is_named=is_named))
        assert told.get("fleeting") == fleeting


MONEY: Final = loads(
    free_plan(
        "{output_tokens: {unit: token}}",
        top="""credits:
  usd:
    unit: money
    costs: {tokens: provider_prices}
    top_up: {packs: [1000], auto: {below: 500, amount: 2000, at_most: 3 per month}}""",
    )
)


def test_use_beyond_money_is_a_debt_of_those_who_can_owe() -> None:
    prepaid = Prepaid.of(MONEY.plans["free"], MONEY)
    told = [json.loads(prepaid.payment_terms([], {}, owes=owes))["money"] for owes in (True, False)]
    assert told == ["c:usd", ""]


def test_a_balance_is_low_by_share_or_below_the_top_up() -> None:
    of_money, of_share = (Prepaid.of(one.plans["free"], one) for one in (MONEY, OF_MODELS))
    # 500 cents are five million millionths of a dollar.
    assert (of_money.low, of_share.low, PREPAID.low) == ({"c:usd": (0, 5 * MICRO)}, {"c:ai": (20, 0)}, {})


SOLD_GRANTS: Final = """
schema: 1
currency: usd
default_plan: free
meters: {calls: {unit: call}}
plans:
  free: {price: {amount_cents: 0, interval: month}}
  pro:
    price: {amount_cents: 100, interval: month}
    GRANTS
"""
NO_GRANTS: Final = loads(SOLD_GRANTS.replace("    GRANTS\n", ""))
WITH_CREDITS: Final = loads(
    SOLD_GRANTS.replace("    GRANTS\n", "").replace("plans:", "credits: {ai: {costs: {calls: 1}}}\nplans:")
)
ON_A_PLAN: Final = loads(
    SOLD_GRANTS.replace("GRANTS", "grants: [{meter: calls, quantity: 3, every: period}]")
)


@pytest.mark.parametrize(
    ("catalog", "plan", "rev", "given", "expected"),
    [
        pytest.param(NO_GRANTS, "pro", "1:1", {}, False, id="nothing is granted"),
        pytest.param(NO_GRANTS, "pro", NO_STATE, {"granted": True}, True, id="the app has granted some"),
        pytest.param(ON_A_PLAN, "pro", NO_STATE, {}, True, id="the plan grants some"),
        pytest.param(ON_A_PLAN, "free", NO_STATE, {}, False, id="it never had the plan that does"),
        pytest.param(ON_A_PLAN, "free", "1:1", {}, True, id="it may have had the plan that does"),
        pytest.param(WITH_CREDITS, "pro", "1:1", {}, True, id="an earlier file may have granted credits"),
        pytest.param(WITH_CREDITS, "pro", NO_STATE, {}, False, id="no plan has granted it credits"),
        pytest.param(MONEY, "free", NO_STATE, {}, True, id="it may owe money"),
        pytest.param(MONEY, "free", NO_STATE, {"anonymous": True}, False, id="anonymous, it owes none"),
        pytest.param(NO_GRANTS, "free", NO_STATE, {"anonymous": False}, False, id="it may not"),
    ],
)
def test_which_customers_may_have_grants(
    catalog: Catalog, plan: str, rev: str, given: dict[str, bool], expected: bool
) -> None:
    state = CustomerState(plan=plan, granted=given.get("granted", False))
    terms, anonymous = effective_plan(state, catalog, NOW_MS), given.get("anonymous", False)
    found = prepaid_of(rev, state, terms, PrepaidPlans(catalog), anonymous=anonymous)
    assert found == (Prepaid.of(catalog.plans[plan], catalog) if expected else None)


def test_processes_of_two_releases_name_the_same_grants_alike() -> None:
    assert Prepaid.of(BALANCE_PRO, BALANCE_CATALOG).mark == "1359bb68de77"


LATER_MS: Final = NOW_MS + 1_000
MORE: Final = {"requests": {"included": 50}}


def test_an_override_ends_at_its_millisecond() -> None:
    stored = with_overrides({}, MORE, {"chat": True}, until_ms=LATER_MS, now_ms=NOW_MS)
    before, after = (overrides_at(stored, at_ms) for at_ms in (LATER_MS - 1, LATER_MS))
    ends = {"requests": LATER_MS, "feature chat": LATER_MS}
    assert (before.meters, before.features, before.ends) == (MORE, {"chat": True}, ends)
    assert (after.meters, after.features, after.ends) == ({}, {}, {})
    # An ended entry is not stored, not even for this millisecond.
    priced = with_overage_until(stored, "requests", "deny", until_ms=LATER_MS)
    for known, features in ((stored, None), (priced, None), ({}, {"chat": True})):
        assert with_overrides(known, {}, features, until_ms=LATER_MS, now_ms=LATER_MS) == {}


def test_an_overrides_price_takes_effect_at_its_millisecond() -> None:
    now = {"tokens": {"included": 7, "overage": "deny"}}
    stored = with_overage_until(OWN, "tokens", "deny", until_ms=LATER_MS)
    before, after = (overrides_at(stored, at_ms) for at_ms in (LATER_MS - 1, LATER_MS))
    assert (before.meters, before.asked, before.price_changes) == (
        {"tokens": {"overage": "deny"}},
        OWN,
        {"tokens": LATER_MS},
    )
    assert (after.meters, after.asked, after.price_changes) == (OWN, OWN, {})
    assert overrides_at(now, LATER_MS).meters == now


def test_the_next_override_to_end_is_the_earliest() -> None:
    first = with_overrides({}, MORE, {"chat": True}, until_ms=LATER_MS, now_ms=NOW_MS)
    both = with_overrides(first, {"pages": {"included": 3}}, None, until_ms=LATER_MS + 9, now_ms=NOW_MS)
    priced = with_overage_until(both, "tokens", "deny", until_ms=LATER_MS + 4)
    found = [next_end_ms(priced, LATER_MS + later) for later in (-1, 0, 4, 9)]
    assert found == [LATER_MS, LATER_MS + 4, LATER_MS + 9, NEVER_MS]
    assert [next_end_ms(stored, NOW_MS) for stored in ({}, MORE)] == [NEVER_MS, NEVER_MS]


# What units cost beyond what is included, and the budgets that bound it.


def price(per: int, amount_cents: int, currency: str = "usd") -> UnitPrice | None:
    bill = f"{{included: 5, overage: {{bill: {{per: {per}, amount_cents: {amount_cents}}}}}}}"
    text = free_plan("{words: {unit: word, stripe: {event_name: words}}}", f"{{words: {bill}}}")
    catalog = loads(text.replace("usd", currency))
    return price_of("words", catalog.plans["free"].entitlements, catalog)


def test_a_price_is_in_millionths_of_the_currency() -> None:
    assert price(1000, 7) == UnitPrice(70, 1, is_all=0)
    assert price(7000, 3) == UnitPrice(30, 7, is_all=0)
    assert price(7000, 3, "jpy") == UnitPrice(3000, 7, is_all=0)
    assert price(7000, 3, "kwd") == UnitPrice(3, 7, is_all=0)
    assert price(1000, 0) is None


def test_a_balance_in_dollars_is_no_spend_in_another_currency() -> None:
    paying = "credits: {ai: {unit: money, costs: {tokens: provider_prices}}}"
    text = free_plan("{output_tokens: {unit: token}}", "{}", paying)
    text = text.replace("currency: usd", "currency: [usd, eur]").replace(
        "cents: 0", "cents: {usd: 0, eur: 0}"
    )
    catalog = loads(text)
    (meter,) = (name for name, one in catalog.meters.items() if one.charges is not None)
    found = [
        price_of(meter, one.plans["free"].entitlements, one) for one in (catalog, catalog.in_currency("eur"))
    ]
    assert found == [UnitPrice(1, 1, is_all=1), None]


def test_a_price_scripts_cannot_compute_is_at_most_1e_6_dearer() -> None:
    for per, amount_cents in ((3_000_001, 300_000), (99_999_989, 15_000), (999_999_937, 99_999_999_999)):
        found = price(per, amount_cents)
        assert found is not None
        # 2^53 is the most that a product may come to there.
        assert found.micros * found.per < 2**53
        exact = Fraction(amount_cents * 10_000, per)
        assert exact < Fraction(found.micros, found.per) < exact * Fraction(1_000_001, 1_000_000)


# Seats, gauges, derived meters, rates, differences and reminders: each follows from its arguments alone.


TEXT: Final = free_plan(
    """
  requests:     {unit: request}
  tokens:       {unit: token, stripe: {event_name: t}}
  large_tokens:
    {unit: token, from: tokens, where: {model: "*-large*", provider: acme}, stripe: {event_name: l}}
  any_tokens:   {unit: token, from: tokens, where: {model: "*"}, stripe: {event_name: a}}
  storage:      {unit: byte, kind: gauge}
  members:      {unit: seat, kind: gauge}""",
    """
      requests:
        rate: [100/hour, {limit: 20/second, algorithm: token-bucket, burst: 40}]
        included: 10
        overage: deny
      tokens:   {included: 10, overage: {bill: {cap: 5}}}
      storage:  {included: 101, overage: {percent: 5, grace: 7d}}
      members:  {included: 3, overage: deny}""",
)
GAUGES_CATALOG: Final = loads(TEXT)
GIVEN: Final = GAUGES_CATALOG.plans["free"].entitlements


def test_a_derived_meter_counts_what_matches_in_each_dimension() -> None:
    cases: tuple[tuple[dict[str, str], list[str]], ...] = (
        ({"model": "m-large-2", "provider": "acme"}, ["large_tokens", "any_tokens"]),
        ({"model": "m-large-2", "provider": "other"}, ["any_tokens"]),
        ({"model": "m-large-2"}, ["any_tokens"]),
        ({"provider": "acme"}, []),
    )
    for dimensions, expected in cases:
        found = derived_from(GAUGES_CATALOG.meters, "tokens", dimensions)
        assert [meter.name for meter in found] == expected
        assert derived_from(GAUGES_CATALOG.meters, "requests", dimensions) == ()


def test_two_objects_become_one() -> None:
    assert merge_json('{"a":1}', '{"b":2}') == '{"a":1,"b":2}'
    assert merge_json("", '{"b":2}') == '{"b":2}'


def test_what_a_person_must_decide_is_not_repaired() -> None:
    kinds: tuple[DriftKind, ...] = ("seats", "currency", "draft_invoice")
    drifts = [Drift(subscription="sub_1", kind=kind, message="4 for 5") for kind in kinds]
    assert [drift.can_repair for drift in drifts] == [True, False, False]
    assert [Drift.of(drift.kept()) for drift in drifts] == drifts


def test_a_plan_gives_no_fewer_seats_than_are_paid_for() -> None:
    for seats, expected in ((2, 3), (4, 4)):
        found = with_seats(GIVEN, GAUGES_CATALOG.meters, seats)
        assert (found["members"].included, found["storage"]) == (expected, GIVEN["storage"])
    unlimited = {**GIVEN, "members": replace(GIVEN["members"], included=None)}
    assert with_seats(unlimited, GAUGES_CATALOG.meters, 4) == unlimited


def test_a_gauge_tolerates_some_percent_rounded_down() -> None:
    storage, members = GIVEN["storage"], GIVEN["members"]
    assert GaugeLimit.of(storage) == GaugeLimit(101, 106, 7 * DAY_MS, keeps=False)
    assert GaugeLimit.of(members, keeps=True) == GaugeLimit(3, 3, 0, keeps=True)
    assert GaugeLimit.of(replace(members, included=None)) is None
    assert GaugeLimit.of(replace(members, included=300)) == GaugeLimit(300, 300, 0, keeps=False)
    most = replace(storage, included=QUANTITY_MAX)
    assert GaugeLimit.of(most) == GaugeLimit(QUANTITY_MAX, QUANTITY_MAX, 7 * DAY_MS, keeps=False)


def test_how_far_a_gauge_may_grow() -> None:
    for level, keeps, expected in (
        (StoredLevel(101, NOW_MS - 8 * DAY_MS), False, 106),
        (StoredLevel(102, NOW_MS - 7 * DAY_MS + 1), False, 106),
        (StoredLevel(102, NOW_MS - 7 * DAY_MS), False, 101),
        # A change of plan has left it above.
        (StoredLevel(500, NOW_MS - 8 * DAY_MS, 900), False, 101),
        (StoredLevel(500, NOW_MS - 8 * DAY_MS, 900), True, 900),
        (StoredLevel(500, NOW_MS - 8 * DAY_MS, 0), True, 101),
        (StoredLevel(500, NOW_MS - 8 * DAY_MS, -1), True, QUANTITY_MAX),
        (StoredLevel(101, NOW_MS - 8 * DAY_MS, 900), True, 106),
    ):
        assert GaugeLimit(101, 106, 7 * DAY_MS, keeps).at(level, NOW_MS) == expected, (level, keeps)


def test_a_field_that_is_cut_or_of_another_kind_is_not_read() -> None:
    for damaged in (b"\xfd\xcd\x01", b"\xfd\xc1", b"\x02"):
        with pytest.raises(ValueError, match="not"):
            unpack_field(damaged)


def test_recorded_is_whatever_pays_for_it() -> None:
    counts = MeterCounts(included=1, overage=20, granted=300, credited=4000, over_cap=50_000, held=9)
    assert counts.recorded == 54_321


def test_rates_as_the_scripts_take_them_and_how_long_they_matter() -> None:
    window, bucket = GIVEN["requests"].rates
    assert rate_numbers(window, "requests") == (1, 3_600_000, 100, 0)
    assert rate_numbers(bucket, "requests") == (3, 50, 40, 1)
    assert keep_ms_of(()) == 900_000
    assert keep_ms_of((window, bucket)) == 8_100_000
    assert keep_ms_of((replace(bucket, burst=401),)) == 900_000 + 20_050


# The latest three periods; a grant of the first ended at 100, and has two more to live on into.
@pytest.mark.parametrize(
    ("ended", "periods", "lives"),
    [
        (100, (0, 1, 2), True),
        (100, (2, 2, 1), False),
        (100, (2, 0, 2), False),
        (200, (0, 0, 1), True),
        (200, (2, 2, 0), False),
        (300, (2, 2, 2), False),
    ],
)
def test_a_grant_lives_on_while_each_periods_terms_let_it(
    ended: int, periods: tuple[int, ...], lives: bool
) -> None:
    rules = (("p ai", tuple(RollRule(room=9, periods=count) for count in periods)),)
    assert Rolls((0, 100, 200, 300), rules, keeps_ms=0).lives_until_now("p ai", ended) is lives


# What reaches beyond its period: grants with a life of their own, rolled over, given once.


AI: Final = "credits: {ai: {costs: {calls: 1 per 1}}}"


def plan_with(*grants: str) -> Plan:
    return loads(free_plan("{calls: {unit: call}}", f"{{}}\n    grants: [{', '.join(grants)}]", AI)).plans[
        "free"
    ]


BARE: Final = plan_with()
PLAIN: Final = plan_with("{credit: ai, quantity: 5, every: period}")
ROLLING: Final = plan_with(
    "{credit: ai, quantity: 10, every: period, rollover: {at_most: 30, for: 2 periods}}",
    "{meter: calls, quantity: 3, every: period, rollover: {at_most: 3, for: 1 periods}}",
)
LESS: Final = replace(ROLLING.grants[0], quantity=1, rollover=Rollover(at_most=5, periods=1))
TWICE: Final = replace(BARE, grants=(ROLLING.grants[0], LESS))
"""As with an add-on that has the same grant."""
LIVING: Final = plan_with(
    "{credit: ai, quantity: 1, every: period, expires: 90d}",
    "{meter: calls, quantity: 1, every: period, expires: 30d}",
)
GIFT: Final = plan_with("{meter: calls, quantity: 7, every: once, expires: 60d}")
OTHER_GIFT: Final = plan_with(
    "{credit: ai, quantity: 3, every: once}", "{credit: ai, quantity: 1, every: period}"
)
OF_AI, OF_CALLS = "p c:ai 50-period", "p m:calls 50-period"
CALLS_ONCE: Final = ("o m:calls 50-5184000000ms-once", "m:calls", 7, 50, 60 * DAY_MS)
AI_ONCE: Final = ("o c:ai 50-period-once", "c:ai", 3_000_000, 50, 0)
PERIOD: Final = 30 * DAY_MS
EVER: Final = -NEVER_MS


def nth(number: int, days: float = 0) -> int:
    """An instant of the period with a number: all have thirty days."""
    return number * PERIOD + round(days * DAY_MS)


def thirty_days(at_ms: int) -> Bounds:
    begun_ms = at_ms // PERIOD * PERIOD
    return Bounds(start_ms=begun_ms, end_ms=begun_ms + PERIOD, next_end_ms=begun_ms + 2 * PERIOD)


def history(*plans: tuple[Plan | None, int, bool], whole: bool = False) -> PlanHistory:
    return PlanHistory(plans, thirty_days, not whole)


def test_how_far_grants_of_a_plans_file_reach() -> None:
    for given, expected in (
        ((BARE,), (0, 0, False)),
        ((PLAIN,), (0, 0, False)),
        ((LIVING, PLAIN), (90 * DAY_MS, 0, False)),
        ((PLAIN, ROLLING, PLAIN), (0, 2, False)),
        ((GIFT, PLAIN), (60 * DAY_MS, 0, True)),
    ):
        plans = {str(place): plan for place, plan in enumerate(given)}
        assert grant_reach(replace(CATALOG, plans=plans)) == expected


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        pytest.param(None, {}, id="none of a plan that is not known"),
        pytest.param(PLAIN, {}, id="none of a grant that ends with its period"),
        pytest.param(GIFT, {}, id="none of what is given once"),
        pytest.param(
            ROLLING,
            {OF_AI: RollRule(20_000_000, 2), OF_CALLS: RollRule(0, 1)},
            id="the cap less the new share",
        ),
        pytest.param(TWICE, {OF_AI: RollRule(24_000_000, 2)}, id="two of one name add up"),
    ],
)
def test_the_terms_on_which_grants_live_on(plan: Plan | None, expected: dict[str, RollRule]) -> None:
    assert roll_rules(plan) == expected


def test_a_plan_counts_from_the_first_minute_where_it_is_charged() -> None:
    for is_priced, after_ms, expected in (
        (True, 60_000, PLAIN),
        (True, 60_001, BARE),
        (False, 0, PLAIN),
        (False, 1, BARE),
    ):
        found = history((BARE, EVER, False), (PLAIN, nth(5) + after_ms, is_priced))
        assert found.plan_at(nth(5)) is expected, (is_priced, after_ms)


@pytest.mark.parametrize(
    ("later", "whole", "expected"),
    [
        pytest.param((nth(5, 9), True), False, True, id="of two that are charged by the second each"),
        pytest.param((nth(5) + 60_001, True), False, True, id="one that lasted beyond the first minute"),
        pytest.param((nth(5) + 60_000, True), False, False, id="not one that ended within it"),
        pytest.param((nth(5, 9), False), False, False, id="not one before a change that is not charged"),
        pytest.param((nth(5, 9), True), True, False, id="not one before another where the last gives all"),
        pytest.param((nth(6) - 1, False), False, False, id="not one that ended at the last instant"),
        pytest.param((nth(6), False), False, True, id="one that ended with the period"),
    ],
)
def test_which_plans_of_a_period_give(later: tuple[int, bool], whole: bool, expected: bool) -> None:
    found = history((BARE, EVER, False), (PLAIN, nth(5, 1), False), (GIFT, *later), whole=whole)
    assert found.is_of_period(1, thirty_days(nth(5))) is expected
    assert found.is_of_period(2, thirty_days(nth(5)))


ONE, NONE, BOTH = RollRule(20_000_000, 2), RollRule(0, 0), RollRule(0, 1)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        pytest.param(history((PLAIN, EVER, False)), None, id="nothing lives on"),
        pytest.param(
            history((ROLLING, EVER, False)),
            Rolls(
                (nth(3), nth(4), nth(5), nth(6)),
                ((OF_AI, (ONE, ONE, ONE)), (OF_CALLS, (BOTH, BOTH, BOTH))),
                2 * 33 * DAY_MS,
            ),
            id="as far back as the longest of them",
        ),
        pytest.param(
            history((PLAIN, EVER, False), (ROLLING, nth(4) + 60_000, True)),
            Rolls(
                (nth(3), nth(4), nth(5), nth(6)),
                ((OF_AI, (NONE, ONE, ONE)), (OF_CALLS, (NONE, BOTH, BOTH))),
                0,
            ),
            id="into a period that began on another plan nothing did",
        ),
        pytest.param(
            history((ROLLING, EVER, False), (PLAIN, nth(4), False), (ROLLING, nth(5), False)),
            Rolls((nth(4), nth(5), nth(6)), ((OF_AI, (NONE, ONE)), (OF_CALLS, (NONE, BOTH))), 0),
            id="no further than that",
        ),
        pytest.param(history((ROLLING, EVER, False), (PLAIN, nth(5), False)), None, id="not on this plan"),
        pytest.param(
            history((ROLLING, EVER, False), (None, nth(5), False)), None, id="not on an unknown plan"
        ),
    ],
)
def test_what_may_live_on_into_a_period(found: PlanHistory, expected: Rolls | None) -> None:
    rolls = find_rolls(found, nth(5, 3))
    # Scripts know such grants for as many periods longer, each of its length and three days more.
    keeps_ms = 0 if expected is None else (len(expected.starts) - 2) * (PERIOD + 3 * DAY_MS)
    assert rolls == (expected and expected._replace(keeps_ms=keeps_ms))


FIRST: Final = OnceGrant(CALLS_ONCE, nth(3), nth(4))


@pytest.mark.parametrize(
    ("found", "plans", "expected"),
    [
        pytest.param(history((GIFT, EVER, False)), (GIFT,), None, id="since ever: in this period"),
        pytest.param(
            history((BARE, EVER, False), (GIFT, nth(5), False)), (GIFT,), None, id="since now: in this period"
        ),
        pytest.param(
            history((BARE, EVER, False), (GIFT, nth(5) - 1, False)),
            *((GIFT,), (OnceGrant(CALLS_ONCE, nth(4), nth(5)),)),
            id="since a millisecond before: in the last one",
        ),
        pytest.param(
            history((BARE, EVER, False), (GIFT, nth(3, 2), True)), (GIFT,), (FIRST,), id="in its first period"
        ),
        pytest.param(
            history(
                (BARE, EVER, False), (GIFT, nth(3, 2), True), (BARE, nth(4), True), (GIFT, nth(4, 2), True)
            ),
            *((GIFT,), (FIRST,)),
            id="in the first of two",
        ),
        pytest.param(
            history(
                (BARE, EVER, False),
                (GIFT, nth(3, 2), True),
                (BARE, nth(3, 3), False),
                (GIFT, nth(4, 2), True),
            ),
            *((GIFT,), (OnceGrant(CALLS_ONCE, nth(4), nth(5)),)),
            id="in the first whose plan gave anything",
        ),
        pytest.param(
            history((BARE, EVER, False), (GIFT, nth(3, 2), True), (BARE, nth(4), False)),
            *((BARE,), (FIRST,)),
            id="the rest of its life, after its plan",
        ),
        pytest.param(
            history((BARE, EVER, False), (OTHER_GIFT, nth(3, 2), True), (BARE, nth(4), False)),
            *((BARE,), None),
            id="nothing after its plan, without a life of its own",
        ),
        pytest.param(
            history((BARE, EVER, False), (None, nth(3, 2), True), (GIFT, nth(5, 1), True)),
            *((BARE, GIFT), None),
            id="nothing of a plan that is not known",
        ),
        pytest.param(
            history((GIFT, EVER, False), (OTHER_GIFT, nth(5, 1), True)),
            *((GIFT, OTHER_GIFT), (OnceGrant(AI_ONCE), OnceGrant(CALLS_ONCE))),
            id="whole, of each plan of this period",
        ),
    ],
)
def test_what_is_given_once_in_a_life(
    found: PlanHistory, plans: tuple[Plan, ...], expected: tuple[OnceGrant, ...] | None
) -> None:
    over_ms = nth(3) + 60 * DAY_MS
    assert find_once(found, plans, nth(5), over_ms - 1) == expected
    if plans == (BARE,):
        assert find_once(found, plans, nth(5), over_ms) is None


def test_grants_of_a_former_period_that_may_live_on_are_marked() -> None:
    ends, stays, lives = (OF_AI, "c:ai", 5, 50, 0), ("p", "m:calls", 5, 50, 0), (OF_AI, "c:ai", 1, 50, 9)
    grants = PeriodGrants((ends, stays, lives), (("c:ai", 6),))
    rolls = Rolls((nth(4), nth(5), nth(6)), ((OF_AI, (ONE, ONE)),), 0)
    assert mark_rolled(grants, None, nth(5)) == grants
    marked = mark_rolled(grants, rolls, nth(5))
    assert marked == grants._replace(lines=((*ends[:4], -1), stays, lives))
    assert mark_rolled(grants, rolls, nth(6)) == grants


def test_a_grant_of_a_former_period_pays_while_it_lives() -> None:
    line, over = (OF_CALLS, "m:calls", 1, 50, 40 * DAY_MS), (OF_AI, "c:ai", 5, 50, 0)
    grants = PeriodGrants((over, line))
    for now_ms, expected in ((nth(4, 40) - 1, [line]), (nth(4, 40), [])):
        assert [*living_lines(grants, None, nth(4), now_ms, Counter())] == expected


@pytest.mark.parametrize(
    ("rooms", "expected"),
    [
        pytest.param((20,), 3, id="of three periods at least"),
        pytest.param((30,), 3, id="as many as the cap has room for"),
        pytest.param((31,), 4, id="one more where a unit is left"),
        pytest.param((0, 45), 5, id="by the largest of its caps"),
    ],
)
def test_nothing_older_than_a_cap_lives_on(rooms: tuple[int, ...], expected: int) -> None:
    """Ten units of each of nine periods, the latest first."""
    rolls = Rolls((nth(4), nth(5), nth(6)), ((OF_AI, tuple(RollRule(room, 9) for room in rooms)),), 0)
    grants, listed = PeriodGrants(((OF_AI, "c:ai", 10, 50, -1),)), Counter[str]()
    found = [[*living_lines(grants, rolls, nth(4 - age), nth(5), listed)] for age in range(9)]
    assert [bool(lines) for lines in found] == [age < expected for age in range(9)]


PACK: Final = (("pack", 1),)


# The plans of a customer and their shares of a period, and use beyond what a cut period was paid for.


def at_ms(days: float, after_ms: int = 0) -> int:
    """An instant of June: so many days after its beginning."""
    return to_ms(START) + round(days * DAY_MS) + after_ms


JUNE_MS, MIDDLE_MS, JULY_MS = at_ms(0), at_ms(15), at_ms(30)
WHOLE: Final = replace(
    CATALOG, billing=replace(CATALOG.billing, changes=replace(CATALOG.billing.changes, allowance="whole"))
)
PENDING: Final[dict[str, Any]] = {"pending_at_ms": MIDDLE_MS}
TO_B: Final[dict[str, Any]] = PENDING | {"pending_plan": "b"}
PAUSING: Final = replace(CATALOG, dunning=replace(CATALOG.dunning, restrict_to="endless"))
TRIAL: Final[dict[str, Any]] = {"status": "trialing", "trial_end_ms": MIDDLE_MS, "addons": PACK}


def span(plan: str, from_ms: int = EVER, *, priced: bool = True, bought: Bought = ()) -> PlanSpan:
    return PlanSpan(plan, from_ms, priced and from_ms != EVER, bought=bought)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        pytest.param(CustomerState(), [span("free")], id="no subscription"),
        pytest.param(paid("a"), [span("a")], id="no change"),
        pytest.param(paid("a", **TO_B), [span("a"), span("b", MIDDLE_MS)], id="a scheduled plan"),
        pytest.param(paid("a", **PENDING, pending_seats=5), [span("a")], id="scheduled seats change no plan"),
        pytest.param(
            paid("a", **PENDING, pending_addons=PACK),
            [span("a"), span("a", MIDDLE_MS, bought=PACK)],
            id="scheduled add-ons",
        ),
        pytest.param(
            paid("a", cancel_at_ms=MIDDLE_MS, addons=PACK),
            [span("a", bought=PACK), span("free", MIDDLE_MS, priced=False)],
            id="a cancellation, for which nothing is charged",
        ),
        pytest.param(
            paid("a", **TRIAL, trial_end_action="pause"),
            [span("a", bought=PACK), span("endless", MIDDLE_MS)],
            id="a pause leaves the plan of restricted access, without add-ons",
        ),
        pytest.param(
            replace(paid("a", **TRIAL, trial_end_action="pause"), status="active"),
            [span("a", bought=PACK)],
            id="a status set by hand lets no trial's pause through",
        ),
        pytest.param(
            replace(paid("a", addons=PACK), status="paused"),
            [span("a", bought=PACK)],
            id="restricted access by hand changes no plan",
        ),
        pytest.param(
            replace(paid("a", addons=PACK), status="canceled"), [span("free")], id="an end by hand does"
        ),
        pytest.param(paid("a", status="incomplete", **TO_B), [span("free")], id="it is not paid for"),
        pytest.param(
            with_had(
                paid("b", pending_plan="b", pending_at_ms=at_ms(9)),
                Had("free", at_ms(10), True, (("calls", 5),), PACK),
            ),
            [PlanSpan("free", EVER, False, (("calls", 5),), PACK), span("b", at_ms(10))],
            id="a stored change, and what came before it",
        ),
        pytest.param(
            with_had(paid("a"), Had("free", at_ms(9), False), Had("b", at_ms(10), True)),
            [span("free"), span("b", at_ms(9), priced=False), span("a", at_ms(10))],
            id="two stored changes",
        ),
    ],
)
def test_the_plans_that_a_customer_had(state: CustomerState, expected: list[PlanSpan]) -> None:
    assert [*PlansHad.of(state, PAUSING, MIDDLE_MS, BY_MONTH).spans] == expected
    ahead = [one for one in expected if one.from_ms < MIDDLE_MS]
    assert [*PlansHad.of(state, PAUSING, MIDDLE_MS - 1, BY_MONTH).spans] == ahead


OTHER: Final = paid("b", id="sub_2")
ENDED_JUNE_9: Final = paid("a", status="canceled", ended_at_ms=at_ms(9))


def told(before: CustomerState, after: CustomerState, at: int = MIDDLE_MS) -> CustomerState:
    """A state after a change that Stripe reports at once."""
    return with_terms(before, after, CATALOG, at, told_ms=at, source="stripe")


@pytest.mark.parametrize(
    ("before", "after", "since_ms", "facts"),
    [
        pytest.param(paid("a"), paid("a"), None, {}, id="nothing changes"),
        pytest.param(paid("a"), paid("b"), MIDDLE_MS, {PLAN: "b"}, id="within a subscription"),
        pytest.param(
            paid("a"), OTHER, MIDDLE_MS, {SUBSCRIPTION: "sub_2", PLAN: "b"}, id="to another subscription"
        ),
        pytest.param(
            CustomerState(), OTHER, MIDDLE_MS, {SUBSCRIPTION: "sub_2", PLAN: "b"}, id="to the first one"
        ),
        pytest.param(CustomerState(), CustomerState(plan="b"), MIDDLE_MS, {PLAN_BY_HAND: "b"}, id="by hand"),
        pytest.param(
            paid("a", addons=PACK), paid("a"), MIDDLE_MS, {ADDONS: ()}, id="of add-ons that are given up"
        ),
        pytest.param(
            paid("a"),
            ENDED_JUNE_9,
            at_ms(9),
            {SUBSCRIPTION: None, PLAN: None},
            id="by an end that is heard of later",
        ),
        pytest.param(
            paid("a"),
            paid("a", status="canceled", ended_at_ms=at_ms(16)),
            MIDDLE_MS,
            {SUBSCRIPTION: None, PLAN: None},
            id="by an end that our clock has not reached",
        ),
        pytest.param(
            OTHER,
            ENDED_JUNE_9,
            MIDDLE_MS,
            {SUBSCRIPTION: None, PLAN: None},
            id="not by the end of another subscription",
        ),
    ],
)
def test_what_a_change_tells(
    before: CustomerState, after: CustomerState, since_ms: int | None, facts: dict[str, Any]
) -> None:
    had = len(terms_of(before, CATALOG, MIDDLE_MS))
    rows = told(before, after).terms[had:]
    assert [(row.since_ms, dict(row.facts)) for row in rows] == (
        [] if since_ms is None else [(since_ms, facts)]
    )


def test_a_change_that_is_told_again_tells_nothing() -> None:
    once = told(paid("a"), paid("b"))
    assert told(once, replace(paid("b"), terms=once.terms), at_ms(16)).terms == once.terms


def test_what_is_sold_and_what_is_set_by_hand_are_told_apart() -> None:
    """Contract: setting something by hand and removing it leaves no trace in the other layers."""
    sold = told(paid("a"), paid("b"))
    by_hand = told(sold, replace(paid("b"), plan="endless", terms=sold.terms), at_ms(20))
    assert calls_of(by_hand, START + 21 * DAY) is None
    back = told(by_hand, replace(by_hand, plan=None), at_ms(22))
    assert calls_of(back, END - DAY) == calls_of(sold, END - DAY) == 550


def test_periods_of_a_year_stay_after_its_subscription() -> None:
    """They are counted as before it ended, not by the plan that is in force then."""
    begun_ms = to_ms(START.replace(year=2029))
    known = paid("annual", start_ms=at_ms(-365), end_ms=JUNE_MS, created_ms=begun_ms, cancel_at_ms=JUNE_MS)
    after = told(known, CustomerState(), JUNE_MS)
    assert after.former_starts_ms == (begun_ms, at_ms(-365), JUNE_MS)


A_DAY: Final = Fraction(1, 30)
BY_MONTH, BY_YEAR = (CountingCycle(per=per) for per in get_args(Interval))


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        pytest.param([span("a")], [], id="one plan"),
        pytest.param([span("a"), span("b", at_ms(10))], [("a", 10), ("b", 20)], id="two plans"),
        pytest.param(
            [span("a"), span("b", at_ms(10)), span("a", at_ms(12))],
            [("a", 10), ("b", 2), ("a", 18)],
            id="three",
        ),
        pytest.param(
            [span("a"), span("b", at_ms(-9)), span("a", at_ms(10))],
            [("b", 10), ("a", 20)],
            id="one from before",
        ),
        pytest.param([span("a"), span("b", at_ms(10), priced=False)], [], id="one that is not charged"),
        pytest.param(
            [span("a"), span("b", at_ms(9), priced=False), span("a", at_ms(10))],
            [("b", 10), ("a", 20)],
            id="one that is not charged holds from the beginning",
        ),
        pytest.param([span("a"), span("b", JUNE_MS)], [], id="one at the beginning"),
        pytest.param([span("a"), span("b", JUNE_MS + 60_000)], [("b", 30)], id="one in the first minute"),
        pytest.param(
            [span("a"), span("b", JUNE_MS + 60_001)],
            [("a", Fraction(60_001, DAY_MS)), ("b", 30 - Fraction(60_001, DAY_MS))],
            id="one after the first minute",
        ),
        pytest.param([span("a"), span("b", JULY_MS)], [], id="one of the next period"),
        pytest.param(
            [span("a"), span("b", JULY_MS - 1)],
            [("a", 30 - Fraction(1, DAY_MS)), ("b", Fraction(1, DAY_MS))],
            id="one at the last instant",
        ),
        pytest.param(
            [span(UNKNOWN_PLAN), span("b", at_ms(10))], [(None, 10), ("b", 20)], id="an unknown one"
        ),
        pytest.param([span("gone"), span("b", at_ms(10))], [("free", 10), ("b", 20)], id="one that is gone"),
        pytest.param(
            [span("a"), span("annual", at_ms(6))], [("a", 6), ("annual", 2)], id="one by the year: a twelfth"
        ),
    ],
)
def test_shares_of_plans_in_a_period(
    spans: list[PlanSpan], expected: list[tuple[str | None, int | Fraction]]
) -> None:
    found = PlansHad(CustomerState(), CATALOG, BY_MONTH, spans).shares(JUNE_MS, JULY_MS)
    assert [(share.plan and share.plan.key, share.share / A_DAY) for share in found] == expected
    assert PlansHad(CustomerState(), WHOLE, BY_MONTH, spans).shares(JUNE_MS, JULY_MS) == ()


def test_a_share_has_add_ons_and_is_of_the_whole_year() -> None:
    spans = [span("a")._replace(used=(("calls", 5),)), span("b", at_ms(15), bought=PACK)]
    first, last = PlansHad(CustomerState(), CATALOG, BY_YEAR, spans).shares(JUNE_MS, JULY_MS)
    assert [first.share, last.share] == [6, 6]
    assert (first.used, last.used) == ({"calls": 5}, {})
    included = [share.plan and share.plan.entitlements["calls"].included for share in (first, last)]
    assert included == [100, 1_010]


def test_what_was_used_without_a_limit_stays_included() -> None:
    # Half of June on a gives 50, nine days on b 300.
    for used, expected in ((20, 350), (50, 350), (700, 1_000)):
        changes = (
            Had("a", MIDDLE_MS, True),
            Had("endless", at_ms(21), True, (("calls", used), ("words", 9_999))),
        )
        assert calls_of(with_had(paid("b"), *changes), END - DAY) == expected
    # Without a figure, nothing was used.
    endless = with_had(paid("a"), Had("endless", MIDDLE_MS, True))
    assert calls_of(endless, END - DAY) == 50
    silent = (Had("a", MIDDLE_MS, True), Had("endless", at_ms(21), True))
    assert calls_of(with_had(paid("b"), *silent), END - DAY) == 350


def test_an_allowance_is_of_counters_that_meterkit_counts_alone() -> None:
    meters = """
  calls:  {unit: call}
  plain:  {unit: call}
  billed: {unit: call, stripe: {event_name: billed}}
  tiers:  {unit: call, stripe: {event_name: tiers, report: usage}}
  space:  {unit: byte, kind: gauge}"""
    each = ", ".join(f"{name}: {{included: 10, overage: deny}}" for name in ("calls", "billed", "space"))
    limits = f"{{{each}}}"
    plans = f"""
  a: {{rank: 1, price: {{amount_cents: 1, interval: month}}, meters: {limits[:-1]}, tiers: {{included: 9}}}}}}
  b: {{rank: 2, price: {{amount_cents: 2, interval: month}}, meters: {limits[:-1]}, tiers: {{included: 9}}}}}}
"""
    catalog = loads(free_plan(meters, limits) + plans)
    state = with_had(paid("b"), Had("a", MIDDLE_MS, True))
    allowance = effective_terms(state, catalog, JULY_MS - 1).allowance
    assert allowance is not None
    assert dict(allowance.included) == {"calls": 10, "billed": 10}


BEYOND: Final = Cut(
    at_ms(-31), at_ms(-9), JUNE_MS, "month", units=(("i:calls", 250),), before=(("i:calls", 30),)
)
USED_THEN: Final = {"i:calls": 80, "c:ai": 5 * MICRO, "m:calls": 2, "i:other": 9, "c:gone": 7}


@pytest.mark.parametrize(
    ("state", "catalog", "expected"),
    [
        pytest.param(
            paid("a"), CATALOG, {"i:calls": 30, "c:ai": MICRO, "c:gone": 7}, id="beyond half of its plan"
        ),
        pytest.param(
            with_had(paid("b"), Had("a", at_ms(12), True)),
            CATALOG,
            # A hundred for twelve days, a thousand for three: 140. Credits: ⌈2.8 + 7⌉.
            {"m:calls": 0, "c:gone": 7},
            id="within the shares of two plans",
        ),
        pytest.param(
            with_had(paid("a"), Had("b", at_ms(12), True)),
            WHOLE,
            {"i:calls": 30, "c:ai": MICRO, "c:gone": 7},
            id="beyond half of the last one, where it gives the whole",
        ),
        pytest.param(
            with_cut(paid("a"), BEYOND),
            CATALOG,
            {"i:calls": 280, "c:ai": MICRO, "c:gone": 7},
            id="more than before",
        ),
    ],
)
def test_use_beyond_a_period_that_was_cut_short(
    state: CustomerState, catalog: Catalog, expected: dict[str, int]
) -> None:
    """In the middle of June: half of it was paid."""
    found = cut_of(state, catalog, MIDDLE_MS - 1, MIDDLE_MS, USED_THEN)
    assert found[:4] == (JUNE_MS, MIDDLE_MS, JULY_MS, "month")
    assert found.units == tuple(sorted((target, units) for target, units in expected.items() if units))
    assert found.before == ((("i:calls", 250),) if any(CUT in dict(row.facts) for row in state.terms) else ())


def test_one_unit_beyond_is_one_and_none_used_is_none() -> None:
    found = cut_of(with_cut(paid("a"), BEYOND), CATALOG, MIDDLE_MS - 1, MIDDLE_MS, {"c:gone": 1})
    assert found.units == (("c:gone", 1), ("i:calls", 200))


def month(number: int) -> datetime:
    """Amid a month after June 2031."""
    years, months = divmod(START.month - 1 + number, 12)
    return HALF.replace(year=START.year + years, month=months + 1)


def test_each_later_period_makes_up_for_a_part() -> None:
    state = with_cut(paid("a"), BEYOND)
    assert [calls_of(state, month(number)) for number in range(4)] == [0, 0, 50, 100]
    assert calls_of(replace(state, plan="a"), month(0)) == 100
    # The period that was cut began so shortly before that counts went on in June.
    for before_ms, expected in ((119_999, 70), (120_000, 0)):
        shortly = BEYOND._replace(start_ms=JUNE_MS - before_ms, cut_ms=JUNE_MS - 1)
        assert calls_of(with_cut(paid("a"), shortly), month(0)) == expected, before_ms
    # 24 periods look back to it.
    much = with_cut(paid("a"), BEYOND._replace(units=(("i:calls", 10**9),)))
    assert [calls_of(much, month(number)) for number in (23, 24)] == [0, 100]


def test_grants_are_less_by_what_is_overdrawn() -> None:
    state = with_cut(paid("a"), BEYOND._replace(units=(("c:ai", 5 * MICRO), ("m:calls", 9))))
    allowance = effective_terms(state, CATALOG, MIDDLE_MS).allowance
    assert allowance is not None
    assert allowance.grants is not None
    assert dict(allowance.grants.limits) == {"c:ai": 2 * MICRO, "m:calls": 0}


def left_after(state: CustomerState, last_ms: int) -> dict[str, int]:
    """What is overdrawn after a period that was paid to its end."""
    found = cut_of(state, CATALOG, last_ms, last_ms + 1, None)
    assert found.units == found.before
    return dict(found.units)


def test_what_is_overdrawn_after_the_last_period() -> None:
    assert left_after(paid("a"), MIDDLE_MS) == {}
    state = with_cut(paid("a"), BEYOND)
    for last_ms, left in ((MIDDLE_MS, 150), (to_ms(month(1)), 50), (to_ms(month(2)), 0)):
        assert left_after(state, last_ms) == ({"i:calls": left} if left else {})
    # What no plan gives is never made up for; what is made up for is left out.
    for beyond in (100, 101):
        odd = with_cut(paid("a"), BEYOND._replace(units=(("c:gone", 7), ("i:calls", beyond))))
        assert left_after(odd, MIDDLE_MS) == {"c:gone": 7} | ({"i:calls": 1} if beyond == 101 else {})
    much = with_cut(paid("a"), BEYOND._replace(units=(("i:calls", 10**9),)))
    assert left_after(much, to_ms(month(24))) == {}
    # Half of June on each of two plans makes up for 550.
    assert left_after(with_had(state, Had("b", MIDDLE_MS, True)), JULY_MS - 1) == {}


SPENT_THEN: Final = Cut(JUNE_MS, at_ms(3), JULY_MS, "month", units=(("i:calls", 4),))


def test_use_before_a_subscription_counts_without_one_again() -> None:
    ended = paid("a", status="canceled", created_ms=JUNE_MS, start_ms=JUNE_MS, ended_at_ms=JUNE_MS)
    for state in (CustomerState(), ended, paid("a", status="incomplete")):
        alone = with_cut(state, SPENT_THEN, SPENT)
        for spent in (alone, with_cut(with_cut(state, BEYOND), SPENT_THEN, SPENT)):
            assert [calls_of(spent, month(number)) for number in (0, 1)] == [6, 10], state
    # Within a subscription it does not.
    assert calls_of(with_cut(paid("a"), SPENT_THEN, SPENT), month(0)) == 100


def test_use_of_the_month_in_which_a_subscription_begins() -> None:
    fresh = Cut(JUNE_MS, at_ms(10), JULY_MS, "month", units=(("c:ai", 2), ("i:calls", 3)))
    used = {"i:calls": 3, "c:ai": 2}
    for spent, expected in (
        (None, fresh),
        (SPENT_THEN._replace(start_ms=at_ms(-31), end_ms=JUNE_MS), fresh),
        (SPENT_THEN, fresh._replace(units=(("c:ai", 2), ("i:calls", 7)), before=(("i:calls", 4),))),
    ):
        state = CustomerState() if spent is None else with_cut(CustomerState(), spent, SPENT)
        assert spend_before_subscription(state, CATALOG, MIDDLE_MS, used, at_ms(10)) == expected


def test_a_cancellation_leaves_the_period_that_is_paid_for() -> None:
    for state in (paid("a"), paid("a", cancel_at_ms=MIDDLE_MS), CustomerState()):
        assert uncut_period(state, CATALOG, at_ms(3)) == (JUNE_MS, JULY_MS)


REACHING: Final = loads(
    PLANS.replace("every: period}\n", "every: period, rollover: {at_most: 20, for: 2 periods}}\n", 1).replace(
        "every: period, priority: 1}", "every: period, priority: 1, expires: 45d}"
    )
    + "  gift: {rank: 9, price: {amount_cents: 1, interval: month}, meters: {calls: {included: 1}},"
    " grants: [{credit: ai, quantity: 2, every: once, expires: 90d}]}\n"
    "dunning: {restrict_to: free}\n"
)
ROLLING_ONCE: Final = loads(
    PLANS.replace("every: period}\n", "every: period, rollover: {at_most: 20, for: 1 period}}\n", 1)
)
PLAIN_CREDIT: Final = replace(REACHING.plans["a"].grants[0], rollover=None)
LASTING: Final = replace(
    REACHING,
    plans={
        **REACHING.plans,
        "a": replace(REACHING.plans["a"], grants=(PLAIN_CREDIT, REACHING.plans["a"].grants[1])),
    },
)
NO_GIFT: Final = replace(
    LASTING, plans={name: plan for name, plan in LASTING.plans.items() if name != "gift"}
)
OLD: Final[dict[str, Any]] = {"created_ms": at_ms(-31 - 30 - 31)}
LIVES: Final = f"p m:calls 1-{45 * DAY_MS}ms"


def earlier(state: CustomerState, at: int = MIDDLE_MS - 1) -> list[tuple[int, list[tuple[str, int]], bool]]:
    """Earlier periods whose grants count: the days before June, grants with their lives, the certainty."""
    allowance = effective_terms(state, REACHING, at).allowance
    assert allowance is not None
    return [
        (
            (JUNE_MS - one.start_ms) // DAY_MS,
            [(line[0], line[4]) for line in one.grants.lines],
            one.is_certain,
        )
        for one in allowance.earlier
    ]


ROLLED: Final = (OF_AI, -1)
ALIVE: Final = (LIVES, 45 * DAY_MS)


@pytest.mark.parametrize(
    ("state", "at", "expected"),
    [
        pytest.param(
            paid("a", **OLD), MIDDLE_MS, [(31, [ROLLED], True), (61, [ROLLED], True)], id="rolled over twice"
        ),
        pytest.param(
            paid("a", **OLD),
            at_ms(14, -1),
            [(31, [ALIVE, ROLLED], True), (61, [ROLLED], True)],
            id="and what has a life of its own, to its last instant",
        ),
        pytest.param(
            paid("a", **OLD), at_ms(14), [(31, [ROLLED], True), (61, [ROLLED], True)], id="which is over then"
        ),
        pytest.param(
            paid("a", **OLD, status="past_due", failures=9, failed_at_ms=at_ms(2)),
            at_ms(3),
            [(31, [ALIVE, ROLLED], True), (61, [ROLLED], True)],
            id="restricted: all of them live on",
        ),
        pytest.param(
            with_had(paid("a", **OLD, status="paused"), Had("a", at_ms(2), True)),
            at_ms(3),
            [(31, [ALIVE, ROLLED], True), (61, [ROLLED], True)],
            id="paused: so they do",
        ),
        pytest.param(
            paid("a"),
            at_ms(3),
            [(31, [ROLLED], False), (61, [ROLLED], False)],
            id="before it, for all we know",
        ),
        pytest.param(
            with_had(paid("a"), Had("free", JUNE_MS, False)),
            at_ms(3),
            [],
            id="free before",
        ),
        pytest.param(
            with_had(CustomerState(plan="a"), Had("free", at_ms(-45), False)),
            at_ms(3),
            [(31, [ALIVE, ROLLED], True), (61, [ROLLED], True)],
            id="by hand, without a subscription",
        ),
        pytest.param(
            with_had(paid("a", created_ms=at_ms(-31)), Had("b", at_ms(-31), False)),
            at_ms(3),
            [(31, [ALIVE, ROLLED], True)],
            id="another plan before",
        ),
    ],
)
def test_earlier_periods_whose_grants_may_pay(
    state: CustomerState, at: int, expected: list[tuple[int, list[tuple[str, int]], bool]]
) -> None:
    assert earlier(state, at) == expected


def test_a_gift_is_named_with_the_period_that_gave_it() -> None:
    def given(state: CustomerState, at: int = MIDDLE_MS) -> tuple[OnceGrant, ...] | None:
        effective = effective_terms(state, REACHING, at)
        return None if effective.allowance is None else effective.allowance.once

    (line,) = once_lines(REACHING.plans["gift"])
    assert given(paid("gift", **OLD)) is None
    since_may = with_had(paid("gift", **OLD), Had("free", at_ms(-9), True))
    assert given(since_may) == (OnceGrant(line, at_ms(-31), JUNE_MS),)
    since_june = with_had(paid("gift", **OLD), Had("b", at_ms(9), True))
    assert given(since_june) is None
    was_june = with_had(paid("b", **OLD), Had("gift", at_ms(9), True))
    assert given(was_june) == (OnceGrant(line),)
    assert given(replace(since_may, status="paused")) == ()


def test_terms_that_another_period_ends_are_not_kept_beyond_it() -> None:
    for state, catalog, expected in (
        (paid("a"), CATALOG, NEVER_MS),
        (with_had(paid("b"), Had("a", at_ms(9), True)), CATALOG, JULY_MS),
        (with_cut(paid("a"), BEYOND), CATALOG, JULY_MS),
        (paid("b"), REACHING, JULY_MS),
        (paid("gift"), REACHING, JULY_MS),
        # Another plan of the file has a grant that rolls over, or lives on.
        (paid("b"), ROLLING_ONCE, JULY_MS),
        (paid("b"), LASTING, NEVER_MS),
        # Of two grants one lives on.
        (paid("a"), LASTING, JULY_MS),
        (paid("gift"), LASTING, JULY_MS),
    ):
        assert effective_terms(state, catalog, at_ms(10)).valid_until_ms == expected, state


def test_a_plan_set_by_hand_has_shares_of_add_ons_alone() -> None:
    """Stripe charges no plan that is set by hand: it counts from the beginning of its period."""
    state = told(paid("a"), replace(paid("a"), plan="b"), at_ms(10))
    packs = paid("a", addons=(("pack", 3),))
    state = told(state, replace(packs, plan="b", terms=state.terms), at_ms(20))
    # All of June on b, ten days of it with three packs.
    assert calls_of(state, END - DAY) == 1_000 + 10


def test_restricted_access_has_no_shares_of_plans() -> None:
    changes = (Had("b", at_ms(1), True),)
    owing = with_had(paid("a", status="past_due", failures=9, failed_at_ms=at_ms(2)), *changes)
    assert calls_of(owing, HALF) == 10
    # Nor has it gifts where the file has none.
    assert effective_terms(owing, ROLLING_ONCE, MIDDLE_MS).allowance is None


def test_a_replaced_plan_gave_no_gift_if_the_last_gives_all() -> None:
    changes = (Had("free", at_ms(-9), True), Had("gift", at_ms(-5), True))
    state = with_had(paid("b", **OLD), *changes)
    for catalog, is_given in ((REACHING, True), (replace(REACHING, billing=WHOLE.billing), False)):
        allowance = effective_terms(state, catalog, MIDDLE_MS).allowance
        assert bool(allowance and allowance.once) is is_given


def limits_of(state: CustomerState) -> list[dict[str, int]]:
    """The most that each earlier period gives, where that is not what its plan says."""
    allowance = effective_terms(state, REACHING, at_ms(3)).allowance
    assert allowance is not None
    return [dict(one.grants.limits) for one in allowance.earlier]


def test_an_earlier_period_gives_no_more_than_its_shares() -> None:
    known = paid("a", **OLD)
    assert limits_of(known) == [{}, {}]
    # Half of May on a plan without grants.
    changed = with_had(known, Had("free", at_ms(-15.5), True))
    assert limits_of(changed) == [{"c:ai": 4 * MICRO, "m:calls": 2}]
    # Seven units were overdrawn in March; what was left of March, and April, made up for three each.
    cut = Cut(at_ms(-92), at_ms(-70), at_ms(-61), "month", units=(("m:calls", 7),))
    overdrawn = paid("a", created_ms=at_ms(-70))
    given = [{"c:ai": 7 * MICRO, "m:calls": 2}, {"c:ai": 7 * MICRO, "m:calls": 0}]
    assert limits_of(with_cut(overdrawn, cut))[-2:] == given


@pytest.mark.parametrize(
    ("catalog", "cut", "at", "expected"),
    [
        pytest.param(
            NO_GIFT, (-40, -35, -31), at_ms(5, -1), True, id="while what has a life of its own may live"
        ),
        pytest.param(NO_GIFT, (-40, -35, -31), at_ms(5), False, id="not beyond that"),
        pytest.param(NO_GIFT, (-29, -3, 21), at_ms(21, -1), True, id="until its end, which is later"),
        pytest.param(NO_GIFT, (-29, -3, 21), at_ms(21), False, id="not from its end on"),
        pytest.param(REACHING, (-92, -60, -59), MIDDLE_MS, True, id="while it may have rolled over"),
        pytest.param(
            REACHING, (-92, -61, -59), MIDDLE_MS, False, id="not if it ended as the earliest begins"
        ),
    ],
)
def test_a_period_that_was_cut_short_gives_its_part(
    catalog: Catalog, cut: tuple[int, int, int], at: int, expected: bool
) -> None:
    begun_ms, cut_ms, over_ms = map(at_ms, cut)
    known = with_cut(paid("a", **OLD), Cut(begun_ms, cut_ms, over_ms, "month"))
    allowance = effective_terms(known, catalog, at).allowance
    earlier = () if allowance is None else allowance.earlier
    found = [one for one in earlier if (one.start_ms, one.end_ms) == (begun_ms, cut_ms)]
    assert [one.is_certain for one in found] == [True] * expected


@pytest.mark.parametrize(
    ("begun_ms", "expected"),
    [
        pytest.param(at_ms(-31, -1), [-31], id="the one before, by a millisecond"),
        pytest.param(at_ms(-31), [-61], id="from its first instant on"),
        pytest.param(at_ms(0, -1), [-61], id="to its last instant"),
        pytest.param(at_ms(0), [-61, -31], id="the one after"),
    ],
)
def test_a_cut_period_stands_for_the_one_that_it_began_in(begun_ms: int, expected: list[int]) -> None:
    cut = Cut(begun_ms, at_ms(0, 1), at_ms(9), "month")
    allowance = effective_terms(with_cut(paid("a", **OLD), cut), REACHING, MIDDLE_MS).allowance
    assert allowance is not None
    whole = {one.start_ms for one in allowance.earlier if one.end_ms != cut.cut_ms}
    assert whole == {at_ms(days) for days in expected}


def test_a_long_life_is_looked_back_for_beyond_what_rolls_over() -> None:
    known = paid("a", created_ms=at_ms(-400))
    long_lived = loads(PLANS.replace("priority: 1}", "priority: 1, expires: 200d}"))
    rolling = replace(long_lived.plans["a"].grants[0], rollover=REACHING.plans["a"].grants[0].rollover)
    plan = replace(long_lived.plans["a"], grants=(rolling, long_lived.plans["a"].grants[1]))
    for own in (long_lived, replace(long_lived, plans={**long_lived.plans, "a": plan})):
        allowance = effective_terms(known, own, at_ms(3)).allowance
        assert allowance is not None
        # That of December began 185 days before.
        assert [(JUNE_MS - one.start_ms) // DAY_MS for one in allowance.earlier] == [
            31,
            61,
            92,
            120,
            151,
            182,
        ]


# What lives on. Three periods, the last of which is now: each begins where the one before ends.
P0, P1, P2, P3 = START_MS - 60 * DAY_MS, START_MS - 30 * DAY_MS, START_MS, END_MS
ROLLS: Final = "p m:pages rolls"
PLAIN_NAME: Final = "p m:pages other"
ANEW_MS: Final = 120_000
"""A period that begins again so much later is another one."""
# Up to 9 of older units, for two more periods.
NINE: Final = RollRule(9, 2)


def on_file(
    start: int,
    left: int,
    ends: int,
    *,
    used: int = 4,
    name: str = ROLLS,
    until: int | None = None,
    effective: int | None = None,
) -> StoredGrant:
    at = start if effective is None else effective
    times = {"effective_ms": at, "expires_ms": ends, "created_ms": at, "until_ms": until or ends}
    whole = {"quantity": left + used, "used": used, "priority": 50}
    return StoredGrant(name=f"{name} {start}", target="m:pages", **whole, **times)


def texts_of(*grants: StoredGrant) -> dict[str, str]:
    return {
        one.name: f"{one.target} {one.quantity} {one.used} {one.priority} {one.effective_ms}"
        f" {one.expires_ms} {one.created_ms} {one.until_ms}"
        for one in grants
    }


def living(*rules: RollRule, names: tuple[str, ...] = (ROLLS,)) -> Rolls:
    return Rolls((P0, P1, P2, P3), tuple((name, rules) for name in names), keeps_ms=0)


def funds_of(
    fields: dict[str, str], allowance: Allowance, now_ms: int = BALANCE_NOW_MS, **terms: Any
) -> GrantFunds:
    """Grants where the plan gives nothing but what these terms say."""
    prepaid = replace(PREPAID, **{"recurring": (), "once": (), **terms}, allowance=allowance)
    return funds_by_script(fields, prepaid, BOUNDS, now_ms)


def from_to(before: int, after: int, name: str) -> str:
    return f"rollover {before} {after} {name}"


R0, R1, R2 = (f"{ROLLS} {start}" for start in (P0, P1, P2))


@pytest.mark.parametrize(
    ("grants", "rules", "fields", "left", "lines"),
    [
        pytest.param(
            [on_file(P1, 6, P2)],
            (NINE, NINE, NINE),
            {},
            {R1: (6, P3, P3)},
            {from_to(P1, P2, R1): 6},
            id="what is left lives on into the next period",
        ),
        pytest.param(
            [on_file(P1, 16, P2)],
            (NINE, NINE, NINE),
            {},
            {R1: (9, P3, P3)},
            {from_to(P1, P2, R1): 9, f"expire {R1}": 7},
            id="what is beyond the cap is cut",
        ),
        pytest.param(
            [on_file(P0, 5, P2), on_file(P1, 6, P2)],
            (NINE, NINE, NINE),
            {},
            {R0: (3, P3, P3), R1: (6, P3, P3)},
            {from_to(P1, P2, R0): 3, from_to(P1, P2, R1): 6, f"expire {R0}": 2},
            id="the oldest is cut first",
        ),
        pytest.param(
            [on_file(P0, 5, P2), on_file(P1, 6, P3)],
            (NINE, NINE, NINE),
            {},
            {R0: (3, P3, P3), R1: (6, P3, P3)},
            {from_to(P1, P2, R0): 3, f"expire {R0}": 2},
            id="what lives on already leaves less room",
        ),
        pytest.param(
            [on_file(P0, 5, P1)],
            (NINE, NINE, NINE),
            {},
            {R0: (5, P3, P3)},
            {from_to(P0, P1, R0): 5, from_to(P1, P2, R0): 5},
            id="a period without use rolls too",
        ),
        pytest.param(
            [on_file(P0, 15, P1)],
            (NINE, RollRule(12, 2), NINE),
            {},
            {R0: (9, P3, P3)},
            {from_to(P0, P1, R0): 12, from_to(P1, P2, R0): 9, f"expire {R0}": 6},
            id="each period cuts by the cap of its own plan",
        ),
        pytest.param(
            [on_file(P0, 5, P2)],
            (RollRule(9, 1), RollRule(9, 1), RollRule(9, 1)),
            {},
            {R0: (5, P2, P3)},
            {},
            id="for one period it lives no second one",
        ),
        pytest.param(
            [on_file(P1, 6, P2)],
            (NINE, NINE, RollRule(0, 0)),
            {},
            {R1: (6, P2, P3)},
            {},
            id="a plan without rollover ends it",
        ),
        pytest.param(
            [on_file(P1, 6, P2)],
            (NINE, NINE, RollRule(0, 2)),
            {},
            {R1: (0, P2, P3)},
            {f"expire {R1}": 6},
            id="a cap of the new grant alone leaves no room",
        ),
        pytest.param(
            [on_file(P1, 0, P2)],
            (NINE, NINE, NINE),
            {},
            {R1: (0, P2, P3)},
            {},
            id="of a used up grant nothing lives on, but it is not given again",
        ),
        pytest.param(
            [on_file(P2, 16, P3), on_file(P1, 6, P2)],
            (NINE, NINE, NINE),
            {},
            {R2: (16, P3, P3), R1: (6, P3, P3)},
            {from_to(P1, P2, R1): 6},
            id="the new grant takes no room of older ones",
        ),
        pytest.param(
            [on_file(P1, 16, P2, effective=P2 - ANEW_MS + 1)],
            (NINE, NINE, NINE),
            {},
            {R1: (16, P2, P3)},
            {},
            id="begun less than two minutes before it is this period's",
        ),
        pytest.param(
            [on_file(P1, 16, P2, effective=P2 - ANEW_MS)],
            (NINE, NINE, NINE),
            {},
            {R1: (9, P3, P3)},
            {from_to(P1, P2, R1): 9, f"expire {R1}": 7},
            id="begun two minutes before it is older",
        ),
        pytest.param(
            [on_file(P1, 6, P2 - 1)],
            (NINE, NINE, NINE),
            {},
            {R1: (6, P2 - 1, P3)},
            {},
            id="what ended before its period did lives no longer",
        ),
        pytest.param(
            [on_file(P0, 6, P1, effective=P0 - ANEW_MS)],
            (NINE, NINE, NINE),
            {},
            {R0: (6, P1, P1)},
            {},
            id="one of an older period than these is over",
        ),
        pytest.param(
            [on_file(P0, 6, P1, effective=P0 - ANEW_MS + 1)],
            (NINE, NINE, NINE),
            {},
            {R0: (6, P3, P3)},
            {from_to(P0, P1, R0): 6, from_to(P1, P2, R0): 6},
            id="one of the oldest of these lives on",
        ),
        pytest.param(
            [on_file(P0 - DAY_MS, 6, P0 + 5, until=P3 + 7)],
            (NINE, NINE, NINE),
            {},
            {f"{ROLLS} {P0 - DAY_MS}": (6, P2, P3 + 7)},
            {from_to(P0, P0, f"{ROLLS} {P0 - DAY_MS}"): 6, from_to(P0, P1, f"{ROLLS} {P0 - DAY_MS}"): 6},
            id="an older one that the store has lives on for two periods",
        ),
        pytest.param(
            [on_file(P1, 6, P2, name=PLAIN_NAME), on_file(P1, 6, P2, name="a m:pages rolls")],
            (NINE, NINE, NINE),
            {},
            {f"{PLAIN_NAME} {P1}": (6, P2, P2), f"a m:pages rolls {P1}": (6, P2, P2)},
            {},
            id="no other grant lives on",
        ),
        pytest.param(
            [on_file(P1, 6, P2)],
            (NINE, NINE, NINE),
            {"d m:pages": f"4 {P1 + 5}"},
            {R1: (2, P3, P3)},
            {from_to(P1, P2, R1): 2, f"repay {R1}": 4},
            id="a debt is paid before the rest lives on",
        ),
        pytest.param(
            [on_file(P0, 5, P1), on_file(P1, 6, P2)],
            (NINE, NINE, NINE),
            {"d m:pages": f"3 {P1 + 5}"},
            {R0: (2, P3, P3), R1: (6, P3, P3)},
            {from_to(P0, P1, R0): 5, from_to(P1, P2, R0): 2, from_to(P1, P2, R1): 6, f"repay {R0}": 3},
            id="a debt is paid with the oldest that lived then",
        ),
        pytest.param(
            [on_file(P0, 5, P1), on_file(P1 - 1, 6, P3, name="a m:pages x")],
            (NINE, NINE, NINE),
            {"d m:pages": f"3 {P1 + 5}"},
            {R0: (5, P3, P3), f"a m:pages x {P1 - 1}": (3, P3, P3)},
            {from_to(P0, P1, R0): 5, from_to(P1, P2, R0): 5, f"repay a m:pages x {P1 - 1}": 3},
            id="or with one that began in the last millisecond before",
        ),
    ],
)
def test_what_is_left_of_a_periods_grant_lives_on(
    grants: list[StoredGrant],
    rules: tuple[RollRule, ...],
    fields: dict[str, str],
    left: dict[str, tuple[int, int, int]],
    lines: dict[str, int],
) -> None:
    """What is left, when it ends, and when it leaves the store; lines of the ledger."""
    found = funds_of({**texts_of(*grants), **fields}, Allowance(rolls=living(*rules)))
    assert {one.name: (one.left, one.expires_ms, one.until_ms) for one in found.held} == left
    assert found.unwritten == lines
    assert found.owed == {}


def test_a_grant_that_leaves_the_store_now_is_listed_once() -> None:
    for until in (P2 - 1, P2, P2 + 1):
        found = funds_of(texts_of(on_file(P1, 6, P2 - 1, until=until, name=PLAIN_NAME)), Allowance(), P2)
        assert [one.left for one in found.held] == [6]


def test_each_grant_that_lives_on_has_room_of_its_own() -> None:
    grants = on_file(P1, 8, P2), on_file(P1, 7, P2, name=PLAIN_NAME)
    rolls = living(NINE, NINE, NINE, names=(ROLLS, PLAIN_NAME))
    found = funds_of(texts_of(*grants), Allowance(rolls=rolls))
    assert {one.name: one.left for one in found.held} == {R1: 8, f"{PLAIN_NAME} {P1}": 7}


def test_a_used_up_grant_stays_from_the_end_of_its_period() -> None:
    found = funds_of(texts_of(on_file(P1, 0, P2)), Allowance(rolls=living(NINE, NINE, NINE)), P2)
    assert [one.until_ms for one in found.held] == [P3]


@pytest.mark.parametrize(
    ("effective", "ends", "now_ms", "expected"),
    [
        pytest.param(P1, P3, P2, 6, id="of the period before"),
        pytest.param(P2 - ANEW_MS, P3, P2, 6, id="of two minutes before"),
        pytest.param(P2 - ANEW_MS + 1, P3, P2, 0, id="less than two minutes before it is of this period"),
        pytest.param(P2, P3, P2, 0, id="of this period"),
        pytest.param(P1, P3, P3 - 1, 6, id="until it ends"),
        pytest.param(P1, P2, P2, 0, id="not when it has ended"),
    ],
)
def test_what_has_lived_on_into_a_period(effective: int, ends: int, now_ms: int, expected: int) -> None:
    held = on_file(P1, 6, ends, effective=effective), on_file(P1, 5, P3, name=PLAIN_NAME)
    rolls = living(NINE, NINE, NINE)
    assert rolled_over(held, Allowance(rolls=rolls), now_ms)["m:pages"] == expected
    assert rolled_over((*held, held[0]), Allowance(rolls=rolls), now_ms)["m:pages"] == 2 * expected
    for nothing in (None, Allowance()):
        assert rolled_over(held, nothing, now_ms) == {}


@pytest.mark.parametrize(
    ("span", "life_ms", "rule", "grants", "expected"),
    [
        pytest.param((P1, P2), 31 * DAY_MS + 1, None, [], {R1: (25, P2 + DAY_MS + 1)}, id="its life goes on"),
        pytest.param((P1, P2), 31 * DAY_MS, None, [], {}, id="its life is over at this instant"),
        pytest.param(
            (P1, P2),
            40 * DAY_MS,
            None,
            [on_file(P2, 20, P3)],
            {R2: (20, P3)},
            id="one that begins as it ends was stored after it",
        ),
        pytest.param(
            (P1, P2),
            40 * DAY_MS,
            None,
            [on_file(P1, 0, P2, name=PLAIN_NAME)],
            {f"{PLAIN_NAME} {P1}": (0, P2), R1: (25 - 4, P2 + 10 * DAY_MS)},
            id="what has ended was given, by another name",
        ),
        pytest.param(
            (P1, P2),
            40 * DAY_MS,
            None,
            [on_file(P1 + 7, 6, P3, effective=P1)],
            {f"{ROLLS} {P1 + 7}": (21, P3)},
            id="one that begins with the period is its own, whatever its name",
        ),
        pytest.param((P1, P2), -1, NINE, [], {R1: (9, P3)}, id="what is to live on is given first"),
        pytest.param(
            (P0, P1), -1, NINE, [on_file(P1, 6, P2)], {R1: (6, P3)}, id="a younger one proves it was stored"
        ),
        pytest.param(
            (P1, P2),
            -1,
            RollRule(30, 1),
            [on_file(P0, 6, P1)],
            {R0: (6, P2), R1: (25, P3)},
            id="an older one proves nothing",
        ),
    ],
)
def test_grants_of_an_earlier_period_are_given_late(
    span: tuple[int, int],
    life_ms: int,
    rule: RollRule | None,
    grants: list[StoredGrant],
    expected: dict[str, tuple[int, int]],
) -> None:
    """What is left, and when it ends."""
    earlier = EarlierPeriod(*span, PeriodGrants(((ROLLS, "m:pages", 25, 50, life_ms),)), is_certain=True)
    rolls = None if rule is None else living(rule, rule, rule)
    found = funds_of(texts_of(*grants), Allowance(earlier=(earlier,), rolls=rolls))
    assert {one.name: (one.left, one.expires_ms) for one in found.held} == expected


@pytest.mark.parametrize(
    ("fields", "is_given"),
    [
        pytest.param({}, False, id="nothing proves that the customer was on the plan then"),
        pytest.param(texts_of(on_file(P2, 5, P3, name="a m:pages x")), False, id="a grant of its end"),
        pytest.param(
            texts_of(on_file(P2 - 1, 5, P3, name="a m:pages x")), True, id="a grant from just before its end"
        ),
        pytest.param(
            texts_of(on_file(P2, 5, P3, name="a m:pages x"), on_file(P1, 5, P3, name="a m:pages y")),
            True,
            id="the older of two grants",
        ),
        pytest.param({"past m:pages": f"{P2} 5 {P2 - 1}"}, True, id="one that has left the store"),
        pytest.param({"past m:pages": f"{P2 - 1} 5 {P2}"}, False, id="one of its end that has left"),
    ],
)
def test_a_grant_from_before_the_end_of_a_period_proves_its_plan(
    fields: dict[str, str], is_given: bool
) -> None:
    grants = PeriodGrants(((ROLLS, "m:pages", 25, 50, 40 * DAY_MS),))
    allowance = Allowance(earlier=(EarlierPeriod(P1, P2, grants, is_certain=False),))
    assert (R1 in {one.name for one in funds_of(fields, allowance).held}) is is_given


@pytest.mark.parametrize(
    ("life_ms", "start_ms", "now_ms", "ends", "leaves"),
    [
        pytest.param(0, P2, P3 - 1, P3, P3, id="without a life of its own it ends with its period"),
        pytest.param(0, P3, P3, BOUNDS.next_end_ms, BOUNDS.next_end_ms, id="the next one begins as it ends"),
        pytest.param(90 * DAY_MS, P2, BALANCE_NOW_MS, P2 + 90 * DAY_MS, P2 + 90 * DAY_MS, id="a long life"),
        pytest.param(5, P2, BALANCE_NOW_MS, P2 + 5, P3, id="over, it stays in the store for its period"),
    ],
)
def test_when_a_periods_grant_ends(life_ms: int, start_ms: int, now_ms: int, ends: int, leaves: int) -> None:
    found = funds_of({}, Allowance(), now_ms, recurring=((ROLLS, "m:pages", 25, 50, life_ms),))
    shown = [(one.name, one.quantity, one.effective_ms, one.expires_ms, one.until_ms) for one in found.held]
    assert shown == [(f"{ROLLS} {start_ms}", 25, start_ms, ends, leaves)]


HELLO: Final = "o m:pages hello"


@pytest.mark.parametrize(
    ("life_ms", "span", "fields", "expected"),
    [
        pytest.param(0, (), {}, (P2, P3, P3), id="until the period ends"),
        pytest.param(90 * DAY_MS, (), {}, (P2, P2 + 90 * DAY_MS, P2 + 90 * DAY_MS), id="a life of its own"),
        pytest.param(DAY_MS + 1, (), {}, (P2, P2 + DAY_MS + 1, P3), id="a short life is kept for the period"),
        pytest.param(DAY_MS, (), {}, None, id="a life that is over at this instant"),
        pytest.param(0, (), {"once m:pages hello": f"{P0}"}, None, id="it was given before"),
        pytest.param(0, (), {"once m:pages other": f"{P0}"}, (P2, P3, P3), id="another one was given before"),
        pytest.param(40 * DAY_MS, (P1, P2), {}, (P1, P1 + 40 * DAY_MS, P1 + 40 * DAY_MS), id="its rest"),
        pytest.param(0, (P1, P2), {}, None, id="its first period is over"),
    ],
)
def test_a_grant_is_given_once_in_a_life(
    life_ms: int, span: tuple[int, ...], fields: dict[str, str], expected: tuple[int, int, int] | None
) -> None:
    """When it begins, ends, and leaves the store."""
    once = OnceGrant((HELLO, "m:pages", 7, 50, life_ms), *span)
    found = funds_of(fields, Allowance(), once=(once,))
    shown = [(one.name, one.left, one.effective_ms, one.expires_ms, one.until_ms) for one in found.held]
    assert shown == ([] if expected is None else [(f"{HELLO} {expected[0]}", 7, *expected)])


@pytest.mark.parametrize(
    ("limit", "grants", "expected"),
    [
        pytest.param(20, {"p m:pages a": (2, 10), "p m:pages b": (3, 50)}, [2, 3], id="as much as was given"),
        pytest.param(
            18, {"p m:pages a": (2, 10), "p m:pages b": (3, 50)}, [2, 1], id="what pays last is cut"
        ),
        pytest.param(
            16, {"p m:pages a": (2, 10), "p m:pages b": (3, 50)}, [1, 0], id="then what pays before it"
        ),
        pytest.param(
            12, {"p m:pages a": (2, 10), "p m:pages b": (3, 50)}, [0, 0], id="what is used is never cut"
        ),
        pytest.param(8, {"p m:pages a": (2, 10)}, [0], id="a single one by all that is left"),
        pytest.param(8, {"p m:pages a": (2, 10), "a m:pages b": (3, 50)}, [0, 3], id="none of the app's"),
    ],
)
def test_a_change_of_plan_cuts_unused_units_beyond_its_limit(
    limit: int, grants: dict[str, tuple[int, int]], expected: list[int]
) -> None:
    """Of ten units each, some are left."""
    fields = texts_of(
        *(
            replace(on_file(P2, left, P3, used=10 - left, name=name), priority=priority)
            for name, (left, priority) in grants.items()
        )
    )
    allowance = Allowance(grants=PeriodGrants((), (("m:pages", limit),)))
    assert [one.left for one in funds_of(fields, allowance).held] == expected


# Tokens cost 9,000 micro-credits by a large model, 2,000 by one that has no price of its own.
MODELS: Final = loads(
    free_plan(
        "{asked: {unit: token}, answered: {unit: token}}",
        """
      asked:    {included: 100, overage: deny}
      answered: {included: 50, overage: deny}""",
        """credits: {ai: {costs: {asked: prices.models, answered: 4 per 1000}}}
prices: {models: {default: 2 per 1000, models: {"big*": 9 per 1000, "mini*": 1 per 1000}}}""",
    )
)
MODELS_PLAN: Final = MODELS.plans["free"]


@pytest.mark.parametrize(
    ("meter", "micros", "counted", "held", "cost", "expected"),
    [
        pytest.param("asked", MICRO, 100, {}, 0, 500, id="at the default, where nothing is held"),
        # The held units are subtracted later: what pays them is added to what the rest pays.
        pytest.param("asked", MICRO, 100, {"asked": 10}, 90_000, 455 + 10, id="held at the highest cost"),
        pytest.param("asked", MICRO, 100, {"asked": 10}, 10_000, 495 + 10, id="held at a low one"),
        pytest.param("asked", MICRO, 95, {"asked": 10}, 90_000, 477 + 5, id="five held ones are included"),
        pytest.param("asked", MICRO, 90, {"asked": 10}, 90_000, 500, id="all held ones are included"),
        pytest.param("asked", 50_000, 100, {"asked": 10}, 90_000, 5, id="it pays some of the held ones"),
        pytest.param("asked", 100_000, 100, {"asked": 2}, 100_001, 2 + 41, id="no unit costs more"),
        pytest.param("asked", 0, 100, {"asked": 10}, 90_000, 0, id="it pays none of them"),
        pytest.param("asked", MICRO, 100, {"answered": 60}, 0, 480, id="the other meter's beyond included"),
        pytest.param("asked", 30_000, 100, {"answered": 60}, 0, 0, id="the other meter's take all of it"),
        pytest.param("answered", MICRO, 50, {"asked": 200}, 200_000, 200, id="the other's at what they cost"),
        pytest.param("answered", MICRO, 50, {"asked": 110}, 99 * 9_000, 227, id="at the highest at most"),
    ],
)
def test_held_units_claim_what_they_may_cost_by_their_model(
    meter: str, micros: int, counted: int, held: dict[str, int], cost: int, expected: int
) -> None:
    """``counted`` is counted of the meter, and nothing of the other one."""
    balance = GrantBalance(
        [holding("a c:ai one", "c:ai", micros)], Prepaid.of(MODELS_PLAN, MODELS), BALANCE_NOW_MS
    )
    found = balance.units_beyond_plan(
        meter,
        MODELS_PLAN.entitlements,
        lambda name: counted if name == meter else 0,
        lambda name: held.get(name, 0),
        lambda _: cost,
    )
    assert found == expected
