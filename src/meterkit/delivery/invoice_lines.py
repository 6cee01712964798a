"""Invoice lines for usage without meters: each is written once, onto the draft invoice of its period.

Where that invoice is final, the next one of the subscription has the line. Where there is none, as without a
subscription, the line gets an invoice of its own.
"""

from __future__ import annotations

import logging
from hashlib import blake2b
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meterkit.decisions.periods import from_ms, iso
from meterkit.decisions.price_segments import unit_amount_decimal
from meterkit.decisions.subscription import ENDED
from meterkit.delivery.invoices import MADE_WITHIN_MS, is_renewal_of, units_of
from meterkit.errors import StripeError
from meterkit.outbox.invoice_item_queue import price_each
from meterkit.outbox.invoice_line_terms import line_product

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.outbox.invoice_item_queue import LateItem, LateItems
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi
    from meterkit.stripe.request import Parameter

_logger = logging.getLogger("meterkit.delivery")
LINE_KEY: Final = "meterkit_line"
"""Key in the metadata of a line for its identifier in the queue."""
USAGE_KEY: Final = "meterkit_usage"
"""Key in the metadata of a line, and of an invoice of our own, for the hash of customer, meter and period."""
_ITEMS: Final = "/v1/invoiceitems"
_INVOICES: Final = "/v1/invoices"
_MISSING: Final = {HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND}
_AFTER_THE_END_MS: Final = 10 * 60_000
"""Time that Stripe has to make the last invoice of a subscription that has ended."""


class _Place(NamedTuple):
    """Place of a line.

    Attributes:
        invoice: the draft; None: the next renewal of the subscription.
        lines: lines and pending items that Stripe has already.
        is_late: whether the line is not on the invoice of its own period.
    """

    invoice: str | None
    lines: list[Mapping[str, Any]]
    is_late: bool = False


