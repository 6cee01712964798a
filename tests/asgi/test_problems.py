"""Problem documents and limit fields of all refusals: pure tables."""

# Internals: pure tables of fields and bodies.

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, get_args
from uuid import UUID

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from drivers.sampled import few_examples
from meterkit.asgi.limit_fields import format_fields, limit_field, merge_headers, policy_field
from meterkit.asgi.refusal_responses import REFUSAL_TYPES, Denial, ProblemContext, problem
from meterkit.catalog.models import Headers
from meterkit.decisions.decision import Decision, Policy, Reason, SpendLevel
from meterkit.fastapi import responses

INSTANCE = UUID("6f2c1f0e-8a55-4c39-9d7a-2f1f6a1f0c11")
NOW_S = 1_800_000_000
IANA = "https://iana.org/assignments/http-problem-types#"
URN = "urn:meterkit:problem:"
REGISTERED = {"quota-exceeded", "temporary-reduced-capacity"}


def policy(name: str, quota: int, window_s: int | None = None, unit: str | None = None) -> Policy:
    kind: Any = name.rpartition("-")[2] if window_s is None else "rate"
    return Policy(name=name, meter="requests", kind=kind, quota=quota, window_s=window_s, quota_unit=unit)


RATE = policy("requests-1h", 100, 3600)
BUDGET = policy("spend-1d", 100, 86_400, "cents")
PERIOD = policy("requests-period", 1000)
CONCURRENCY = policy("requests-concurrency", 4, None, "concurrent-requests")
PLAN = ProblemContext(policies=(RATE, PERIOD, CONCURRENCY))
NOWHERE = ProblemContext()


def denied(reason: Reason, limit: str | None = None, **extra: Any) -> Decision:
    values: dict[str, Any] = {"violated": () if limit is None else (limit,)} | extra
    return Decision(allowed=False, reason=reason, limit=limit, **values)


def told(decision: Decision, circumstances: ProblemContext = NOWHERE) -> Denial:
    return problem(decision, circumstances, mode="ietf", now_ms=NOW_S * 1000, instance=INSTANCE)


