"""Corrections of usage without meters at Stripe: a written line is lowered while its invoice is a draft.

The metadata of the line has an entry for each correction. So it is lowered once, and the units that were
written stay known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meterkit.customers.states import CustomerStates
from meterkit.delivery.invoice_lines import name_line_state, queued_ids_of
from meterkit.delivery.invoices import LOWERED_KEY, units_of
from meterkit.delivery.late_usage_withdrawal import report_late
from meterkit.errors import StripeError
from meterkit.outbox.invoice_item_queue import usage_key_of
from meterkit.outbox.line_metadata import USAGE_KEY, is_usage_line, item_of, metadata_of
from meterkit.outbox.meters_or_lines import line_switches
from meterkit.outbox.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi
    from meterkit.stripe.request import Parameter

_ITEMS: Final = "/v1/invoiceitems"
_DIGITS: Final = 24  # A key of metadata has at most 40 characters.


def written_line_token(line: Mapping[str, Any], customer: str, tokens: Iterable[str]) -> str | None:
    """Find the meter, among some, whose usage of a period a written line bills; None: none."""
    key, start_ms = metadata_of(line).get(USAGE_KEY), 1000 * int(line["period"]["start"])
    if key is None or not is_usage_line(line):
        return None
    return next((token for token in tokens if usage_key_of(customer, token, start_ms) == key), None)


def written_item(line: Mapping[str, Any]) -> tuple[str, list[str]] | None:
    """Find the invoice item of a written line, and its queued lines; None: it is another line."""
    return (item_of(line), queued_ids_of(line)) if is_usage_line(line) else None


async def queue_ended_usage(store: Store, customer: str) -> None:
    """Queue lines for pending usage of ended periods, so that a correction finds them.

    Raises:
        StoreError: the store does not answer.
    """
    _, state = await CustomerStates(store).read(customer)
    if state.stripe_customer is not None and line_switches(state, store.catalog):
        outbox = Outbox(store, await store.admin())
        report_late((await outbox.seal_customer(customer)).late, await outbox.meters())


async def lower_line(api: StripeApi, item: str, units: int, *, correction: str, is_final: bool) -> bool:
    """Take units off a written line, once for each correction; False: the line is final and was not lowered.

    Args:
        api: the way to Stripe.
        item: the invoice item of the line.
        units: how many.
        correction: hex digits that identify the correction and the line.
        is_final: whether the invoice of the line is final.

    Raises:
        StripeError: Stripe refuses, or does not answer.
    """
    shown = await api.get(f"{_ITEMS}/{item}")
    metadata = metadata_of(shown)
    entry, left = f"{LOWERED_KEY}{correction[:_DIGITS]}", int(units_of(shown)) - units
    if entry in metadata or is_final:
        return entry in metadata
    if left < 0:
        raise StripeError(f"the line has {units_of(shown):f} units: a person has changed it")
    params: dict[str, Parameter] = {"quantity_decimal": f"{left}", "metadata": {entry: f"{units}"}}
    await api.post(f"{_ITEMS}/{item}", params, idempotency_key=name_line_state(shown))
    return True
