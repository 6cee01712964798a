"""Invoice lines for usage without meters: each is written once, onto the draft invoice of its period.

Where that invoice is final, the next one of the subscription has the line. Where there is none, as without a
subscription, the line gets an invoice of its own.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meterkit.decisions.periods import from_ms, iso
from meterkit.decisions.price_segments import unit_amount_decimal
from meterkit.decisions.subscription import ENDED
from meterkit.delivery.invoices import MADE_WITHIN_MS, is_renewal_of, units_of, written_units
from meterkit.delivery.sender import stopwatch
from meterkit.delivery.usage_invoices import (
    AFTER_THE_END_MS,
    EndedUsage,
    explain_no_invoice,
    find_usage_invoice,
)
from meterkit.errors import StripeError
from meterkit.outbox.invoice_item_queue import price_each
from meterkit.outbox.meters_or_lines import (
    LINE_KEY,
    METER_KEY,
    USAGE_KEY,
    item_of,
    metadata_of,
    subscription_of,
)
from meterkit.outbox.sealer import LateUsage, add_late_usage
from meterkit.outbox.sealing_terms import LINES_MOST, line_product
from meterkit.stripe.idempotency_keys import key_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.delivery.sender import Elapsed
    from meterkit.outbox.invoice_item_queue import InvoiceItemEntry, InvoiceItemQueue
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi
    from meterkit.stripe.request import Parameter

_logger = logging.getLogger("meterkit.delivery")
_ADDED_KEY: Final = "meterkit_line_added"
_ADDED_MOST: Final = 12  # So that they fit into one value of metadata.
_LATE_KEY: Final = "meterkit_line_late"
_FINAL: Final = "yes"
_NO_RENEWAL: Final = "no_renewal"
_LATE_REASONS: Final = MappingProxyType(
    {
        _FINAL: "that of its period was final",
        _NO_RENEWAL: "its period ended without one",
    }
)
_DROPPED: Final = "the invoice of its period is final (billing.late_usage: dead_letter)"
PRICE_KEY: Final = "meterkit_price"
"""Key in the metadata of a line for its price; see ``price_each``."""
LABEL_KEY: Final = "meterkit_price_label"
"""Key in the metadata of a line for the label of its price, unless it sums several."""
_ITEMS: Final = "/v1/invoiceitems"
_INVOICES: Final = "/v1/invoices"
_MISSING: Final = {HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND}
_ATTEMPTS: Final = 3
_IDEMPOTENCY: Final = "idempotency_error"
_STALE_S: Final = 3_600.0
"""Largest age of the list of Stripe's items when a line is written."""
_RENEWS_SOON_MS: Final = 35 * 86_400_000
"""Usage whose invoice is final, or that has none, does not wait longer for a renewal."""
_BILLED: Final = "late usage of customer %r: the next invoice bills %s of the period from %s: %s"
_REFUSED: Final = "usage of customer %r: no invoice bills %s of the period from %s: %s"
_SHOWN_MOST: Final = 10


class _Place(NamedTuple):
    """Place of a line.

    Attributes:
        invoice: the draft; None: the next renewal of the subscription.
        items: invoice items of the customer since the period began, wherever they are; until they are listed,
            those of this pass alone.
        late: why the line is not on the invoice of its own period, as a word; empty: it is.
        refusal: why no invoice can have the line; empty: one can.
        shown: the usage keys of lines on the draft; None: not known.
        is_listed: whether Stripe's items were listed.
        age_s: measures the seconds since Stripe was asked.
    """

    invoice: str | None
    items: list[Mapping[str, Any]]
    age_s: Elapsed
    late: str = ""
    refusal: str = ""
    shown: frozenset[str] | None = None
    is_listed: bool = False


