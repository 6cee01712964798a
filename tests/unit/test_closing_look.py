"""What one look at a close says: whether it may wait, and until when its invoice takes up usage."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import pytest

from drivers.kept_intents import PERIOD_MS, kit_alone, subscription
from drivers.stripe_objects import ObjectsAtStripe
from meterkit.decisions.customer_state import CustomerState
from meterkit.delivery.closing import ClosingLook, _held_in_words
from meterkit.delivery.reconciling import Reconciled, Reconciler
from meterkit.outbox.invoice_ends import InvoiceEnd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.delivery.invoices import Invoices
    from meterkit.delivery.summaries import Summaries
    from meterkit.store.customer_usage import CustomerUsage
    from meterkit.store.store import Store

pytestmark = pytest.mark.anyio

DAY_MS: Final = 86_400_000
MAY: Final = datetime(2031, 5, 1, tzinfo=UTC)
JUNE: Final = datetime(2031, 6, 1, tzinfo=UTC)


def reconciled(advice: str, invoice: str) -> Reconciled:
    return Reconciled(
        customer="acme",
        stripe_customer="cus_acme",
        meter="requests",
        event_name="api_requests",
        period_start=MAY,
        period_end=JUNE,
        is_closed=True,
        recorded=5,
        waiting=0,
        parked=0,
        taking_back=0,
        delivered=5,
        confirmed=5,
        difference=0,
        invoiced=5,
        invoice=invoice,
        mispriced=0,
        late=0,
        dead=0,
        advice=advice,
    )


class Found(Reconciler):
    """Books that say what a test says."""

    def __init__(self, store: Store, stripe: ObjectsAtStripe, found: Sequence[Reconciled]) -> None:
        super().__init__(store, lambda: stripe)
        self._found = list(found)

    async def of_customer(
        self, usage: CustomerUsage, summaries: Summaries, invoices: Invoices, *, is_closing: bool = False
    ) -> list[Reconciled]:
        assert (usage["customer"], bool(summaries), bool(invoices), is_closing) == ("acme", True, True, True)
        return self._found


@pytest.mark.parametrize(
    ("found", "may_wait"),
    [
        ([("", "final"), ("see", "draft")], True),
        ([("see", "none"), ("", "draft")], True),
        ([("see", "final"), ("see", "draft")], False),
        ([("see", "unknown"), ("", "final")], False),
        ([], False),
    ],
)
async def test_a_close_may_wait_while_each_meter_agrees_or_its_invoice_may_change(
    found: list[tuple[str, str]], *, may_wait: bool
) -> None:
    async with kit_alone() as kit:
        stripe = ObjectsAtStripe({})
        look = ClosingLook(kit.store, stripe, Found(kit.store, stripe, [reconciled(*one) for one in found]))
        why, may = await look.why_open(await kit.store.usage("acme", at_ms=PERIOD_MS - DAY_MS))
        assert (why.count("see"), may) == (sum(bool(advice) for advice, _ in found), may_wait)


@pytest.mark.parametrize("waiting", [(0, 3), (3, 0), (3, 3)])
async def test_a_close_may_not_wait_where_usage_is_not_counted(waiting: tuple[int, int]) -> None:
    async with kit_alone() as kit:
        stripe = ObjectsAtStripe({})
        found = [replace(reconciled("see", "draft"), waiting=units) for units in waiting]
        look = ClosingLook(kit.store, stripe, Found(kit.store, stripe, found))
        _, may_wait = await look.why_open(await kit.store.usage("acme", at_ms=PERIOD_MS - DAY_MS))
        assert not may_wait


@pytest.mark.parametrize(("held_ms", "is_said"), [(-1, False), (0, False), (1, True)])
def test_until_when_an_invoice_stays_a_draft_is_said_while_it_does(held_ms: int, *, is_said: bool) -> None:
    end = InvoiceEnd(held_ms=PERIOD_MS + held_ms)
    assert bool(_held_in_words(end, PERIOD_MS)) == is_said


async def test_until_when_stripe_keeps_a_draft_is_remembered() -> None:
    async with kit_alone() as kit:
        admin, keys = await kit.store.admin(), kit.store.keys.customer("acme")
        sold = subscription(created_ms=PERIOD_MS - 31 * DAY_MS)
        state = CustomerState(stripe_customer="cus_acme", subscription=sold)
        await admin.ask(admin.client.hset(keys.state, mapping={"data": state.dump()}))
        usage = await kit.store.usage("acme", at_ms=PERIOD_MS - DAY_MS)
        until_s = PERIOD_MS // 1000 + 3_600
        stripe = ObjectsAtStripe({
            "/v1/invoices": [
                {
                    "id": "in_1",
                    "status": "draft",
                    "billing_reason": "subscription_cycle",
                    "period_end": PERIOD_MS // 1000,
                    "subscription": "sub_1",
                    "auto_advance": True,
                    "automatically_finalizes_at": until_s,
                }
            ]
        })  # fmt: skip
        books = Found(kit.store, stripe, [reconciled("", "draft")])
        assert await ClosingLook(kit.store, stripe, books).why_open(usage) == ("", True)
        (kept,) = [
            int(value)
            for name, value in (await admin.ask(admin.client.hgetall(keys.totals))).items()
            if name.endswith(b"|h")
        ]
        assert kept == until_s * 1000


async def test_a_close_waits_for_an_invoice_that_nothing_finalizes_but_us(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def settled(*_: object, is_counted: bool) -> tuple[InvoiceEnd, None]:
        assert is_counted
        return InvoiceEnd(held_ms=PERIOD_MS, is_ours=True), None

    monkeypatch.setattr(ClosingLook, "_settled", settled)
    async with kit_alone() as kit:
        stripe = ObjectsAtStripe({})
        look = ClosingLook(kit.store, stripe, Found(kit.store, stripe, [reconciled("", "draft")]))
        found = await look.why_open(await kit.store.usage("acme", at_ms=PERIOD_MS - DAY_MS))
        assert found == ("its invoice is to be finalized", True)