# One row per line of the table of refusals: what is decided.
BOTH = (RATE.name, PERIOD.name)
DAY = timedelta(days=1)
PORTAL = "https://example.com/billing"
SPENT, UNSPENT = SpendLevel(limit_cents=100, spent_cents=90), SpendLevel(limit_cents=100, spent_cents=0)
EXCEEDED = SpendLevel(limit_cents=100, spent_cents=280)
UNENTITLED = ProblemContext(feature="full_ai", plan="free", available_in=("pro", "enterprise"))
WAITING = timedelta(hours=9)
DECIDED: Mapping[str, tuple[Decision, ProblemContext]] = {
    "a rate": (denied("rate", "requests-1h", remaining=0, retry_after=timedelta(seconds=22.001)), PLAN),
    "concurrency": (denied("concurrency", "requests-concurrency", remaining=0), PLAN),
    "included": (
        denied(
            "included", PERIOD.name, remaining=0, retry_after=11 * DAY + timedelta(hours=2), violated=BOTH
        ),
        PLAN,
    ),
    "a cap that waiting does not lift": (denied("cap", PERIOD.name, remaining=3, reset_after=DAY), PLAN),
    "suspended": (denied("suspended"), ProblemContext(portal_url=PORTAL)),
    "a payment is required": (denied("payment_required"), NOWHERE),
    "credits": (denied("credits", retry_after=timedelta(seconds=5)), NOWHERE),
    "a budget": (
        denied("spend", BUDGET.name, remaining=10, retry_after=WAITING, reset_after=WAITING, spend=SPENT),
        ProblemContext(policies=(BUDGET,), currency="usd"),
    ),
    "a budget that was exceeded": (
        denied("spend", "spend-period", spend=EXCEEDED),
        ProblemContext(currency="jpy"),
    ),
    "more than a budget": (denied("spend", "spend-period", spend=UNSPENT), ProblemContext(currency="jpy")),
    "a feature": (denied("feature"), UNENTITLED),
    "seats": (denied("seats"), ProblemContext(limit=3, used=3)),
    "storage": (denied("storage"), ProblemContext(limit=5_000_000, used=4_999_000, requested=5000)),
    "no customer": (denied("anonymous"), ProblemContext(challenge='ApiKey realm="x"')),
    "an invalid customer": (denied("invalid_customer"), NOWHERE),
    "a request in flight": (denied("in_flight"), NOWHERE),
    "an identify that failed": (denied("identify"), NOWHERE),
    "the store": (denied("store", retry_after=timedelta(seconds=5)), NOWHERE),
}
# What the client gets: status and type, the detail, further members, and fields.
TOLD: Mapping[str, tuple[str, str, tuple[dict[str, Any], dict[str, str]]]] = yaml.safe_load("""
a rate:
- 429 quota-exceeded
- Policy "requests-1h" allows 100 requests per hour. Retry in 23 seconds.
- [{violated-policies: [requests-1h]}, {ratelimit: '"requests-1h";r=0;t=23', retry-after: "23"}]
concurrency:
- 429 quota-exceeded
- Policy "requests-concurrency" allows 4 requests at a time. Retry in 1 second.
- [{violated-policies: [requests-concurrency]},
   {ratelimit: '"requests-concurrency";r=0;t=1', retry-after: "1"}]
included:
- 429 quota-exceeded
- Policy "requests-period" allows 1000 requests in this billing period. Retry in 12 days.
- [{violated-policies: [requests-1h, requests-period]},
   {ratelimit: '"requests-period";r=0;t=957600', retry-after: "957600", x-should-retry: "false"}]
a cap that waiting does not lift:
- 429 quota-exceeded
- 'Policy "requests-period" allows 1000 requests in this billing period.
  Waiting does not help: ask for less at once, or choose a plan with more.'
- [{violated-policies: [requests-period]},
   {ratelimit: '"requests-period";r=3;t=86400', x-should-retry: "false"}]
suspended:
- 402 payment-required
- This account is suspended until its payments are settled. Pay at https://example.com/billing to continue.
- [{reason: suspended, portal_url: "https://example.com/billing"}, {x-should-retry: "false"}]
a payment is required:
- 402 payment-required
- This request needs a payment. Pay to continue.
- [{reason: payment_required}, {x-should-retry: "false"}]
credits:
- 402 payment-required
- The remaining prepaid credits and grants do not cover this request. Buy more to continue.
- [{reason: credits}, {x-should-retry: "false"}]
a budget:
- 402 spend-limit-reached
- This account may spend $1.00 per day; $0.90 is spent or reserved by requests in progress.
  More can be spent in 9 hours.
- [{limit_cents: 100, spent_cents: 90, currency: usd, reset_after_s: 32400},
   {ratelimit: '"spend-1d";r=10;t=32400', x-should-retry: "false"}]
a budget that was exceeded:
- 402 spend-limit-reached
- 'This account may spend ¥100 per billing period; ¥280 is spent or reserved
  by requests in progress. This request may cost more than that: ask for less.'
- [{limit_cents: 100, spent_cents: 280, currency: jpy}, {x-should-retry: "false"}]
more than a budget:
- 402 spend-limit-reached
- 'This account may spend ¥100 per billing period; ¥0 is spent or reserved
  by requests in progress. This request may cost more than that: ask for less.'
- [{limit_cents: 100, spent_cents: 0, currency: jpy}, {x-should-retry: "false"}]
a feature:
- 403 feature-not-in-plan
- The plan 'free' does not include the feature 'full_ai'. It is available in 'pro', 'enterprise'.
- [{feature: full_ai, plan: free, available_in: [pro, enterprise]}, {x-should-retry: "false"}]
seats:
- 403 seats-limit-exceeded
- 'This plan allows 3 seats; in use: 3. Free a seat or choose a plan with more.'
- [{limit: 3, used: 3}, {x-should-retry: "false"}]
storage:
- 413 storage-limit-exceeded
- 'This plan allows 5000000 bytes; in use: 4999000, requested: 5000.
  Delete something or choose a plan with more.'
- [{limit: 5000000, used: 4999000, requested: 5000}, {x-should-retry: "false"}]
no customer:
- 401 customer-unknown
- This request does not say which customer it belongs to. Send valid credentials.
- [{}, {x-should-retry: "false", www-authenticate: 'ApiKey realm="x"'}]
an invalid customer:
- 400 customer-invalid
- The customer id of this request is not valid.
  Allowed is a text of 1 to 256 bytes of UTF-8 without control characters.
- [{}, {x-should-retry: "false"}]
a request in flight:
- 409 request-in-flight
- The first request with this idempotency key has not ended yet. Retry in 1 second.
- [{}, {retry-after: "1"}]
an identify that failed:
- 503 temporary-reduced-capacity
- The customer of this request could not be determined; the request was not served. Retry in 1 second.
- [{}, {retry-after: "1"}]
the store:
- 503 temporary-reduced-capacity
- Limits cannot be checked at the moment; the request was not served. Retry in 5 seconds.
- [{}, {retry-after: "5"}]
""")