class LineWriter:
    """Writes the lines of one pass over the queue: it reads each customer's draft once.

    A line is written once: each has its own idempotency key, and Stripe's items are listed before, unless the
    line was never tried and the draft shows no line of its usage. If usage
    comes after the line of its price was written, it is added to that line while the invoice is a draft. If
    the store has lost lines, their units are not billed again.

    Args:
        store: has the queue.
        api: the way to Stripe.

    Attributes:
        late: lines of this pass that missed the invoice of their period; the caller logs them.
    """

    def __init__(self, store: Store, api: StripeApi) -> None:
        self._store = store
        self._api = api
        self._places: dict[tuple[str, str, int, int], _Place | None] = {}
        self._summed = set[tuple[str, int]]()
        self.late = LateLineReport()

    async def write(self, items: InvoiceItemQueue, item: InvoiceItemEntry) -> bool:
        """Write a line unless Stripe has it; False: it must wait, no invoice bills it, or it is settled.

        If Stripe refuses the invoice, the draft is read again: a person may have finalized or deleted it.

        Raises:
            StripeError: Stripe refuses, or does not answer.
            StoreError: the store does not answer.
        """
        for attempt in range(_ATTEMPTS):
            try:
                return await self._write_once(items, item, attempt)
            except StripeError as error:
                self._places.pop(_place_name(item), None)
                is_last = attempt == _ATTEMPTS - 1
                if is_last or not (is_refusal(error) and _refuses_place(error, item)):
                    raise
        raise AssertionError

    @property
    def _drops_late(self) -> bool:
        """Whether usage that misses the invoice of its period is never billed."""
        return self._store.catalog.billing.late_usage == "dead_letter"

    async def _write_once(self, items: InvoiceItemQueue, item: InvoiceItemEntry, attempt: int) -> bool:
        place = await self._place_of(item, attempt)
        if place is None:
            return False
        if place.refusal:
            return await self._refuse_line(items, item, place.refusal)
        lines = [one for one in place.items if _bills(one, item)]
        line = next((one for one in lines if item.id in queued_ids_of(one)), None)
        if line is None:
            left = await items.known_units(item) - int(sum(map(written_units, lines)))
            units = min(item.units, left) if lines else item.units
            if units <= 0:
                why = "" if not all(map(_is_late, lines)) else _late_reason(lines[0])
                return await self._settle_line(items, item, why)
            if place.late and self._drops_late:
                return await self._refuse_line(items, item, _DROPPED)
            same = next((one for one in lines if one.get("invoice") == place.invoice), None)
            if same is None:
                line = await self._post_line(item, place, units)
                place.items.append(line)
            else:
                line = await self._raise_line(item, same, units)
                place.items[place.items.index(same)] = line
        return await self._settle_line(items, item, _late_reason(line))

    async def _settle_line(self, items: InvoiceItemQueue, item: InvoiceItemEntry, why: str) -> bool:
        """Settle a line that Stripe has; ``why`` it is on another invoice than that of its period."""
        if not why:
            return await items.settle(item, "d", after="")
        if is_settled := await items.settle(item, "f", after=f"billed by the next invoice: {why}"):
            self.late.add(item, why, is_billed=True)
        return is_settled

    async def _refuse_line(self, items: InvoiceItemQueue, item: InvoiceItemEntry, why: str) -> bool:
        if await items.settle(item, "t", after=f"not billed: {why}"):
            self.late.add(item, why, is_billed=False)
        return False

    async def _place_of(self, item: InvoiceItemEntry, attempt: int) -> _Place | None:
        """Find the place of a line, once for all lines of a period; None: Stripe may yet make its invoice."""
        name = _place_name(item)
        found = self._places.get(name)
        if name not in self._places or (found is not None and found.age_s() > _STALE_S):
            age_s = stopwatch(self._store.clock)
            found = await self._find_place(item, age_s, attempt)
            self._places[name] = found
        if found is None or found.refusal or found.is_listed:
            return found
        if item.is_tried or found.shown is None or item.usage_key in found.shown:
            listed = await self._items_of(item)
            known = {str(one["id"]) for one in listed}
            more = [one for one in found.items if str(one["id"]) not in known]
            found = self._places[name] = found._replace(items=[*listed, *more], is_listed=True)
        return found

    async def _find_place(self, item: InvoiceItemEntry, age_s: Elapsed, attempt: int) -> _Place | None:
        """Find the invoice of a line; None: Stripe may yet make it."""
        if attempt and not await self._api.has_customer(item.stripe_customer):
            return _Place(None, [], age_s, refusal="Stripe has no such customer")
        if not item.subscription:
            return await self._find_separate_invoice(item, age_s)
        asked: dict[str, Parameter] = {"expand": ["latest_invoice"]}
        subscription = await self._api.get(f"/v1/subscriptions/{item.subscription}", asked)
        end_s = min(item.till_ms // 1000, int(subscription.get("ended_at") or item.till_ms // 1000))
        found = await self._find_invoices(item, subscription, end_s)
        if refusal := _explain_unbilled(item, subscription, found):
            return _Place(None, [], age_s, refusal=refusal)
        draft = next((one for one in found if one.get("status") == "draft"), None)
        if draft is not None:
            return _Place(str(draft["id"]), [], age_s, shown=_shown_usage(draft))
        if not found and self._may_come(subscription, end_s):
            return None
        lines = [line for one in found for line in await self._lines_of(str(one["id"]))]
        _, renews_s = _current_period_s(subscription)
        has_renewal = subscription.get("status") not in ENDED
        is_soon = has_renewal and 1000 * renews_s < self._store.now_ms() + _RENEWS_SOON_MS
        # Usage that is not late is billed, even if the next renewal may have no late usage.
        if found if self._drops_late else is_soon:
            return _Place(None, lines, age_s, late=_FINAL if found else _NO_RENEWAL)
        own = await self._find_separate_invoice(item, age_s, subscription)
        return own._replace(items=lines, late=own.late or _FINAL * bool(found))

    def _may_come(self, subscription: Mapping[str, Any], end_s: int) -> bool:
        """Whether Stripe may yet make the invoice of a period that ended."""
        start_s, renews_s = _current_period_s(subscription)
        has_ended = subscription.get("status") in ENDED
        wait_ms = AFTER_THE_END_MS if has_ended else MADE_WITHIN_MS
        is_renewal = has_ended or not start_s < end_s < renews_s
        return is_renewal and self._store.now_ms() < 1000 * end_s + wait_ms

    async def _find_invoices(
        self, item: InvoiceItemEntry, subscription: Mapping[str, Any], end_s: int
    ) -> list[Mapping[str, Any]]:
        """Find the invoice of a renewal, or those that Stripe has made since a subscription ended."""
        latest: Mapping[str, Any] | str | None = subscription.get("latest_invoice")
        shown: Mapping[str, Any] = {} if latest is None or isinstance(latest, str) else latest
        if is_renewal_of(shown, item.subscription, end_s):
            return [shown]
        asked: dict[str, Parameter] = {"customer": item.stripe_customer, "created": {"gte": end_s}}
        made: Sequence[Mapping[str, Any]] = await self._api.list(_INVOICES, asked)
        found: list[Mapping[str, Any]] = [one for one in made if is_renewal_of(one, item.subscription, end_s)]
        if not found and subscription.get("status") in ENDED:
            # No person needs to finalize a draft that Stripe advances.
            found = [
                one
                for one in made
                if subscription_of(one) == item.subscription
                and (one.get("status") != "draft" or one.get("auto_advance"))
            ]
        return found

    async def _lines_of(self, invoice: str) -> list[Mapping[str, Any]]:
        """Lines for usage on an invoice, as invoice items: a list of items may lack the latest ones."""
        lines = await self._api.list(f"{_INVOICES}/{invoice}/lines")
        return [as_item(line, invoice) for line in lines if USAGE_KEY in metadata_of(line)]

    async def _items_of(self, item: InvoiceItemEntry) -> list[dict[str, Any]]:
        """Invoice items of the customer that may be lines of the period."""
        asked: dict[str, Parameter] = {
            "customer": item.stripe_customer,
            "created": {"gte": item.period_ms // 1000},
        }
        return await self._api.list(_ITEMS, asked)

    async def _find_separate_invoice(
        self, item: InvoiceItemEntry, age_s: Elapsed, subscription: Mapping[str, Any] | None = None
    ) -> _Place:
        """Find or make the invoice of a period that no subscription bills.

        Args:
            item: its first line.
            age_s: measures the age of the place.
            subscription: whose usage it bills; None: there is none.
        """
        if refusal := "" if subscription is None else explain_no_invoice(subscription):
            return _Place(None, [], age_s, refusal=refusal)
        usage = EndedUsage(item.customer, item.stripe_customer, item.currency, item.till_ms)
        found = await find_usage_invoice(
            self._api,
            usage,
            subscription,
            self._store.catalog.billing.checkout,
            is_once=self._drops_late,
        )
        shown = frozenset[str]() if found.is_new and not found.formers else None
        return _Place(found.draft, [], age_s, late=_FINAL * bool(found.formers), shown=shown)

    async def _raise_line(
        self, item: InvoiceItemEntry, line: Mapping[str, Any], units: int
    ) -> Mapping[str, Any]:
        """Add units to a line that is written."""
        metadata = {_ADDED_KEY: " ".join([*queued_ids_of(line)[1:], item.id][-_ADDED_MOST:])}
        return await change_line(self._api, line, int(units_of(line)) + units, metadata)

    async def _post_line(self, item: InvoiceItemEntry, place: _Place, units: int) -> Mapping[str, Any]:
        """Post a line; make the product of its meter first if Stripe does not have it."""
        meter = self._store.catalog.meters.get(item.meter)
        product = line_product(item.meter, item.meter if meter is None else meter.title)
        product_id = product["id"]
        target: dict[str, Parameter] = {"subscription": item.subscription}
        if place.invoice is not None:
            target = {"invoice": place.invoice}
        params: dict[str, Parameter] = {
            "customer": item.stripe_customer,
            **target,
            "price_data": {
                "currency": item.currency,
                "product": product_id,
                "unit_amount_decimal": f"{unit_amount_decimal(item.label):f}",
            },
            "quantity_decimal": f"{units}",
            "period": {"start": item.period_ms // 1000, "end": max(item.period_ms, item.till_ms) // 1000},
            "metadata": {
                USAGE_KEY: item.usage_key,
                LINE_KEY: item.id,
                METER_KEY: item.meter,
                PRICE_KEY: price_each(item.label, item.currency),
                **({LABEL_KEY: item.label} if item.prices == 1 else {}),
                **({_LATE_KEY: place.late} if place.late else {}),
            },
        }
        if item.prices > 1:
            params["description"] = f"{product['name']} ({item.prices} prices)"
            self._log_sums(item)

        async def find_line() -> dict[str, Any] | None:
            written = (one for one in await self._items_of(item) if item.id in queued_ids_of(one))
            return next(written, None)

        key = key_of("line", item.id, units, target)
        try:
            return await self._api.post(_ITEMS, params, idempotency_key=key, find=find_line)
        except StripeError as error:
            is_named = product_id in str(error) or (error.param or "").startswith("price_data")
            if not (is_named and error.status in _MISSING and await self._mend_product(product, error)):
                raise
        return await self._api.post(_ITEMS, params, idempotency_key=key, find=find_line)

    async def _mend_product(self, product: Mapping[str, str], refused: StripeError) -> bool:
        """Make the product of a line, or activate it; False: nothing was wrong with it.

        Lines of other customers may do so at the same time.
        """
        path = f"/v1/products/{product['id']}"
        found = await self._api.find(path)
        if found is None:
            await self._make_product(product)
            return True
        if found.get("active") is False:
            await self._api.post(path, {"active": True})
            _logger.warning("product %s was archived at Stripe; usage needs it: active again", product["id"])
            return True
        return product["id"] in str(refused)

    async def _make_product(self, product: Mapping[str, str]) -> None:
        try:
            await self._api.post("/v1/products", {**product})
        except StripeError as error:
            if error.code != "resource_already_exists":
                raise

    def _log_sums(self, item: InvoiceItemEntry) -> None:
        """Log once for a customer and period that lines sum a meter's prices; see sum_lines_by_meter.lua."""
        name = item.customer, item.period_ms
        if name not in self._summed:
            self._summed.add(name)
            text = (
                "usage of customer %r in the period from %s has more than %d prices: an invoice has no room"
                " for so many lines, so each meter has one line, at its mean price"
            )
            _logger.info(text, item.customer, iso(from_ms(item.period_ms)), LINES_MOST)


def as_item(line: Mapping[str, Any], invoice: str) -> Mapping[str, Any]:
    """Show a line of an invoice as its invoice item."""
    return {**line, "id": item_of(line), "invoice": invoice}


def _shown_usage(draft: Mapping[str, Any]) -> frozenset[str] | None:
    """Read the usage keys of all lines of a draft; None: it does not show all of them.

    An expanded draft may lack the latest lines. So this counts only for a line that was never tried.
    """
    lines: Mapping[str, Any] = draft.get("lines") or {"has_more": True}
    if lines.get("has_more"):
        return None
    return frozenset(str(metadata_of(line).get(USAGE_KEY)) for line in lines.get("data") or ())


def _current_period_s(subscription: Mapping[str, Any]) -> tuple[int, int]:
    """Read the current period of the item that renews first (Unix seconds)."""
    items: Mapping[str, Any] = subscription.get("items") or {}
    spans = [(int(one["current_period_end"]), int(one["current_period_start"])) for one in items["data"]]
    end_s, start_s = min(spans, default=(0, 0))
    return start_s, end_s


async def change_line(
    api: StripeApi, line: Mapping[str, Any], units: int, metadata: Mapping[str, str]
) -> Mapping[str, Any]:
    """Change the units of a written line.

    The idempotency key names the line as it was read. If two processes change the same state, Stripe refuses
    the second one, which reads the line again later.

    Args:
        api: the way to Stripe.
        line: as it was read.
        units: in all.
        metadata: what the line then has, and no line before: it tells that the change was made.

    Raises:
        StripeError: Stripe refuses, or does not answer; or another process has changed the line.
    """
    path = f"{_ITEMS}/{line['id']}"

    async def find_changed() -> dict[str, Any] | None:
        shown = await api.get(path)
        if metadata.items() <= metadata_of(shown).items():
            return shown
        if _line_state(shown) != _line_state(line):
            raise StripeError(f"the line {line['id']} was changed meanwhile: it is read again")
        return None

    params: dict[str, Parameter] = {"quantity_decimal": f"{units}", "metadata": {**metadata}}
    key = key_of("change-line", *_line_state(line))
    return await api.post(path, params, idempotency_key=key, find=find_changed)


def _line_state(line: Mapping[str, Any]) -> list[str]:
    """Id of a line, its units, and the queued line that was added last."""
    return [str(line["id"]), f"{units_of(line):f}", queued_ids_of(line)[-1]]


def _explain_unbilled(
    item: InvoiceItemEntry, subscription: Mapping[str, Any], invoices: Sequence[Mapping[str, Any]]
) -> str:
    """Explain why a line is on no invoice of a subscription; empty: one can have it.

    Args:
        item: the line.
        subscription: as Stripe shows it.
        invoices: of the line's period.
    """
    currency = str(subscription.get("currency") or item.currency)
    if currency != item.currency:
        return f"its price is in {item.currency}, and the customer's invoices are in {currency}"
    statuses = {one.get("status") for one in invoices}
    if "void" in statuses or ("uncollectible" in statuses and subscription.get("pause_collection")):
        return "the invoice of its period is void or not to be collected"
    return ""


def _is_late(line: Mapping[str, Any]) -> bool:
    return _LATE_KEY in metadata_of(line)


def _late_reason(line: Mapping[str, Any]) -> str:
    """Explain why a line is not on the invoice of its period; empty: it is."""
    word = metadata_of(line).get(_LATE_KEY)
    return "" if word is None else _LATE_REASONS.get(word, _LATE_REASONS[_FINAL])


def _bills(line: Mapping[str, Any], item: InvoiceItemEntry) -> bool:
    """Whether a line at Stripe bills the usage of a queued line, at its price."""
    found, price = metadata_of(line), price_each(item.label, item.currency)
    is_at_price = found.get(LABEL_KEY) == item.label or found.get(PRICE_KEY) == price
    return found.get(USAGE_KEY) == item.usage_key and is_at_price


def _place_name(item: InvoiceItemEntry) -> tuple[str, str, int, int]:
    return item.stripe_customer, item.subscription, item.till_ms, item.period_ms


def is_refusal(error: StripeError) -> bool:
    """Whether Stripe has refused a request, and will refuse the same one again."""
    return error.status in _MISSING and error.type != _IDEMPOTENCY


def _refuses_place(error: StripeError, item: InvoiceItemEntry) -> bool:
    """Whether Stripe refuses the invoice, subscription or customer of a line, which may have changed."""
    named = (error.param or "").partition("[")[0] in {"invoice", "subscription", "customer"}
    text = str(error)
    return named or "invoice" in text.lower() or item.stripe_customer in text


def queued_ids_of(line: Mapping[str, Any]) -> list[str]:
    """Identifiers of the queued lines that a line has: the first one, then the latest."""
    found = metadata_of(line)
    return [found.get(LINE_KEY, ""), *found.get(_ADDED_KEY, "").split()]


class LateLineReport:
    """Collects late lines of one pass, so that a period with many lines is logged once."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, int, str, bool], list[InvoiceItemEntry]] = {}

    def add(self, item: InvoiceItemEntry, why: str, *, is_billed: bool) -> None:
        """Add a settled line: the next invoice bills it, or none does, and why."""
        self._found.setdefault((item.customer, item.period_ms, why, is_billed), []).append(item)

    def log(self) -> None:
        """Log the lines, and add them to the report of the running flush; then forget them."""
        for (customer, period_ms, why, is_billed), items in self._found.items():
            period = iso(from_ms(period_ms))
            mark = add_late_usage(
                LateUsage(
                    customer=customer,
                    meter=item.meter,
                    quantity=item.units,
                    period=period,
                    is_billed=is_billed,
                )
                for item in items
            )
            text = _BILLED if is_billed else _REFUSED
            _logger.error(text, customer, _format_lines(items), period, why, extra=mark)
        self._found.clear()


def _format_lines(items: Sequence[InvoiceItemEntry]) -> str:
    shown = [item.in_words() for item in items[:_SHOWN_MOST]]
    more = len(items) - len(shown)
    return ", ".join([*shown, f"and {more} more lines"] if more else shown)
