"""The close of a period and its invoices: their lines, drafts that are held, what is missing. Pure tables."""

# Internals: pure tables of periods, drafts and invoice lines.

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pytest

from drivers.delivery import NOW
from drivers.kept_intents import NOW_MS, PERIOD_MS, Counted, ObjectsAtStripe, keep, subscription
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.catalog.model_prices import PriceRows
from meterkit.catalog.models import Overage
from meterkit.customers.history import LinkSpan
from meterkit.decisions.customer_state import CustomerState
from meterkit.decisions.keys import Keys, concurrency_field, job_digest, meter_token
from meterkit.decisions.periods import from_ms
from meterkit.decisions.price_segments import (
    PriceSegment,
    billed_labels,
    ended_labels,
    ended_marks,
    is_same_price,
    is_split,
    label_of,
    overage_cents,
    segments_of,
    sent_label,
    sent_price,
    sent_segments,
    unit_amount_decimal,
)
from meterkit.decisions.subscription import SubscriptionState
from meterkit.delivery.invoices import (
    MADE_WITHIN_MS,
    InvoicedUnits,
    InvoiceReader,
    LineCharge,
    PeriodBilling,
    is_renewal_of,
    join_invoiced,
    read_period_billing,
    read_price_terms,
)
from meterkit.delivery.late_usage_withdrawal import format_late_usage
from meterkit.delivery.pending_lines import bill_pending_lines
from meterkit.delivery.period_closer import HELD, DraftHold, PeriodCloser, _describe_hold
from meterkit.delivery.reconcile_findings import EventBooks, advice_on_event
from meterkit.delivery.reconciler import Reconciler
from meterkit.delivery.stripe_books import StripeBooks
from meterkit.delivery.sync_before_delivery import WAITED_MS, SyncBeforeDelivery
from meterkit.delivery.usage_invoices import AFTER_THE_END_MS
from meterkit.errors import StripeError, StripeUnavailableError
from meterkit.outbox.close_queue import CloseQueue, InvoiceEnd, PeriodClose, finalized_ms
from meterkit.outbox.meters_or_lines import LINE_KEY, USAGE_KEY
from meterkit.outbox.sealer import LateUsage
from meterkit.store.store import Store
from meterkit.stripe.request import ENDED_HERE
from meterkit.testing import Clock

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog import Entitlement

pytestmark = pytest.mark.anyio

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS
JUNE_MS: Final = PERIOD_MS
JULY: Final = datetime(2031, 7, 1, tzinfo=UTC)
JULY_MS: Final = int(JULY.timestamp() * 1000)
MINUTE: Final = timedelta(minutes=1)
SECOND: Final = timedelta(seconds=1)


# When the closer looks at a close again, and when it reports one: by the second.


@pytest.mark.parametrize(
    "instants",
    [
        {
            11 * MINUTE: (1, 0),
            16 * MINUTE - SECOND: (0, 0),
            16 * MINUTE: (1, 0),
            45 * MINUTE - SECOND: (1, 0),
            50 * MINUTE - SECOND: (0, 1),
            110 * MINUTE - 2 * SECOND: (0, 0),
            110 * MINUTE - SECOND: (1, 0),
        },
        {45 * MINUTE: (0, 1)},
    ],
)
async def test_a_close_is_checked_each_5_minutes_told_after_45(
    kit: MeterKit, clock: Clock, instants: dict[timedelta, tuple[int, int]]
) -> None:
    """Acme's June, which Stripe does not confirm."""
    await kit.record("acme", "requests", 2)
    closes = CloseQueue(kit.store, await kit.store.admin())
    await closes.note(0, {PeriodClose(shard=0, customer="acme", end_ms=JULY_MS).member: JULY_MS})
    closer = PeriodCloser(kit.store, lambda: ObjectsAtStripe({"/v1/billing/meters": 401}))
    for after, found in instants.items():
        clock.set(JULY + after)
        looked = await closer.confirm_due()
        assert (looked.confirmed, looked.open, len(looked.late)) == (0, *found), after


async def test_closes_are_checked_about_once_a_minute(kit: MeterKit, monkeypatch: pytest.MonkeyPatch) -> None:
    waits, looks = list[float](), list[PeriodCloser]()

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async def look(closer: PeriodCloser) -> None:
        looks.append(closer)
        if len(looks) == 2:
            raise asyncio.CancelledError

    monkeypatch.setattr("meterkit.delivery.period_closer.asyncio.sleep", sleep)
    monkeypatch.setattr(PeriodCloser, "run_once", look)
    with pytest.raises(asyncio.CancelledError):
        await PeriodCloser(kit.store, lambda: ObjectsAtStripe({})).run()
    monkeypatch.undo()
    assert [48 <= seconds <= 72 for seconds in waits] == [True, True]


# How long a draft is held.


def test_the_end_of_a_draft_is_named_while_it_is_one() -> None:
    ends = [InvoiceEnd(held_ms=PERIOD_MS + held_ms) for held_ms in (-1, 0, 1)]
    assert [bool(_describe_hold(end, PERIOD_MS)) for end in ends] == [False, False, True]


END_S: Final = 1_900_000_020  # A whole minute.
HOUR_S: Final = 3_600
HOLD_S: Final = 24 * HOUR_S
ALONE: Final[dict[str, Any]] = {"auto_advance": False, "automatically_finalizes_at": None}


def draft(**fields: Any) -> dict[str, Any]:
    made = {"id": "in_1", "status": "draft", "billing_reason": "subscription_cycle", "created": END_S}
    ends = {"period_end": END_S, "auto_advance": True, "automatically_finalizes_at": END_S + HOUR_S}
    return {**made, "subscription": "sub_1", **ends, **fields}


