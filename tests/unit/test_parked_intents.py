"""What becomes of single intents that Stripe may have: recovered, compared, or too late for their invoice."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import pytest

from drivers.delivery import NOW
from drivers.kept_intents import NOW_MS, PERIOD_MS, STAMP_S, keep, kit_alone, subscription
from drivers.stripe_objects import Counted, Rows
from meterkit.decisions.ambiguity import APART_MS, COMPARED_MS
from meterkit.decisions.customer_state import CustomerState
from meterkit.decisions.keys import meter_token
from meterkit.delivery.comparing import Comparer
from meterkit.delivery.late_intents import LateIntents
from meterkit.delivery.recovering import Recoverer
from meterkit.errors import CustomerError, StoreError
from meterkit.outbox.intents import Kept, Sealed, find_kept
from meterkit.outbox.invoice_ends import InvoiceEnd, keep_invoice_end
from meterkit.outbox.journal import JournalRow

if TYPE_CHECKING:
    from meterkit import MeterKit

pytestmark = pytest.mark.anyio

MINUTE_S: Final = 60
AT_S: Final = STAMP_S
GAP: Final = f"{AT_S * 1000}-{(AT_S + 600) * 1000}"


async def left(kit: MeterKit) -> dict[str, tuple[str, int]]:
    """The intents that are not delivered, by identifier."""
    return {one.identifier: (one.state, one.quantity) for one in await kit.outbox.list()}


async def test_i6_the_one_unit_that_stripe_has_is_the_one_of_its_minute() -> None:
    async with kit_alone() as kit:
        await keep(kit, "one", 1, restored=GAP)
        await keep(kit, "two", 1, restored=GAP, time=AT_S + MINUTE_S)
        (done,) = await Recoverer(kit.store, Counted({AT_S + MINUTE_S: 1})).recover()
        assert (done.parked, done.billed, done.sent) == (2, 1, 1)
        assert await left(kit) == {"one": ("queued", 1)}


async def test_i6_what_a_run_has_cut_off_counts_with_what_it_was_cut_from() -> None:
    async with kit_alone() as kit:
        await keep(kit, "one", 5, restored=GAP)
        await keep(kit, "two", 3, restored=GAP, time=AT_S + MINUTE_S, rest=2)
        (done,) = await Recoverer(kit.store, Counted({AT_S + MINUTE_S: 5})).recover()
        assert (done.parked, done.billed, done.sent) == (10, 5, 5)
        assert await left(kit) == {"one": ("queued", 5)}


async def test_i6_the_gap_of_a_line_is_that_of_all_its_intents() -> None:
    async with kit_alone() as kit:
        later = f"{(AT_S + 3_600) * 1000}-{(AT_S + 7_200) * 1000}"
        await keep(kit, "one", 5, restored=GAP)
        await keep(kit, "two", 5, restored=later)
        for minute_s in (AT_S, AT_S + 7_200):
            counted = Counted({minute_s: 4, AT_S - 7_200: -4})
            (done,) = await Recoverer(kit.store, counted).recover(dry_run=True)
            assert (done.unknown, done.billed) == (4, 4)


async def test_i6_what_was_cut_off_is_not_lost_where_the_store_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def gone(*_: object, **__: object) -> bool:
        raise StoreError("the store is away")

    async with kit_alone() as kit:
        await keep(kit, "one", 5, restored=GAP)
        recoverer = Recoverer(kit.store, Counted({AT_S: 3}))
        settle = vars(Recoverer)["_settle_intent"]

        async def once(self: Recoverer, kept: Kept, billed: int, by: str, why: str = "") -> None:
            if not billed:
                await gone()
            await settle(self, kept, billed, by, why)

        monkeypatch.setattr(Recoverer, "_settle_intent", once)
        with pytest.raises(StoreError, match="away"):
            await recoverer.recover()
        monkeypatch.undo()
        (done,) = await recoverer.recover()
        assert (done.parked, done.billed, done.sent) == (5, 3, 2)
        assert [one.quantity for one in await kit.outbox.list()] == [2]


async def test_units_that_the_journal_lacks_are_named_only_where_some_are_billed() -> None:
    async with kit_alone() as kit:
        old = JournalRow("old", "acme", "api_requests", "cus_acme", 60, 1, 60_000)
        for at_stripe, says in ((0, False), (3, True)):
            await keep(kit, "one", 5, restored=GAP)
            recoverer = Recoverer(kit.store, Counted({AT_S: at_stripe}), Rows(old))
            (done,) = await recoverer.recover(dry_run=True)
            assert (done.billed, "3 of the billed units" in done.advice) == (at_stripe, says)


async def test_a_customer_that_cannot_be_is_refused_before_anything_is_settled() -> None:
    async with kit_alone() as kit:
        with pytest.raises(CustomerError):
            await Recoverer(kit.store, Counted({})).recover("")


@pytest.mark.parametrize(
    ("at_stripe", "verdict", "state"), [(0, "replace", "queued"), (4, "person", "parked")]
)
async def test_i6_what_a_restore_has_parked_is_sent_where_stripe_has_nothing_more(
    at_stripe: int, verdict: str, state: str
) -> None:
    async with kit_alone() as kit:
        kept = await keep(kit, "one", 5, restored=GAP)
        comparer = Comparer(kit.store, Counted({AT_S: at_stripe}))
        assert await comparer.compare(kept) == verdict
        assert await left(kit) == {"one": (state, 5)}
        # An intent that changed meanwhile waits for the next comparison.
        assert await comparer.compare(replace(kept, text="as it was before")) == "again"


FIRST: Final[dict[str, Any]] = {"first": NOW_MS - COMPARED_MS - 3_600_000, "looked": NOW_MS - APART_MS}
REBUILT: Final[dict[str, Any]] = {"since": AT_S, "till": AT_S + 4 * MINUTE_S, "together": 9, "base": 20}


def other(value: int) -> Rows:
    """Units that were sent for another Stripe customer."""
    return Rows(JournalRow("other", "acme", "api_requests", "cus_old", AT_S, value, AT_S * 1000))


@pytest.mark.parametrize(
    ("at_stripe", "elsewhere", "look", "verdict"),
    [
        # 29 with the base of 20: all nine are there; none; some.
        (29, 0, 9, "delivered"),
        (20, 0, 0, "replace"),
        (24, 0, 4, "person"),
        # Of the base, six went to another Stripe customer.
        (23, 6, 9, "delivered"),
        (14, 6, 0, "replace"),
    ],
)
async def test_i6_what_was_rebuilt_is_compared_without_what_was_there_before(
    at_stripe: int, elsewhere: int, look: int, verdict: str
) -> None:
    async with kit_alone() as kit:
        kept = await keep(kit, "one", 9, look=look, **FIRST, **REBUILT)
        counted = Counted({AT_S + 3 * MINUTE_S: at_stripe, AT_S + 4 * MINUTE_S: 100})
        assert await Comparer(kit.store, counted, other(elsewhere)).compare(kept) == verdict
        expected = {"delivered": [], "replace": [("queued", 9)], "person": [("parked", 9)]}
        assert list((await left(kit)).values()) == expected[verdict]


async def test_i6_of_an_intent_of_one_minute_nothing_is_counted_that_went_elsewhere() -> None:
    async with kit_alone() as kit:
        kept = await keep(kit, "one", 9, look=9, **FIRST)
        assert await Comparer(kit.store, Counted({AT_S: 9}), other(6)).compare(kept) == "delivered"
        assert await left(kit) == {}


async def subscribe(kit: MeterKit) -> None:
    """Have acme's subscription renewed on the first of the month; the invoice of that is final."""
    admin, keys = await kit.store.admin(), kit.store.keys.customer("acme")
    month_ms = 30 * 86_400_000
    sold = subscription(created_ms=PERIOD_MS - month_ms)
    state = CustomerState(stripe_customer="cus_acme", subscription=sold)
    await admin.ask(admin.client.hset(keys.state, mapping={"data": state.dump()}))
    await keep_invoice_end(kit.store, "acme", PERIOD_MS - month_ms, InvoiceEnd(final_ms=PERIOD_MS + 1))