class LineWriter:
    """Writes the lines of one pass over the queue: it reads each customer's draft once.

    Args:
        store: has the queue.
        api: the way to Stripe.
    """

    def __init__(self, store: Store, api: StripeApi) -> None:
        self._store = store
        self._api = api
        self._places: dict[tuple[str, str, int], _Place | None] = {}

    async def write(self, items: LateItems, item: LateItem) -> bool:
        """Write a line unless Stripe has it; False: it must wait, or another process has settled it.

        Raises:
            StripeError: Stripe refuses, or does not answer.
            StoreError: the store does not answer.
        """
        name = item.stripe_customer, item.subscription, item.till_ms
        if name not in self._places:
            self._places[name] = await self._find_place(item)
        place = self._places[name]
        if place is None:
            return False
        there = [line for line in place.lines if _metadata(line).get(USAGE_KEY) == item.usage_key]
        if not any(_metadata(line).get(LINE_KEY) == item.id for line in there):
            left = await items.known_units(item) - int(sum(map(units_of, there)))
            if left > 0:
                place.lines.append(await self._post_line(item, place, min(item.units, left)))
        return await self._settle_line(items, item, place)

    async def _settle_line(self, items: LateItems, item: LateItem, place: _Place) -> bool:
        if not place.is_late:
            return await items.settle(item, "d", after="")
        after = "billed by the next invoice: that of its period was final"
        if is_settled := await items.settle(item, "f", after=after):
            period = iso(from_ms(item.period_ms))
            text = "late usage of customer %r: the next invoice bills %s of the period from %s"
            _logger.warning(text, item.customer, item.in_words(), period)
        return is_settled

    async def _find_place(self, item: LateItem) -> _Place | None:
        """Find the invoice of a line; None: Stripe may yet make it."""
        if not item.subscription:
            return await self._invoice_without_subscription(item)
        asked: dict[str, Parameter] = {"expand": ["latest_invoice"]}
        subscription = await self._api.get(f"/v1/subscriptions/{item.subscription}", asked)
        end_s, now_ms = item.till_ms // 1000, self._store.now_ms()
        has_ended = subscription.get("status") in ENDED
        end_s = min(end_s, int(subscription.get("ended_at") or end_s))
        latest = subscription.get("latest_invoice")
        found: list[Mapping[str, Any]] = [latest] if isinstance(latest, dict) else [{}]
        if not is_renewal_of(found[0], item.subscription, end_s):
            asked = {"customer": item.stripe_customer, "created": {"gte": end_s}}
            found = [
                one
                for one in await self._api.list(_INVOICES, asked)
                if is_renewal_of(one, item.subscription, end_s)
            ]
        draft = next((one for one in found if one.get("status") == "draft"), None)
        if draft is not None:
            return _Place(str(draft["id"]), await self._lines_of(draft))
        wait_ms = _AFTER_THE_END_MS if has_ended else MADE_WITHIN_MS
        if not found and now_ms < 1000 * end_s + wait_ms:
            return None
        if has_ended:
            return await self._invoice_without_subscription(item, subscription.get("default_payment_method"))
        return _Place(None, await self._pending_of(item), is_late=True)

    async def _lines_of(self, invoice: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        lines: Mapping[str, Any] = invoice.get("lines") or {}
        if lines.get("has_more"):
            return [*await self._api.list(f"{_INVOICES}/{invoice['id']}/lines")]
        return [*lines.get("data", ())]

    async def _pending_of(self, item: LateItem) -> list[Mapping[str, Any]]:
        """Invoice items of the customer that may have late lines of the period, wherever they are."""
        asked: dict[str, Parameter] = {
            "customer": item.stripe_customer,
            "created": {"gte": item.period_ms // 1000},
        }
        return [*await self._api.list(_ITEMS, asked)]

    async def _invoice_without_subscription(self, item: LateItem, method: object = None) -> _Place:
        """Find or make the invoice of a period that no subscription bills; Stripe finalizes it in an hour.

        Args:
            item: its first line.
            method: the payment method of a subscription that has ended; else the customer's default one pays.
        """
        mark = f"{item.till_ms}:{item.customer}"[:500]  # The longest value of metadata.
        asked: dict[str, Parameter] = {
            "customer": item.stripe_customer,
            "created": {"gte": item.till_ms // 1000},
        }
        made_before = [
            one for one in await self._api.list(_INVOICES, asked) if _metadata(one).get(USAGE_KEY) == mark
        ]
        lines = [line for one in made_before for line in await self._lines_of(one)]
        for one in made_before:
            if one.get("status") == "draft":
                return _Place(str(one["id"]), lines)
        params: dict[str, Parameter] = {
            "customer": item.stripe_customer,
            "currency": item.currency,
            "auto_advance": True,
            "metadata": {USAGE_KEY: mark},
        }
        if isinstance(method, str):
            params["default_payment_method"] = method
        digest = blake2b(mark.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        key = f"meterkit-invoice-{digest}-{len(made_before)}"
        made = await self._api.post(_INVOICES, params, idempotency_key=key)
        return _Place(str(made["id"]), lines)

    async def _post_line(self, item: LateItem, place: _Place, units: int) -> Mapping[str, Any]:
        """Post a line; make the product of its meter first if Stripe does not have it."""
        meter = self._store.catalog.meters.get(item.meter)
        product = line_product(item.meter, item.meter if meter is None else meter.title)
        key, product_id = f"{item.id}-{units}", product["id"]
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
                "meterkit_meter": item.meter,
                "meterkit_price": price_each(item.label, item.currency),
            },
        }
        try:
            return await self._api.post(_ITEMS, params, idempotency_key=key)
        except StripeError as error:
            if product_id not in str(error) or error.status not in _MISSING:
                raise
        await self._api.post("/v1/products", {**product}, idempotency_key=f"make-{product_id}")
        return await self._api.post(_ITEMS, params, idempotency_key=f"{key}-again")


def _metadata(shown: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = shown.get("metadata") or {}
    return found
