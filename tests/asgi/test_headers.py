from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterkit.asgi.headers import fields, limit_field, merge, policy_field, x_fields
from meterkit.decisions.decision import Policy

if TYPE_CHECKING:
    from meterkit.catalog.models import Headers

OURS = [(b"ratelimit-policy", b'"a";q=1'), (b"ratelimit", b'"a";r=1')]

names = st.sampled_from(
    [b"ratelimit", b"RateLimit", b"RATELIMIT-POLICY", b"x-a", b"Access-Control-Expose-Headers", b""]
)
pairs = st.lists(st.tuples(names, st.binary(max_size=20)), max_size=8)


def policy(name: str, quota: int, window_s: int | None = None, unit: str | None = None) -> Policy:
    kind: Literal["rate", "period"] = "rate" if window_s else "period"
    return Policy(name=name, meter="requests", kind=kind, quota=quota, window_s=window_s, quota_unit=unit)


def test_a_policy_field_lists_quota_unit_and_window() -> None:
    given_policies = [
        policy("requests-3s", 5, 3),
        policy("requests-period", 1000),
        policy("output_tokens-5h", 200_000, 18_000, "token"),
        policy("requests-concurrency", 4, None, "concurrent-requests"),
    ]
    assert policy_field(given_policies) == (
        b'"requests-3s";q=5;w=3, "requests-period";q=1000, '
        b'"output_tokens-5h";q=200000;qu="token";w=18000, '
        b'"requests-concurrency";q=4;qu="concurrent-requests"'
    )


def test_a_policy_field_without_policies_is_empty() -> None:
    assert policy_field([]) == b""


@pytest.mark.parametrize(
    ("remaining", "reset_s", "value"),
    [
        (50, 30, b'"requests-1m";r=50;t=30'),
        (0, 0, b'"requests-1m";r=0;t=0'),
        (7, None, b'"requests-1m";r=7'),
        (-1, -1, b'"requests-1m";r=0;t=0'),
        (10**15, 10**16, b'"requests-1m";r=999999999999999;t=999999999999999'),
    ],
)
def test_a_limit_field_holds_integers_of_15_digits_at_most(
    remaining: int, reset_s: int | None, value: bytes
) -> None:
    assert value == limit_field("requests-1m", remaining, reset_s)


@given(st.text())
def test_a_name_is_always_a_structured_field_string(name: str) -> None:
    value = limit_field(name, 1, None)
    # RFC 9651 section 3.3.3: printable ASCII; a quote or backslash only behind a backslash.
    assert re.fullmatch(rb'"(?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])*";r=1', value)


def test_quotes_and_backslashes_are_escaped() -> None:
    assert limit_field('a"b\\c', 1, None) == b'"a\\"b\\\\c";r=1'


def test_x_fields_reset_at_a_time_of_the_epoch() -> None:
    assert x_fields(100, 7, 1_800_000_000) == [
        (b"x-ratelimit-limit", b"100"),
        (b"x-ratelimit-remaining", b"7"),
        (b"x-ratelimit-reset", b"1800000000"),
    ]
    assert [name for name, _ in x_fields(100, 7, None)] == [b"x-ratelimit-limit", b"x-ratelimit-remaining"]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("none", []),
        ("ietf", [b"ratelimit-policy", b"ratelimit"]),
        ("x-ratelimit", [b"x-ratelimit-limit", b"x-ratelimit-remaining", b"x-ratelimit-reset"]),
        (
            "both",
            [
                b"ratelimit-policy",
                b"ratelimit",
                b"x-ratelimit-limit",
                b"x-ratelimit-remaining",
                b"x-ratelimit-reset",
            ],
        ),
    ],
)
def test_the_mode_chooses_the_fields(mode: Headers, expected: list[bytes]) -> None:
    found = fields(
        mode, policies=b'"a";q=1', limit=policy("a", 9, 3), remaining=4, reset_s=2, now_s=1_800_000_000
    )
    assert expected == [name for name, _ in found]
    assert dict(found).get(b"x-ratelimit-reset", b"1800000002") == b"1800000002"
    assert dict(found).get(b"ratelimit", b'"a";r=4;t=2') == b'"a";r=4;t=2'


