"""What goes in one call to Stripe: a customer and meter stay in turn, what takes units back is alone."""

from __future__ import annotations

import pytest

from meterkit.delivery.sending import calls_of
from meterkit.outbox.intents import Attempt, Sealed


def attempt(name: str, value: int) -> Attempt:
    """One whose customer is the first letter of its name."""
    sealed = Sealed(
        identifier=name,
        customer=name[0],
        stripe_customer=f"cus_{name[0]}",
        period="0",
        meter_token="requ",
        event_name="api_requests",
        value=value,
        timestamp=0,
        key=name,
        sealed_ms=0,
        due_ms=0,
    )
    return Attempt(intent=sealed, now_ms=0, first_ms=0, attempts=1)


@pytest.mark.parametrize(
    ("given", "calls"),
    [
        ({"a1": 5, "b1": 5, "c1": 5}, [[["a1", "b1", "c1"]]]),
        ({"a1": 5, "b1": 5, "c1": 5, "d1": 5}, [[["a1", "b1", "c1"]], [["d1"]]]),
        ({"a1": 5, "b1": 5, "b2": 5, "c1": 5, "c2": 5}, [[["a1", "b1", "b2"]], [["c1", "c2"]]]),
        ({"a1": 5, "a2": 5, "a3": 5, "a4": 5, "b1": 5}, [[["a1", "a2", "a3"], ["a4"]], [["b1"]]]),
        # Wherever in its line it comes, and in turn with the others of it.
        ({"a1": -5, "a2": 5, "b1": 5, "c1": 5}, [[["a1"], ["a2"]], [["b1", "c1"]]]),
        ({"a1": 5, "a2": -5, "b1": 5}, [[["a1"], ["a2"]], [["b1"]]]),
        ({"a1": 5, "b1": -5, "c1": 5}, [[["a1", "c1"]], [["b1"]]]),
        ({"a1": -5, "b1": -5, "c1": 5}, [[["a1"]], [["b1"]], [["c1"]]]),
    ],
)
def test_what_goes_in_one_call(given: dict[str, int], calls: list[list[list[str]]]) -> None:
    attempts = [attempt(name, value) for name, value in given.items()]
    found = calls_of(attempts, most=3)
    assert [[[one.intent.identifier for one in call] for call in line] for line in found] == calls