@pytest.mark.parametrize("row", DECIDED)
def test_every_refusal_is_told_exactly(row: str) -> None:
    decision, circumstances = DECIDED[row]
    heading, detail, (members, headers) = TOLD[row]
    status, kind = int(heading[:3]), f"{IANA if heading[4:] in REGISTERED else URN}{heading[4:]}"
    denial = told(decision, circumstances)
    title = re.split("[:#]", kind)[-1].replace("-", " ").title()
    common = {"type": kind, "title": title, "status": status, "detail": detail, "instance": INSTANCE.urn}
    assert common | members == json.loads(denial.body)
    assert status == denial.status
    always = {"content-type": "application/problem+json", "cache-control": "no-store"}
    if circumstances.policies:
        always["ratelimit-policy"] = policy_field(circumstances.policies).decode()
    found = {name.decode(): value.decode() for name, value in denial.headers}
    assert always | headers | {"content-length": str(len(denial.body))} == found


def test_every_reason_is_told() -> None:
    assert set(REFUSAL_TYPES) == set(get_args(Reason))
    assert {decision.reason for decision, _ in DECIDED.values()} == {*get_args(Reason)}


@pytest.mark.parametrize(
    ("wait_s", "retry_after", "should_retry", "words"),
    [
        (0, b"1", None, "Retry in 1 second."),
        (1.000_001, b"2", None, "Retry in 2 seconds."),
        (59, b"59", None, "Retry in 59 seconds."),
        (59.000_001, b"60", b"false", "Retry in 60 seconds."),
        (120, b"120", b"false", "Retry in 2 minutes."),
        (121, b"121", b"false", "Retry in 3 minutes."),
        (7_199, b"7199", b"false", "Retry in 120 minutes."),
        (7_200, b"7200", b"false", "Retry in 2 hours."),
        (172_801, b"172801", b"false", "Retry in 3 days."),
        (None, None, b"false", "or choose a plan with more."),
    ],
)
def test_waiting_is_told_in_whole_seconds_rounded_up(
    wait_s: float | None, retry_after: bytes | None, should_retry: bytes | None, words: str
) -> None:
    wait = None if wait_s is None else timedelta(seconds=wait_s)
    denial = told(denied("rate", "requests-1h", remaining=0, retry_after=wait), PLAN)
    headers = dict(denial.headers)
    assert json.loads(denial.body)["detail"].endswith(words)
    assert (retry_after, should_retry) == (headers.get(b"retry-after"), headers.get(b"x-should-retry"))


