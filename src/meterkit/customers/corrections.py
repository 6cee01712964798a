"""Corrections (``kit.correct``): take back recorded units.

The reply names units that Stripe has already and that need a negative event or a credit note there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from fractions import Fraction
from hashlib import blake2b
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from meterkit.catalog.meters import check_quantities
from meterkit.catalog.models import SPEND
from meterkit.catalog.value_parsers import rounded_cents
from meterkit.customers.grants import Grants
from meterkit.customers.history import is_relinked
from meterkit.decisions.compiled_decision import sends_included
from meterkit.decisions.customer_state import is_billed_by_lines
from meterkit.decisions.keys import meter_token
from meterkit.decisions.periods import from_ms
from meterkit.decisions.price_segments import label_of, paid_price, price_line, unit_cents
from meterkit.decisions.spending import price_of
from meterkit.errors import MeterkitError, StoreError
from meterkit.outbox.sealer import counter_ttl_ms
from meterkit.safe_text import plain_text
from meterkit.store import replies
from meterkit.store.customer_usage import price_cents
from meterkit.store.event_names import read_meters
from meterkit.store.input_checks import check_customer, check_text, is_customer, shown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from meterkit.redis.scripts import Script
    from meterkit.store.store import Store
    from meterkit.store.views import CustomerView

    ScriptCall = tuple[list[str], tuple[str | bytes, ...]]


class BilledLine(NamedTuple):
    """An invoice line that bills usage of a meter and that no negative event can lower any more.

    Attributes:
        token: of the meter whose event it bills.
        name: stays the same from the pending invoice item to the final invoice; without blanks.
        instant_ms: the middle of the span that it bills.
        units: its quantity.
        price: of a unit, in minor units.
        invoice, line: their ids; None: not known, or not made yet.
    """

    token: str
    name: str
    instant_ms: int
    units: int
    price: Fraction
    invoice: str | None
    line: str | None

    def dump(self) -> list[Any]:
        """Serialize it for ``correct_usage.lua``; the part that the correction keeps is text."""
        kept = [self.name, self.invoice or "", self.line or "", str(self.price), str(self.units)]
        return [self.token, self.name, self.instant_ms, self.units, kept]


class BilledUsage(NamedTuple):
    """Usage on invoice lines of ended price segments and of earlier periods.

    Attributes:
        units: by token, an instant within each line (ms) and its units; lines that cost nothing included.
        items: by token, the units of this period that invoice items for late usage bill, or are to bill.
        lines: by meter, those that can be credited, newest first.
        earlier: earlier periods that no invoice has yet, youngest first: their first instants (ms), and
            minutes in them that no intent has (ms).
        changed: when the prices changed last, as the store had it before the lines were read; empty: never.
    """

    units: Mapping[str, Sequence[tuple[int, int]]]
    items: Mapping[str, int]
    lines: Mapping[str, Sequence[BilledLine]]
    changed: str
    earlier: Sequence[tuple[int, Sequence[int]]] = ()

    def dump(self) -> dict[str, Any]:
        """Serialize it for ``correct_usage.lua``."""
        lines = {meter: [line.dump() for line in found] for meter, found in self.lines.items()}
        earlier = [(str(period_ms), minutes) for period_ms, minutes in self.earlier]
        told = {"units": self.units, "items": self.items, "lines": lines, "changed": self.changed}
        return {**told, "earlier": earlier}


class ByHandLine(NamedTuple):
    """Units on an invoice line that a credit note, or a person, gives back.

    Attributes:
        invoice: its id; None: the line is on no invoice yet, or no Stripe key is set.
        line: the id of the line, or of the invoice item that becomes it, at Stripe or in the queue
            (``kit.outbox.items``); None: no Stripe key is set.
        units: how many.
        cents: the amount they were billed at.
    """

    invoice: str | None
    line: str | None
    units: int
    cents: int


class IssuedCredit(NamedTuple):
    """A credit at Stripe for the units of one invoice line.

    Attributes:
        id: of the credit note, ``cn_…``; or of the entry of the customer's balance, ``cbtxn_…``, where a
            credit or the balance itself had paid a part of the invoice; or of the invoice item, ``ii_…``,
            that was lowered, where meterkit writes lines and the invoice is a draft.
        invoice, line: of the units; ``invoice`` is empty if no invoice has them yet.
        units: how many.
        cents: the amount they were billed at, without discounts and taxes.
    """

    id: str
    invoice: str
    line: str
    units: int
    cents: int


class AssignedLine(NamedTuple):
    """Units of an invoice line as a correction keeps them."""

    name: str
    invoice: str | None
    line: str | None
    units: int
    cents: int

    @classmethod
    def read(cls, kept: Sequence[Any]) -> AssignedLine:
        """Read an entry of ``assign_lines.lua``.

        The rest of the line is rounded as Stripe rounds a line, half up. So all corrections of a line
        together give back what it was billed at.
        """
        (name, invoice, line, price, quantity), before, part = kept
        left = [int(quantity) - int(before), int(quantity) - int(before) - int(part)]
        cents = [rounded_cents(Fraction(price) * units) for units in left]
        return cls(name, invoice or None, line or None, int(part), cents[0] - cents[1])


_TRIES: Final = 8


class CustomerDataError(StoreError):
    """Stored data of one customer prevents the operation; other customers are not affected."""


async def run_on_newest_view(
    store: Store,
    script: Script,
    customer: str,
    call: Callable[[CustomerView], Awaitable[ScriptCall]],
    *,
    done: str,
) -> list[Any]:
    """Run a script that begins with ``confirm_counters`` on the newest view of a customer; its reply.

    Args:
        store: where the customer is.
        script: what is asked.
        customer: whose id is valid.
        call: its keys, and its arguments without the caller's clock, by a view.
        done: what it does, for errors: "corrected".

    Raises:
        OfCustomerError: what is kept of the customer cannot be read, or changes again and again.
        StoreError: the store does not answer.
    """
    admin = await store.admin()
    await admin.load(script)
    for _ in range(_TRIES):
        view = store.cache.get(customer)
        names, arguments = await call(view)
        # Text would not do for the numbers among the arguments.
        asked = admin.client.evalsha(script.sha, len(names), *names, *arguments, admin.now_ms())
        reply: list[Any] = await admin.ask(asked)
        if reply[0] == replies.CHANGING and reply[2]:
            raise CustomerDataError(
                f"the prices of customer {customer!r} are being changed at Stripe: nothing is {done}; try"
                " again in two minutes"
            )
        if reply[0] == replies.CHANGING:
            continue
        if reply[0] == replies.BROKEN:
            raise CustomerDataError(f"the field {reply[2].decode()} of {customer!r} is not a whole number")
        if reply[0] != replies.STALE:
            return reply
        try:
            view.cache.learn(view, reply)
        except StoreError as error:
            raise CustomerDataError(str(error), executed=False) from error
    raise CustomerDataError(f"customer {customer!r} changed {_TRIES} times while it was {done}; try again")


_ID_MAX: Final = 200
_REPEATED: Final = 1
_Restoration = Literal["grant", "by_hand"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrected:
    """Result of a correction for one meter, in its units.

    ``asked`` = ``taken_back`` + ``granted_next`` + ``by_hand`` + ``never_billed`` + ``beyond``.

    Attributes:
        asked: how many were to be taken back.
        taken_back: how many are not recorded any more: ``over_cap`` + ``overage`` + ``credited`` +
            ``granted`` + ``included``, taken in this order. Credits and grants
            that paid for them have them back, unless they have expired, are void or were refunded.
        sent_back: how many of these Stripe has: it is sent a meter event of so many less than nothing, on the
            way to the bill as any other.
        granted_next: how many Stripe was sent already, for which there is a grant from the next period on.
        by_hand: how many Stripe was sent already and has billed, or bills: a credit note gives them back, or
            an operator.
        by_hand_cents: what ``by_hand`` costs: by its invoice lines, and where these are not known as overage
            by the price in the plans file, rounded half up; None where it gives none.
        by_hand_lines: the invoice lines that have them, newest first.
        credits: those that give them back (``credit=True``).
        not_credited: why ``credit=True`` gives back only a part of ``by_hand``; empty: it gives back all.
        never_billed: how many stay recorded and cost nothing: Stripe never accepted them, or they are
            included, or their invoice is void.
        beyond: units requested beyond those recorded in this period, and billed up to 35 days ago, and not
            corrected before.
        is_repeated: whether this was done before, under the same id.
    """

    meter: str
    asked: int
    taken_back: int
    over_cap: int
    overage: int
    credited: int
    granted: int
    included: int
    sent_back: int
    granted_next: int
    by_hand: int
    by_hand_cents: int | None
    by_hand_lines: Sequence[ByHandLine] = ()
    credits: Sequence[IssuedCredit] = ()
    not_credited: str = ""
    never_billed: int
    beyond: int
    is_repeated: bool

    @property
    def left_by_hand(self) -> int:
        """Count the units of ``by_hand`` without a credit."""
        return self.by_hand - sum(note.units for note in self.credits)


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrectionRequest:
    """A requested correction: the customer, meter to units, the reason, the id, and the operator."""

    customer: str
    quantities: Mapping[str, int]
    reason: str
    correction_id: str
    by: str
    is_dry: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrectionOutcome:
    """The result of a correction, and by meter the invoice lines that it leaves to credit notes."""

    found: Sequence[Corrected]
    lines: Mapping[str, Sequence[AssignedLine]] = field(default_factory=dict[str, "Sequence[AssignedLine]"])


async def restore_units(
    store: Store,
    given: CorrectionRequest,
    read_billed: Callable[[CustomerView], Awaitable[BilledUsage | None]],
) -> CorrectionOutcome:
    """Take recorded units back, once for each id; see ``CreditIssuer``.

    Args:
        store: counts the units.
        given: the correction, checked.
        read_billed: reads what invoices have of the customer's usage; None: all of it is of the open price.
    """
    customer, correction_id, quantities = given.customer, given.correction_id, given.quantities
    reply, is_repeated = await _run_restore(store, given, read_billed)
    asked, done = json.loads(reply["asked"]), reply["done"]
    if {name: quantity for name, _, quantity, *_ in asked["meters"]} != dict(quantities):
        before = ", ".join(f"{name}={quantity}" for name, _, quantity, *_ in asked["meters"])
        raise MeterkitError(f"correction_id: {correction_id!r:.80} was used for something else: {before}")
    view = store.cache.get(customer)
    found: list[Corrected] = []
    kept: Mapping[str, Sequence[Any]] = reply.get("by_hand") or {}
    lines = {name: [AssignedLine.read(one) for one in kept.get(name) or ()] for name in quantities}
    for name, quantity in quantities.items():
        numbers = map(int, done[name].split(" "))
        overage, credited, granted, included, sent, billed, beyond, _, _, sent_back, over_cap = numbers
        how: _Restoration = asked["how"][name]
        by_hand = billed if how == "by_hand" else 0
        on_lines = sum(line.units for line in lines[name])
        cents = price_cents(by_hand, view.entitlements[name]) if by_hand or not on_lines else 0
        found.append(
            Corrected(
                meter=name,
                asked=quantity,
                taken_back=over_cap + overage + credited + granted + included,
                over_cap=over_cap,
                overage=overage,
                credited=credited,
                granted=granted,
                included=included,
                sent_back=sent_back,
                granted_next=billed - by_hand,
                by_hand=by_hand + on_lines,
                by_hand_cents=None if cents is None else cents + sum(line.cents for line in lines[name]),
                by_hand_lines=[ByHandLine(*line[1:]) for line in lines[name]],
                never_billed=sent - billed - on_lines,
                beyond=beyond,
                is_repeated=is_repeated,
            )
        )
    granted_next = {one.meter: one.granted_next for one in found if one.granted_next}
    if granted_next and not given.is_dry:
        # Its id grants once: a repeat after an error here gets it, and no customer gets it twice.
        grant_id, begins = f"correction/{correction_id}", from_ms(int(reply["ends"]))
        await Grants(store).add(customer, granted_next, grant_id=grant_id, effective_at=begins)
    return CorrectionOutcome(found=found, lines=lines)


async def _run_restore(
    store: Store,
    given: CorrectionRequest,
    read_billed: Callable[[CustomerView], Awaitable[BilledUsage | None]],
) -> tuple[dict[str, Any], bool]:
    """Run the correction script; its result, and whether the id was used before."""
    admin, customer = await store.admin(), given.customer
    known = await read_meters(admin, store.keys, store.catalog, customer)
    events = {token: counted.event_name for token, counted in known.items()}
    digest, once = deduplication_key(store, given)
    is_known = bool(await admin.ask(admin.client.exists(once)))

    async def call(view: CustomerView) -> ScriptCall:
        keys, billed = view.keys, None if is_known else await read_billed(view)
        by_lines = is_billed_by_lines(view.state, store.catalog, store.now_ms())
        names = [
            *(keys.counters, keys.state, keys.totals, keys.unlinked, keys.grants, keys.ledger, keys.history),
            *(once, keys.corrections),
            *(store.keys.shard(keys.shard, name) for name in ("intents", "outbox")),
            *[store.keys.audit(keys.shard)] * store.is_audited,
        ]
        sending = {
            "stripe": await _sole_stripe_customer(store, view),
            "nonce": token_hex(16),
            "events": {} if by_lines else events,
            "by_lines": by_lines,
            "taken": list(view.state.minutes_taken_ms),
            "dry": given.is_dry,
            **({} if billed is None else {"billed": billed.dump()}),
            **_spend_prices(view),
        }
        asked = (_serialize_correction(given, view), digest, json.dumps(sending))
        return names, (view.rev, view.terms(counter_ttl_ms(view)), customer, *asked)

    reply = await run_on_newest_view(store, store.scripts["correct_usage"], customer, call, done="corrected")
    return json.loads(reply[2]), reply[0] == _REPEATED


def deduplication_key(store: Store, given: CorrectionRequest) -> tuple[str, str]:
    """Compute the digest of a correction's id, and the key that remembers the correction."""
    digest = blake2b(f"{given.customer}\0{given.correction_id}".encode(), digest_size=16).hexdigest()
    return digest, store.keys.correction(store.keys.customer(given.customer).shard, digest)


