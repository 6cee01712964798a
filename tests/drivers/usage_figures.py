"""The usage page of a kit; the numbers that its HTML shows, and those that its JSON says it has to show."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from html.parser import HTMLParser
from itertools import accumulate
from typing import Any, Final

import httpx
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import Scope

from drivers.llm_apps import listening
from meterkit import MeterKit
from meterkit.pages import usage_page
from meterkit.pages.statement import csv_of

JSON: Final = {"accept": "application/json"}
ORIGINS: Final = ["https://app.example"]
GAUGES: Final = frozenset({"storage", "seats"})


def _who(scope: Scope) -> str | None:
    return dict(scope["headers"]).get(b"x-customer-id", b"").decode() or None


@asynccontextmanager
async def page_of(
    kit: MeterKit, customer: str = "acme", *, delivery_states: bool = True, subjects: bool = True
) -> AsyncGenerator[httpx.AsyncClient]:
    """A customer's client."""
    page = usage_page(kit, customer=_who, origins=ORIGINS, delivery_states=delivery_states, subjects=subjects)
    app = Starlette(routes=[Mount("/usage", app=page)])
    transport, headers = httpx.ASGITransport(app=app), {"x-customer-id": customer}
    async with httpx.AsyncClient(transport=transport, base_url="http://app/usage", headers=headers) as client:
        yield client


@asynccontextmanager
async def serving_acme(kit: MeterKit) -> AsyncGenerator[str]:
    """Where the page is served, to a browser of acme's."""
    page = usage_page(kit, customer=lambda _: "acme", origins=ORIGINS)
    async with listening(Starlette(routes=[Mount("/usage", app=page)])) as port:
        yield f"http://127.0.0.1:{port}/usage/"


class Tables(HTMLParser):
    """The numbers of a page by what their row or list entry is named."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.numbers: dict[str, list[int]] = {}
        self._row = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        if tag in {"table", "dd"} or (tag in {"span", "ul"} and "id" in known):
            self._row = known.get("id") or f"days {known['data-meter']}"
        elif tag in {"tr", "li"}:
            named = [value for name, value in attrs if name.startswith("data-")]
            self._row = f"{self._row.partition(':')[0]}{f':{named[0]}' if named else ''}"
        elif tag == "data":
            self.numbers.setdefault(self._row, []).append(int(known["value"] or ""))


def numbers_of(figures: Any) -> dict[str, list[int]]:
    """What the page of these figures shows, by the names that :class:`Tables` gives."""
    cost, seats, forecast = figures["cost"], figures["seats"], figures["forecast"]
    found: dict[str, list[int]] = {
        **_of_meters(figures),
        **_rows("plans", figures["other_plans"], "plan", "cost_cents"),
        **_rows("rate-list", figures["rates"], "policy", "used", "limit", "remaining", "reset_after"),
        **_rows("grant-list", figures["grants"], "grant_id", "quantity", "remaining"),
        **_rows("invoice-list", figures["invoices"] or [], "id", "total_cents", "amount_paid_cents"),
    }
    if cost is not None:
        found |= {"plan-cents": [cost["plan_cents"]], "overage-cents": [cost["overage_cents"]]}
        found |= {"seats-cents": [cost["seats_cents"]]} if cost["seats_cents"] else {}
        found |= {f"addon-{addon['addon']}": [addon["cents"]] for addon in cost.get("addons", ())}
    if seats is not None:
        found |= {"seats-used": [seats["used"]], "seats-included": _counted(seats["included"])}
        found |= {"seat-cents": [seats["seat_cents"]]} if seats["seat_cents"] is not None else {}
    if figures["storage"] is not None:
        types = figures["usage"]["meters"][figures["storage"]["meter"]]["types"]
        found |= {f"types:{name}": [size] for name, size in types.items()}
        beyond = figures["storage"]["beyond_included"]
        found |= {"to-free": [beyond]} if beyond else {}
    for row in figures["subjects"]:
        found[f"subject-list:{row['kind']}:{row['subject']}:{row['meter']}"] = [
            row["used"],
            *([] if row["limit"] is None else [row["limit"]]),
        ]
    for budget in figures["budgets"]:
        found[budget["policy"]] = [budget["spent_micros"], budget["limit_micros"]]
    if figures["top_up"] is not None:
        found |= {"top-up": figures["top_up"]["amounts_cents"]}
    if forecast is not None:
        found |= {"forecast": forecast["cost_cents"]}
        found |= {f"forecast-{name}": ends for name, ends in forecast["meters"].items()}
    return {name: numbers for name, numbers in found.items() if numbers}


def _of_meters(figures: Any) -> dict[str, list[int]]:
    """The rows of meters, and their days. Of another period than that of now, less is known."""
    is_now, meters, found = figures["cost"] is not None, figures["usage"]["meters"], dict[str, list[int]]()
    for name, counts in meters.items():
        beyond = counts["overage"]
        if name in GAUGES and counts["included"] != "unlimited":
            beyond = max(0, counts["used"] - counts["included"])
        shown = _counted(counts["used"], counts["included"], counts["remaining"], beyond)
        if is_now:
            found[f"meters:{name}"] = shown
        elif name not in GAUGES:
            found[f"meters:{name}"] = [counts["used"], beyond]
    days: dict[str, list[int]] = figures["days"]["meters"] if figures["days"] else {}
    for name, units in days.items():
        totals = accumulate(units)
        found[f"days {name}"] = [number for pair in zip(units, totals, strict=True) for number in pair]
        found[f"included-{name}"] = _counted(meters[name]["included"]) if is_now else []
    return found


def _rows(table: str, rows: Iterable[Any], key: str, *columns: str) -> dict[str, list[int]]:
    return {f"{table}:{row[key]}": [row[column] for column in columns] for row in rows}


def _counted(*numbers: int | str) -> list[int]:
    """All of the numbers that are one: none is shown where something is unlimited."""
    return [number for number in numbers if not isinstance(number, str)]


def statement_parts(kit: MeterKit, customer: str) -> AsyncIterator[str]:
    return csv_of(kit.statement, customer, None, kit.catalog)