async def settled(
    invoice: dict[str, Any], passed_s: int, *, hold_s: int = HOLD_S, **how: bool
) -> tuple[InvoiceEnd, list[tuple[str, dict[str, Any]]]]:
    """Settle an invoice some time after the period's end: how it ends, and the calls to Stripe."""
    now_s = END_S + passed_s
    final = {"status": "open", "status_transitions": {"finalized_at": now_s}}
    ended = {"cancellation_details": {"comment": ENDED_HERE}}
    stripe = ObjectsAtStripe({"/v1/invoices/in_1/finalize": final, "/v1/subscriptions/sub_1": ended})
    hold = DraftHold(stripe, hold_invoice_ms=hold_s * 1000, now_ms=now_s * 1000 + 999)
    billing = PeriodBilling("sub_1", None, END_S * 1000, is_last=how.get("is_last", False))
    end = await hold.settle([invoice], billing, is_counted=how.get("is_counted", False))
    assert end is not None
    return end, [(asked.path.removeprefix("/v1/invoices/"), dict(asked.params)) for asked in stripe.written]


async def test_a_draft_is_held_where_stripe_would_finalize_it_earlier() -> None:
    for hold_s in (HOUR_S - 1, HOUR_S, HOUR_S + 1, HOLD_S):
        end, asked = await settled(draft(), 60, hold_s=hold_s)
        assert end.held_ms == (END_S + max(hold_s, HOUR_S)) * 1000
        params = {"automatically_finalizes_at": END_S + hold_s, "metadata": {HELD: str(END_S + HOUR_S)}}
        assert asked == ([("in_1", params)] if hold_s > HOUR_S else [])


async def test_stripe_is_asked_for_no_instant_within_a_minute() -> None:
    for left_s, is_asked in ((60, False), (61, True)):
        soon = draft(automatically_finalizes_at=END_S + HOLD_S - left_s - 1)
        end, asked = await settled(soon, HOLD_S - left_s)
        assert (end.held_ms == (END_S + HOLD_S) * 1000, len(asked)) == (is_asked, int(is_asked))


async def test_a_hold_is_given_back_while_stripes_own_time_is_to_come() -> None:
    held = draft(automatically_finalizes_at=END_S + HOLD_S, metadata={HELD: str(END_S + HOUR_S)})
    for left_s in (61, 60, -1):
        end, ((path, _),) = await settled(held, HOUR_S - left_s, is_counted=True)
        back, final = InvoiceEnd(held_ms=(END_S + HOUR_S) * 1000), (END_S + HOUR_S - left_s) * 1000
        expected = ("in_1", back) if left_s > 60 else ("in_1/finalize", InvoiceEnd(final_ms=final))
        assert (path, end) == expected


@pytest.mark.parametrize(("passed_s", "final_s"), [(2 * HOUR_S - 1, None), (2 * HOUR_S, END_S)])
async def test_a_last_invoice_is_awaited_for_two_hours(passed_s: int, final_s: int | None) -> None:
    hold = DraftHold(ObjectsAtStripe({}), hold_invoice_ms=0, now_ms=1000 * (END_S + passed_s))
    end = await hold.settle([], PeriodBilling("sub_1", None, 1000 * END_S, is_last=True), is_counted=True)
    assert end == (None if final_s is None else InvoiceEnd(final_ms=1000 * final_s))


async def test_the_last_invoice_of_an_ended_subscription_is_final() -> None:
    for passed_s, is_counted, hold_s, held_s in (
        (HOUR_S - 1, True, HOLD_S, HOLD_S),
        (HOUR_S, True, HOLD_S, None),
        (HOUR_S, False, HOLD_S, HOLD_S),
        (HOLD_S, False, HOLD_S, None),
        # An hour at least, as Stripe's own.
        (600, False, 600, HOUR_S),
        (HOUR_S, False, 600, None),
    ):
        end, asked = await settled(
            draft(**ALONE), passed_s, hold_s=hold_s, is_counted=is_counted, is_last=True
        )
        paths = [path for path, _ in asked]
        if held_s is None:
            assert (end, paths) == (InvoiceEnd(final_ms=(END_S + passed_s) * 1000), ["in_1/finalize"])
        else:
            assert (end, paths) == (InvoiceEnd(held_ms=(END_S + held_s) * 1000, is_ours=True), [])


SOLD: Final = subscription(metered="requests=price_1")


STATES: Final = {
    "sold": CustomerState(subscription=SOLD).dump(),
    "flat": CustomerState(subscription=replace(SOLD, metered="")).dump(),
    "ended": CustomerState(subscription=replace(SOLD, status="canceled", ended_at_ms=PERIOD_MS)).dump(),
    "damaged": "{",
    "odd": '"no object"',
}


@pytest.fixture
async def store(kit: MeterKit) -> Store:
    admin = await kit.store.admin()
    for name, data in STATES.items():
        await admin.ask(admin.client.hset(kit.store.keys.customer(name).state, mapping={"data": data}))
    return kit.store


async def test_metered_customers_are_checked_each_two_minutes(store: Store, clock: Clock) -> None:
    looked = list[str]()

    async def look(customer: str) -> None:
        looked.append(customer)

    first, names = SyncBeforeDelivery(store, look), [*STATES, "nobody"]
    assert first.without_recent_sync(names) == names
    assert (await first.sync_customers(names), looked) == (set(), ["sold"])
    assert first.without_recent_sync([*names, "another"]) == ["another"]
    clock.set(NOW + timedelta(milliseconds=WAITED_MS - 1_000))
    assert first.without_recent_sync(names) == []
    clock.set(NOW + timedelta(milliseconds=WAITED_MS))
    assert first.without_recent_sync(names) == names


