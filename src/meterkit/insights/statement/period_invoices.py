"""Invoices of a billing period, and later lines with its usage, as Stripe shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from meterkit.insights.statement.lines import (
    StatementLine,
    UnitsElsewhere,
    customer_of,
    invoice_lines,
    is_of_period,
    is_of_subscription,
    price_in,
)
from meterkit.outbox.meters_or_lines import METER_KEY, USAGE_KEY, is_usage_line, metadata_of, subscription_of
from meterkit.stripe.prices import PRICES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from meterkit.stripe.api import StripeApi
    from meterkit.stripe.request import Parameter


class _PriceUse(NamedTuple):
    """The event name that a price bills, empty if it has no meter; and whether it recurs."""

    event_name: str
    recurs: bool


class PeriodInvoices:
    """Reads the invoices of subscriptions, and fetches each price and meter once.

    Each method raises :class:`~meterkit.errors.StripeError` where Stripe refuses, or does not answer.

    Args:
        api: the way to Stripe.
        links: whose invoices, and the customer whom each of them names; None: any. Invoices of subscriptions
            that meterkit has not made name none, and are left out.
        period: start and end (Unix seconds).
        subscriptions: the customer's, without those of other products; None: not known, so all.
    """

    def __init__(
        self,
        api: StripeApi,
        links: Mapping[str, str | None],
        period: tuple[int, int],
        subscriptions: Collection[str] | None,
    ) -> None:
        self._api = api
        self._links = links
        self._start_s, self._end_s = period
        self._subscriptions = None if subscriptions is None else frozenset(("", *subscriptions))
        self._listed: dict[str, Sequence[dict[str, Any]]] = {}
        self._prices: dict[str, _PriceUse] = {}
        self._events: dict[str, str] = {}

    async def of_period(self) -> list[dict[str, Any]]:
        """The invoices that belong to the period, oldest first, each with all its lines.

        That is the first invoice of a subscription that begins in it, those of changes in it, and that of the
        renewal at its end, void ones too.
        """
        found = [one for one in await self._list() if is_of_period(one, self._start_s, self._end_s)]
        await self._read_all_lines(found)
        return sorted(found, key=lambda one: int(one["created"]))

    async def later_lines(self, meters: Mapping[str, str]) -> list[StatementLine]:
        """The lines of usage on final invoices that subscriptions made after the period."""
        later = [
            one for one in await self._list() if one["created"] >= self._end_s and is_of_subscription(one)
        ]
        found = [one for one in later if one["status"] not in {"draft", "void"}]
        await self._read_all_lines(found)
        lines = await self.lines_of(found, meters)
        return [line for line in lines if line.kind == "usage" and line.late_since is None]

    async def units_elsewhere(
        self, keys: Mapping[str, str], links: Iterable[str], shown: Collection[str]
    ) -> dict[str, list[UnitsElsewhere]]:
        """The units of the period on other invoices, and in pending invoice items, by meter.

        Args:
            keys: by usage key, the meter.
            links: all Stripe customers that may have them.
            shown: ids of the invoices that the statement shows.
        """
        found: dict[str, list[UnitsElsewhere]] = {}
        for linked in links:
            made = await self._list_made(linked)
            others = [one for one in made if one["id"] not in shown and one["status"] != "void"]
            await self._read_all_lines(others)
            pending = await self._api.list("/v1/invoiceitems", {"customer": linked, "pending": True})
            placed = [(line, f"invoice {one['id']}") for one in others for line in one["lines"]["data"]]
            placed += [(item, f"the next invoice, by {item['id']}") for item in pending]
            for line, place in placed:
                meter, units = keys.get(metadata_of(line).get(USAGE_KEY, "")), int(line.get("quantity") or 0)
                if meter is not None and units:
                    found.setdefault(meter, []).append(UnitsElsewhere(units, place))
        return found

    async def _list(self) -> Sequence[dict[str, Any]]:
        """List the invoices since the start of the period, once."""
        known = self._subscriptions
        return [
            one
            for linked, owner in self._links.items()
            for one in await self._list_made(linked)
            if (known is None or subscription_of(one) in known) and owner in {None, customer_of(one)}
        ]

    async def _list_made(self, linked: str) -> Sequence[dict[str, Any]]:
        if linked not in self._listed:
            since: dict[str, Parameter] = {"gte": self._start_s}
            self._listed[linked] = await self._api.list(
                "/v1/invoices", {"customer": linked, "created": since}
            )
        return self._listed[linked]

    async def _read_all_lines(self, invoices: Sequence[dict[str, Any]]) -> None:
        for invoice in invoices:
            lines: dict[str, Any] = invoice.get("lines") or {}
            # What the list shows of a draft may be what it was when it was made.
            if lines.get("has_more") or invoice.get("status") == "draft":
                invoice["lines"] = {"data": await self._api.list(f"/v1/invoices/{invoice['id']}/lines")}

    async def lines_of(
        self, invoices: Sequence[Mapping[str, Any]], meters: Mapping[str, str]
    ) -> list[StatementLine]:
        """The lines of invoices; ``meters``: by event name, the meter."""
        named = {price_in(line) for invoice in invoices for line in invoice["lines"]["data"]} - {""}
        known = {price: await self._read_price(price) for price in sorted(named)}
        of = {
            name: (meters.get(one.event_name, one.event_name))
            for name, one in known.items()
            if one.event_name
        }
        written = [line for invoice in invoices for line in invoice["lines"]["data"] if is_usage_line(line)]
        of |= {price_in(line): line["metadata"].get(METER_KEY, "") for line in written}
        recurring = [name for name, one in known.items() if one.recurs and not one.event_name]
        return [line for one in invoices for line in invoice_lines(one, of, recurring)]

    async def _read_price(self, price: str) -> _PriceUse:
        if price not in self._prices:
            found = await self._api.get(f"{PRICES}/{price}")
            recurring: Mapping[str, Any] = found.get("recurring") or {}
            meter = recurring.get("meter")
            event_name = "" if meter is None else await self._event_name(str(meter))
            self._prices[price] = _PriceUse(event_name, recurs=bool(recurring))
        return self._prices[price]

    async def _event_name(self, meter: str) -> str:
        if meter not in self._events:
            found = await self._api.find(f"/v1/billing/meters/{meter}")
            self._events[meter] = meter if found is None else str(found["event_name"])
        return self._events[meter]
