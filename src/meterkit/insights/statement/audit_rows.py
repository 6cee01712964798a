"""Events of statement lines from the audit log: sums and pages; calls block."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import case, func, select, tuple_

from meterkit.insights.audit.database import TABLE, last_deletion
from meterkit.insights.audit.entries import RECORDED
from meterkit.insights.statement.lines import EventSelection, EventSums, PlaceError, build_event

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import ColumnElement

    from meterkit.insights.audit.database import Database
    from meterkit.insights.statement.lines import StatementEvent

_SHOWN: Final = ("recorded", "summed", "corrected", "dropped")
_COLUMNS: Final = TABLE.c
_BILLED: Final = case((_COLUMNS.kind == "dropped", -_COLUMNS.quantity), else_=_COLUMNS.reported)


def _period_clauses(customer: str, start_ms: int, deleted_ms: int | None = None) -> list[ColumnElement[bool]]:
    found = [
        _COLUMNS.customer == customer,
        _COLUMNS.period_start_ms == start_ms,
        _COLUMNS.kind.in_(_SHOWN),
    ]
    return found if deleted_ms is None else [*found, _COLUMNS.recorded_at_ms > deleted_ms]


def _deleted_ms(database: Database, customer: str) -> int:
    return int(database.read(select(last_deletion(customer)))[0][0])


def _selection_clauses(wanted: EventSelection) -> list[ColumnElement[bool]]:
    return [
        _COLUMNS.meter.in_(wanted.meters),
        _COLUMNS.recorded_at_ms >= wanted.since_ms,
        _COLUMNS.recorded_at_ms < wanted.until_ms,
    ]


def meters_of(database: Database, customer: str, start_ms: int) -> list[str]:
    """The meters that a customer has events of in a period, by name.

    Raises:
        MeterkitError: the database does not answer.
    """
    of = _period_clauses(customer, start_ms, _deleted_ms(database, customer))
    return sorted(str(name) for (name,) in database.read(select(_COLUMNS.meter).where(*of).distinct()))


def sums_of(
    database: Database, customer: str, start_ms: int, wanted: Mapping[str, EventSelection]
) -> dict[str, EventSums]:
    """By line id, what the events of each line come to.

    Raises:
        MeterkitError: the database does not answer.
    """
    of, found = _period_clauses(customer, start_ms, _deleted_ms(database, customer)), dict[str, EventSums]()
    counted = (_BILLED, *(_COLUMNS[name] for name in RECORDED))
    asked = select(func.count(), *(func.coalesce(func.sum(one), 0) for one in counted))
    for name, one in wanted.items():
        (row,) = database.read(asked.where(*of, *_selection_clauses(one)))
        found[name] = EventSums(*map(int, row))
    return found


def page_of(
    database: Database, customer: str, start_ms: int, wanted: EventSelection, after: str, most: int
) -> tuple[tuple[StatementEvent, ...], str]:
    """A page of a line's events, oldest first, and where the next one begins; empty: there is none.

    Raises:
        PlaceError: ``after`` is no such place.
        MeterkitError: the database does not answer.
    """
    key = (_COLUMNS.recorded_at_ms, _COLUMNS.event, _COLUMNS.meter)
    since_ms = max(wanted.since_ms, 1 + _deleted_ms(database, customer))
    last_key = _parse_place(after) if after else (since_ms, "", "")
    # One lower bound, so that the database enters the index there; the sum below keeps it from another.
    begun = wanted._replace(since_ms=max(since_ms, last_key[0]))
    asked = select(TABLE).where(*_period_clauses(customer, start_ms), *_selection_clauses(begun))
    asked = asked.where(tuple_(key[0] + 0, *key[1:]) > tuple_(*last_key))
    rows: list[Any] = [
        dict(zip(_COLUMNS.keys(), row, strict=True))
        for row in database.read(asked.order_by(*key).limit(most + 1))
    ]
    shown = rows[:most]
    last = shown[-1] if len(rows) > most else None
    ends = "" if last is None else f"{last['recorded_at_ms']}|{last['event']}|{last['meter']}"
    _price_by_model(database, shown)
    return tuple(build_event(row, _parse_reason(row["details"])) for row in shown), ends


def _price_by_model(database: Database, rows: list[Any]) -> None:
    """Give rows whose overage a table prices by model the price that the same event has on another row."""
    without = {row["event"] for row in rows if row["overage"] and row["price_micros"] is None}
    if not without:
        return
    names = (_COLUMNS.event, _COLUMNS.meter, _COLUMNS.price_micros, _COLUMNS.price_per)
    asked = select(*names).where(_COLUMNS.event.in_(without), _COLUMNS.price_micros.is_not(None))
    found = {(event, meter.partition(":")[0]): price for event, meter, *price in database.read(asked)}
    for row in rows:
        if row["price_micros"] is None and row["overage"]:
            place = row["event"], row["meter"]
            row["price_micros"], row["price_per"] = found.get(place, (None, None))


def _parse_place(after: str) -> tuple[int, str, str]:
    at_ms, _, rest = after.partition("|")
    event, _, meter = rest.rpartition("|")
    if not (at_ms.isdecimal() and event and meter):
        raise PlaceError(f"after: found {after!r:.80}; allowed is the `after` of a line")
    return int(at_ms), event, meter


def _parse_reason(details: str | None) -> str:
    """Why a person has corrected or dropped units."""
    try:
        told: Any = json.loads(details or "{}")
        return str(told.get("reason") or "")
    except (ValueError, AttributeError):
        return ""