@pytest.mark.parametrize(
    ("window_s", "unit", "quota", "words"),
    [
        (1, None, 1, "1 request per second"),
        (90, None, 5, "5 requests per 90 seconds"),
        (5400, "token", 2, "2 tokens per 90 minutes"),
        (86_400, "credits", 2, "2 credits per day"),
        (2_592_000, None, 2, "2 requests per 30 days"),
    ],
)
def test_a_window_in_words_is_exact(window_s: int, unit: str | None, quota: int, words: str) -> None:
    policy = replace(RATE, window_s=window_s, quota_unit=unit, quota=quota)
    detail = json.loads(told(denied("rate", RATE.name), ProblemContext(policies=(policy,))).body)["detail"]
    assert detail.startswith(f'Policy "requests-1h" allows {words}. ')


@pytest.mark.parametrize(
    ("cors", "expected"),
    [
        ((), [None, None, None]),
        (("https://other.example",), [None, None, None]),
        (("https://app.example",), [b"https://app.example", b"true", b"Origin"]),
        (("*",), [b"*", None, None]),
    ],
)
def test_another_origin_may_read_a_refusal(cors: tuple[str, ...], expected: list[bytes | None]) -> None:
    headers = dict(told(denied("store"), ProblemContext(origin=b"https://app.example", cors=cors)).headers)
    names = (b"access-control-allow-origin", b"access-control-allow-credentials", b"vary")
    assert expected == [headers.get(name) for name in names]
    assert headers[b"access-control-expose-headers"] == b"retry-after"


OURS = [(b"ratelimit-policy", b'"a";q=1'), (b"ratelimit", b'"a";r=1')]

names = st.sampled_from(
    [b"ratelimit", b"RateLimit", b"RATELIMIT-POLICY", b"x-a", b"Access-Control-Expose-Headers", b""]
)
pairs = st.lists(st.tuples(names, st.binary(max_size=20)), max_size=8)


def test_a_policy_field_lists_quota_unit_and_window() -> None:
    tokens = policy("output_tokens-5h", 200_000, 18_000, "token")
    assert policy_field([policy("requests-3s", 5, 3), PERIOD, tokens, CONCURRENCY]) == (
        b'"requests-3s";q=5;w=3, "requests-period";q=1000, '
        b'"output_tokens-5h";q=200000;qu="token";w=18000, '
        b'"requests-concurrency";q=4;qu="concurrent-requests"'
    )
    assert policy_field([]) == b""


@pytest.mark.parametrize(
    ("remaining", "reset_s", "value"),
    [
        (50, 30, b'"requests-1m";r=50;t=30'),
        (7, None, b'"requests-1m";r=7'),
        (-1, -1, b'"requests-1m";r=0;t=0'),
        (10**15, 10**16, b'"requests-1m";r=999999999999999;t=999999999999999'),
    ],
)
def test_a_limit_field_holds_at_most_15_digits(remaining: int, reset_s: int | None, value: bytes) -> None:
    assert value == limit_field("requests-1m", remaining, reset_s)
    assert limit_field('a"b\\c', 1, None) == b'"a\\"b\\\\c";r=1'


IETF = [(b"ratelimit-policy", b'"a";q=1'), (b"ratelimit", b'"a";r=4;t=2')]
X_FIELDS = [(b"x-ratelimit-limit", b"9"), (b"x-ratelimit-remaining", b"4")]
X_FIELDS.append((b"x-ratelimit-reset", b"1800000002"))


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("none", []), ("ietf", IETF), ("x-ratelimit", X_FIELDS), ("both", [*IETF, *X_FIELDS])],
)
def test_the_mode_chooses_the_fields(mode: Headers, expected: list[tuple[bytes, bytes]]) -> None:
    given: Any = {"policies": b'"a";q=1', "limit": policy("a", 9, 3), "remaining": 4, "reset_s": 2}
    assert expected == format_fields(mode, **given, reset_at_s=1_800_000_002)


