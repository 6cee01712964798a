from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, get_args
from uuid import UUID

import pytest

from meterkit.asgi.problems import TYPES, Denial, ProblemContext, problem, send_denial
from meterkit.decisions.decision import Decision, Policy, Reason, SpendLevel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import Message

    from meterkit.catalog.models import Headers

INSTANCE = UUID("6f2c1f0e-8a55-4c39-9d7a-2f1f6a1f0c11")
NOW_S = 1_800_000_000
IANA = "https://iana.org/assignments/http-problem-types#"
URN = "urn:meterkit:problem:"

RATE = Policy(name="requests-1h", meter="requests", kind="rate", quota=100, window_s=3600, quota_unit=None)
BUDGET = Policy(name="spend-1d", meter="spend", kind="rate", quota=100, window_s=86_400, quota_unit="cents")
PERIOD = Policy(
    name="requests-period", meter="requests", kind="period", quota=1000, window_s=None, quota_unit=None
)
CONCURRENCY = Policy(
    name="requests-concurrency",
    meter="requests",
    kind="concurrency",
    quota=4,
    window_s=None,
    quota_unit="concurrent-requests",
)
TOKENS = Policy(
    name="output_tokens-5h",
    meter="output_tokens",
    kind="rate",
    quota=200_000,
    window_s=18_000,
    quota_unit="token",
)
TOLD = (
    b'"requests-1h";q=100;w=3600, "requests-period";q=1000, '
    b'"requests-concurrency";q=4;qu="concurrent-requests"'
)
PLAN = ProblemContext(policies=(RATE, PERIOD, CONCURRENCY))
NOWHERE = ProblemContext()


def denied(reason: Reason, limit: str | None = None, **extra: Any) -> Decision:
    values: dict[str, Any] = {"violated": () if limit is None else (limit,)} | extra
    return Decision(allowed=False, reason=reason, limit=limit, **values)


def told(decision: Decision, circumstances: ProblemContext = NOWHERE, mode: Headers = "ietf") -> Denial:
    return problem(decision, circumstances, mode=mode, now_s=NOW_S, instance=INSTANCE)


