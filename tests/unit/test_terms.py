"""One history of terms: rows in the order of their reports, and their sums, judged hour by hour."""

# Internals: pure tables of terms.

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import fields, replace
from datetime import UTC, datetime
from itertools import pairwise
from math import ceil
from random import Random
from typing import Any, Final

import pytest

from drivers.subscribed_customer import subscription
from meterkit.catalog import loads
from meterkit.catalog.models import Bought
from meterkit.decisions.customer_state import CustomerState, entitlements_of, with_subscription
from meterkit.decisions.item_prices import ItemPrice, ItemPrices
from meterkit.decisions.periods import DAY_MS, HOUR_MS, to_ms
from meterkit.decisions.plan_shares import effective_terms
from meterkit.decisions.subscription import SubscriptionState
from meterkit.decisions.told_terms import with_terms
from meterkit.terms.folding import fold
from meterkit.terms.rows import (
    ADDONS,
    EVER_MS,
    FREE,
    LINES,
    PLAN,
    PLAN_BY_HAND,
    SUBSCRIPTION,
    Row,
    Terms,
    append_usage_fact,
    fact_spans,
    in_force,
    tell,
)

START: Final = datetime(2031, 6, 1, tzinfo=UTC)
END: Final = datetime(2031, 7, 1, tzinfo=UTC)
JUNE_MS: Final = to_ms(START)
HOURS: Final = 30 * 24
PLANS: Final = """
schema: 1
currency: usd
default_plan: free
meters: {calls: {unit: call}}
addons:
  pack: {price: {amount_cents: 10, interval: month}, meters: {calls: {included: 70}}}
plans:
  free: {price: {amount_cents: 0, interval: month}, meters: {calls: {included: 10, overage: deny}}}
  small:
    rank: 1
    addons: [pack]
    price: {amount_cents: 100, interval: month}
    meters: {calls: {included: 100, overage: deny}}
  team:
    rank: 2
    addons: [pack]
    price: {amount_cents: 200, interval: month}
    meters: {calls: {included: 10_000, overage: deny}}
  endless:
    rank: 3
    addons: [pack]
    price: {amount_cents: 300, interval: month}
    meters: {calls: {included: unlimited}}
"""
CATALOG: Final = loads(PLANS)
GIVES: Final = {"free": 10, "small": 100, "team": 10_000}
"""What each plan includes in a month; a pack adds 70 to those that list it."""


def seeds(number: int) -> list[Any]:
    """The first one, and others that `make field` tries as well."""
    return [0, *(pytest.param(seed, marks=pytest.mark.whole) for seed in range(1, number))]


def sold(plan: str, addons: Bought = ()) -> CustomerState:
    times = {"start_ms": START, "end_ms": END, "anchor_ms": START, "created_ms": START}
    return CustomerState(subscription=subscription(plan=plan, addons=addons, **times))


def hour_ms(hour: int) -> int:
    return JUNE_MS + hour * HOUR_MS


def tells(state: CustomerState, change: Mapping[str, Any], at: int, told: int | None = None) -> CustomerState:
    """The state after an act, or after a report of Stripe's that came later than the act."""
    if "sold" in change:
        plan, packs = change["sold"]
        assert state.subscription is not None
        addons = (("pack", packs),) if packs else ()
        after = with_subscription(state, replace(state.subscription, plan=plan, addons=addons))
        after = replace(after, plan=state.plan)  # Here, both layers change apart.
    else:
        after = replace(state, **change)
    return with_terms(
        state, after, CATALOG, hour_ms(at), told_ms=hour_ms(at if told is None else told), source="stripe"
    )


def included(state: CustomerState, hour: int) -> int | None:
    found = effective_terms(state, CATALOG, hour_ms(hour))
    return entitlements_of(found, CATALOG)["calls"].included