async def test_whom_stripe_does_not_answer_for_stays_unseen(store: Store) -> None:
    async def look(_: str) -> None:
        raise StripeUnavailableError("no answer")

    first = SyncBeforeDelivery(store, look)
    assert await first.sync_customers(["sold", "flat"]) == {"sold"}
    assert first.without_recent_sync(["sold", "flat"]) == ["sold"]
    assert SyncBeforeDelivery(store, None).without_recent_sync(["sold"]) == []  # There is no way to look.


# Books against Stripe's: what waits and is parked, and which subscription's invoice has a period.


subscribed: Final = partial(subscription, id="sub_new")
NEW: Final = subscribed(created_ms=NOW_MS - HOUR_MS, start_ms=NOW_MS - HOUR_MS)
"""It began within the compared period."""


async def test_what_is_parked_is_compared_where_a_repair_is_asked_for(kit: MeterKit) -> None:
    await keep(kit, "one", 5, first=NOW_MS - 30 * HOUR_MS)
    reconciler = Reconciler(kit.store, lambda: ObjectsAtStripe({}))
    for repair in (False, True):
        await reconciler("acme", repair=repair)
        (intent,) = await kit.outbox.list()
        # Stripe has no such meter: the comparison will say so.
        assert (intent.state, "no meter with its event name" in intent.why) == ("parked", repair)


async def invoicing(
    kit: MeterKit, stripe: ObjectsAtStripe, known: SubscriptionState | None, at_ms: int
) -> PeriodBilling | None:
    (usage,) = await kit.store.usage_of_many(["acme"], at_ms=at_ms)
    state = CustomerState(stripe_customer="cus_acme", subscription=known)
    return await read_period_billing(kit.store, stripe, usage, state)


async def formerly(kit: MeterKit, *subscriptions: str) -> None:
    """Have acme have had subscriptions before."""
    admin, key = await kit.store.admin(), kit.store.keys.customer("acme").history
    for name in subscriptions:
        entry = json.dumps(["subscription", f"{NOW_MS - HOUR_MS}", name, "another one", "api"])
        await admin.ask(admin.client.rpush(key, entry))