def test_a_request_at_the_reset_is_admitted() -> None:
    """The instant was up to a second early: 0.2 s after 10.9 s is not 11 s."""
    wait = timedelta(milliseconds=200)
    for retry_after in (wait, None):
        decision = denied("rate", RATE.name, remaining=0, retry_after=retry_after, reset_after=wait)
        denial = problem(decision, PLAN, mode="both", now_ms=10_900, instance=INSTANCE)
        assert dict(denial.headers)[b"x-ratelimit-reset"] == b"12"
        assert dict(denial.headers)[b"ratelimit"] == b'"requests-1h";r=0;t=1'


def test_what_is_not_known_is_left_out() -> None:
    nothing: dict[str, Any] = {
        "policies": b"",
        "limit": None,
        "remaining": None,
        "reset_s": None,
        "reset_at_s": None,
    }
    assert format_fields("both", **dict[str, Any](nothing, policies=b'"a";q=1')) == IETF[:1]
    assert format_fields("both", **nothing) == []
    found = format_fields("both", **dict[str, Any](nothing, limit=policy("a", 9), remaining=4))
    assert found == [(b"ratelimit", b'"a";r=4'), *X_FIELDS[:2]]


@pytest.mark.parametrize(
    "strange",
    [[("ratelimit", "text")], [(None, None)], [()], [3], [(b"Access-Control-Expose-Headers", None)]],
)
def test_strange_headers_are_passed_on_as_they_are(strange: list[Any]) -> None:
    before = list(strange)
    merged = merge_headers(strange, OURS, expose=True)
    assert merged[: len(before)] == before == strange
    assert merged[-2:] == OURS
    assert merge_headers(iter([(b"a", b"b")]), OURS, expose=False) == [(b"a", b"b"), *OURS]


def test_a_list_of_exposed_fields_is_extended_in_its_place() -> None:
    listed = b"access-control-expose-headers"
    app = [(listed.title(), b"X-One,  RateLimit"), (b"a", b"b"), (listed, b"X-Two")]
    expected = [(listed, b"X-One, RateLimit, X-Two, ratelimit-policy"), (b"a", b"b"), *OURS]
    assert merge_headers(app, OURS, expose=True) == expected


@few_examples(30)
@given(pairs, st.booleans())
def test_ours_come_once_and_all_else_keeps_its_order(app: list[tuple[bytes, bytes]], expose: bool) -> None:
    merged = merge_headers(app, OURS, expose=expose)
    ours, listed = {b"ratelimit", b"ratelimit-policy"}, b"access-control-expose-headers"
    assert [pair for pair in merged if pair[0].lower() in ours] == OURS
    left_out = ours | {listed}
    kept = [pair for pair in merged if pair[0].lower() not in left_out]
    assert kept == [pair for pair in app if pair[0].lower() not in left_out]
    if expose:
        assert [name.lower() for name, _ in merged].count(listed) == 1
        shown = next(value for name, value in merged if name.lower() == listed).lower()
        assert ours <= {token.strip() for token in shown.split(b",")}


@pytest.mark.parametrize("reason", get_args(Reason))
def test_every_refusal_is_as_the_document_says(reason: Reason) -> None:
    for portal in (None, "https://pay.example"):
        context = ProblemContext(portal_url=portal, feature="full", plan="free", available_in=("pro",))
        decision = Decision(allowed=False, reason=reason, violated=("requests-1h",))
        denial = problem(decision, context, mode="ietf", now_ms=0, instance=UUID(int=7))
        assert denial.status == REFUSAL_TYPES[reason].problem.status
        described, document = responses[denial.status], json.loads(denial.body)
        schema: dict[str, Any] = described["content"]["application/problem+json"]["schema"]
        jsonschema.validate(document, schema, Draft202012Validator)
        for kind in schema.get("oneOf", [schema]):
            if kind["properties"]["type"]["const"] == document["type"]:
                assert document.keys() - kind["properties"].keys() == set()
        named = {name.lower() for name in described.get("headers", {})}
        has = {name.decode() for name, _ in denial.headers}
        assert {"retry-after", "www-authenticate"} & (has - named) == set()