def integrated(acts: list[tuple[int, Mapping[str, Any]]], now: int) -> int:
    """What June includes by an hour of it, added up hour by hour."""
    plan, packs, by_hand, spans = "small", 0, None, list[tuple[str, int]]()
    for hour in range(HOURS):
        for at, act in acts:
            if at == hour and at <= now:
                plan, packs = act.get("sold", (plan, packs))
                by_hand = act.get("plan", by_hand)
        spans.append((plan, packs))
    total = sum(GIVES[by_hand or one] + 70 * n * ((by_hand or one) != "free") for one, n in spans)
    return ceil(total / HOURS)


def random_acts(random: Random) -> list[tuple[int, Mapping[str, Any]]]:
    hours = sorted(random.sample(range(1, HOURS - 1), random.randint(1, 9)))
    return [
        (
            hour,
            random.choice(
                (
                    {"sold": (random.choice(("small", "team")), random.choice((0, 0, 1, 3)))},
                    {"plan": random.choice((None, "free", "small", "team"))},
                )
            ),
        )
        for hour in hours
    ]


@pytest.mark.parametrize("seed", seeds(100))
def test_f_300_f_301_any_order_of_acts_gives_what_was_sold(seed: int) -> None:
    """Contract: shares are of what was sold, whatever was set by hand; while it is, that plan gives all."""
    random = Random(seed)  # noqa: S311
    for _ in range(20):
        acts = random_acts(random)
        state = with_terms(CustomerState(), sold("small"), CATALOG, JUNE_MS, told_ms=JUNE_MS, source="stripe")
        for at, act in acts:
            state = tells(state, act, at)
        state = CustomerState.parse(state.dump())
        for now in (acts[-1][0], HOURS - 1):
            assert included(state, now) == integrated(acts, now), acts
        # Something that is set and taken back changes nothing.
        last, now = acts[-1][0], HOURS - 1
        kept = state.plan
        gift = tells(tells(state, {"plan": "team"}, last + 1), {"plan": kept}, now)
        assert included(gift, now) == included(state, now), acts


@pytest.mark.parametrize("seed", seeds(20))
def test_the_order_in_which_layers_are_told_changes_nothing(seed: int) -> None:
    random = Random(seed)  # noqa: S311
    for _ in range(20):
        acts = random_acts(random)
        first = with_terms(CustomerState(), sold("small"), CATALOG, JUNE_MS, told_ms=JUNE_MS, source="stripe")
        at_once = later = first
        for at, act in acts:
            at_once = tells(at_once, act, at)
        by_hand = [one for one in acts if "plan" in one[1]]
        reports = [one for one in acts if "sold" in one[1]]
        for at, act in (*by_hand, *reports):
            later = tells(later, act, at, told=HOURS - 1)
        assert included(later, HOURS - 1) == included(at_once, HOURS - 1), acts


def test_a_row_has_what_changed_and_stays() -> None:
    state = with_terms(CustomerState(), sold("small"), CATALOG, JUNE_MS, told_ms=JUNE_MS, source="stripe")
    later = tells(state, {"sold": ("team", 2)}, 5, told=9)
    assert later.terms == (
        *state.terms,
        Row(hour_ms(5), hour_ms(9), "stripe", ((ADDONS, (("pack", 2),)), (PLAN, "team"))),
    )
    assert in_force(later.terms, hour_ms(9), known_ms=hour_ms(8))[PLAN] == "small"
    assert in_force(later.terms, hour_ms(5))[PLAN] == "team"
    assert in_force(later.terms, hour_ms(4))[PLAN] == "small"


def bought(plan: str, packs: int) -> Mapping[str, Any]:
    return {SUBSCRIPTION: "sub_1", PLAN: plan, ADDONS: (("pack", packs),) if packs else ()}


