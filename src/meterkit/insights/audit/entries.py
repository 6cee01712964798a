"""Rows of the audit log, parsed from the stream entries that Lua scripts write. Pure."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meterkit.decisions.packed import unpack_field
from meterkit.decisions.price_segments import MeterTerms, read_price_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

RECORDED: Final = ("included", "granted", "credited", "overage", "over_cap")
"""The classes of recorded units: each unit is in one of them."""
CLASSES: Final = (*RECORDED, "reported", "late")
"""The quantities of a row, in the order of the scripts."""

_SUMMED: Final = (*CLASSES, "cost_micros", "priced")  # By the numbers of fold_audit.lua.
_NOTED: Final = 7  # A meter's field, and all classes but the last.
_BEFORE: Final = 7  # Producer, number, customer, now, period, late of, told.
_FIELD_LETTER: Final = 1  # Behind the token of a meter's field.
_LINES: Final = 7  # See format_audit_lines. Further lines come from a later release.
_NO_TERMS: Final = MeterTerms()


class AuditRow(NamedTuple):
    """Units of one meter recorded by one event; below 0: taken back.

    Attributes:
        event: names the event; two rows of one event are of two meters.
        kind: ``recorded``; ``summed``: many events with only their sum known; ``corrected``; ``dropped``
            from the outbox; ``deleted``: the customer was.
        period_start_ms: the billing period that it counts in; None: of none.
        occurred_at_ms: when it happened, where that is not when it was recorded.
        late_of_ms: the first instant of the period that it happened in, where that was closed.
        quantity: of a ``dropped`` one what Stripe is not sent, else the sum of ``RECORDED``.
        reported: how many of them go to Stripe under the meter's own event.
        late: how many of them were late.
        details: of a correction its id, of both who and why, as JSON.
        priced: how many units are paid for by themselves: overage, or what a credit in money pays.
        price_micros: of ``price_per`` such units, in micro-units of the currency.
        price_version: of the plans file, and of the table of providers' prices.
        cost_micros: what the provider charges, in micro-units of US dollars; None: not known.
        subjects: kind to id of the customer's user, team or the like that used it, as JSON.
        over_cap: how many units were beyond the plan's cap, and are not billed.
        event_id: the app's own id of the event; None: it gave none.
        units: counters of the model calls by the price table's unit, as JSON; only the event's first row has
            them.
    """

    event: str
    meter: str
    kind: str
    customer: str
    period_start_ms: int | None
    recorded_at_ms: int
    quantity: int = 0
    included: int = 0
    granted: int = 0
    credited: int = 0
    overage: int = 0
    reported: int = 0
    late: int = 0
    occurred_at_ms: int | None = None
    late_of_ms: int | None = None
    model: str | None = None
    provider: str | None = None
    details: str | None = None
    priced: int | None = None
    price_micros: int | None = None
    price_per: int | None = None
    price_version: str | None = None
    cost_micros: int | None = None
    subjects: str | None = None
    over_cap: int = 0
    event_id: str | None = None
    units: str | None = None

    @property
    def revenue(self) -> Fraction:
        """Exact revenue in micro-units of the currency."""
        return Fraction((self.priced or 0) * (self.price_micros or 0), self.price_per or 1)


class RecordedRoot(NamedTuple):
    """The chain's root in an invoice's metadata: id of the invoice, place and hash of the last row then."""

    invoice: str
    place: int
    hash: str


class UnsentUnits(NamedTuple):
    """Units of a meter and period that were to go to Stripe and that no meter event bills.

    Attributes:
        late: recorded again as late, because no invoice takes them at their own price and period any more.
        by_item: on invoice items for late usage.
        dropped: of intents that an operator has dropped.
    """

    late: int = 0
    by_item: int = 0
    dropped: int = 0


NOTHING_UNSENT: Final = UnsentUnits()
"""All units of a meter go to Stripe by meter events."""


def parse_rows(
    shard: int, name: str, fields: Mapping[bytes, bytes], meter_of: Callable[[str], str]
) -> list[AuditRow]:
    """The rows of an entry.

    Args:
        shard: whose stream.
        name: of the entry there.
        fields: what it holds.
        meter_of: a meter by its token.

    Raises:
        ValueError, LookupError, TypeError: another release wrote it.
    """
    packed = fields.get(b"e")
    found = (
        _parse_other(f"{shard}/{name}", fields)
        if packed is None
        else _parse_recorded(shard, unpack_field(packed))
    )
    return [row._replace(meter=meter_of(row.meter) if row.meter else "") for row in found]


def _parse_recorded(shard: int, values: list[Any]) -> Iterator[AuditRow]:
    producer, number, customer, now_ms, period_ms, late, told = values[:_BEFORE]
    lines = told.decode("utf-8", "replace").replace("\0", "").split("\n")
    at, model, provider, priced, subjects, event_id, units = (*lines, *[""] * _LINES)[:_LINES]
    version, terms = read_price_line(priced)
    for place in range(_BEFORE, len(values), _NOTED):
        field, *counts = values[place : place + _NOTED]
        classes: dict[str, Any] = dict(zip(CLASSES[:-1], counts, strict=True))
        quantity, token = sum(counts[: len(RECORDED)]), field.decode()[:-_FIELD_LETTER]
        if quantity:
            yield AuditRow(
                event=f"{shard}/{producer.decode().rpartition(':')[2]}/{number}",
                meter=token,
                kind="recorded",
                customer=customer.decode(),
                period_start_ms=period_ms,
                recorded_at_ms=now_ms,
                quantity=quantity,
                **classes,
                late=quantity if late else 0,
                occurred_at_ms=int(at) if at else None,
                late_of_ms=int(late) if late else None,
                model=model or None,
                provider=provider or None,
                subjects=subjects or None,
                event_id=json.loads(event_id) if event_id else None,
                price_version=version or None if token in terms else None,
                units=units or None,
                **terms.get(token, _NO_TERMS).columns(classes),
            )
            units = ""


def _parse_other(event: str, fields: Mapping[bytes, bytes]) -> Iterator[AuditRow]:
    kind, data = fields[b"k"].decode(), fields[b"d"].decode()
    if kind == "corrected":
        yield from _parse_corrected(event, json.loads(data))
        return
    at_ms = int(fields[b"at"])
    if kind == "deleted":
        yield AuditRow(event, "", kind, data, None, at_ms)
    elif kind == "dropped":
        intent = json.loads(data)
        told = {"id": intent["id"], "by": intent["by"], "reason": intent["reason"]}
        yield AuditRow(
            event,
            intent["meter"],
            kind,
            intent["customer"],
            int(intent["period"]),
            at_ms,
            int(intent["value"]),
            details=_to_json(told),
        )
    elif kind == "summed":
        period, meter, customer = data.split("|", 2)
        units, (number, _, price) = int(fields[b"q"]), meter[4:].partition(",")
        name = _SUMMED[int(number) - 1]
        quantity = units if name in RECORDED else 0
        places: dict[str, Any] = {name: units}
        if price:
            places["price_micros"], places["price_per"] = map(int, price.split("/"))
        yield AuditRow(event, meter[:4], kind, customer, int(period), at_ms, quantity, **places)
    else:
        raise ValueError(f"an entry of kind {kind!r:.40}")


def _parse_corrected(event: str, told: Mapping[str, Any]) -> Iterator[AuditRow]:
    details = _to_json({name: told[name] for name in ("id", "by", "reason")})
    _, terms = read_price_line(told["prices"])
    for token, text in told["meters"].items():
        counts = [-int(units) for units in text.split(" ")]
        units: dict[str, Any] = dict(zip(CLASSES, counts, strict=True))
        quantity, period_ms, at_ms = sum(counts[: len(RECORDED)]), int(told["period"]), int(told["at"])
        if quantity or units["reported"]:
            row = AuditRow(event, token, "corrected", told["customer"], period_ms, at_ms, quantity, **units)
            yield row._replace(details=details, **terms.get(token, _NO_TERMS).columns(units))


def _to_json(told: Mapping[str, str]) -> str:
    return json.dumps(told, ensure_ascii=True).replace("\\u0000", "")
