"""Each unit of the price table that a provider reports is read, and priced as the provider charges it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from meterkit.tokens.objects import calls_of
from meterkit.tokens.response import ResponseReader
from tokens.recordings import JSON_TYPE, compact
from tokens.unit_payloads import PAYLOADS

if TYPE_CHECKING:
    from meterkit.tokens.call_usage import CallUsage
    from tokens.unit_payloads import Payload

AT = datetime(2026, 11, 24, tzinfo=UTC)
BLOCK = {"type": "text", "text": "x" * 200}


def read(
    body: bytes, usage: str, kind: str = JSON_TYPE, *, size: int = 1 << 20, complete: bool = True
) -> tuple[CallUsage, ...]:
    reader = ResponseReader.open(usage, status=200, headers=[(b"content-type", kind.encode())])
    assert reader is not None
    for at in range(0, len(body), size):
        reader.feed(body[at : at + size])
    return reader.close(complete=complete)


def check(calls: tuple[CallUsage, ...], payload: Payload) -> None:
    assert len(calls) == len(payload.calls)
    for call, expected in zip(calls, payload.calls, strict=True):
        assert call.units == expected.units
        assert dict(call.context) == expected.context
        assert (call.model, call.provider) == (expected.model, payload.provider)
        assert call.source == "reported"
        priced = replace(call, model=expected.model or expected.priced_as)
        assert priced.cost(AT) == expected.micros


payloads = pytest.mark.parametrize("payload", PAYLOADS, ids=[payload.name for payload in PAYLOADS])


@payloads
@pytest.mark.parametrize("how", ["declared", "auto", "object"])
def test_a_document_amounts_to_its_units_and_their_price(payload: Payload, how: str) -> None:
    if how == "object":
        check(calls_of(payload.value), payload)
    else:
        check(read(compact(payload.value), payload.usage if how == "declared" else "auto"), payload)


@payloads
@pytest.mark.parametrize("size", [1, 7, 50])
def test_a_document_amounts_to_the_same_however_it_is_cut(payload: Payload, size: int) -> None:
    check(read(compact(payload.value), "auto", size=size), payload)


def large(value: dict[str, Any]) -> dict[str, Any]:
    """The same document with so much text before its figures that only parts of it are kept."""
    padded = dict(value)
    for name in ("content", "outputs"):
        if name in value:
            padded[name] = [*value[name], *[BLOCK] * 400]
    if "candidates" in value:
        (candidate,) = value["candidates"]
        parts = {"parts": [{"text": "x" * 200}] * 400}
        padded["candidates"] = [{**candidate, "content": parts}]
    return {"id": None, "padding": [{"n": [n]} for n in range(10_000)], **padded} | value_of_id(value)


def value_of_id(value: dict[str, Any]) -> dict[str, Any]:
    return {"id": value["id"]} if "id" in value else {}


@payloads
@pytest.mark.parametrize("how", ["declared", "auto"])
def test_a_large_document_amounts_to_the_same(payload: Payload, how: str) -> None:
    body = compact(large(payload.value))
    assert len(body) > 1 << 16
    check(read(body, payload.usage if how == "declared" else "auto", size=16_000), payload)
