"""What each of Stripe's answers means for an intent."""
# Internals: a pure table of Stripe's answers.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from meterkit.delivery.outcomes import classify
from meterkit.stripe.result import Result

if TYPE_CHECKING:
    from meterkit.delivery.outcomes import Kind

DUPLICATE = "An event already exists with identifier 4f1c."
NO_METER = "Invalid event_name: api_requests. No active meter found with this event name."
OLD = "The event timestamp cannot be more than 35 days in past. Expected a timestamp …"
NO_CUSTOMER = "No such customer: 'c'"
DIGITS = "The value in the event payload can have at most 15 digits. Received 1234567890123456."
OTHER_MODE = "No such customer: 'cus_1'; a similar object exists in live mode, but a test mode key was used."

MISSING = "Missing required param: payload[user_id]"
KEY = "payload[user_id]"
NEW = "The event timestamp cannot be more than 5 minutes in the future. Expected a timestamp …"


def refusal(message: str, *, status: int = 400, **said: Any) -> Result:
    """Stripe's own error envelope, as it comes where a parameter is not what it must be."""
    return Result(status=status, type="invalid_request_error", message=message, **said)


# What happened, and what became of the intent; the last column: whether the next try needs a fresh key.
TABLE: list[tuple[str, Result, Kind, bool]] = [
    ("accepted", Result(status=200), "delivered", False),
    ("accepted earlier", refusal(DUPLICATE, should_retry=False), "duplicate", False),
    ("accepted earlier, v2", Result(status=400, code="duplicate_meter_event"), "duplicate", False),
    ("no connection", Result(failure="not_sent", message="ConnectError"), "not_done", False),
    ("no answer", Result(failure="no_reply", message="ReadTimeout"), "unknown", False),
    ("a 2xx of somebody else", Result(status=200, failure="unreadable"), "unreadable", True),
    ("server error", Result(status=500, type="api_error"), "unknown", True),
    ("key in flight", Result(status=409, code="idempotency_key_in_use"), "not_done", False),
    ("too many calls", Result(status=429, code="rate_limit", should_retry=False), "not_done", False),
    ("Stripe says: again", refusal("lock", should_retry=True), "not_done", False),
    ("key of another request", Result(status=400, type="idempotency_error"), "bug", True),
    ("bad key", Result(status=401, should_retry=True), "systemic", True),
    ("meter unknown or inactive", refusal(NO_METER), "no_meter", True),
    ("meter unknown, v2", Result(status=400, code="no_meter"), "no_meter", True),
    ("test key for live objects", refusal(OTHER_MODE), "systemic", True),
    ("unknown address", refusal("Unrecognized request URL", status=404), "systemic", True),
    ("payment of the account", Result(status=402, type="card_error"), "systemic", True),
    ("an error of the API's own as 400", Result(status=400, type="api_error"), "systemic", True),
    # F-50: what does not come in Stripe's envelope says nothing of the event.
    ("a page of a proxy's", Result(status=400, message="<html>Bad Request"), "systemic", True),
    ("a page that speaks of an identifier", Result(status=400, message=DUPLICATE), "systemic", True),
    ("a gateway's own envelope", Result(status=400, type="bad_request", message="No."), "systemic", True),
    # F-51
    ("too old", refusal(OLD), "timestamp", True),
    ("too new", refusal(NEW), "timestamp", True),
    # F-53
    ("another key, by its param", refusal(MISSING, param=KEY, code="parameter_missing"), "mapping", True),
    ("another key, v2", refusal("No.", code="payload_no_value_defined"), "mapping", True),
    ("too many digits", refusal(DIGITS, param="payload[value]"), "permanent", True),
    ("no customer", refusal(NO_CUSTOMER, code="resource_missing", param="payload[x]"), "permanent", True),
    ("anything else refused", refusal("Invalid integer: x"), "permanent", True),
]  # fmt: skip

STEPS: dict[Kind, tuple[str, bool]] = {
    "delivered": ("acknowledge", False),
    "duplicate": ("acknowledge", False),
    "unknown": ("retry", False),
    "not_done": ("retry", False),
    "bug": ("retry", True),
    "unreadable": ("retry", True),
    "systemic": ("retry", True),
    "no_meter": ("retry", True),
    "timestamp": ("park", True),
    "mapping": ("park", True),
    "permanent": ("dead", True),
}


@pytest.mark.parametrize(
    ("result", "kind", "new_key"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_outcome_table(result: Result, kind: Kind, new_key: bool) -> None:
    outcome = classify(result)
    assert kind == outcome.kind
    assert new_key == outcome.new_key
    assert STEPS[kind] == (outcome.step, outcome.alert)
    assert (kind in {"delivered", "duplicate"}) == outcome.delivered


@pytest.mark.parametrize(
    ("result", "is_refused"),
    [
        (Result(failure="not_sent"), True),
        (refusal("", status=429, code="rate_limit"), True),
        (refusal(OLD), True),
        # The key is in use by another request.
        (refusal("", status=409, code="idempotency_key_in_use"), False),
        (Result(status=200, failure="no_reply"), False),
        (Result(status=500, type="api_error", message=DUPLICATE), False),
        # R4: a gateway may have forwarded the request.
        (Result(status=400, message=OLD), False),
        (Result(status=429, type="bad_request"), False),
    ],
)
def test_only_stripe_or_an_unsent_request_proves_a_refusal(result: Result, is_refused: bool) -> None:
    assert classify(result).refused == is_refused