def _spend_prices(view: CustomerView) -> dict[str, Any]:
    """Prices of units that count as spent, for the script; empty if no plan has a budget."""
    catalog = view.catalog
    if not catalog.counts_spend:
        return {}
    prices = {
        meter_token(name): price
        for name in catalog.meters
        if (price := price_of(name, view.entitlements, catalog)) is not None
        and view.entitlements[name].overage.rows is None
    }
    return {"spend": {"token": meter_token(SPEND), "prices": prices}}


async def _sole_stripe_customer(store: Store, view: CustomerView) -> str:
    """The one Stripe customer of this period's deliveries; empty: none, or more than one."""
    linked = view.state.stripe_customer or ""
    start = from_ms(view.effective.bounds.start_ms)
    return "" if linked and await is_relinked(store, view.customer, start) else linked


def _serialize_correction(given: CorrectionRequest, view: CustomerView) -> str:
    catalog = view.catalog
    meters = [
        [name, meter_token(name), quantity, _event_tokens(name, view), _model_price_meters(name, view)]
        for name, quantity in given.quantities.items()
    ]
    how = {name: _choose_restoration(view, name) for name in given.quantities}
    told = {"id": given.correction_id, "by": given.by, "reason": given.reason}
    prices = {
        name: price
        for name in catalog.meters
        if (price := paid_price(name, view.entitlements, catalog, is_trial=view.is_trial)) is not None
    }
    priced = price_line("", {}, prices, meters=[*prices])
    return json.dumps({**told, "how": how, "meters": meters, "prices": priced})


