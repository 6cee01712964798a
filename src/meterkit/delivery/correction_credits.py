"""Credit notes for corrected usage that no negative event can take back; idempotent by correction id."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

from meterkit.catalog.amount_texts import money, rounded_cents
from meterkit.customers.by_hand_lines import ByHandLine, IssuedCredit
from meterkit.customers.corrections import Asked, check_correction, once_key, restore_units
from meterkit.customers.history import enter
from meterkit.customers.states import States
from meterkit.delivery.billed_usage import (
    queued_lines,
    read_billed,
    read_ended_segments,
    tokens_of,
    usage_lines,
)
from meterkit.errors import SettingsError, StripeError, StripeUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from meterkit.customers.by_hand_lines import AssignedLine
    from meterkit.customers.corrections import Corrected
    from meterkit.delivery.billed_usage import UsageLine
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi
    from meterkit.stripe.request import Parameter

_NOTES: Final = "/v1/credit_notes"
_CORRECTION: Final = "meterkit_correction"
_DATED: Final = "@"
_NO_LINE: Final = "their invoice line is not known: credit them at Stripe"
_AGAIN: Final = "correct again with the same id when it is final"
_WAITING: Final = {
    "pending": f"no invoice has them yet: {_AGAIN}",
    "draft": f"invoice{{}} is a draft: {_AGAIN}",
    "void": "invoice{} is void and charges nothing",
    "uncollectible": "invoice{} is marked uncollectible: credit them at Stripe",
}


class CreditIssuer:
    """Takes recorded units back, and issues credit notes for billed ones.

    Args:
        store: counts the usage.
        api: the way to Stripe; None: no Stripe key is set.
    """

    def __init__(self, store: Store, api: Callable[[], StripeApi] | None) -> None:
        self._store = store
        self._api = api

    async def correct(
        self,
        customer: str,
        quantities: Mapping[str, int],
        *,
        reason: str,
        correction_id: str,
        credit: bool = False,
        dry_run: bool = False,
        by: str = "api",
    ) -> Sequence[Corrected]:
        """Take recorded units back, once for each id; return a result for each meter.

        Overage is taken back before credits, grants and included units. Units that no invoice has are taken
        back by a negative meter event. Units on an invoice line of an ended price, and billed ones of the
        last 35 days, are ``by_hand``. Otherwise, the customer gets a grant from the next period on.

        Args:
            customer: the customer's id.
            quantities: meter to units.
            reason: why, for the customer's ledger.
            correction_id: your own id. An interrupted correction goes on under the same id.
            credit: issue a credit note for ``by_hand`` units of each final invoice line. Call again with the
                same id for lines that become final later.
            dry_run: change nothing, and return what would be done.
            by: the operator, for the ledger.

        Raises:
            CustomerError, QuantityError, UnknownMeterError: an argument cannot be used.
            MeterkitError: the id was used for something else, or a text cannot be used.
            SettingsError: ``credit`` without a Stripe key; nothing is taken back.
            StripeError: Stripe does not show the invoices, and nothing is taken back; or it does not answer
                before all credit notes are issued.
            StoreError: the store does not answer.
        """
        asked = Asked(quantities, reason=reason, correction_id=correction_id, by=by, is_dry=dry_run)
        store, api = self._store, self._api
        check_correction(store, customer, asked)
        if credit and api is None:
            message = (
                "stripe_api_key: credit notes need a Stripe key, and none is set: nothing is taken back; set"
                " METERKIT_STRIPE_API_KEY, or leave credit out"
            )
            raise SettingsError("stripe_api_key", message)
        if api is None:
            read = partial(read_ended_segments, store, quantities=quantities)
        else:
            read = partial(read_billed, store, api(), quantities=quantities)
        restored = await restore_units(store, customer, asked, read)
        if dry_run:
            return restored.found
        return [
            await self._add_credits(customer, asked, one, restored.lines[one.meter], is_asked=credit)
            for one in restored.found
        ]

    async def _add_credits(
        self,
        customer: str,
        asked: Asked,
        one: Corrected,
        lines: Sequence[AssignedLine],
        *,
        is_asked: bool,
    ) -> Corrected:
        """Add the credit notes to the result of a meter; issue missing ones if ``is_asked``."""
        if not one.by_hand:
            return one
        whys = [] if one.by_hand == sum(line.units for line in lines) else [_NO_LINE]
        notes = await self._read_credits(customer, asked, one.meter)
        missing = [line for line in lines if line.name not in notes]
        if is_asked and missing:
            issued, more = await self._issue_credits(customer, asked, one.meter, missing)
            notes, whys = {**notes, **issued}, [*whys, *more]
        return replace(
            one,
            by_hand_lines=[
                ByHandLine(note.invoice, note.line, line.units, line.cents)
                if (note := notes.get(line.name))
                else ByHandLine(*line[1:])
                for line in lines
            ],
            credits=[notes[line.name] for line in lines if line.name in notes],
            not_credited="; ".join(whys) if is_asked else "",
        )

    async def _issue_credits(
        self, customer: str, asked: Asked, meter: str, lines: Sequence[AssignedLine]
    ) -> tuple[dict[str, IssuedCredit], list[str]]:
        """Issue credit notes for lines; return them by line name, and why other lines get none."""
        _, state = await States(self._store).read(customer)
        api = self._api() if self._api is not None else None
        dated = [line for line in lines if _DATED in line.name]
        if api is None or state.stripe_customer is None or not dated:
            return {}, [_NO_LINE]
        since_s = min(int(line.name.split(_DATED)[1]) for line in dated)
        tokens = tokens_of(meter, self._store.catalog)
        found = await usage_lines(api, self._store, customer, state.stripe_customer, tokens, since_s)
        known = {one.name: one for one in found}
        queued = {one.name for one in await queued_lines(self._store, customer)}
        notes, whys = dict[str, IssuedCredit](), list[str]()
        for line in lines:
            billed = known.get(line.name)
            why = _WAITING["pending"] if line.name in queued and billed is None else _why_not(line, billed)
            if billed is None or billed.invoice is None or why:
                whys.append(f"{line.units:,} units: {why}")
                continue
            try:
                identifier = await self._find_or_issue(
                    api, _idempotency_key(customer, asked, meter, line), line, billed
                )
            except StripeUnavailableError:
                raise
            except StripeError as error:
                whys.append(f"{line.units:,} units: Stripe refuses the credit note: {error}")
                continue
            notes[line.name] = IssuedCredit(
                identifier, str(billed.invoice["id"]), str(billed.line["id"]), line.units, line.cents
            )
            if await self._keep_credits(customer, asked, meter, notes, line.name):
                given = money(line.cents, str(billed.invoice["currency"]))
                await enter(
                    self._store,
                    customer,
                    kind="correction",
                    before=f"{line.units} of {meter} on invoice {billed.invoice['id']}",
                    after=f"{given} given back by {identifier}: {asked.reason}",
                    cause=asked.by,
                )
        return notes, whys

    async def _find_or_issue(self, api: StripeApi, key: str, line: AssignedLine, billed: UsageLine) -> str:
        """Find the credit for units of a line, or issue it; return its id.

        Raises:
            StripeError: Stripe refuses, or does not answer.
        """
        invoice: Mapping[str, Any] = billed.invoice or {}
        entries = f"/v1/customers/{invoice['customer']}/balance_transactions"
        known = [*await api.list(_NOTES, {"invoice": str(invoice["id"])}), *await api.list(entries)]
        for issued in known:
            metadata: Mapping[str, Any] = issued.get("metadata") or {}
            if metadata.get(_CORRECTION) == key:
                return str(issued["id"])
        cents, left = _credit_total(line.cents, billed.line), int(invoice["amount_remaining"])
        paid = int(invoice["amount_paid"]) - int(invoice.get("post_payment_credit_notes_amount") or 0)
        params: dict[str, Parameter] = {"metadata": {_CORRECTION: key}}
        if cents > left + paid:
            # A credit or the balance has paid part of the invoice: Stripe refuses a credit note for that.
            params |= {"amount": -cents, "currency": str(invoice["currency"])}
            made = await api.post(entries, params, idempotency_key=f"meterkit-correction-{key}-balance")
            return str(made["id"])
        credited: dict[str, Parameter] = {
            "type": "invoice_line_item",
            "invoice_line_item": str(billed.line["id"]),
            "amount": line.cents,
        }
        params |= {"invoice": str(invoice["id"]), "lines": [credited]}
        if cents > left:
            params["credit_amount"] = cents - left
        made = await api.post(_NOTES, params, idempotency_key=f"meterkit-correction-{key}")
        return str(made["id"])

    async def _read_credits(self, customer: str, asked: Asked, meter: str) -> dict[str, IssuedCredit]:
        """Read the stored credit notes of a correction, by line name."""
        kept = await self._read_correction(customer, asked)
        return {name: IssuedCredit(*note) for name, note in kept.get("notes", {}).get(meter, {}).items()}

    async def _read_correction(self, customer: str, asked: Asked) -> dict[str, Any]:
        admin, (_, once) = await self._store.admin(), once_key(self._store, customer, asked.correction_id)
        kept: bytes | None = await admin.ask(admin.client.get(once))
        found: dict[str, Any] = json.loads(kept or b"{}")
        return found

    async def _keep_credits(
        self, customer: str, asked: Asked, meter: str, notes: Mapping[str, IssuedCredit], latest: str
    ) -> bool:
        """Store the credits of a meter with its correction; whether the latest one is new."""
        store, kept = self._store, await self._read_correction(customer, asked)
        known = kept.setdefault("notes", {}).setdefault(meter, {})
        is_new = latest not in known
        known |= notes
        admin, (_, once) = await store.admin(), once_key(store, customer, asked.correction_id)
        is_kept = await admin.ask(admin.client.set(once, json.dumps(kept), xx=True, keepttl=True))
        return is_new and bool(is_kept)


def _idempotency_key(customer: str, asked: Asked, meter: str, line: AssignedLine) -> str:
    """Compute the idempotency key of a credit note from the correction and the line."""
    text = f"{customer}\0{asked.correction_id}\0{meter}\0{line.name}"
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _why_not(line: AssignedLine, billed: UsageLine | None) -> str:
    """Explain why a line gets no credit note now; empty: it may get one."""
    if billed is None:
        return _NO_LINE
    if not line.cents:
        return "they come to less than half a cent"
    invoice = "" if billed.invoice is None else f" {billed.invoice['id']}"
    return _WAITING[billed.status].format(invoice) if billed.status in _WAITING else ""


def _credit_total(cents: int, line: Mapping[str, Any]) -> int:
    """Compute the total of a credit note, with the line's share of discounts and exclusive taxes."""
    off = sum(int(one["amount"]) for one in line.get("discount_amounts") or ())
    tax = sum(int(one["amount"]) for one in line.get("taxes") or () if one.get("tax_behavior") == "exclusive")
    share = Fraction(cents, int(line["amount"]) or 1)
    return cents - rounded_cents(off * share) + rounded_cents(tax * share)