# One row per line of the table of refusals: what is decided, and all that the client gets.
GOLDEN: Mapping[str, tuple[Decision, ProblemContext, int, dict[str, Any], list[tuple[bytes, bytes]]]] = {
    "a rate": (
        denied(
            "rate",
            "requests-1h",
            remaining=0,
            retry_after=timedelta(seconds=22.001),
            reset_after=timedelta(hours=1),
        ),
        PLAN,
        429,
        {
            "type": f"{IANA}quota-exceeded",
            "title": "Quota Exceeded",
            "detail": 'Policy "requests-1h" allows 100 requests per hour. Retry in 23 seconds.',
            "violated-policies": ["requests-1h"],
        },
        [
            (b"ratelimit-policy", TOLD),
            (b"ratelimit", b'"requests-1h";r=0;t=23'),
            (b"retry-after", b"23"),
        ],
    ),
    "a rate of tokens": (
        denied("rate", "output_tokens-5h", remaining=12, retry_after=timedelta(hours=3)),
        ProblemContext(policies=(TOKENS,)),
        429,
        {
            "type": f"{IANA}quota-exceeded",
            "title": "Quota Exceeded",
            "detail": 'Policy "output_tokens-5h" allows 200000 tokens per 5 hours. Retry in 3 hours.',
            "violated-policies": ["output_tokens-5h"],
        },
        [
            (b"ratelimit-policy", b'"output_tokens-5h";q=200000;qu="token";w=18000'),
            (b"ratelimit", b'"output_tokens-5h";r=12;t=10800'),
            (b"retry-after", b"10800"),
            (b"x-should-retry", b"false"),
        ],
    ),
    "concurrency": (
        denied("concurrency", "requests-concurrency", remaining=0),
        PLAN,
        429,
        {
            "type": f"{IANA}quota-exceeded",
            "title": "Quota Exceeded",
            "detail": 'Policy "requests-concurrency" allows 4 requests at a time. Retry in 1 second.',
            "violated-policies": ["requests-concurrency"],
        },
        [
            (b"ratelimit-policy", TOLD),
            (b"ratelimit", b'"requests-concurrency";r=0;t=1'),
            (b"retry-after", b"1"),
        ],
    ),
    "included": (
        denied(
            "included",
            "requests-period",
            remaining=0,
            retry_after=timedelta(days=11, hours=2),
            violated=("requests-1h", "requests-period"),
        ),
        PLAN,
        429,
        {
            "type": f"{IANA}quota-exceeded",
            "title": "Quota Exceeded",
            "detail": 'Policy "requests-period" allows 1000 requests per billing period. Retry in 12 days.',
            "violated-policies": ["requests-1h", "requests-period"],
        },
        [
            (b"ratelimit-policy", TOLD),
            (b"ratelimit", b'"requests-period";r=0;t=957600'),
            (b"retry-after", b"957600"),
            (b"x-should-retry", b"false"),
        ],
    ),
    "a cap that waiting does not lift": (
        denied("cap", "requests-period", remaining=3, reset_after=timedelta(days=1)),
        PLAN,
        429,
        {
            "type": f"{IANA}quota-exceeded",
            "title": "Quota Exceeded",
            "detail": (
                'Policy "requests-period" allows 1000 requests per billing period. '
                "Waiting does not help: ask for less at once, or choose a plan with more."
            ),
            "violated-policies": ["requests-period"],
        },
        [
            (b"ratelimit-policy", TOLD),
            (b"ratelimit", b'"requests-period";r=3;t=86400'),
            (b"x-should-retry", b"false"),
        ],
    ),
    "suspended": (
        denied("suspended"),
        ProblemContext(portal_url="https://example.com/billing"),
        402,
        {
            "type": f"{URN}payment-required",
            "title": "Payment Required",
            "detail": (
                "This account is suspended until its payments are settled. "
                "Pay at https://example.com/billing to go on."
            ),
            "reason": "suspended",
            "portal_url": "https://example.com/billing",
        },
        [(b"x-should-retry", b"false")],
    ),
    "a payment is required": (
        denied("payment_required"),
        NOWHERE,
        402,
        {
            "type": f"{URN}payment-required",
            "title": "Payment Required",
            "detail": "This request needs a payment. Pay to go on.",
            "reason": "payment_required",
        },
        [(b"x-should-retry", b"false")],
    ),
    "credits": (
        denied("credits", retry_after=timedelta(seconds=5)),
        NOWHERE,
        402,
        {
            "type": f"{URN}payment-required",
            "title": "Payment Required",
            "detail": (
                "What is left of the prepaid credits or grants does not cover this request. "
                "Buy more to go on."
            ),
            "reason": "credits",
        },
        [(b"x-should-retry", b"false")],
    ),
    "a budget": (
        denied(
            "spend",
            "spend-1d",
            remaining=10,
            retry_after=timedelta(hours=9),
            reset_after=timedelta(hours=9),
            spend=SpendLevel(limit_cents=100, spent_cents=90),
        ),
        ProblemContext(policies=(BUDGET,), currency="usd"),
        402,
        {
            "type": f"{URN}spend-limit-reached",
            "title": "Spend Limit Reached",
            "detail": (
                "This account may spend USD 1.00 per day, and USD 0.90 of it are spent or set aside for "
                "requests in progress. More can be spent in 9 hours."
            ),
            "limit_cents": 100,
            "spent_cents": 90,
            "currency": "usd",
            "reset_after_s": 32400,
        },
        [
            (b"ratelimit-policy", b'"spend-1d";q=100;qu="cents";w=86400'),
            (b"ratelimit", b'"spend-1d";r=10;t=32400'),
            (b"x-should-retry", b"false"),
        ],
    ),
    "more than a budget": (
        denied("spend", "spend-period", spend=SpendLevel(limit_cents=100, spent_cents=0)),
        ProblemContext(currency="jpy"),
        402,
        {
            "type": f"{URN}spend-limit-reached",
            "title": "Spend Limit Reached",
            "detail": (
                "This account may spend JPY 100 per billing period, and JPY 0 of it are spent or set aside "
                "for requests in progress. This request may cost more than that: ask for less."
            ),
            "limit_cents": 100,
            "spent_cents": 0,
            "currency": "jpy",
        },
        [(b"x-should-retry", b"false")],
    ),
    "a feature": (
        denied("feature"),
        ProblemContext(feature="full_ai", plan="free", available_in=("pro", "enterprise")),
        403,
        {
            "type": f"{URN}feature-not-in-plan",
            "title": "Feature Not In Plan",
            "detail": (
                "The plan 'free' does not include the feature 'full_ai'. "
                "It is available in 'pro', 'enterprise'."
            ),
            "feature": "full_ai",
            "plan": "free",
            "available_in": ["pro", "enterprise"],
        },
        [(b"x-should-retry", b"false")],
    ),
    "a feature of no plan": (
        denied("feature"),
        ProblemContext(feature="full_ai", plan="free"),
        403,
        {
            "type": f"{URN}feature-not-in-plan",
            "title": "Feature Not In Plan",
            "detail": "The plan 'free' does not include the feature 'full_ai'. No plan includes it.",
            "feature": "full_ai",
            "plan": "free",
            "available_in": [],
        },
        [(b"x-should-retry", b"false")],
    ),
    "seats": (
        denied("seats"),
        ProblemContext(limit=3, used=3),
        403,
        {
            "type": f"{URN}seats-limit-exceeded",
            "title": "Seats Limit Exceeded",
            "detail": "This plan allows 3 seats; in use: 3. Free a seat or choose a plan with more.",
            "limit": 3,
            "used": 3,
        },
        [(b"x-should-retry", b"false")],
    ),
    "storage": (
        denied("storage"),
        ProblemContext(limit=5_000_000, used=4_999_000, requested=5000),
        413,
        {
            "type": f"{URN}storage-limit-exceeded",
            "title": "Storage Limit Exceeded",
            "detail": (
                "This plan allows 5000000 bytes; in use: 4999000, requested: 5000. "
                "Delete something or choose a plan with more."
            ),
            "limit": 5_000_000,
            "used": 4_999_000,
            "requested": 5000,
        },
        [(b"x-should-retry", b"false")],
    ),
    "no customer": (
        denied("anonymous"),
        NOWHERE,
        401,
        {
            "type": f"{URN}customer-unknown",
            "title": "Customer Unknown",
            "detail": "This request does not say which customer it belongs to. Send valid credentials.",
        },
        [(b"x-should-retry", b"false"), (b"www-authenticate", b'Bearer realm="api"')],
    ),
    "an invalid customer": (
        denied("invalid_customer"),
        NOWHERE,
        400,
        {
            "type": f"{URN}customer-invalid",
            "title": "Customer Invalid",
            "detail": (
                "The customer id of this request is not valid. "
                "Allowed is a text of 1 to 256 bytes of UTF-8 without control characters."
            ),
        },
        [(b"x-should-retry", b"false")],
    ),
    "a request in flight": (
        denied("in_flight"),
        NOWHERE,
        409,
        {
            "type": f"{URN}request-in-flight",
            "title": "Request In Flight",
            "detail": "The first request with this idempotency key has not ended yet. Retry in 1 second.",
        },
        [(b"retry-after", b"1")],
    ),
    "an identify that failed": (
        denied("identify"),
        NOWHERE,
        503,
        {
            "type": f"{IANA}temporary-reduced-capacity",
            "title": "Temporary Reduced Capacity",
            "detail": (
                "The customer of this request could not be determined; the request was not served. "
                "Retry in 1 second."
            ),
        },
        [(b"retry-after", b"1")],
    ),
    "the store": (
        denied("store", retry_after=timedelta(seconds=5)),
        NOWHERE,
        503,
        {
            "type": f"{IANA}temporary-reduced-capacity",
            "title": "Temporary Reduced Capacity",
            "detail": (
                "Limits cannot be checked at the moment; the request was not served. Retry in 5 seconds."
            ),
        },
        [(b"retry-after", b"5")],
    ),
    "no reason at all": (
        Decision(allowed=False),
        NOWHERE,
        503,
        {
            "type": f"{IANA}temporary-reduced-capacity",
            "title": "Temporary Reduced Capacity",
            "detail": (
                "Limits cannot be checked at the moment; the request was not served. Retry in 1 second."
            ),
        },
        [(b"retry-after", b"1")],
    ),
}