def _event_tokens(meter: str, view: CustomerView) -> list[tuple[str, int]]:
    """Tokens of the events that report a meter's units, and whether included units are sent (1)."""
    meters = view.cache.catalog.meters
    derived = (other for other in meters.values() if other.source == meter and other.stripe is not None)
    return [
        (meter_token(one.name), int(sends_included(view.entitlements[meter], one)))
        for one in (meters[meter], *derived)
    ]


def _model_price_meters(meter: str, view: CustomerView) -> list[tuple[str, str, str]]:
    """Meters that count its prices by model, the dearest first: token, token of the event, label."""
    rows = [other for other in view.cache.catalog.meters.values() if other.source == meter and other.is_row]
    labels = {row.name: label_of(view.entitlements[row.name]) for row in rows}
    rows.sort(key=lambda row: unit_cents(labels[row.name]) or Fraction(0), reverse=True)
    return [
        (meter_token(row.name), meter_token(row.name if row.stripe else meter), labels[row.name])
        for row in rows
    ]


def _choose_restoration(view: CustomerView, meter: str) -> _Restoration:
    """Choose a grant if the next period is billed as this one is, else a credit by hand."""
    entitlement, subscription = view.entitlements[meter], view.state.subscription
    goes_on = view.effective.access in {"full", "grace"}
    if subscription is not None:
        another = subscription.pending_plan not in {None, subscription.plan}
        changes_ms = (subscription.cancel_at_ms, subscription.pending_at_ms if another else None)
        bounds = view.effective.bounds
        whole_ms = 2 * bounds.end_ms - bounds.start_ms  # With a next period as long as this one.
        goes_on = goes_on and all(at_ms is None or at_ms >= whole_ms for at_ms in changes_ms)
    is_billed = entitlement.included is not None and entitlement.overage.mode == "bill"
    return "grant" if goes_on and is_billed else "by_hand"


def check_correction(store: Store, given: CorrectionRequest) -> CorrectionRequest:
    """Return a correction with plain names and ids; raise MeterkitError if an argument cannot be used."""
    customer = check_customer(given.customer)
    if not given.quantities:
        raise MeterkitError("quantities: found none; name at least one meter")
    quantities = check_quantities(given.quantities, store.catalog.meters)
    check_text("reason", given.reason)
    check_text("by", given.by)
    correction_id: object = given.correction_id
    # The rule of grant ids: a grant may give units back in the next period.
    is_allowed = is_customer(correction_id) and correction_id.isprintable()
    if not is_allowed or len(str(correction_id).encode()) > _ID_MAX:
        raise MeterkitError(
            f"correction_id: found {shown(correction_id)}; allowed is a text of 1 to {_ID_MAX} bytes without"
            " control or invisible characters"
        )
    plain_id = plain_text(given.correction_id)
    return replace(given, customer=customer, quantities=quantities, correction_id=plain_id)
