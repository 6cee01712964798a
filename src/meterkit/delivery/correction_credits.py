"""Credit notes for corrected usage that no negative event can take back; idempotent by correction id."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meterkit.catalog.value_parsers import money, rounded_cents
from meterkit.customers.billed_usage import read_totals
from meterkit.customers.corrections import (
    BilledLine,
    BilledUsage,
    ByHandLine,
    CorrectionRequest,
    IssuedCredit,
    check_correction,
    deduplication_key,
    restore_units,
)
from meterkit.customers.history import add_entry, read_former_links
from meterkit.customers.states import CustomerStates
from meterkit.decisions.keys import meter_token
from meterkit.decisions.periods import to_ms
from meterkit.decisions.price_segments import item_segments, segments_of, sent_label, unit_amount_decimal
from meterkit.delivery.invoices import InvoiceReader, written_units
from meterkit.delivery.late_usage_items import ITEM_KEY, late_item_token
from meterkit.delivery.line_books import (
    lines_of_links,
    lower_line,
    queue_ended_usage,
    written_item,
    written_line_token,
)
from meterkit.delivery.summaries import StripeSummaries
from meterkit.delivery.unbilled_periods import read_unbilled_periods
from meterkit.errors import MeterkitError, SettingsError, StripeError, StripeUnavailableError
from meterkit.outbox.invoice_item_queue import InvoiceItemQueue
from meterkit.outbox.meters_or_lines import has_metered_periods, metadata_of
from meterkit.store.event_names import find_former_events, list_reported_meters, read_meters
from meterkit.stripe.idempotency_keys import key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from meterkit.catalog import Catalog
    from meterkit.customers.corrections import AssignedLine, Corrected
    from meterkit.decisions.price_segments import PriceSegment
    from meterkit.store.customer_usage import CustomerUsage
    from meterkit.store.store import Store
    from meterkit.store.views import CustomerView
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


CREDITED_WITHIN_S: Final = 35 * 86_400
"""Largest age of the line's end for corrections of earlier periods."""
_UNBILLED: Final = frozenset({"void"})
_SEALED: Final = ("queued", "leased", "parked", "delivered", "late", "dead")
_ENDLESS: Final = 10**15


class UsageLine(NamedTuple):
    """An invoice line of usage, or the invoice item that becomes one.

    Attributes:
        name: the same from the pending item to the final invoice.
        token: of the meter.
        is_item: whether it is an invoice item for late usage.
        price: of a unit, in minor units; None: it bills packages of units.
        units: its quantity.
        start_s, end_s: the span that it bills.
        invoice: as Stripe shows it; None: it is pending.
        line: as Stripe shows it.
        item: the invoice item of a line that meterkit has written; a correction lowers it on a draft.
        added_names: names of queued lines that were added to this one.
    """

    name: str
    token: str
    is_item: bool
    price: Fraction | None
    units: int
    start_s: int
    end_s: int
    invoice: Mapping[str, Any] | None
    line: Mapping[str, Any]
    item: str | None = None
    added_names: tuple[str, ...] = ()

    @property
    def is_lowerable(self) -> bool:
        """Whether a correction can lower the line."""
        return self.item is not None and self.status in {"pending", "draft"}

    @property
    def instant_ms(self) -> int:
        """Middle of its span, which lies within its period."""
        return 500 * (self.start_s + self.end_s)

    @property
    def status(self) -> str:
        """The status of its invoice; ``pending``: there is none."""
        return "pending" if self.invoice is None else str(self.invoice["status"])