@pytest.mark.parametrize("row", GOLDEN)
def test_every_refusal_is_told_exactly(row: str) -> None:
    decision, circumstances, status, members, headers = GOLDEN[row]
    denial = told(decision, circumstances)
    common = {"status": status, "instance": "urn:uuid:6f2c1f0e-8a55-4c39-9d7a-2f1f6a1f0c11"}
    assert members | common == json.loads(denial.body)
    assert status == denial.status
    assert [
        (b"content-type", b"application/problem+json"),
        (b"content-length", b"%d" % len(denial.body)),
        (b"cache-control", b"no-store"),
        *headers,
    ] == list(denial.headers)


def test_every_reason_is_told() -> None:
    assert set(TYPES) == set(get_args(Reason))
    assert {decision.reason for decision, *_ in GOLDEN.values()} == {None, *get_args(Reason)}


def test_a_problem_begins_as_rfc_9457_lists_its_members() -> None:
    assert told(denied("anonymous")).body.startswith(
        b'{"type":"urn:meterkit:problem:customer-unknown","title":"Customer Unknown","status":401,"detail":"'
    )


@pytest.mark.parametrize(
    ("wait", "retry_after", "should_retry"),
    [
        (timedelta(0), b"1", None),
        (timedelta(microseconds=1), b"1", None),
        (timedelta(seconds=1), b"1", None),
        (timedelta(seconds=1, microseconds=1), b"2", None),
        (timedelta(seconds=59), b"59", None),
        (timedelta(seconds=59, microseconds=1), b"60", b"false"),
        (timedelta(days=31), b"2678400", b"false"),
        (None, None, b"false"),
    ],
)
def test_waiting_is_told_in_whole_seconds_rounded_up(
    wait: timedelta | None, retry_after: bytes | None, should_retry: bytes | None
) -> None:
    headers = dict(told(denied("rate", "requests-1h", remaining=0, retry_after=wait), PLAN).headers)
    assert retry_after == headers.get(b"retry-after")
    assert should_retry == headers.get(b"x-should-retry")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (1, "1 second"),
        (119, "119 seconds"),
        (120, "2 minutes"),
        (121, "3 minutes"),
        (7199, "120 minutes"),
        (7200, "2 hours"),
        (172_799, "48 hours"),
        (172_801, "3 days"),
    ],
)
def test_a_wait_in_words_is_never_too_short(seconds: int, words: str) -> None:
    wait = timedelta(seconds=seconds)
    detail = json.loads(told(denied("rate", "requests-1h", retry_after=wait), PLAN).body)["detail"]
    assert detail.endswith(f"Retry in {words}.")