def hours_of(terms: Terms, first: int, last: int) -> Mapping[tuple[str, int], int]:
    """Plan, and packs times their milliseconds, in some hours."""
    time, facts = Counter[tuple[str, int]](), dict[str, Any]({ADDONS: ()})
    rows = [*sorted(terms), Row(hour_ms(last), 0, "clock", ())]
    for row, later in pairwise(rows):
        facts |= row.facts
        length_ms = later.since_ms - max(row.since_ms, hour_ms(first))
        time[facts[PLAN], 0] += length_ms
        time[facts[PLAN], 1] += dict(facts[ADDONS]).get("pack", 0) * length_ms
    return time


@pytest.mark.parametrize("seed", range(2))
def test_beyond_256_rows_the_plans_of_a_period_are_sorted(seed: int) -> None:
    """Sums of time stay to the millisecond: a plan's, and that of each number of an add-on."""
    random = Random(seed)  # noqa: S311
    terms = tell((), bought("small", 0), JUNE_MS, JUNE_MS, "stripe")
    for place in range(400):
        at_ms = hour_ms(1) + place * HOUR_MS + random.randrange(HOUR_MS)
        terms = tell(terms, bought(random.choice(("small", "team")), place % 7), at_ms, at_ms, "stripe")
        folded = fold(terms, at_ms, lambda ms: ms - (ms - JUNE_MS) % (30 * DAY_MS))
        assert len(folded) <= 256
        if folded != terms:
            assert hours_of(folded, 0, 500) == hours_of(terms, 0, 500)
        terms = folded


def test_rows_of_more_than_400_days_become_one() -> None:
    terms = tell((), bought("small", 0), JUNE_MS - DAY_MS, JUNE_MS, "stripe")
    for day in range(500):
        at_ms = JUNE_MS + day * DAY_MS
        terms = tell(terms, bought("small", day % 2), at_ms, at_ms, "stripe")
        terms = fold(terms, at_ms, lambda ms: ms)
    assert len(terms) <= 256
    first, *_ = terms
    assert (first.since_ms, dict(first.facts)[SUBSCRIPTION]) == (EVER_MS, "sub_1")
    by_hand = tell(terms, {PLAN_BY_HAND: "team"}, JUNE_MS, JUNE_MS + 500 * DAY_MS, "operator")
    assert by_hand[-1].since_ms == JUNE_MS  # A layer of its own.
    far = fold(by_hand, JUNE_MS + 2_000 * DAY_MS, lambda ms: ms)
    assert [row.since_ms for row in far] == [EVER_MS]


def test_256_acts_by_hand_leave_what_is_sold() -> None:
    """The oldest rows gave way, and with them the sold plan: a paid month included less."""
    state = with_terms(CustomerState(), sold("team"), CATALOG, JUNE_MS, told_ms=JUNE_MS, source="app")
    for hour in range(1, 301):
        state = tells(state, {"plan": "small" if hour % 2 else None}, hour)
    assert len(state.terms) <= 256
    assert included(state, 301) == GIVES["team"]
    # Of whole periods as well: what was in force at the end of each is known.
    for day in range(30, 430):
        state = tells(state, {"plan": "small"}, 24 * day)
        state = tells(state, {"plan": None}, 24 * day + 1)
    assert included(state, 24 * 430) == GIVES["team"]


@pytest.mark.parametrize("heard", [0, 96])
def test_a_report_ends_what_was_set_by_hand_before_it(heard: int) -> None:
    """A change of the tenth that was heard of on the fourteenth took back a gift of the twelfth."""
    state = with_terms(CustomerState(), sold("small"), CATALOG, JUNE_MS, told_ms=JUNE_MS, source="app")
    assert state.subscription is not None
    gift, changed = replace(state, plan="free"), replace(state.subscription, plan="team")
    if not heard:
        state = with_terms(
            state,
            with_subscription(state, changed),
            CATALOG,
            hour_ms(240),
            told_ms=hour_ms(240),
            source="app",
        )
        gift = replace(state, plan="free")
    state = with_terms(state, gift, CATALOG, hour_ms(288), told_ms=hour_ms(288), source="operator")
    if heard:
        after = with_subscription(state, changed)
        assert after.plan is None
        told_ms = hour_ms(240 + heard)
        state = with_terms(state, after, CATALOG, hour_ms(240), told_ms=told_ms, source="app")
    assert (state.plan, included(state, 400)) == ("free", GIVES["free"])
    back = with_terms(
        state, replace(state, plan=None), CATALOG, hour_ms(500), told_ms=hour_ms(500), source="operator"
    )
    assert included(back, 501) == ceil((GIVES["small"] * 240 + GIVES["team"] * 480) / HOURS)