async def usage_lines(
    api: StripeApi, store: Store, customer: str, tokens: Iterable[str], since_s: int
) -> list[UsageLine]:
    """Read invoice lines and pending items of some meters since an instant, newest first.

    Those of former links count, too. Lines of one span are in the order of ``tokens``; tiers of a price are
    in reverse order.

    Raises:
        StripeError: Stripe refuses, or does not answer.
        StoreError: the store does not answer.
    """
    summaries, invoices = StripeSummaries(api), InvoiceReader(api, {}, store.catalog.currency)
    _, state = await CustomerStates(store).read(customer)
    if has_metered_periods(state, store.catalog):
        await summaries.refresh()
    order, admin = list(dict.fromkeys(tokens)), await store.admin()
    customer_meters = await read_meters(admin, store.keys, store.catalog, customer)
    former = find_former_events(state, store.catalog, 1000 * since_s)
    # An earlier price of the customer may have had the event name of the plans file, or another one.
    named = [
        (event, token)
        for known in (list_reported_meters(store.catalog), customer_meters)
        for token, one in known.items()
        for event in (one.event_name, *former.get(one.event_name, ()))
    ]
    token_of = {
        meter: token for event, token in named if token in order for meter in summaries.meter_ids(event)
    }
    lines = await lines_of_links(store, customer, state.stripe_customer, invoices, since_s)
    found, seen = list[UsageLine](), Counter[str]()
    for (invoice, line), is_own in lines:
        late = late_item_token(line, customer, order) or written_line_token(line, customer, order)
        meter, is_packed = (None, False) if late else await invoices.billed_meter(line)
        if not late and not (is_own and meter in token_of):
            continue
        read = _read_line(invoice, line, late or token_of[str(meter)], is_packed=is_packed)
        place = f"{'' if invoice is None else invoice['id']} {read.name}"
        seen[place] += 1
        if read.units:
            # Tiers may show no unit amount: their position identifies them.
            found.append(read._replace(name=f"{read.name}@{seen[place]}"))
    found.reverse()  # Tiers are in rising order.
    return sorted(found, key=lambda one: (-one.end_s, -one.start_s, order.index(one.token)))


def _read_line(
    invoice: Mapping[str, Any] | None, line: Mapping[str, Any], token: str, *, is_packed: bool
) -> UsageLine:
    pricing, span = line["pricing"], line["period"]
    units, written = int(written_units(line)), written_item(line)
    unit = pricing.get("unit_amount_decimal")
    price = Fraction(int(line["amount"]), units or 1) if unit is None else Fraction(str(unit))
    metadata: Mapping[str, str] = line.get("metadata") or {}
    item = metadata.get(ITEM_KEY)
    name = f"{pricing['price_details']['price']}@{span['start']}@{unit}"
    if item is not None:
        name = f"late@{span['start']}@{item}"
    elif written is not None:
        name = f"line@{span['start']}@{written[1][0]}"
    return UsageLine(
        name=name,
        token=token,
        is_item=item is not None,
        price=None if is_packed else price,
        units=units,
        start_s=int(span["start"]),
        end_s=int(span["end"]),
        invoice=invoice,
        line=line,
        item=None if written is None else written[0],
        added_names=()
        if written is None
        else tuple(f"line@{span['start']}@{identifier}@1" for identifier in written[1][1:]),
    )


def with_derived(meter: str, catalog: Catalog) -> list[str]:
    """List the meters whose events carry a meter's units: itself first, then derived ones."""
    return [meter, *(name for name, other in catalog.meters.items() if other.source == meter)]


def tokens_of(meter: str, catalog: Catalog) -> list[str]:
    """List the tokens of the meters whose events carry a meter's units."""
    return [*map(meter_token, with_derived(meter, catalog))]


