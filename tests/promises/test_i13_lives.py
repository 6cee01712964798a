"""Random lives of one year: whatever happens, each billed unit is charged once, at the price of its time."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Final

import pytest

from faults.lives import Event, drawn, lived

# One of each mode; with METERKIT_LIVES=500 so many, from 0 on: in each currency, by each rule of changes.
LIVES: Final = range(int(os.environ.get("METERKIT_LIVES", "0"))) or (1,)


@pytest.mark.dear("a year of 100 events")
@pytest.mark.parametrize("seed", LIVES)
def test_i13_a_year_of_a_customer(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    wrong, told = lived(monkeypatch, drawn(seed))
    assert wrong == [], "\n".join(["a life with the events", *told])


LINE_LIVES: Final = range(int(os.environ.get("METERKIT_LIVES", "0"))) or (10,)


@pytest.mark.dear("a year of 100 events")
@pytest.mark.parametrize("seed", LINE_LIVES)
def test_i13_a_year_of_a_customer_with_lines(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    wrong, told = lived(monkeypatch, drawn(seed), usage="lines")
    assert wrong == [], "\n".join(["a life with the events", *told])


STORIES: Final = {
    # No script closes it, as no request comes: its counters must last as long as closed periods do.
    "the last period of a customer who stays away": [
        Event(at=timedelta(), kind="subscribe", what="pro"),
        Event(at=timedelta(days=40), kind="use", what="tokens", number=43),
        Event(at=timedelta(days=300), kind="hooks_twice"),
    ],
    # Its counters go on as those of the month that it began and ended in.
    "a subscription in which nothing is used": [
        Event(at=timedelta(), kind="use", what="pages", number=3),
        Event(at=timedelta(hours=1), kind="subscribe", what="pro"),
        Event(at=timedelta(days=10), kind="cancel_now"),
        Event(at=timedelta(days=11), kind="use", what="pages", number=2),
        Event(at=timedelta(days=12), kind="use", what="pages", number=1),
    ],
    # Its period begins with it, not where the month ended: the books know what a void invoice had.
    "a subscription that is first used when the month is over": [
        Event(at=timedelta(), kind="use", what="calls", number=3),
        Event(at=timedelta(days=9), kind="subscribe", what="max", number=1),
        Event(at=timedelta(days=29), kind="by_hand", what="collection_paused", number=2),
        Event(at=timedelta(days=30), kind="use", what="calls", number=59),
    ],
    # Its usage is on no invoice, and is looked for though nothing was sealed since.
    "a trial that an operator gives while Stripe cannot be asked": [
        Event(at=timedelta(), kind="subscribe", what="pro"),
        Event(at=timedelta(minutes=20), kind="use", what="pages", number=17),
        Event(at=timedelta(days=14), kind="by_hand", what="trial", number=48),
        Event(at=timedelta(days=14, minutes=1), kind="stripe_away", number=49),
        Event(at=timedelta(days=60), kind="hooks_twice"),
    ],
    # The books of the first one have its price, not the one that the plans file has got.
    "a new price, and a new subscription": [
        Event(at=timedelta(), kind="open_shop", what="prorated"),
        Event(at=timedelta(), kind="subscribe", what="pro"),
        Event(at=timedelta(minutes=20), kind="use", what="pages", number=17),
        Event(at=timedelta(days=40), kind="new_prices", what="pro", number=54),
        Event(at=timedelta(days=41), kind="cancel_now"),
        Event(at=timedelta(days=42), kind="subscribe", what="max"),
        Event(at=timedelta(days=90), kind="hooks_twice"),
    ],
    # Stripe has charged them by then: the books of a period in which nothing is left say what to credit.
    "a correction that Stripe does not have when an operator pauses": [
        Event(at=timedelta(), kind="subscribe", what="pro"),
        Event(at=timedelta(minutes=20), kind="use", what="calls", number=56),
        Event(at=timedelta(days=2), kind="correct", what="calls", number=2),
        Event(at=timedelta(days=2, minutes=1), kind="by_hand", what="pause"),
        Event(at=timedelta(days=60), kind="cancel_now", number=1),
    ],
    # Its units are recorded again, as the customer's ledger says: Stripe has charged them by then.
    "a correction that Stripe does not have when an operator changes the plan": [
        Event(at=timedelta(), kind="subscribe", what="pro"),
        Event(at=timedelta(minutes=20), kind="use", what="tokens", number=50),
        Event(at=timedelta(days=2), kind="correct", what="tokens", number=2),
        Event(at=timedelta(days=2, minutes=1), kind="change_at_stripe", what="basic"),
        Event(at=timedelta(days=60), kind="cancel_now", number=1),
    ],
}


LINE_STORIES: Final = {
    # A line has the price that the kit decided by: it had not heard of the change, and said this price.
    "a plan that a person changes just after the kit": [
        Event(at=timedelta(), kind="open_shop", what="prorated", number=1),
        Event(at=timedelta(), kind="subscribe", what="pro"),
        Event(at=timedelta(days=1), kind="use", what="tokens", number=47),
        Event(at=timedelta(days=2), kind="change_plan", what="basic"),
        Event(at=timedelta(days=2, hours=2), kind="change_at_stripe", what="max"),
        Event(at=timedelta(days=2, hours=4), kind="use", what="tokens", number=21),
        Event(at=timedelta(days=60), kind="hooks_twice"),
    ],
}


@pytest.mark.dear("a year with its idle days")
@pytest.mark.parametrize("story", STORIES)
def test_i13_is_not_misled_by(monkeypatch: pytest.MonkeyPatch, story: str) -> None:
    wrong, told = lived(monkeypatch, STORIES[story])
    assert wrong == [], "\n".join(["a life with the events", *told])


@pytest.mark.dear("a year with its idle days")
@pytest.mark.parametrize("story", LINE_STORIES)
def test_i13_lines_are_not_misled_by(monkeypatch: pytest.MonkeyPatch, story: str) -> None:
    wrong, told = lived(monkeypatch, LINE_STORIES[story], usage="lines")
    assert wrong == [], "\n".join(["a life with the events", *told])
