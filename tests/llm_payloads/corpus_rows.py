"""The corpus: payloads of every API and gateway, with what each amounts to and costs, worked out by hand.

Each file in ``corpus/`` is a family of providers; a row of it has

- ``name``, unique in its file, and ``source``: the public issue, pull request or page that shows the payload.
- ``usage``: the word that a route declares; ``provider``: whose models the route calls, if it says so.
- ``kind``: how the payload ``said`` travels. An app sends ``json``, ``sse``, ``array`` (a stream as one
  array), ``ndjson``, ``frames`` (Amazon's event stream, each frame with the name of its event), ``invoked``
  (the same with another provider's events inside) and ``websocket``; it reports an ``object``, a ``stream``
  of objects and a ``line`` of a batch. A text is sent as it stands. ``headers``: further ones.
- ``asked``: the model of the request, where the answer names none.
- ``calls``: for each call of a model its ``units`` above 0, by the names of the price table, and its
  ``price`` in micro-dollars at ``AT``, as a sum of products. ``model``: of a call of another model.
- ``known``: why nothing is charged although the provider charges it. ``falls``: a figure of the stream falls.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from math import prod
from pathlib import Path
from typing import Any, Final

from llm_payloads.recordings import KINDS, compact, encode_events

AT: Final = datetime(2026, 11, 24, 12, tzinfo=UTC)
FOLDER: Final = Path(__file__).parents[1] / "llm_usage/corpus"
LONG_NAME: Final = "m" * 10_000
"""Stands in a payload where it says ``LONG NAME``."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a call amounts to.

    Attributes:
        units: those above 0.
        price: in micro-dollars.
        model: where the answer itself names another than the request's or its own.
    """

    units: Mapping[str, int]
    price: Fraction
    model: str | None


@dataclass(frozen=True, kw_only=True)
class Row:
    name: str
    source: str
    usage: str
    kind: str
    said: Any
    calls: Sequence[Expected]
    provider: str | None = None
    asked: str | None = None
    headers: Mapping[str, str]
    known: str | None = None
    falls: bool = False

    @property
    def price(self) -> Fraction:
        return sum((call.price for call in self.calls), Fraction(0))

    @property
    def units(self) -> list[Mapping[str, int]]:
        return [call.units for call in self.calls]

    @property
    def content_type(self) -> str:
        return KINDS[self.kind]

    @property
    def response_headers(self) -> list[tuple[bytes, bytes]]:
        of_body = (b"content-type", self.content_type.encode())
        return [of_body, *((name.encode(), value.encode()) for name, value in self.headers.items())]

    @property
    def events(self) -> list[bytes]:
        if self.kind == "json":
            return [self.said.encode() if isinstance(self.said, str) else compact(self.said)]
        return encode_events(self.kind, self.said)

    @property
    def body(self) -> bytes:
        return b"".join(self.events)


def amount(text: str) -> Fraction:
    """An amount that is written as a sum of products: ``100*2.5 + 10*10``."""
    products = (prod(map(Fraction, term.split("*")), start=Fraction(1)) for term in text.split("+"))
    return sum(products, Fraction(0))


def _rows() -> Iterator[tuple[str, Row]]:
    for path in sorted(FOLDER.glob("*.json")):
        for row in json.loads(path.read_text("utf-8").replace("LONG NAME", LONG_NAME)):
            calls = [
                Expected(units=call["units"], price=amount(call["price"]), model=call.get("model"))
                for call in row.pop("calls")
            ]
            yield f"{path.stem}: {row['name']}", Row(calls=calls, headers=row.pop("headers", {}), **row)


ROWS: Final = dict(_rows())
WIRED: Final = {name: row for name, row in ROWS.items() if row.kind in KINDS}
"""Bodies of responses."""