def test_without_a_limit_only_the_policies_are_told() -> None:
    found = fields("both", policies=b'"a";q=1', limit=None, remaining=None, reset_s=None, now_s=0)
    assert found == [(b"ratelimit-policy", b'"a";q=1')]


def test_without_a_policy_no_field_is_told() -> None:
    assert fields("both", policies=b"", limit=None, remaining=None, reset_s=None, now_s=0) == []


def test_without_a_known_reset_no_reset_is_told() -> None:
    found = fields("both", policies=b"", limit=policy("a", 9), remaining=4, reset_s=None, now_s=5)
    assert found == [
        (b"ratelimit", b'"a";r=4'),
        (b"x-ratelimit-limit", b"9"),
        (b"x-ratelimit-remaining", b"4"),
    ]


def test_ours_replace_what_the_app_set_whatever_its_case() -> None:
    app = [(b"RateLimit", b"app"), (b"content-type", b"text/plain"), (b"ratelimit", b"again")]
    assert merge(app, OURS, expose=False) == [(b"content-type", b"text/plain"), *OURS]


def test_fields_of_the_app_that_are_not_ours_stay() -> None:
    app = [(b"x-ratelimit-limit", b"5"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
    assert merge(app, OURS, expose=False) == [*app, *OURS]


def test_the_apps_own_list_is_left_alone() -> None:
    app = [(b"ratelimit", b"app")]
    merged = merge(app, [], expose=True)
    merged.append((b"x", b"y"))
    assert app == [(b"ratelimit", b"app")]


def test_any_iterable_of_headers_will_do() -> None:
    assert merge(iter([(b"a", b"b")]), OURS, expose=False) == [(b"a", b"b"), *OURS]
    as_lists = cast("Any", ([b"a", b"b"], [b"RateLimit", b"app"]))
    assert merge(as_lists, OURS, expose=False) == [[b"a", b"b"], *OURS]


@pytest.mark.parametrize(
    "strange",
    [[("ratelimit", "text")], [(None, None)], [()], [b"x"], [3], [(b"Access-Control-Expose-Headers", None)]],
)
def test_strange_headers_are_passed_on_as_they_are(strange: list[Any]) -> None:
    before = list(strange)
    merged = merge(strange, OURS, expose=True)
    assert merged[: len(before)] == before == strange
    assert merged[-2:] == OURS


def test_another_origin_is_shown_our_fields() -> None:
    assert merge([(b"a", b"b")], OURS, expose=True) == [
        (b"a", b"b"),
        (b"access-control-expose-headers", b"ratelimit-policy, ratelimit"),
        *OURS,
    ]


def test_a_list_of_exposed_fields_is_extended_in_its_place() -> None:
    app = [
        (b"Access-Control-Expose-Headers", b"X-One,  RateLimit"),
        (b"a", b"b"),
        (b"access-control-expose-headers", b"X-Two"),
    ]
    assert merge(app, OURS, expose=True) == [
        (b"access-control-expose-headers", b"X-One, RateLimit, X-Two, ratelimit-policy"),
        (b"a", b"b"),
        *OURS,
    ]


def test_where_nothing_is_ours_nothing_is_exposed() -> None:
    assert merge([(b"a", b"b")], [], expose=True) == [(b"a", b"b")]


@given(pairs, st.booleans())
def test_ours_are_there_once_and_all_else_keeps_its_order(
    app: list[tuple[bytes, bytes]], expose: bool
) -> None:
    merged = merge(app, OURS, expose=expose)
    ours, listed = {b"ratelimit", b"ratelimit-policy"}, b"access-control-expose-headers"
    assert [pair for pair in merged if pair[0].lower() in ours] == OURS
    left_out = ours | {listed}
    kept = [pair for pair in merged if pair[0].lower() not in left_out]
    assert kept == [pair for pair in app if pair[0].lower() not in left_out]
    if expose:
        assert [name.lower() for name, _ in merged].count(listed) == 1
        shown = next(value for name, value in merged if name.lower() == listed).lower()
        assert ours <= {token.strip() for token in shown.split(b",")}
