"""What a request sets aside beforehand, and the body that is read for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from drivers.app import http_scope
from meterkit import MeterKit
from meterkit.asgi.body import BUFFERED_BYTES_MAX, BufferedBody
from meterkit.asgi.reservation import RequestReservation, reservation
from meterkit.catalog import loads
from tokens.recordings import compact

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import Message

    from meterkit.catalog import Catalog

pytestmark = pytest.mark.anyio

RESERVE = "output_tokens: {from: max_tokens, default: 100, ceiling: 1000}"
MESSAGES = [{"role": "user", "content": "x" * 30}]  # Ten tokens, by estimate.


def catalog(reserve: str = RESERVE, *, meters: str = "input_tokens, output_tokens, total_tokens") -> Catalog:
    declared = "".join(f"  {name}: {{unit: token}}\n" for name in meters.split(", "))
    return loads(
        f"schema: 1\ncurrency: usd\ndefault_plan: free\nmeters:\n{declared}"
        f'routes: [{{match: "*", reserve: {{{reserve}}}}}]\n'
        "plans: {free: {price: {amount_cents: 0, interval: month}}}\n"
    )


def counters_of(sold: Catalog) -> frozenset[str]:
    return MeterKit(sold, redis_url="memory://").store.cache.counters


def held(sold: Catalog, body: bytes, size: int | None = None) -> dict[str, int]:
    return reservation(
        sold.routes[0], body=body, size=len(body) if size is None else size, counters=counters_of(sold)
    ).quantities


@pytest.mark.parametrize(
    ("asked", "output"),
    [
        ({}, 100),
        ({"max_tokens": 7}, 7),
        ({"max_completion_tokens": 7}, 100),
        ({"max_completion_tokens": 700}, 700),
        ({"max_tokens": 7, "max_completion_tokens": 9}, 9),
        ({"max_tokens": 999_999_999}, 1000),
        ({"max_tokens": 10**20}, 1000),
        ({"max_tokens": 7, "n": 3}, 21),
        ({"max_tokens": 5000, "n": 3}, 1000),
        ({"n": 3}, 300),
        ({"n": 10**9}, 1000),
        ({"max_tokens": None, "n": None}, 100),
        ({"max_tokens": 150.5, "n": 1.5}, 302),
    ],
)
def test_output_is_what_the_body_asks_for_within_the_ceiling(asked: dict[str, Any], output: int) -> None:
    body = compact({"messages": MESSAGES, **asked})
    expected = {"output_tokens": output, "input_tokens": 10, "total_tokens": 10 + output}
    assert expected == held(catalog(), body)


@pytest.mark.parametrize(
    ("reserve", "meters", "expected"),
    [
        (RESERVE, "output_tokens", {"output_tokens": 100}),
        (RESERVE, "output_tokens, total_tokens", {"output_tokens": 100, "total_tokens": 110}),
        (
            f"input_tokens: {{default: 40}}, {RESERVE}",
            "input_tokens, output_tokens, total_tokens",
            {"input_tokens": 40, "output_tokens": 100, "total_tokens": 140},
        ),
        (
            "total_tokens: {default: 50}",
            "input_tokens, total_tokens",
            {"total_tokens": 50, "input_tokens": 10},
        ),
        ("pages: {default: 3}", "pages", {"pages": 3}),
        ("pages: {from: a.b, default: 3, ceiling: 9}", "pages", {"pages": 5}),
    ],
)
def test_what_is_not_named_follows_from_the_request(
    reserve: str, meters: str, expected: dict[str, int]
) -> None:
    body = compact({"messages": MESSAGES, "a": {"b": 5}})
    assert expected == held(catalog(reserve, meters=meters), body)


def test_what_is_no_output_is_not_multiplied() -> None:
    body = compact({"messages": MESSAGES, "n": 4})
    assert {"pages": 3} == held(catalog("pages: {default: 3}", meters="pages"), body)


def test_gauges_and_derived_meters_are_left_alone() -> None:
    sold = loads(
        "schema: 1\ncurrency: usd\ndefault_plan: free\nmeters:\n"
        "  output_tokens: {unit: token}\n  total_tokens: {unit: token, kind: gauge}\n"
        '  input_tokens: {unit: token, from: output_tokens, where: {model: "a"}}\n'
        f'routes: [{{match: "*", reserve: {{{RESERVE}}}}}]\n'
        "plans: {free: {price: {amount_cents: 0, interval: month}}}\n"
    )
    assert {"output_tokens": 100} == held(sold, compact({"messages": MESSAGES}))


@pytest.mark.parametrize(
    ("body", "size", "entered"),
    [
        (b"", 0, 0),
        (b"{", 1, 1),
        (b"\xff\x00", 2, 1600),
        (compact({"messages": [{"content": "x y " * 10}]})[:-10], 3_000_000, 999_983 + 13),
    ],
)
def test_a_body_that_cannot_be_parsed_reserves_the_ceiling(body: bytes, size: int, entered: int) -> None:
    found = held(catalog(), body, size)
    assert (1000 if size else 100) == found["output_tokens"]
    assert abs(entered - found["input_tokens"]) <= 16


def test_a_route_without_reserve_reserves_nothing() -> None:
    sold = catalog()
    route = loads(
        "schema: 1\ncurrency: usd\ndefault_plan: free\nmeters: {input_tokens: {unit: token}}\n"
        'routes: [{match: "*"}]\nplans: {free: {price: {amount_cents: 0, interval: month}}}\n'
    ).routes[0]
    assert RequestReservation({}) == reservation(route, body=b"{}", size=2, counters=counters_of(sold))


def test_another_estimator_may_measure() -> None:
    sold = catalog()

    def estimate(body: bytes | Mapping[str, Any], model: str | None) -> int:
        assert (b"{}", None) == (body, model)
        return 77

    found = reservation(sold.routes[0], body=b"{}", size=2, counters=counters_of(sold), estimate=estimate)
    assert 77 == found.quantities["input_tokens"]


def test_an_estimator_that_finds_nothing_leaves_it_to_the_default() -> None:
    sold, asked = catalog(), compact({"messages": MESSAGES})

    def estimate(body: bytes | Mapping[str, Any], model: str | None) -> int:
        assert (body, model) != (b"", "")
        return 0

    found = reservation(
        sold.routes[0], body=asked, size=len(asked), counters=counters_of(sold), estimate=estimate
    )
    assert found.quantities == held(sold, asked)


# The body.


def part(body: bytes, *, more: bool) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


GONE: Message = {"type": "http.disconnect"}
MIB = b"x" * BUFFERED_BYTES_MAX


@pytest.mark.parametrize(
    ("said", "read_ahead", "gone"),
    [
        ([part(b"", more=False), GONE], 1, False),
        ([{"type": "http.request"}, GONE], 1, False),
        ([part(b"ab", more=True), part(b"", more=True), part(b"c", more=False), GONE], 3, False),
        ([part(b"ab", more=True), GONE, GONE], 2, True),
        ([GONE, GONE], 1, True),
        ([part(MIB, more=True), part(b"x", more=False), GONE], 1, False),
        ([part(MIB[1:], more=True), part(MIB, more=True), part(b"x", more=False), GONE], 2, False),
        ([part(MIB * 2, more=False), GONE], 1, False),
        ([part(b"ab", more=True), {"type": "unheard.of"}, part(b"c", more=False)], 2, False),
    ],
)
async def test_the_app_hears_every_message_as_it_came_and_in_its_order(
    said: list[Message], read_ahead: int, *, gone: bool
) -> None:
    asked = 0

    async def receive() -> Message:
        nonlocal asked
        asked += 1
        return said[asked - 1]

    buffered = BufferedBody(http_scope(), receive)
    await buffered.read()
    assert read_ahead == asked
    assert gone == buffered.gone
    pieces = [message.get("body", b"") for message in said[:read_ahead]]
    assert b"".join(pieces) == buffered.head
    heard = [await buffered.receive() for _ in said]
    assert all(one is other for one, other in zip(said, heard, strict=True))
    assert len(said) == asked


@pytest.mark.parametrize(
    ("headers", "size"),
    [
        ([], 3),
        ([(b"content-length", b"3")], 3),
        ([(b"Content-Length", b"5000000")], 5_000_000),
        ([(b"content-length", b"1")], 3),
        ([(b"content-length", b"-7")], 3),
        ([(b"content-length", b"\xb2")], 3),
        ([(b"content-length", b"9" * 5000)], 3),
        ([(b"content-length", b"7"), (b"content-length", b"8")], 3),
    ],
)
async def test_the_size_is_what_was_read_or_announced(headers: list[tuple[bytes, bytes]], size: int) -> None:
    said = [part(b"abc", more=True), GONE]

    async def receive() -> Message:
        return said.pop(0)

    buffered = BufferedBody(http_scope(headers=headers), receive)
    await buffered.read()
    assert size == buffered.size


async def test_a_client_that_sends_byte_by_byte_is_read_ahead_no_further_than_a_bound() -> None:
    said = 0

    async def receive() -> Message:
        nonlocal said
        said += 1
        return {"type": "http.request", "body": b"", "more_body": True}

    body = BufferedBody(http_scope(method="POST"), receive)
    await body.read()
    assert (said, body.ended) == (4096, False)
    assert [(await body.receive())["more_body"] for _ in range(4097)] == [True] * 4097
    assert said == 4097