async def read_billed(
    store: Store, api: StripeApi, view: CustomerView, quantities: Mapping[str, int]
) -> BilledUsage | None:
    """Read the billed usage of a customer's meters, in this period and up to 35 days ago.

    None: no invoice has any of it. There is neither a subscription nor a former link, and meterkit writes no
    lines; or none of the units to correct is sealed.

    Raises:
        MeterkitError: a line of this period bills packages of units.
        StripeError: Stripe refuses, or does not answer.
        StoreError: the store does not answer.
    """
    state, usage = view.state, await store.usage(view.customer)
    is_linked = state.stripe_customer is not None
    can_have_lines = is_linked and (state.subscription is not None or store.catalog.billing.is_by_lines)
    can_have_lines = can_have_lines or bool(await read_former_links(store, view.customer))
    if not can_have_lines or not _is_sealed(usage, quantities, store):
        return None
    start_ms, now_s = to_ms(usage["period"]["start"]), store.now_ms() // 1000
    changed = await _read_changed_at(store, view, start_ms)
    since_s = min(start_ms // 1000, now_s - CREDITED_WITHIN_S)
    tokens = {name: tokens_of(name, store.catalog) for name in quantities}
    wanted = [token for found in tokens.values() for token in found]
    found = await usage_lines(api, store, view.customer, wanted, since_s)
    for one in found:
        if one.price is None and one.instant_ms >= start_ms:
            raise MeterkitError(
                f"the line {one.line['id']} of {view.customer!r} bills packages at Stripe, not units: nothing"
                " is corrected; give a credit note at Stripe"
            )
    dated = [one for one in found if one.instant_ms >= start_ms or one.end_s >= now_s - CREDITED_WITHIN_S]
    credited = [one for one in dated if one.price and one.status not in _UNBILLED]
    units: dict[str, list[tuple[int, int]]] = {token: [] for token in wanted}
    for one in found:
        if not one.is_item:
            units[one.token].append((one.instant_ms, one.units))
    billed = [_billed_line(one, one.price) for one in credited if one.price]
    made = {one.name for one in found}
    late = [line for line in await queued_lines(store, view.customer) if line.name not in made]
    made_here = [(one.token, one.units) for one in credited if one.is_item and one.instant_ms >= start_ms]
    late_here = [(line.token, line.units) for line in late if line.instant_ms >= start_ms]
    lines = {name: [one for one in (*late, *billed) if one.token in tokens[name]] for name in quantities}
    earlier = await read_unbilled_periods(store, view, start_ms, max((one.end_s for one in found), default=0))
    return BilledUsage(units, _sums(made_here + late_here), lines, changed, earlier)


async def queued_lines(store: Store, customer: str) -> list[BilledLine]:
    """List the queued invoice items for late usage, named as their lines will be."""
    found = await InvoiceItemQueue(store, await store.admin()).listed(customer)
    return [
        BilledLine(
            token=item.meter_token,
            name=f"{'line' if item.by_line else 'late'}@{item.period_ms // 1000}@{item.id}@1",
            instant_ms=(item.period_ms + item.till_ms) // 2,
            units=item.units,
            price=Fraction(unit_amount_decimal(item.label)),
            invoice=None,
            line=item.id,
        )
        for item, _ in reversed(found)
    ]


def _sums(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    found = Counter[str]()
    for token, units in pairs:
        found[token] += units
    return dict(found)


def _billed_line(one: UsageLine, price: Fraction) -> BilledLine:
    return BilledLine(
        token=one.token,
        name=one.name,
        instant_ms=one.instant_ms,
        units=one.units,
        price=price,
        invoice=None if one.invoice is None else str(one.invoice["id"]),
        line=str(one.line["id"]),
    )


def _is_sealed(usage: CustomerUsage, quantities: Mapping[str, int], store: Store) -> bool:
    """Whether Stripe may have some of the units to correct: sealed ones, or ones of an earlier period."""
    counts, meters = usage["meters"], store.catalog.meters
    names = {name for name in meters if name in quantities or meters[name].source in quantities}
    return any(counts[name][place] for name in names for place in _SEALED) or any(
        quantity > counts[name]["recorded"] for name, quantity in quantities.items()
    )


async def _read_changed_at(store: Store, view: CustomerView, start_ms: int) -> str:
    """Read from the store when the customer's prices last changed in a period; empty: never."""
    found: bytes | None = await store.ask("hget", view.keys.totals, f"{start_ms}|y")
    return (found or b"").decode()


async def read_ended_segments(
    store: Store, view: CustomerView, quantities: Mapping[str, int]
) -> BilledUsage | None:
    """Read the ended price segments of this period from the store, as lines without ids.

    Raises:
        StoreError: the store does not answer.
    """
    if view.state.subscription is None:
        return None
    usage, meters = await store.usage(view.customer), store.catalog.meters
    start_ms = to_ms(usage["period"]["start"])
    units, lines = dict[str, list[tuple[int, int]]](), dict[str, list[BilledLine]]()
    items = dict[str, int]()
    for meter in quantities:
        lines[meter] = []
        totals = await read_totals(store, usage, with_derived(meter, store.catalog), "sn")
        for name, (marks, late) in totals.items():
            token = meter_token(name)
            by_item = [one._replace(sealed=one.overage) for one in item_segments(late)]
            items[token] = sum(one.sealed for one in by_item)
            ended = segments_of(marks, label="", sealed=_ENDLESS, overage=0)[:-1]
            if ended and ended[-1].label == sent_label(name, view.entitlements, meters):
                ended.pop()  # A change that Stripe refused: its price goes on.
            units[token] = [(start_ms, one.sealed) for one in ended]
            lines[meter] += [
                _unknown_line(token, f"segment{place}", start_ms, one)
                for place, one in reversed([*enumerate(ended)])
            ]
            lines[meter] += [_unknown_line(token, f"item{one.label}", start_ms, one) for one in by_item]
    changed = await _read_changed_at(store, view, start_ms)
    return BilledUsage(units=units, items=items, lines=lines, changed=changed)


def _unknown_line(token: str, name: str, start_ms: int, ended: PriceSegment) -> BilledLine:
    price = ended.unit_cents or Fraction(0)
    return BilledLine(token, name, start_ms, ended.sealed, price, None, None)


class CreditIssuer:
    """Takes recorded units back, and issues credit notes for billed ones.

    Args:
        store: counts the usage.
        api: the way to Stripe; None: no Stripe key is set.
    """

    def __init__(self, store: Store, api: Callable[[], StripeApi] | None) -> None:
        self._store = store
        self._api = api

    async def __call__(
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
        asked = CorrectionRequest(
            customer=customer,
            quantities=quantities,
            reason=reason,
            correction_id=correction_id,
            by=by,
            is_dry=dry_run,
        )
        store = self._store
        asked = check_correction(store, asked)
        customer, quantities = asked.customer, asked.quantities
        api = None if self._api is None else self._api()
        if credit and api is None:
            message = (
                "stripe_api_key: credit notes need a Stripe key, and none is set: nothing is taken back; set"
                " METERKIT_STRIPE_API_KEY, or leave credit out"
            )
            raise SettingsError("stripe_api_key", message)
        if api is None:
            read = partial(read_ended_segments, store, quantities=quantities)
        else:
            read = partial(read_billed, store, api, quantities=quantities)
        await queue_ended_usage(store, customer)
        restored = await restore_units(store, asked, read)
        if dry_run:
            return restored.found
        issuing = api if credit or store.catalog.billing.is_by_lines else None
        return [
            await self._add_credits(asked, one, restored.lines[one.meter], issuing, is_asked=credit)
            for one in restored.found
        ]

    async def _add_credits(
        self,
        asked: CorrectionRequest,
        one: Corrected,
        lines: Sequence[AssignedLine],
        api: StripeApi | None,
        *,
        is_asked: bool,
    ) -> Corrected:
        """Add the credits to the result of a meter; give missing ones if there is an ``api``."""
        if not one.by_hand:
            return one
        whys = [] if one.by_hand == sum(line.units for line in lines) else [_NO_LINE]
        notes = await self._read_credits(asked, one.meter)
        missing = [line for line in lines if line.name not in notes]
        if api is not None and missing:
            issued, more = await self._issue_credits(api, asked, one.meter, missing, is_asked=is_asked)
            notes, whys = {**notes, **issued}, [*whys, *more]
        return replace(
            one,
            by_hand_lines=[
                ByHandLine(note.invoice or None, note.line, line.units, line.cents)
                if (note := notes.get(line.name))
                else ByHandLine(*line[1:])
                for line in lines
            ],
            credits=[notes[line.name] for line in lines if line.name in notes],
            not_credited="; ".join(whys) if is_asked else "",
        )

    async def _issue_credits(
        self,
        api: StripeApi,
        asked: CorrectionRequest,
        meter: str,
        lines: Sequence[AssignedLine],
        *,
        is_asked: bool,
    ) -> tuple[dict[str, IssuedCredit], list[str]]:
        """Lower written lines of drafts, and if ``is_asked`` issue credit notes for final ones.

        Returns:
            The credits by line name, and why other lines get none.
        """
        customer = asked.customer
        dated = [line for line in lines if _DATED in line.name]
        if not dated:
            return {}, [_NO_LINE]
        since_s = min(int(line.name.split(_DATED)[1]) for line in dated)
        tokens = tokens_of(meter, self._store.catalog)
        found = await usage_lines(api, self._store, customer, tokens, since_s)
        known = {name: one for one in found for name in (one.name, *one.added_names)}
        queued = {one.name for one in await queued_lines(self._store, customer)}
        notes, whys = dict[str, IssuedCredit](), list[str]()
        for line in lines:
            billed = known.get(line.name)
            if billed is None or not billed.is_lowerable:
                is_queued = line.name in queued and billed is None
                why = _WAITING["pending"] if is_queued else _explain_refusal(line, billed)
                if billed is None or billed.invoice is None or why or not is_asked:
                    whys.append(f"{line.units:,} units: {why}")
                    continue
            try:
                identifier = await self._find_or_issue(
                    api, _correction_mark(asked, meter, line), line, billed
                )
            except StripeUnavailableError:
                raise
            except StripeError as error:
                whys.append(f"{line.units:,} units: Stripe refuses: {error}")
                continue
            invoice = "" if billed.invoice is None else str(billed.invoice["id"])
            notes[line.name] = IssuedCredit(
                identifier, invoice, str(billed.line["id"]), line.units, line.cents
            )
            if await self._keep_credits(asked, meter, notes, line.name):
                given = money(line.cents, str(billed.line["currency"]))
                await add_entry(
                    self._store,
                    customer,
                    kind="correction",
                    before=f"{line.units} of {meter} on invoice {invoice or 'of the next period'}",
                    after=f"{given} given back by {identifier}: {asked.reason}",
                    cause=asked.by,
                )
        return notes, whys

    async def _find_or_issue(self, api: StripeApi, key: str, line: AssignedLine, billed: UsageLine) -> str:
        """Find the credit for units of a line, or issue it; lower a written line of a draft. Return its id.

        Raises:
            StripeError: Stripe refuses, or does not answer.
        """
        is_lowerable = billed.is_lowerable
        if billed.item is not None and await lower_line(
            api, billed.item, line.units, correction=key, is_final=not is_lowerable
        ):
            return billed.item
        invoice: Mapping[str, Any] = billed.invoice or {}
        entries = f"/v1/customers/{invoice['customer']}/balance_transactions"

        async def find_issued() -> dict[str, Any] | None:
            known = [*await api.list(_NOTES, {"invoice": str(invoice["id"])}), *await api.list(entries)]
            return next((one for one in known if metadata_of(one).get(_CORRECTION) == key), None)

        if (issued := await find_issued()) is not None:
            return str(issued["id"])
        cents, left = _credit_total(line.cents, billed.line), int(invoice["amount_remaining"])
        paid = int(invoice["amount_paid"]) - int(invoice.get("post_payment_credit_notes_amount") or 0)
        params: dict[str, Parameter] = {"metadata": {_CORRECTION: key}}
        if cents > left + paid:
            # A credit or the balance has paid part of the invoice: Stripe refuses a credit note for that.
            params |= {"amount": -cents, "currency": str(invoice["currency"])}
            balance_key = key_of("correction-balance", key)
            made = await api.post(entries, params, idempotency_key=balance_key, find=find_issued)
            return str(made["id"])
        credited: dict[str, Parameter] = {
            "type": "invoice_line_item",
            "invoice_line_item": str(billed.line["id"]),
            "amount": line.cents,
        }
        params |= {"invoice": str(invoice["id"]), "lines": [credited]}
        if cents > left:
            params["credit_amount"] = cents - left
        made = await api.post(_NOTES, params, idempotency_key=key_of("correction", key), find=find_issued)
        return str(made["id"])

    async def _read_credits(self, asked: CorrectionRequest, meter: str) -> dict[str, IssuedCredit]:
        """Read the stored credit notes of a correction, by line name."""
        kept = await self._read_correction(asked)
        return {name: IssuedCredit(*note) for name, note in kept.get("notes", {}).get(meter, {}).items()}

    async def _read_correction(self, asked: CorrectionRequest) -> dict[str, Any]:
        admin, (_, once) = await self._store.admin(), deduplication_key(self._store, asked)
        kept: bytes | None = await admin.ask(admin.client.get(once))
        found: dict[str, Any] = json.loads(kept or b"{}")
        return found

    async def _keep_credits(
        self, asked: CorrectionRequest, meter: str, notes: Mapping[str, IssuedCredit], latest: str
    ) -> bool:
        """Store the credits of a meter with its correction; whether the latest one is new."""
        store, kept = self._store, await self._read_correction(asked)
        known = kept.setdefault("notes", {}).setdefault(meter, {})
        is_new = latest not in known
        known |= notes
        admin, (_, once) = await store.admin(), deduplication_key(store, asked)
        is_kept = await admin.ask(admin.client.set(once, json.dumps(kept), xx=True, keepttl=True))
        return is_new and bool(is_kept)


def _correction_mark(asked: CorrectionRequest, meter: str, line: AssignedLine) -> str:
    """Compute the mark of a credit note from the correction and the line."""
    text = f"{asked.customer}\0{asked.correction_id}\0{meter}\0{line.name}"
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _explain_refusal(line: AssignedLine, billed: UsageLine | None) -> str:
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
