"""What each of Stripe's answers means for an intent."""
# Internals: a pure table of Stripe's answers.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from meterkit.delivery.outcomes import classify
from meterkit.stripe.result import Result

if TYPE_CHECKING:
    from meterkit.delivery.outcomes import Kind
    from meterkit.stripe.result import Failure

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
    ("accepted, another 2xx", Result(status=202), "delivered", False),
    ("accepted earlier", refusal(DUPLICATE, should_retry=False), "duplicate", False),
    ("accepted earlier, v2", Result(status=400, code="duplicate_meter_event"), "duplicate", False),
    ("no connection", Result(failure="not_sent", message="ConnectError"), "not_done", False),
    ("no answer", Result(failure="no_reply", message="ReadTimeout"), "unknown", False),
    ("nothing known at all", Result(), "unknown", False),
    ("a 2xx of somebody else", Result(status=200, failure="unreadable"), "unreadable", True),
    ("server error", Result(status=500, type="api_error"), "unknown", True),
    ("server error, not to be retried", Result(status=500, should_retry=False), "unknown", True),
    ("bad gateway", Result(status=502), "unknown", True),
    ("unavailable", Result(status=503), "unknown", True),
    ("key in flight", Result(status=409, code="idempotency_key_in_use"), "not_done", False),
    ("key in flight, by its type", Result(status=409, type="idempotency_error"), "not_done", False),
    ("too many calls", Result(status=429, code="rate_limit", should_retry=False), "not_done", False),
    ("object locked", Result(status=429, code="lock_timeout"), "not_done", False),
    ("Stripe says: again", refusal("lock", should_retry=True), "not_done", False),
    ("key of another request", Result(status=400, type="idempotency_error"), "bug", True),
    ("bad key", Result(status=401, should_retry=True), "systemic", True),
    ("no permission", Result(status=403), "systemic", True),
    ("meter unknown or inactive", refusal(NO_METER), "no_meter", True),
    ("meter unknown, other words", refusal("No such meter: 'm'"), "no_meter", True),
    ("meter unknown, v2", Result(status=400, code="no_meter"), "no_meter", True),
    ("meter archived, v2", Result(status=400, code="archived_meter"), "no_meter", True),
    ("test key for live objects", refusal(OTHER_MODE), "systemic", True),
    ("unknown version", refusal("Invalid Stripe API version: 1"), "systemic", True),
    ("unknown address", refusal("Unrecognized request URL", status=404), "systemic", True),
    ("redirected by a proxy", Result(status=302), "systemic", True),
    ("payment of the account", Result(status=402, type="card_error"), "systemic", True),
    ("an error of the API's own as 400", Result(status=400, type="api_error"), "systemic", True),
    # F-50: what does not come in Stripe's envelope says nothing of the event.
    ("a page of a proxy's", Result(status=400, message="<html>Bad Request"), "systemic", True),
    ("a page that speaks of an identifier", Result(status=400, message=DUPLICATE), "systemic", True),
    ("a page that speaks of a customer", Result(status=404, message=NO_CUSTOMER), "systemic", True),
    ("a gateway's own envelope", Result(status=400, type="bad_request", message="No."), "systemic", True),
    # F-51
    ("too old", refusal(OLD), "timestamp", True),
    ("too new", refusal(NEW), "timestamp", True),
    ("some other timestamp", refusal("No.", param="timestamp"), "timestamp", True),
    # F-53
    ("another key, by its param", refusal(MISSING, param=KEY, code="parameter_missing"), "mapping", True),
    ("another key, in other words", refusal("The payload has no `user`."), "mapping", True),
    ("another key, v2", refusal("No.", code="payload_no_value_defined"), "mapping", True),
    ("too many digits", refusal(DIGITS, param="payload[value]"), "permanent", True),
    ("no customer", refusal(NO_CUSTOMER, code="resource_missing", param="payload[x]"), "permanent", True),
    ("no customer, as 404", refusal(NO_CUSTOMER, status=404), "permanent", True),
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


def test_every_kind_is_in_the_table() -> None:
    assert set(STEPS) == {row[2] for row in TABLE}


@pytest.mark.parametrize("status", [200, 299, 300, 399, 400, 499, 500, 599])
def test_only_a_2xx_is_a_delivery(status: int) -> None:
    assert (status < 300) == classify(Result(status=status)).delivered


@pytest.mark.parametrize("status", [500, 501, 503, 599])
def test_no_5xx_ends_an_intent(status: int) -> None:
    outcome = classify(Result(status=status, type="api_error", message=DUPLICATE))
    assert (outcome.kind, outcome.refused) == ("unknown", False)


@pytest.mark.parametrize("failure", ["no_reply", "unreadable"])
def test_a_lost_answer_is_unknown_even_with_a_status(failure: Failure) -> None:
    outcome = classify(Result(status=200, failure=failure))
    assert (outcome.step, outcome.refused) == ("retry", False)


NOT_SENT = Result(failure="not_sent")
TOO_MANY = Result(status=429, type="invalid_request_error", code="rate_limit")
REVOKED = Result(status=401, type="invalid_request_error")
IN_FLIGHT = Result(status=409, type="invalid_request_error", code="idempotency_key_in_use")


@pytest.mark.parametrize("result", [NOT_SENT, TOO_MANY, REVOKED, refusal(NO_METER), refusal(OLD)])
def test_only_stripe_or_an_unsent_request_proves_a_refusal(result: Result) -> None:
    assert classify(result).refused


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 407, 408, 409, 413, 429, 451, 500])
@pytest.mark.parametrize("error_type", [None, "bad_request"])
def test_a_foreign_answer_may_hide_a_forwarded_request(status: int, error_type: str | None) -> None:
    # R4: the first attempt was forgotten at each try, and nothing was parked.
    assert not classify(Result(status=status, type=error_type, message=OLD)).refused


@pytest.mark.parametrize(
    "result",
    [
        IN_FLIGHT,
        Result(status=409, type="idempotency_error"),
        Result(status=400, type="idempotency_error"),
    ],
)
def test_a_key_in_flight_tells_of_another_request(result: Result) -> None:
    assert not classify(result).refused


def test_detail_tells_what_was_answered() -> None:
    result = Result(status=400, type="invalid_request_error", code="x", message="No.", request_id="req_1")
    outcome = classify(result)
    assert outcome.detail == "HTTP 400 invalid_request_error x: No."
    assert outcome.request_id == "req_1"


@pytest.mark.parametrize("key", ["sk_test_4242", "rk_live_51H", "sk_live_********abcd", "whsec_abc/+="])
def test_detail_holds_no_key(key: str) -> None:
    detail = classify(Result(status=401, message=f"Invalid API Key provided: {key}")).detail
    assert detail.startswith("HTTP 401: Invalid API Key provided: ")
    assert key[key.index("_") + 1 : -2] not in detail