@pytest.mark.parametrize(
    ("value", "minutes", "expected"),
    [(1, -1, "late"), (9, -1, "late"), (9, 0, "sent"), (-9, -1, "sent")],
)
async def test_usage_whose_invoice_is_final_is_taken_back_and_nothing_else(
    value: int, minutes: int, expected: str
) -> None:
    async with kit_alone() as kit:
        await subscribe(kit)
        stamp_s = PERIOD_MS // 1000 + minutes * MINUTE_S
        period = f"{PERIOD_MS - 30 * 86_400_000}"
        kept = await keep(kit, "one", value, state="queued", time=stamp_s, period=period)
        sealed = Sealed(
            identifier="one",
            customer="acme",
            stripe_customer="cus_acme",
            period=period,
            meter_token=meter_token("requests"),
            event_name="api_requests",
            value=value,
            timestamp=stamp_s,
            key="one",
            sealed_ms=0,
            due_ms=0,
        )
        late = LateIntents(kit.store)
        assert await late.is_late(kept) == (minutes < 0)
        due, withdrawn, parked = await late.divert(0, [sealed])
        is_late = expected == "late"
        assert (due, withdrawn, parked) == ([] if is_late else [sealed], int(is_late), 0)
        assert (await find_kept(kit.store, "one") is None) == is_late


async def test_what_is_compared_and_late_is_pending_again() -> None:
    async with kit_alone() as kit:
        await subscribe(kit)
        fields: dict[str, Any] = {"time": PERIOD_MS // 1000 - MINUTE_S, "period": PERIOD_MS - 30 * 86_400_000}
        late = await keep(kit, "late", 5, look=0, **FIRST, **fields)
        early = await keep(kit, "early", 5, look=0, **FIRST)
        comparer = Comparer(kit.store, Counted({}))
        assert [await comparer.compare(kept) for kept in (late, early)] == ["replace", "replace"]
        ((name, found),) = (await left(kit)).items()
        assert (name not in {"late", "early"}, found) == (True, ("queued", 5))
        assert timedelta(0) <= NOW - (await kit.outbox.list())[0].minute < timedelta(days=1)