@pytest.mark.parametrize(
    ("window_s", "unit", "quota", "words"),
    [
        (1, None, 1, "1 request per second"),
        (3, None, 5, "5 requests per 3 seconds"),
        (90, None, 5, "5 requests per 90 seconds"),
        (60, "token", 1, "1 token per minute"),
        (5400, "token", 2, "2 tokens per 90 minutes"),
        (86_400, "credits", 2, "2 credits per day"),
        (180_000, None, 2, "2 requests per 50 hours"),
        (2_592_000, None, 2, "2 requests per 30 days"),
    ],
)
def test_a_window_in_words_is_exact(window_s: int, unit: str | None, quota: int, words: str) -> None:
    policy = replace(RATE, window_s=window_s, quota_unit=unit, quota=quota)
    detail = json.loads(told(denied("rate", RATE.name), ProblemContext(policies=(policy,))).body)["detail"]
    assert detail.startswith(f'Policy "requests-1h" allows {words}. ')


def test_a_limit_that_is_not_known_is_told_without_its_name() -> None:
    denial = told(denied("rate", "requests-9h", remaining=0, retry_after=timedelta(seconds=3)))
    assert json.loads(denial.body)["detail"] == "A limit on this request is used up. Retry in 3 seconds."
    assert b"ratelimit" not in dict(denial.headers)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("none", set[bytes]()),
        ("ietf", {b"ratelimit-policy", b"ratelimit"}),
        ("x-ratelimit", {b"x-ratelimit-limit", b"x-ratelimit-remaining", b"x-ratelimit-reset"}),
    ],
)
def test_the_route_chooses_the_limit_fields(mode: Headers, expected: set[bytes]) -> None:
    decision = denied("rate", "requests-1h", remaining=0, retry_after=timedelta(seconds=3))
    headers = dict(told(decision, PLAN, mode).headers)
    assert expected == {name for name in headers if b"ratelimit" in name}
    assert headers.get(b"x-ratelimit-reset", b"1800000003") == b"1800000003"
    assert headers[b"retry-after"] == b"3"