def test_a_plan_set_after_an_end_that_nobody_heard_of_counts() -> None:
    ending = sold("team")
    assert ending.subscription is not None
    ending = replace(ending, subscription=replace(ending.subscription, cancel_at_ms=hour_ms(100)))
    state = with_terms(CustomerState(), ending, CATALOG, JUNE_MS, told_ms=JUNE_MS, source="app")
    state = tells(state, {"plan": "small"}, 102)
    assert included(state, 103) == GIVES["small"]
    assert state.subscription is not None
    ended = replace(state.subscription, status="canceled", ended_at_ms=hour_ms(100))
    after = with_terms(
        state, with_subscription(state, ended), CATALOG, hour_ms(110), told_ms=hour_ms(110), source="app"
    )
    assert (after.plan, included(after, 111)) == ("small", GIVES["small"])


def test_a_trial_before_a_billing_anchor_leaves_a_late_period() -> None:
    """The rest of the month after a trial is charged by its part."""
    trial = {"start_ms": hour_ms(9 * 24), "end_ms": hour_ms(19 * 24), "trial_end_ms": hour_ms(19 * 24)}
    begun = {"created_ms": hour_ms(9 * 24), "anchor_ms": END, "status": "trialing", "plan": "small"}
    state = CustomerState(subscription=subscription(**trial, **begun))
    state = with_terms(CustomerState(), state, CATALOG, hour_ms(216), told_ms=hour_ms(216), source="app")
    assert included(state, 217) == GIVES["small"]
    assert included(state, 19 * 24 + 1) == ceil(GIVES["small"] * 11 / 30)
    assert included(state, 30 * 24 + 1) == GIVES["small"]


