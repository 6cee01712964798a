"""F-210 to F-218: each payload of the corpus is read in units and priced, however it comes."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING, Any, Final

import pytest

from meterkit.asgi.socket_usage import SocketUsage
from meterkit.catalog.model_prices import ProviderPrices
from meterkit.tokens.call_usage import RANKS
from meterkit.tokens.charging import Charges
from meterkit.tokens.json_values import table
from meterkit.tokens.objects import calls_of
from meterkit.tokens.response import ResponseReader
from meterkit.tokens.tap import StreamTap
from tokens.corpus_rows import AT, ROWS, WIRED, Row

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.tokens.call_usage import CallUsage

WORDS: Final = ("declared", "auto")
PADDING: Final[dict[str, Any]] = {"padding": ["A" * (70 << 10)]}
CHARGES: Final = Charges(ProviderPrices())


def named(kind: str) -> list[str]:
    return [name for name, row in ROWS.items() if row.kind == kind]


def read(row: Row, *chunks: bytes, word: str | None = None, complete: bool = True) -> Sequence[CallUsage]:
    reader = ResponseReader.open(word or row.usage, status=200, headers=row.response_headers)
    assert reader is not None
    for chunk in chunks:
        reader.feed(chunk)
    return reader.close(complete=complete)


def units(calls: Sequence[CallUsage]) -> list[dict[str, int]]:
    """Units above 0 of each call; one without any has used nothing."""
    return [{unit: count for unit, count in call.units.items() if count} for call in calls]


def price(row: Row, calls: Sequence[CallUsage]) -> Fraction:
    """What calls cost on the row's line, in micro-dollars."""
    lined = [
        replace(call, provider=row.provider or call.provider, model=call.model or row.asked) for call in calls
    ]
    return sum((CHARGES.of(call, AT) for call in lined), Fraction(0))


def check(row: Row, calls: Sequence[CallUsage]) -> None:
    assert units(calls) == row.units
    assert {call.source for call in calls} <= {"reported"}
    assert price(row, calls) == row.price


def test_each_family_has_rows_and_each_row_a_source() -> None:
    families = Counter(name.partition(":")[0] for name in ROWS)
    assert min(families.values()) >= 8
    assert len(ROWS) >= 250
    for name, row in ROWS.items():
        owner, _, issue = row.source.partition("#")
        assert row.source.startswith("https://") or ("/" in owner and issue.isdigit()), name


@pytest.mark.parametrize("how", WORDS)
@pytest.mark.parametrize("name", WIRED)
def test_a_body_amounts_to_its_units_and_costs_their_price(name: str, how: str) -> None:
    row = WIRED[name]
    check(row, read(row, row.body, word="auto" if how == "auto" else None))


@pytest.mark.parametrize("name", WIRED)
def test_cut_at_random_it_amounts_to_the_same(name: str) -> None:
    row = WIRED[name]
    chance, body = Random(name), row.body  # noqa: S311 - a failure must be repeatable
    for word in (row.usage, "auto"):
        for count in (1, 2, 5):
            places = [0, *sorted(chance.randint(0, len(body)) for _ in range(count)), len(body)]
            check(row, read(row, *(body[begin:end] for begin, end in pairwise(places)), word=word))


def padded(row: Row, *, before: bool) -> Row:
    """The row with so much else in each event that only parts of it are kept."""

    def pad(event: Any) -> Any:
        said = table(event)
        if said is None:
            return event
        return {**PADDING, **said} if before else {**said, **PADDING}

    if row.kind == "json":
        return replace(row, said=pad(row.said))
    return replace(row, said=[pad(event) for event in row.said])


# A token count alone bills nothing: with anything beside it, it is another answer.
@pytest.mark.parametrize(
    "name",
    [name for name in (*named("json"), *named("sse"), *named("ndjson")) if WIRED[name].calls],
)
def test_too_large_to_be_kept_it_amounts_to_the_same(name: str) -> None:
    row = WIRED[name]
    for large in (padded(row, before=True), padded(row, before=False)):
        for word in (row.usage, "auto"):
            check(row, read(large, large.body, word=word))


@pytest.mark.parametrize(
    "name", [name for name, row in WIRED.items() if len(row.events) > 1 and not row.falls]
)
def test_broken_off_it_never_amounts_to_more_than_the_whole(name: str) -> None:
    row = WIRED[name]
    whole = Counter[str]()
    for expected in row.calls:
        whole.update(expected.units)
    for count, event in enumerate(row.events):
        for torn in (b"", event[: len(event) // 2]):
            calls = read(row, *row.events[:count], torn, complete=False)
            assert all(call.source in RANKS for call in calls)
            found = Counter[str]()
            for call in calls:
                found.update(call.units)
            assert found <= whole, (count, torn)
            assert price(row, calls) <= row.price, (count, torn)


@pytest.mark.parametrize("name", [name for name in named("json") if not ROWS[name].headers])
def test_a_document_that_the_app_hands_over_amounts_to_the_same(name: str) -> None:
    row = WIRED[name]
    assert units(calls_of(row.said)) == row.units


@pytest.mark.parametrize("name", named("object"))
def test_an_object_amounts_to_its_units_and_costs_their_price(name: str) -> None:
    row = ROWS[name]
    check(row, calls_of(row.said))


@pytest.mark.parametrize("name", named("stream"))
def test_a_stream_of_objects_amounts_to_its_units_and_costs_their_price(name: str) -> None:
    row = ROWS[name]
    reports = list[tuple["CallUsage", ...]]()
    assert list(StreamTap(iter(row.said), report=reports.append)) == row.said
    (calls,) = reports
    check(row, calls)


@pytest.mark.parametrize("how", WORDS)
@pytest.mark.parametrize("name", named("websocket"))
def test_messages_of_a_websocket_amount_to_their_units_and_cost_their_price(name: str, how: str) -> None:
    row, calls = ROWS[name], list["CallUsage"]()

    def count(found: Sequence[CallUsage]) -> None:
        asked = socket.session.current
        calls.extend(replace(call, model=call.model or asked) for call in found)

    socket = SocketUsage(
        "auto" if how == "auto" else row.usage, count=count, complain=pytest.fail, report_unread=print
    )
    for event in row.said:
        socket.sent({"type": "websocket.send", "text": json.dumps(event)})
    socket.close()
    check(row, calls)
