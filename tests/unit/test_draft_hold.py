"""When the draft of a renewal is held, given back or finalized: by the second."""

from __future__ import annotations

from typing import Any, Final

import pytest

from drivers.stripe_objects import ObjectsAtStripe
from meterkit.delivery.draft_hold import HELD, DraftHold
from meterkit.outbox.invoice_ends import InvoiceEnd
from meterkit.stripe.request import ENDED_HERE

pytestmark = pytest.mark.anyio

END_S: Final = 1_900_000_020  # A whole minute.
HOUR_S: Final = 3_600
HOLD_S: Final = 24 * HOUR_S
ALONE: Final[dict[str, Any]] = {"auto_advance": False, "automatically_finalizes_at": None}


def draft(**fields: Any) -> dict[str, Any]:
    return {
        "id": "in_1",
        "status": "draft",
        "billing_reason": "subscription_cycle",
        "period_end": END_S,
        "subscription": "sub_1",
        "auto_advance": True,
        "automatically_finalizes_at": END_S + HOUR_S,
        "created": END_S,
        **fields,
    }


async def settled(
    *invoices: dict[str, Any],
    now_s: int,
    is_counted: bool = False,
    is_last: bool = False,
    hold_s: int = HOLD_S,
) -> tuple[InvoiceEnd | None, ObjectsAtStripe]:
    stripe = ObjectsAtStripe({
        "/v1/invoices/in_1/finalize": {
            "status": "open", "status_transitions": {"finalized_at": now_s}
        },
        "/v1/subscriptions/sub_1": {"cancellation_details": {"comment": ENDED_HERE}},
    })  # fmt: skip
    hold = DraftHold(stripe, hold_invoice_ms=hold_s * 1000, now_ms=now_s * 1000 + 999)
    return await hold.settle(invoices, "sub_1", END_S * 1000, is_counted=is_counted, is_last=is_last), stripe


@pytest.mark.parametrize(
    ("hold_s", "is_asked"), [(HOUR_S - 1, False), (HOUR_S, False), (HOUR_S + 1, True), (HOLD_S, True)]
)
async def test_a_draft_is_held_where_stripe_would_finalize_it_earlier(hold_s: int, *, is_asked: bool) -> None:
    end, stripe = await settled(draft(), now_s=END_S + 60, hold_s=hold_s)
    until_s = END_S + (hold_s if is_asked else HOUR_S)
    assert end is not None
    assert (end.held_ms, len(stripe.written)) == (until_s * 1000, int(is_asked))
    if is_asked:
        (asked,) = stripe.written
        assert asked.params == {
            "automatically_finalizes_at": until_s, "metadata": {HELD: str(END_S + HOUR_S)}
        }  # fmt: skip


@pytest.mark.parametrize(("left_s", "is_asked"), [(60, False), (61, True)])
async def test_stripe_is_asked_for_no_instant_within_a_minute(left_s: int, *, is_asked: bool) -> None:
    soon = draft(automatically_finalizes_at=END_S + HOLD_S - left_s - 1)
    end, stripe = await settled(soon, now_s=END_S + HOLD_S - left_s)
    assert end is not None
    assert (end.held_ms == (END_S + HOLD_S) * 1000, len(stripe.written)) == (is_asked, int(is_asked))


async def test_a_hold_that_is_repeated_within_a_minute_is_the_same_request() -> None:
    keys = [(await settled(draft(), now_s=END_S + passed_s))[1].written[0].key for passed_s in (0, 59, 60)]
    assert (keys[0] == keys[1], keys[1] == keys[2]) == (True, False)


@pytest.mark.parametrize(("left_s", "path"), [(61, "in_1"), (60, "in_1/finalize"), (-1, "in_1/finalize")])
async def test_a_hold_is_given_back_while_stripes_own_time_is_to_come(left_s: int, path: str) -> None:
    held = draft(automatically_finalizes_at=END_S + HOLD_S, metadata={HELD: str(END_S + HOUR_S)})
    now_s = END_S + HOUR_S - left_s
    end, stripe = await settled(held, now_s=now_s, is_counted=True)
    (asked,) = stripe.written
    assert asked.path == f"/v1/invoices/{path}"
    expected = InvoiceEnd(held_ms=(END_S + HOUR_S) * 1000)
    assert end == (InvoiceEnd(final_ms=now_s * 1000) if path.endswith("finalize") else expected)


@pytest.mark.parametrize(
    ("passed_s", "is_counted", "hold_s", "held_s"),
    [
        (HOUR_S - 1, True, HOLD_S, HOLD_S),
        (HOUR_S, True, HOLD_S, None),
        (HOUR_S, False, HOLD_S, HOLD_S),
        (HOLD_S, False, HOLD_S, None),
        # An hour at least, as Stripe's own.
        (600, False, 600, HOUR_S),
        (HOUR_S, False, 600, None),
    ],
)
async def test_the_last_invoice_of_a_subscription_that_ended_here_is_finalized(
    passed_s: int, hold_s: int, held_s: int | None, *, is_counted: bool
) -> None:
    now_s = END_S + passed_s
    end, stripe = await settled(
        draft(**ALONE), now_s=now_s, is_counted=is_counted, is_last=True, hold_s=hold_s
    )
    if held_s is None:
        assert end == InvoiceEnd(final_ms=now_s * 1000)
        assert [asked.path for asked in stripe.written] == ["/v1/invoices/in_1/finalize"]
    else:
        assert end == InvoiceEnd(held_ms=(END_S + held_s) * 1000, is_ours=True)
        assert stripe.written == []


@pytest.mark.parametrize(("passed_s", "is_final"), [(2 * HOUR_S - 1, False), (2 * HOUR_S, True)])
async def test_two_hours_after_an_end_no_last_invoice_is_waited_for(passed_s: int, *, is_final: bool) -> None:
    end, _ = await settled(now_s=END_S + passed_s, is_last=True)
    assert end == (InvoiceEnd(final_ms=END_S * 1000) if is_final else None)