@pytest.mark.parametrize(
    "kept",
    [
        ["x", 2, "stripe", [["sold.plan", "pro"]]],
        [None, 2, "stripe", [["sold.plan", "pro"]]],
        [1, 2, "stripe", [["sold.plan", 5]]],
        [1, 2, "stripe", [["sold.addons", 5]]],
        [1, 2, "stripe", [["sold.plan"]]],
    ],
)
def test_damaged_rows_are_refused_when_they_are_read(kept: list[Any]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - Also of unpacking.
        Row.of(kept)


def test_facts_of_a_newer_release_are_left_out() -> None:
    row = Row.of([1, 2, "stripe", [["sold.plan", "pro"], ["sold.newer", 5]], "more"])
    assert row == Row(1, 2, "stripe", ((PLAN, "pro"),))
    assert fold((row, row._replace(since_ms=3)), JUNE_MS, lambda ms: ms)


def test_add_ons_beside_an_override_have_their_share_on_any_plan() -> None:
    """Over a plan without a limit they counted whole."""
    for plan in ("team", "endless"):
        own = replace(sold(plan), overrides={"calls": {"included": 500}})
        state = with_terms(CustomerState(), own, CATALOG, JUNE_MS, told_ms=JUNE_MS, source="app")
        assert included(state, 1) == 500
        state = tells(state, {"sold": (plan, 2)}, HOURS // 2)
        assert included(state, HOURS // 2) == 500 + 70, plan


def test_a_paused_trial_that_is_resumed_takes_no_share() -> None:
    """Nothing is charged by the second: the days of the pause were taken out of a paid period."""
    paused = sold("team")
    assert paused.subscription is not None
    paused = replace(paused, subscription=replace(paused.subscription, status="paused"))
    state = with_terms(CustomerState(), paused, CATALOG, JUNE_MS, told_ms=JUNE_MS, source="app")
    resumed = replace(state, subscription=sold("team").subscription)
    state = with_terms(state, resumed, CATALOG, hour_ms(120), told_ms=hour_ms(120), source="app")
    assert included(state, 121) == GIVES["team"]


PRICED, DEARER = ((ItemPrice("calls", "api_calls", label),) for label in ("1/3", "1/5"))
RENAMED: Final = (PRICED[0]._replace(meter="requests"),)
ITEM, OTHER_ITEM = "mtr_1=price_1", "mtr_1=price_2"
OF_A_PRICE: Final = {"prices": PRICED, "metered": ITEM}
OF_ANOTHER: Final = {"prices": DEARER, "metered": OTHER_ITEM}
ENDED: Final = {"status": "canceled", "ended_at_ms": hour_ms(100)}


def priced(**changed: Any) -> SubscriptionState:
    times = {"start_ms": START, "end_ms": END, "anchor_ms": START, "created_ms": START}
    return subscription(**(times | {"plan": "team"} | OF_A_PRICE | changed))


def heard_of(*reports: tuple[int, SubscriptionState | None]) -> CustomerState:
    """The state after reports of Stripe's, each heard of at an hour."""
    state = CustomerState()
    for hour, found in reports:
        after = with_subscription(state, found)
        after = with_terms(state, after, CATALOG, hour_ms(hour), told_ms=hour_ms(hour), source="app")
        state = CustomerState.parse(after.dump())
        assert state == after
    return state


NEXT: Final = priced(id="sub_2", created_ms=hour_ms(150), **OF_ANOTHER)


@pytest.mark.parametrize(
    ("reports", "expected"),
    [
        pytest.param([(5, priced())], {-1: (), 0: PRICED, 900: PRICED}, id="since the subscription was made"),
        pytest.param(
            [(5, priced()), (50, priced(**OF_ANOTHER))],
            {0: PRICED, 49: PRICED, 50: DEARER},
            id="of another item, since it was heard of",
        ),
        pytest.param(
            [(5, priced()), (50, priced(prices=RENAMED))],
            {0: RENAMED, 50: RENAMED},
            id="of the same item, with another name of its meter",
        ),
        pytest.param(
            [(5, priced(prices=())), (50, priced())],
            {5: PRICED, 50: PRICED},
            id="of the same item, whose price was not known",
        ),
        pytest.param(
            [(5, priced(metered="")), (50, priced(metered="", prices=DEARER))],
            {0: PRICED, 49: PRICED, 50: DEARER},
            id="of invoice lines",
        ),
        pytest.param(
            [(5, priced(pending_plan="small", pending_at_ms=hour_ms(40))), (50, priced(**OF_ANOTHER))],
            {39: PRICED, 40: DEARER},
            id="of a scheduled change that is heard of late",
        ),
        pytest.param(
            [(5, priced(pending_prices=DEARER, pending_at_ms=hour_ms(40)))],
            {39: PRICED, 40: DEARER},
            id="of a scheduled change that is not heard of",
        ),
        pytest.param(
            [(5, priced()), (110, priced(**ENDED))],
            {0: PRICED, 99: PRICED, 100: ()},
            id="until the subscription ends",
        ),
        pytest.param(
            [(5, priced()), (110, priced(**ENDED)), (160, NEXT), (170, None)],
            {-1: (), 0: PRICED, 99: PRICED, 100: (), 149: (), 150: DEARER, 169: DEARER, 170: ()},
            id="none between two subscriptions and after them",
        ),
        pytest.param(
            [(120, priced(**ENDED)), (160, NEXT)],
            {-1: (), 0: PRICED, 99: PRICED, 100: (), 149: (), 150: DEARER},
            id="of one that had ended when it was heard of",
        ),
        pytest.param(
            [(5, priced(status="incomplete")), (50, priced())],
            {-1: (), 0: PRICED, 50: PRICED},
            id="of one that is paid for later",
        ),
    ],
)
def test_prices_of_the_past(
    reports: list[tuple[int, SubscriptionState | None]], expected: dict[int, ItemPrices]
) -> None:
    state = heard_of(*reports)
    assert {hour: state.prices_at(hour_ms(hour)) for hour in expected} == expected


def test_prices_are_stored_once() -> None:
    many = tuple(ItemPrice(f"meter {nth}", f"event {nth}", f"1/{nth}") for nth in range(50))
    sold = [priced(prices=prices, metered=item) for prices, item in ((many, ITEM), (DEARER, OTHER_ITEM))]
    sizes = [len(heard_of(*((5 + nth, sold[nth % 2]) for nth in range(turns))).dump()) for turns in (2, 12)]
    assert sizes[1] - sizes[0] <= 10 * 120
    assert len(heard_of((5, priced())).dump()) <= 400


def test_beyond_256_rows_the_latest_24_prices_stay() -> None:
    old = priced(created_ms=hour_ms(-500 * 24))
    state = heard_of((-500 * 24, old), (-450 * 24, replace(old, plan="small")))
    for place in range(400):
        of = priced(plan=("small", "team")[place % 2], **(OF_A_PRICE, OF_ANOTHER)[place % 2])
        after, at_ms = with_subscription(state, of), hour_ms(place)
        state = with_terms(state, after, CATALOG, at_ms, told_ms=at_ms, source="app")
    assert len(state.terms) <= 256
    latest = {hour: (PRICED, DEARER)[hour % 2] for hour in range(376, 400)}
    assert {hour: state.prices_at(hour_ms(hour)) for hour in latest} == latest
    assert state.prices_at(hour_ms(1)) == PRICED
    assert included(state, 400) == ceil((200 * GIVES["small"] + 520 * GIVES["team"]) / HOURS)


BY_LINES: Final = """
schema: 1
currency: [usd, eur]
default_plan: free
billing: {usage: lines}
meters: {calls: {unit: call, stripe: {event_name: api_calls}}}
plans:
  free:
    price: {amount_cents: {usd: 0, eur: 0}, interval: month}
    meters: {calls: {included: 0, overage: deny}}
  top:
    price: {amount_cents: {usd: 100, eur: 100}, interval: month}
    meters: {calls: {included: 1, overage: {bill: {per: 1, amount_cents: {usd: 3, eur: 4}}}}}
"""
EDITED: Final = BY_LINES.replace("usd: 3, eur: 4", "usd: 5, eur: 6")


@pytest.mark.parametrize(
    ("acts", "expected"),
    [
        pytest.param([], {0: "", 1: "1/3", 9: "1/3"}, id="those of the plans file when it is set"),
        pytest.param([{"plan": None}], {1: "1/3", 2: ""}, id="until it is taken back"),
        pytest.param([{"plan": None}, {"plan": "top"}], {1: "1/3", 2: "", 3: "1/5"}, id="set again"),
        pytest.param([{"plan": "free"}], {1: "1/3", 2: ""}, id="until another one is set"),
        pytest.param(
            [{"status": "canceled"}, {"status": None}], {1: "1/3", 3: "1/3"}, id="through a status by hand"
        ),
        pytest.param([{"currency": "eur"}], {1: "1/3", 2: "1/6"}, id="in another currency the file's"),
    ],
)
def test_prices_of_a_plan_set_by_hand(acts: list[dict[str, Any]], expected: dict[int, str]) -> None:
    state, catalogs = CustomerState(), [loads(BY_LINES), *[loads(EDITED)] * 2]
    for hour, (act, catalog) in enumerate(zip([{"plan": "top"}, *acts], catalogs, strict=False), 1):
        at_ms, after = hour_ms(hour), replace(state, **act)
        state = with_terms(state, after, catalog, at_ms, told_ms=at_ms, source="operator")
        assert CustomerState.parse(state.dump()) == state
    found = {hour: [one.label for one in state.prices_on("top", hour_ms(hour))] for hour in expected}
    assert found == {hour: [label] if label else [] for hour, label in expected.items()}


def test_a_report_of_the_past_keeps_prices_set_since() -> None:
    before, edited = loads(BY_LINES), loads(EDITED)
    state = with_terms(CustomerState(), sold("free"), before, JUNE_MS, told_ms=JUNE_MS, source="app")
    gift, at_ms = replace(state, plan="top"), hour_ms(20)
    state = with_terms(state, gift, before, at_ms, told_ms=at_ms, source="operator")
    after = with_subscription(state, sold("top").subscription)
    assert after.plan is None
    state = with_terms(state, after, edited, hour_ms(10), told_ms=hour_ms(30), source="app")
    assert (state.plan, [one.label for one in state.prices_on("top", hour_ms(31))]) == ("top", ["1/3"])


def test_folding_keeps_how_usage_is_billed() -> None:
    terms = tell((), {SUBSCRIPTION: "sub_1", PLAN: "small"}, hour_ms(0), hour_ms(0), "stripe")
    for nth in range(1, 300):
        terms = tell(terms, {PLAN_BY_HAND: ("team", None)[nth % 2]}, hour_ms(nth), hour_ms(nth), "app")
    for name, value, hour in ((LINES, True, 9), (FREE, "pause", 40), (FREE, None, 90), (LINES, False, 200)):
        terms = append_usage_fact(terms, name, value, hour_ms(hour), hour_ms(299))
    folded = fold(terms, hour_ms(300), lambda _: JUNE_MS)
    assert len(folded) < 10
    assert [fact_spans(folded, name) for name in (LINES, FREE)] == [
        fact_spans(terms, name) for name in (LINES, FREE)
    ]
    assert CustomerState.parse(CustomerState(terms=folded).dump()).terms == folded
    # What is long over is in force from ever.
    late = fold(terms, hour_ms(50) + 400 * DAY_MS, lambda _: JUNE_MS)
    assert [(span.from_ms, span.value) for span in fact_spans(late, FREE)] == [
        (EVER_MS, "pause"),
        (hour_ms(90), None),
    ]


OF_NOW: Final = {
    *(
        "plan",
        "status",
        "status_since_ms",
        "stripe_customer",
        "anchor_ms",
        "overrides",
        "granted",
        "currency",
    ),
    *("asked_plan", "asked_ms", "subscription", "minutes_taken_ms"),
}
"""Fields of a state that say what holds, or is asked for, now."""
OF_THE_PAST: Final = {"terms", "former_starts_ms"}
SHOWN_NOW: Final = {
    *(
        "id",
        "status",
        "plan",
        "seats",
        "covered_seats",
        "addons",
        "start_ms",
        "end_ms",
        "anchor_ms",
        "failures",
    ),
    *(
        "usage_start_ms",
        "usage_end_ms",
        "failed_at_ms",
        "created_ms",
        "ended_at_ms",
        "never_began",
        "mark",
        "mrr",
    ),
    *("awaits_payment_method", "metered", "prices", "by_lines", "base_price", "seat_price", "addon_prices"),
    *("currency", "trial_start_ms"),
}
"""Fields of a subscription as Stripe shows it."""
SCHEDULED: Final = {
    *(
        "cancel_at_ms",
        "cancel_at_period_end",
        "trial_end_ms",
        "trial_end_action",
        "void_from_ms",
        "void_until_ms",
    ),
    *(f"pending_{what}" for what in ("plan", "seats", "addons", "at_ms", "prices", "lines_ms")),
}


def test_the_past_of_a_customer_is_in_its_terms() -> None:
    """Where the periods before began is all that is left beside the rows."""
    assert {one.name for one in fields(CustomerState)} == OF_NOW | OF_THE_PAST
    assert {one.name for one in fields(SubscriptionState)} == SHOWN_NOW | SCHEDULED | {"former_start_ms"}