@pytest.mark.parametrize(
    ("cors", "expected"),
    [
        ((), {}),
        (("https://other.example",), {}),
        (
            ("https://app.example",),
            {
                b"access-control-allow-origin": b"https://app.example",
                b"access-control-allow-credentials": b"true",
                b"vary": b"Origin",
            },
        ),
        (("*",), {b"access-control-allow-origin": b"*"}),
    ],
)
def test_a_script_of_another_origin_may_read_a_refusal(
    cors: tuple[str, ...], expected: dict[bytes, bytes]
) -> None:
    circumstances = ProblemContext(origin=b"https://app.example", cors=cors)
    headers = dict(told(denied("store"), circumstances).headers)
    names = (b"access-control-allow-origin", b"access-control-allow-credentials", b"vary")
    assert expected == {name: headers[name] for name in names if name in headers}
    assert headers[b"access-control-expose-headers"] == b"retry-after"


def test_without_an_origin_there_is_nothing_of_cors() -> None:
    headers = dict(told(denied("store"), ProblemContext(cors=("*",))).headers)
    assert not [name for name in headers if name.startswith(b"access-control")]


def test_the_challenge_is_the_apps() -> None:
    headers = dict(told(denied("anonymous"), ProblemContext(challenge='ApiKey realm="x"')).headers)
    assert headers[b"www-authenticate"] == b'ApiKey realm="x"'


async def sent(denial: Denial, **scope: Any) -> list[Message]:
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    await send_denial(denial, scope, send)
    return messages


@pytest.mark.anyio
async def test_a_request_gets_status_fields_and_body() -> None:
    denial = told(denied("store"))
    assert await sent(denial, type="http", method="GET") == [
        {"type": "http.response.start", "status": 503, "headers": list(denial.headers)},
        {"type": "http.response.body", "body": denial.body},
    ]


@pytest.mark.anyio
async def test_head_gets_the_same_fields_without_a_body() -> None:
    denial = told(denied("store"))
    assert await sent(denial, type="http", method="HEAD") == [
        {"type": "http.response.start", "status": 503, "headers": list(denial.headers)},
        {"type": "http.response.body", "body": b""},
    ]


@pytest.mark.anyio
async def test_a_websocket_gets_the_same_answer_where_the_server_can() -> None:
    denial = told(denied("store"))
    assert await sent(denial, type="websocket", extensions={"websocket.http.response": {}}) == [
        {"type": "websocket.http.response.start", "status": 503, "headers": list(denial.headers)},
        {"type": "websocket.http.response.body", "body": denial.body},
    ]


@pytest.mark.anyio
@pytest.mark.parametrize("scope", [{}, {"extensions": None}, {"extensions": {"http.response.push": {}}}])
async def test_a_websocket_is_closed_where_the_server_cannot(scope: dict[str, Any]) -> None:
    messages = await sent(told(denied("store")), type="websocket", **scope)
    assert messages == [{"type": "websocket.close", "code": 1008, "reason": "Temporary Reduced Capacity"}]