async def test_the_latest_begun_subscription_at_stripe_has_it(kit: MeterKit) -> None:
    await formerly(kit, "sub_1", "sub_2", "sub_3", "sub_gone")
    stripe = ObjectsAtStripe({f"/v1/subscriptions/{name}": {"id": name} for name in ("sub_1", "sub_2")})
    stripe.shown["/v1/subscriptions/sub_3"] = {"id": "sub_3", "start_date": NOW_MS // 1000 - 7_200}
    found = await invoicing(kit, stripe, NEW, NOW_MS)
    assert (found and found.subscription, len(stripe.asked)) == ("sub_2", 3)
    stripe.shown["/v1/subscriptions/sub_gone"] = 500
    with pytest.raises(StripeError):
        await invoicing(kit, stripe, NEW, NOW_MS)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ({}, (JULY_MS, False)),
        ({"start_date": JUNE_MS // 1000}, (JULY_MS, False)),
        ({"start_date": JUNE_MS // 1000 + 1}, None),
        ({"ended_at": NOW_MS // 1000}, (NOW_MS // 1000 * 1000, True)),
        ({"ended_at": JULY_MS // 1000}, (JULY_MS, True)),
        ({"ended_at": JULY_MS // 1000 + 1}, (JULY_MS, False)),
        ({"ended_at": JUNE_MS // 1000}, None),
        ({"trial_end": JUNE_MS // 1000}, (JULY_MS, False)),
        ({"trial_end": JUNE_MS // 1000 + 1}, None),
    ],
)
async def test_an_earlier_subscriptions_usage_is_on_its_invoice(
    kit: MeterKit, shown: dict[str, int], expected: tuple[int, bool] | None
) -> None:
    await formerly(kit, "sub_old")
    stripe = ObjectsAtStripe({"/v1/subscriptions/sub_old": {"id": "sub_old", **shown}})
    found = await invoicing(kit, stripe, NEW, NOW_MS)
    assert found == (expected and PeriodBilling("sub_old", "pro", *expected))


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (None, None),
        (subscribed(), None),  # Its invoice is not made yet.
        (subscribed(start_ms=JUNE_MS - 30 * DAY_MS, end_ms=JUNE_MS + DAY_MS), (JUNE_MS + DAY_MS, False)),
        (subscribed(created_ms=JUNE_MS, status="canceled", ended_at_ms=NOW_MS), (NOW_MS, True)),
        (subscribed(created_ms=JUNE_MS - 90 * DAY_MS, status="canceled", ended_at_ms=NOW_MS), (NOW_MS, True)),
    ],
)
async def test_the_invoice_of_the_subscription_of_now(
    kit: MeterKit, known: SubscriptionState | None, expected: tuple[int, bool] | None
) -> None:
    found = await invoicing(kit, ObjectsAtStripe({}), known, NOW_MS - DAY_MS)
    assert found == (expected and PeriodBilling("sub_new", "pro", *expected))


async def test_the_invoice_of_an_earlier_period_of_a_subscription(kit: MeterKit) -> None:
    known = subscribed(created_ms=JUNE_MS - 90 * DAY_MS)
    found = await invoicing(kit, ObjectsAtStripe({}), known, JUNE_MS - DAY_MS)
    assert found == PeriodBilling("sub_new", "pro", JUNE_MS, is_last=False)


DAY_S: Final = 86_400
START_S: Final = 1_900_000_000
LINES_END_S: Final = START_S + 30 * DAY_S
LINES: Final = "/v1/invoices/in_1/lines"


def line(first_s: int = START_S, last_s: int = LINES_END_S, **fields: Any) -> dict[str, Any]:
    pricing = {"price_details": {"price": "price_1"}, "unit_amount_decimal": "5"}
    span = {"start": first_s, "end": last_s}
    return {"period": span, "quantity": 7, "currency": "usd", "pricing": pricing} | fields


async def invoiced(stripe: ObjectsAtStripe) -> InvoicedUnits:
    return await InvoiceReader(stripe, {}, "usd").invoiced("cus_1", ["mtr_1"], START_S, LINES_END_S)


def stripe_with(*lines: dict[str, Any], **invoice: Any) -> ObjectsAtStripe:
    shown = {"id": "in_1", "status": "paid", "lines": {"data": lines}, **invoice}
    return ObjectsAtStripe({"/v1/invoices": [shown], "/v1/prices/price_1": {"recurring": {"meter": "mtr_1"}}})


async def test_a_line_is_of_the_period_that_its_middle_is_in() -> None:
    for first_s, last_s, state in (
        (START_S, LINES_END_S, "final"),
        # Half of it or more.
        (START_S - 15 * DAY_S, START_S + 15 * DAY_S, "final"),
        (START_S - 15 * DAY_S - 2, START_S + 15 * DAY_S, "none"),
        (LINES_END_S - 15 * DAY_S - 2, LINES_END_S + 15 * DAY_S, "final"),
        (LINES_END_S - 15 * DAY_S, LINES_END_S + 15 * DAY_S, "none"),
        # Of this period still, or of several.
        (START_S, LINES_END_S + DAY_S, "final"),
        (START_S, LINES_END_S + DAY_S + 1, "unknown"),
        (LINES_END_S - 1, LINES_END_S + 40 * DAY_S, "unknown"),
        (LINES_END_S, LINES_END_S + 40 * DAY_S, "none"),
        (START_S - 40 * DAY_S, START_S + 1, "unknown"),
        (START_S - 40 * DAY_S, START_S, "none"),
    ):
        found = await invoiced(stripe_with(line(first_s, last_s)))
        assert (found.state, found.quantity) == (state, Decimal(7 * (state == "final"))), (first_s, last_s)


async def test_what_a_unit_costs_is_known_where_each_line_shows_it() -> None:
    cases: tuple[tuple[dict[str, Any], dict[Fraction, Decimal] | None], ...] = (
        ({}, {Fraction(5): Decimal(7)}),
        ({"currency": "eur"}, None),
        ({"pricing": {"price_details": {"price": "price_1"}, "unit_amount_decimal": None}}, None),
        ({"pricing": {"price_details": {"price": "price_1"}}, "quantity": 0}, {}),
    )
    for fields, prices in cases:
        found = await invoiced(stripe_with(line(**fields)))
        assert (found.prices, found.invoices) == (prices, ["in_1"]), fields


async def test_an_amount_is_known_in_the_currency_of_its_price() -> None:
    for currency, cents in (("usd", 35), ("eur", None)):
        stripe = stripe_with(line(amount=35))
        stripe.shown["/v1/prices/price_1"] = {"recurring": {"meter": "mtr_1"}, "currency": currency}
        found = await invoiced(stripe)
        assert (found.cents, [one.lines for one in found.charges]) == (cents, [1] * (cents is not None)), (
            currency
        )


@pytest.mark.parametrize(
    ("status", "counted", "units"),
    [("paid", 8, (9, "pending")), ("paid", 7, (7, "final")), ("draft", 8, (7, "draft"))],
)
async def test_pending_items_have_what_no_draft_will_have(
    status: str, counted: int, units: tuple[int, str]
) -> None:
    stripe = stripe_with(line(), status=status)
    stripe.shown[LINES] = [line()]
    stripe.shown["/v1/invoiceitems"] = [line(id="ii_1", quantity=2)]
    reader = InvoiceReader(stripe, {}, "usd")
    found = await reader.invoiced("cus_1", ["mtr_1"], START_S, LINES_END_S, counted=counted)
    assert (int(found.quantity), found.state) == units


async def test_missing_lines_of_drafts_and_lists_are_fetched() -> None:
    cut_off = {"data": [line(quantity=1)], "has_more": True}
    cases: tuple[tuple[dict[str, Any], int, str], ...] = (
        ({}, 7, "final"),
        ({"status": "draft"}, 9, "draft"),
        ({"lines": cut_off}, 9, "final"),
    )
    for invoice, quantity, state in cases:
        stripe = stripe_with(line(), **invoice)
        stripe.shown[LINES] = [line(quantity=9)]
        found = await invoiced(stripe)
        assert (int(found.quantity), LINES in stripe.asked, found.state) == (quantity, quantity == 9, state)
        assert stripe.asked["/v1/invoices"] == {"customer": "cus_1", "created": {"gte": START_S}}


@pytest.mark.parametrize(("terms", "units"), [({}, 12), ({"cancel_at_ms": 1_000 * LINES_END_S}, 7)])
async def test_the_next_invoice_has_units_behind_a_shortened_period(
    kit: MeterKit, terms: dict[str, Any], units: int
) -> None:
    start_ms, end_ms = 1_000 * START_S, 1_000 * (LINES_END_S + 200)
    subscribed = subscription(start_ms=start_ms, end_ms=end_ms, created_ms=start_ms, **terms)
    period = {"start": from_ms(start_ms), "end": from_ms(end_ms)}
    usage: Any = {"customer": "acme", "currency": "usd", "period": period}
    state, stripe = CustomerState(stripe_customer="cus_acme", subscription=subscribed), stripe_with(line())
    stripe.shown["/v1/prices/price_1"] = {"recurring": {"meter": "api_requests"}}
    behind = Counted({LINES_END_S // 60 * 60 + 60: 5})
    links = [LinkSpan("cus_acme", START_S, LINES_END_S + 200)]
    books = StripeBooks(kit.store, usage, state, links, behind, InvoiceReader(stripe, {}, "usd"))
    found = await books.invoiced("api_requests", 0)
    assert found is not None
    assert found.quantity == units


def test_f_30q_units_of_several_links_are_joined() -> None:
    first = InvoicedUnits(
        quantity=Decimal(3),
        state="final",
        invoices=["in_1"],
        subscriptions=["sub_1"],
        prices={Fraction(5): Decimal(3)},
    )
    second = replace(
        first, quantity=Decimal(4), state="draft", invoices=["in_2"], prices={Fraction(5): Decimal(4)}
    )
    found = join_invoiced([first, InvoicedUnits(), second])
    assert (int(found.quantity), found.state, found.cents) == (7, "draft", None)
    assert list(found.invoices) == ["in_1", "in_2"]
    assert found.prices == {Fraction(5): Decimal(7)}
    unknown = InvoicedUnits(state="unknown", why="packages")
    assert join_invoiced([first, unknown]) is unknown
    assert join_invoiced([InvoicedUnits(), InvoicedUnits()]).state == "none"


WAITING_LINES: Final = [
    {"id": f"ii_{nth}", "subscription": "sub_1", "currency": "usd", "metadata": {LINE_KEY: f"{nth}"}}
    for nth in range(201)
]


@pytest.mark.parametrize(("passed_ms", "moved"), [(AFTER_THE_END_MS - 1, 0), (AFTER_THE_END_MS, 200)])
async def test_an_invoice_of_its_own_gets_no_more_lines_than_it_takes(
    kit: MeterKit, clock: Clock, passed_ms: int, moved: int
) -> None:
    """Stripe may make the last invoice for ten minutes; one has room for 250 items."""
    clock.set(from_ms(1_000 * LINES_END_S + passed_ms))
    own = {"id": "in_own", "status": "draft", "metadata": {USAGE_KEY: f"{1_000 * LINES_END_S}:acme"}}
    ended = {"id": "sub_1", "status": "canceled", "ended_at": LINES_END_S}
    shown = {"/v1/invoiceitems": WAITING_LINES, "/v1/subscriptions/sub_1": ended, "/v1/invoices": [own]}
    stripe = ObjectsAtStripe(shown)
    assert await bill_pending_lines(kit.store, stripe, "acme", "cus_1") == ""  # More wait.
    lines: list[Any] = [one.params["lines"] for one in stripe.written]
    assert [len(some) for some in lines] == [moved] * bool(moved)
    if moved:
        assert stripe.asked["/v1/invoices"] == {"customer": "cus_1", "created": {"gte": LINES_END_S}}


# What a person must do about an invoice, when it became final, and what becomes of late usage.


MADE_MS: Final = 1_800_000_000_000
FINAL: Final = InvoicedUnits(quantity=Decimal(100), state="final", invoices=["in_1"], subscriptions=["sub_1"])


def advice(invoiced: InvoicedUnits, counted: int, *, after_ms: int = MADE_WITHIN_MS, **more: Any) -> str:
    ours: dict[str, Any] = dict.fromkeys(("parked", "parked_back", "taken_back", "uninvoiced"), 0)
    ours |= {"delivered": counted - more.get("uninvoiced", 0), "recorded": None, "price": ""}
    side = EventBooks(confirmed=counted, invoiced=invoiced, invoice_ms=MADE_MS, **ours | more)
    return advice_on_event(side, "usd", MADE_MS + after_ms)


def test_where_lines_have_what_was_counted_nothing_is_to_be_done() -> None:
    for invoiced, counted, late in (
        (FINAL, 100, 0),
        (FINAL, 120, 20),
        (FINAL, 110, 20),  # Some of what is late has reached the invoice.
        (replace(FINAL, quantity=Decimal(0)), -5, 0),
        (replace(FINAL, state="unknown"), 70, 0),
        (InvoicedUnits(state="none"), 0, 0),
    ):
        assert advice(invoiced, counted, uninvoiced=late) == "", (invoiced, counted)


def test_what_is_missing_by_mistake_is_billed_by_an_invoice_item() -> None:
    assert advice(FINAL, 107, price=" at $0.05 each") == (
        "7 of 107 units that Stripe has counted at $0.05 each are on no invoice (invoice in_1 has 100):"
        " check whether the subscription has the meter's price; if it was removed by mistake, bill them by an"
        " invoice item"
    )
    assert advice(FINAL, 127, uninvoiced=20).startswith("7 of 107 units")
    assert advice(FINAL, 101).startswith("1 of 101 units")
    assert advice(InvoicedUnits(voided={"in_2": Decimal(7)}), 7, after_ms=0) == (
        "7 of 7 units that Stripe has counted are on no invoice (no invoice line has them; in_2 had 7 and is"
        " void): check who voided it, and why"
    )


def test_an_invoice_that_is_not_made_yet_is_waited_for() -> None:
    draft = "the draft in_1 has 100 of 120: Stripe brings it up to date when it becomes final"
    assert advice(replace(FINAL, state="draft"), 120) == draft
    none, early = InvoicedUnits(state="none"), MADE_WITHIN_MS - 1
    words = "7 are on no invoice yet: Stripe makes it within an hour or two"
    assert advice(none, 7, after_ms=early) == words
    assert "(no invoice line has them)" in advice(none, 7)
    assert advice(FINAL, 107, after_ms=0).startswith("7 of 107 units")


def test_what_is_too_much_is_credited() -> None:
    assert advice(FINAL, 93) == "in_1 has 100, and Stripe has counted 93: credit 7 units"
    assert advice(FINAL, -3).endswith("counted 0: credit 100 units")
    charged = replace(FINAL, charges=[LineCharge(read_price_terms({"id": "price_1"}), Decimal(100), 40, 1)])
    own_amount = advice(charged, 90, after_ms=0, price=" at $0.05 each", recorded={})
    assert own_amount == "in_1 has 100, and Stripe has counted 90: credit 10 units, $0.40"
    twice = replace(FINAL, subscriptions=["sub_1", "sub_2"], invoices=["in_1", "in_2"])
    assert advice(twice, 50) == (
        "billed twice: in_1, in_2 have 100, and Stripe has counted 50: the subscriptions sub_1, sub_2 bill"
        " the same meter; end one, and credit 50 units"
    )


def test_when_an_invoice_became_final() -> None:
    cases: tuple[tuple[dict[str, Any], int], ...] = (
        ({"status": "draft", "created": 5, "status_transitions": {"finalized_at": 7}}, 0),
        ({"status": "open", "created": 5, "status_transitions": {"finalized_at": 7}}, 7_000),
        ({"status": "void", "status_transitions": {"voided_at": 9}}, 9_000),
        ({"status": "uncollectible", "status_transitions": {"marked_uncollectible_at": 8}}, 8_000),
        ({"status": "void", "status_transitions": {"marked_uncollectible_at": 8, "voided_at": 9}}, 8_000),
        ({"status": "open", "created": 5}, 5_000),
        ({"status": "open"}, 0),
    )
    assert [finalized_ms(invoice) for invoice, _ in cases] == [final_ms for _, final_ms in cases]


def test_what_becomes_of_late_usage_in_words() -> None:
    billed, lost, one = (
        LateUsage(
            customer="ada", meter=meter, quantity=quantity, period="2031-05", is_billed=meter == "tokens"
        )
        for meter, quantity in (("tokens", 5), ("pages", 7), ("rows", 1))
    )
    on_next = "5 of tokens: the invoice of the open period bills it"
    assert format_late_usage([billed]) == on_next
    assert format_late_usage([lost]) == "7 of pages: no invoice bills it"
    assert format_late_usage([lost, billed, one]) == f"{on_next}; 7 of pages, 1 of rows: no invoice bills it"


PARENT: Final = {"type": "subscription_details", "subscription_details": {"subscription": "sub_1"}}
OTHER: Final = PARENT | {"subscription_details": {"subscription": "sub_2"}}
RENEWAL: Final = {"billing_reason": "subscription_cycle", "period_end": 7, "parent": PARENT}


def test_the_invoice_of_a_renewal() -> None:
    cases: tuple[tuple[dict[str, Any], bool], ...] = (
        ({}, True),
        ({"billing_reason": "subscription_update"}, False),
        ({"period_end": 8}, False),
        ({"parent": None}, False),
        ({"parent": None, "subscription": "sub_1"}, True),
        ({"parent": OTHER}, False),
    )
    for changed, expected in cases:
        assert is_renewal_of(RENEWAL | changed, "sub_1", 7) == expected, changed


# The price of each unit, by when it was recorded: labels, segments as the store keeps them, and their cost.


PRICED: Final = loads("""
schema: 1
currency: usd
default_plan: free
meters:
  words: {unit: word, stripe: {event_name: api_words}}
  long_words: {unit: word, from: words, where: {model: "*-long*"}, stripe: {event_name: api_long_words}}
  long_free: {unit: word, from: words, where: {model: "*-free*"}}
  pages: {unit: page, stripe: {event_name: api_pages}}
  whole: {unit: page, stripe: {event_name: api_whole, report: usage}}
  calls: {unit: call}
  seats: {unit: seat, kind: gauge}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      words: {included: 9, overage: deny}
      long_words: {included: 9, overage: deny}
      pages: {included: 9, overage: deny}
      whole: {included: 9, overage: deny}
  pro:
    price: {amount_cents: 900, interval: month}
    meters:
      words: {included: 9, overage: {bill: {per: 1000, amount_cents: 12}}}
      pages: {included: 9, overage: {bill: {per: 1, amount_cents: 2}}}
      whole: {included: 9, overage: {bill: {per: 1, amount_cents: 3}}}
""")
FREE: Final = PRICED.plans["free"].entitlements
PRO: Final = PRICED.plans["pro"].entitlements
OWN: Final = replace(
    PRO["long_words"], overage=replace(PRO["long_words"].overage, mode="bill", per=None, amount_cents=5)
)


def test_the_labels_of_prices_are_by_their_plan_and_their_event() -> None:
    """In full: a price ends where one of these labels is another one."""
    sold = {"words": "1000/12", "long_words": "1000/12", "long_free": "0", "pages": "1/2", "whole": "1/3"}
    assert billed_labels(PRO, PRICED) == {meter_token(name): one for name, one in sold.items()} | {
        meter_token("calls"): "0"
    }
    free = {"words": "-", "long_words": "-", "long_free": "0", "pages": "0", "whole": "-", "calls": "0"}
    assert billed_labels(FREE, PRICED) == {meter_token(name): one for name, one in free.items()}
    ended = {name: sold[name] for name in ("words", "long_words", "pages", "whole")}
    assert ended_labels(PRO, FREE, PRICED) == {meter_token(name): one for name, one in ended.items()}
    assert ended_labels(PRO, PRO, PRICED) == ended_labels(PRO, dict(PRO), PRICED) == {}
    assert [name for name in sold if is_split(name, PRICED.meters)] == ["words", "long_words"]
    # A part that Stripe is not sent leaves its source whole.
    for part, expected in (("long_words", True), ("long_free", False)):
        meters = {name: PRICED.meters[name] for name in ("words", part)}
        assert is_split("words", meters) is expected


PRICED_BY_MODEL: Final = PriceRows(default="pages:(default)", models=(), highest="pages:(default)")


@pytest.mark.parametrize(
    ("meter", "overage", "own", "sent"),
    [
        pytest.param("pages", Overage(mode="bill", amount_cents=2), "1/2", "1/2", id="a price of each unit"),
        pytest.param("pages", Overage(mode="bill", per=9, amount_cents=0), "9/0", "9/0", id="a price of 0"),
        pytest.param("pages", Overage(mode="bill"), "-", "-", id="billed, at a price that is not known"),
        pytest.param("pages", Overage(mode="deny", per=1, amount_cents=2), "-", "-", id="a price, denied"),
        pytest.param(
            "pages",
            Overage(mode="bill", per=1, amount_cents=2, rows=PRICED_BY_MODEL),
            "1/2*",
            "1/2*",
            id="priced by model",
        ),
        pytest.param(
            "long_words",
            Overage(mode="deny", per=3, amount_cents=5),
            "-",
            "3/5",
            id="a derived one has the price of its item even where the plan denies",
        ),
        pytest.param("long_words", Overage(mode="bill"), "-", "1000/12", id="else that of its source"),
    ],
)
def test_the_label_of_a_price_in_the_plan_and_as_sent(
    meter: str, overage: Overage, own: str, sent: str
) -> None:
    given = dict(PRO) | {meter: replace(PRO[meter], overage=overage)}
    assert label_of(given[meter]) == own
    assert sent_label(meter, given, PRICED.meters) == sent


@pytest.mark.parametrize(
    ("given", "meter", "label", "priced"),
    [
        pytest.param(PRO, "pages", "1/2", "pages", id="a meter has its own price"),
        pytest.param(
            PRO, "long_words", "1000/12", "words", id="a derived one without a price has its source's"
        ),
        pytest.param(dict(PRO) | {"long_words": OWN}, "long_words", "1/5", "long_words", id="else its own"),
        pytest.param(FREE, "pages", "-", "pages", id="a plan that denies overage has no price"),
        pytest.param(FREE, "long_words", "-", "words", id="nor has it of a derived meter"),
    ],
)
def test_a_unit_that_is_sent_has_the_price_of(
    given: Mapping[str, Entitlement], meter: str, label: str, priced: str
) -> None:
    assert sent_price(meter, given, PRICED.meters) == (label, priced)
    assert sent_label(meter, given, PRICED.meters) == label


@pytest.mark.parametrize(
    ("sold", "unsent", "missed", "expected"),
    [
        pytest.param([], 0, {}, "", id="nothing was sold"),
        pytest.param([("2", 0)], 0, {}, "", id="no unit was sold at a price that has ended"),
        pytest.param([("3", 5)], 0, {}, "", id="the price of now has not ended"),
        pytest.param([("2", 1)], 0, {}, "1/2 1 1;", id="one unit was sold at an ended price"),
        pytest.param([("1/2", 5), ("3", 7), ("2", 4)], 0, {}, "2/1 5 5;1/2 9 9;", id="two prices have ended"),
        pytest.param([("2", 5), ("4", 3)], 2, {}, "1/2 3 5;1/4 6 8;", id="some are not for meters any more"),
        pytest.param(
            [("2", 5), ("4", 3)], 0, {"4": 2}, "1/2 5 5;1/4 6 8;", id="some of the second are missed"
        ),
        pytest.param([("2", 5)], 6, {}, "1/2 0 5;", id="more are not for meters than were sold"),
    ],
)
def test_marks_of_ended_prices_add_up(
    sold: list[tuple[str, int]], unsent: int, missed: dict[str, int], expected: str
) -> None:
    by_price = [(Fraction(cents), units) for cents, units in sold]
    missing = {Fraction(cents): units for cents, units in missed.items()}
    assert ended_marks(by_price, label="1/3", unsent=unsent, missed=missing) == expected


MARKS: Final = "1/2 4 6;1/3 7 9;"


@pytest.mark.parametrize(
    ("marks", "sealed", "overage", "expected"),
    [
        pytest.param("", 0, 0, [("1/5", 0, 0)], id="nothing has happened"),
        pytest.param("", 3, 4, [("1/5", 3, 4)], id="no price has ended"),
        pytest.param(
            MARKS, 7, 9, [("1/2", 4, 6), ("1/3", 3, 3), ("1/5", 0, 0)], id="the last has just begun"
        ),
        pytest.param(MARKS, 8, 11, [("1/2", 4, 6), ("1/3", 3, 3), ("1/5", 1, 2)], id="the last has units"),
        pytest.param(
            MARKS, 6, 8, [("1/2", 4, 6), ("1/3", 2, 2), ("1/5", 0, 0)], id="one less is of the last"
        ),
        pytest.param(MARKS, 3, 1, [("1/2", 3, 1), ("1/3", 0, 0), ("1/5", 0, 0)], id="then of the one before"),
    ],
)
def test_segments_have_what_a_correction_has_left_of_them(
    marks: str, sealed: int, overage: int, expected: list[tuple[str, int, int]]
) -> None:
    assert segments_of(marks, label="1/5", sealed=sealed, overage=overage) == expected


def test_sent_units_are_those_of_items_then_those_of_meters() -> None:
    assert sent_segments("1/2 4 6;", "1/7 2;1/9 1;", label="1/5", sent=10) == [
        ("1/7", 0, 2), ("1/9", 0, 1), ("1/2", 0, 4), ("1/5", 0, 3),
    ]  # fmt: skip
    assert sent_segments("", label="1/5", sent=0) == [("1/5", 0, 0)]


@pytest.mark.parametrize(
    ("segments", "expected"),
    [
        pytest.param([], 0, id="no segment"),
        pytest.param([("1/2", 3)], 6, id="one price"),
        pytest.param([("1/2", 3), ("1/5", 1)], 11, id="two prices"),
        pytest.param([("2/1", 1), ("2/1", 1)], 2, id="each segment is rounded as its line is"),
        pytest.param([("1/2", 3), ("-", 0)], 6, id="a price that is not known has no units"),
        pytest.param([("1/2", 3), ("-", 1)], None, id="a price that is not known has a unit"),
        pytest.param([("-", 0)], None, id="no segment has a price"),
        pytest.param([("1/2", 0)], 0, id="no unit"),
        pytest.param([("0", 9), ("1/2", 1)], 2, id="what is not billed costs nothing"),
        pytest.param([("1/2*", 9), ("1/3", 1)], 3, id="what is counted by model costs nothing here"),
    ],
)
def test_overage_costs_what_its_lines_add_up_to(
    segments: list[tuple[str, int]], expected: int | None
) -> None:
    assert overage_cents([PriceSegment(label, 0, units) for label, units in segments]) == expected


def test_prices_are_the_same_by_their_amount_for_a_unit() -> None:
    pairs = [("1/2", "10/20"), ("1/2*", "1/2"), ("1/2", "1/3"), ("-", "-"), ("1/2", "-"), ("0", "0")]
    assert [is_same_price(*pair) for pair in pairs] == [True, True, False, False, False, False]
    found = [unit_amount_decimal(label) for label in ("3/2", "1000/12", "-", "1/0", "1/200")]
    assert found == [Decimal(text) for text in ("0.666666666666", "0.012", "0", "0", "200")]


def test_a_segment_keeps_what_no_model_has_counted() -> None:
    priced, plain = PriceSegment("1/2*", 1, 5), PriceSegment("1/2", 1, 5)
    assert [priced.outside_rows(8, elsewhere) for elsewhere in (0, 7, 8, 9)] == [
        ("1/2", 1, 8), ("1/2", 1, 1), ("1/2", 1, 0), ("1/2", 1, 0),
    ]  # fmt: skip
    assert plain.outside_rows(8, 2) == ("1/2", 1, 3)


# The names of keys, which a release must find again in the store of the one before. With one shard.


KEYS: Final = Keys("mk", 1)


def test_keys_of_a_customer_have_the_names_that_the_store_has() -> None:
    acme, guest = KEYS.customer("acme"), KEYS.customer("acme", anonymous=True)
    found = (acme.counters, acme.state, acme.grants, acme.objects, acme.dirty, acme.notices)
    assert found == ("mk:{0}:c:acme", "mk:{0}:s:acme", "mk:{0}:g:acme", "mk:{0}:q:acme", "mk:{0}:dirty",
                     "mk:{0}:notices")  # fmt: skip
    assert (guest.counters, guest.levels) == ("mk:{0}:a:acme", "mk:{0}:av:acme")


def test_keys_of_a_shard_have_the_names_that_the_store_has() -> None:
    named = (KEYS.meta, KEYS.producer(0, "p"), KEYS.jobs("acme"), KEYS.correction(0, "d"))
    assert named == ("mk:meta", "mk:{0}:w:p", "mk:{0}:z:acme", "mk:{0}:r:d")
    named = (KEYS.beginning("acme"), KEYS.totals(0, "acme"), KEYS.notices(0), KEYS.shard(0, "outbox"))
    assert named == ("mk:{0}:b:acme", "mk:{0}:t:acme", "mk:{0}:notices", "mk:{0}:outbox")
    assert len(KEYS.event(0, "acme", "e")) == len("mk:{0}:e:") + 32  # 16 bytes, in hexadecimal.
    assert len(job_digest("job_1")) == 32
    assert len(meter_token("words")) == 4
    assert concurrency_field("words") == meter_token("words") + "n"


@pytest.mark.parametrize(("at_ms", "day"), [(2 * DAY_MS - 1, 1), (2 * DAY_MS, 2), (3 * DAY_MS - 1, 2)])
def test_keys_of_a_day_change_at_its_first_millisecond(at_ms: int, day: int) -> None:
    named = (KEYS.delivered(0, at_ms), KEYS.batches(0, at_ms), KEYS.spikes(0, at_ms))
    assert named == (f"mk:{{0}}:delivered:{day}", f"mk:{{0}}:batches:{day}", f"mk:{{0}}:spikes:{day}")
