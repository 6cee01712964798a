"""The oracle of corrections: what is taken back is on no invoice, and billed units are credited once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

from books.price_oracle import Ledger, Recorded, written_cents, written_units
from meterkit import Corrected

_MARK = "meterkit_correction"


class Correction(NamedTuple):
    id: str
    meter: str
    quantity: int
    credit: bool


@dataclass(kw_only=True)
class Corrections:
    ledger: Ledger
    customer: str
    asked: dict[str, Correction] = field(default_factory=dict[str, Correction])
    _begun: dict[str, tuple[datetime, datetime]] = field(
        default_factory=dict[str, "tuple[datetime, datetime]"]
    )
    _done: dict[str, Corrected] = field(default_factory=dict[str, "Corrected"])
    _taken: Counter[int] = field(default_factory=Counter[int])
    _undone: int = 0

    @property
    def unsettled(self) -> list[Correction]:
        """Those whose outcome is not known yet."""
        return [asked for id_, asked in self.asked.items() if id_ not in self._done]

    async def correct(self, asked: Correction) -> Corrected:
        """Have units taken back. Raises what the kit raises."""
        world = self.ledger.world
        await self._put_back()
        self.asked[asked.id] = asked
        usage = await world.do(world.kit.usage(self.customer))
        charged = await self.ledger.prices_now(self.customer)
        now = world.now, usage["period"]["start"]
        begun = self._begun.setdefault(asked.id, now)
        given: dict[str, Any] = {"reason": "a loop", "correction_id": asked.id}
        quantities = {asked.meter: asked.quantity}
        (found,) = await world.do(world.kit.correct(self.customer, quantities, **given, credit=asked.credit))
        known = self._done.get(asked.id)
        self._done[asked.id] = found
        if known is None:
            at, period = begun if found.is_repeated else now
            self._check_parts(found, period)
            self._take(found, at, period, charged)
            self.ledger.sent_back[found.meter] += found.sent_back
        else:
            self._check_repeated(known, found)
        await self._check_lines(found)
        return found

    def _check_parts(self, found: Corrected, period: datetime) -> None:
        parts = (found.taken_back, found.granted_next, found.by_hand, found.never_billed, found.beyond)
        if found.asked != sum(parts) or min(parts) < 0:
            self.ledger.complain(f"{found} has parts that do not add up")
        recorded = sum(entry.quantity for entry in self._entries(found.meter, period))
        earlier = sum(
            one.asked - one.taken_back - one.beyond
            for one in self._done.values()
            if one is not found and one.meter == found.meter
        )
        if found.asked - found.beyond < min(found.asked, recorded - earlier):
            self.ledger.complain(
                f"{found.beyond} of {found.asked} {found.meter} are beyond {recorded} recorded ones"
            )

    def _check_repeated(self, known: Corrected, found: Corrected) -> None:
        names = ("taken_back", "overage", "included", "granted_next", "by_hand", "never_billed", "beyond")
        if any(getattr(known, name) != getattr(found, name) for name in names):
            self.ledger.complain(f"a repeat of {known} was {found}")

    def _take(
        self, found: Corrected, at: datetime, period: datetime, charged: Mapping[str, Decimal] | None
    ) -> None:
        """Take units off what was recorded: overage only at the price that is charged now."""
        log, left = self.ledger.log, Counter(overage=found.overage, rest=found.taken_back - found.overage)
        # Pending units of any price are taken back; events take back those of the present one.
        price = None if charged is None or self.ledger.has_lines else charged.get(found.meter)
        for place in range(len(log) - 1, -1, -1):
            entry = log[place]
            # Late units of an earlier period are recorded once more in this one, as overage; not of lines.
            is_another = entry.period != period if self.ledger.has_lines else entry.period > period
            if entry.at > at or entry.meter != found.meter or is_another:
                continue
            is_open = price in {None, *entry.prices} or not entry.overage or not entry.prices
            beyond = min(left["overage"], entry.beyond) if is_open else 0
            rest = min(left["rest"], entry.quantity - entry.beyond) if entry.period == period else 0
            left -= Counter(overage=beyond, rest=rest)
            log[place] = replace(
                entry,
                quantity=entry.quantity - beyond - rest,
                beyond=entry.beyond - beyond,
                overage=max(0, entry.overage - beyond),
            )
            self._taken[place] += min(beyond, entry.overage)
        if left.total():
            self.ledger.complain(f"{found} took back {dict(left)} more than was recorded at the price of now")

    async def _put_back(self) -> None:
        """Put back into the log what is recorded again, as the customer's ledger says.

        Others changed the price while a correction was on its way to Stripe, and the line of before has it.
        """
        if not self.ledger.sent_back.total():
            return
        history = await self.ledger.world.do(self.ledger.world.kit.customers.history(self.customer))
        undone = [
            str(one.before)
            for one in history
            if one.kind == "correction" and "recorded again" in str(one.after)
        ]
        for said in undone[self._undone :]:
            units, _, meter = said.removesuffix(" taken back").partition(" of ")
            self._restore(meter, int(units))
        self._undone = len(undone)

    def _restore(self, meter: str, units: int) -> None:
        """Restore overage that corrections took: what they have sent back was recorded first."""
        log, left = self.ledger.log, units
        self.ledger.sent_back[meter] -= units
        for place in reversed(list(self._taken)):
            entry, back = log[place], min(left, self._taken[place])
            if entry.meter == meter:
                self._taken[place] -= back
                left -= back
                log[place] = replace(
                    entry,
                    quantity=entry.quantity + back,
                    beyond=entry.beyond + back,
                    overage=entry.overage + back,
                )
        if left:
            self.ledger.complain(f"{left} of {units} {meter} are recorded again, and were never taken back")

    def _entries(self, meter: str, period: datetime) -> list[Recorded]:
        return [
            entry
            for entry in self.ledger.log
            if (entry.customer, entry.meter, entry.period) == (self.customer, meter, period)
        ]

    async def _check_lines(self, found: Corrected) -> None:
        """Compare the lines that it names with the lines of invoices."""
        for line in found.by_hand_lines:
            if line.invoice is None:
                continue
            lines = await self.ledger.world.list(f"/v1/invoices/{line.invoice}/lines")
            billed = next((one for one in lines if one["id"] == line.line), None)
            if billed is None or line.units > written_units(billed) or line.cents > written_cents(billed):
                self.ledger.complain(f"{line} is not on its invoice: {billed}")

    async def audit(self) -> None:
        """Compare all credits with what corrections say of them, and with the lines that they credit."""
        await self._put_back()
        world, stripe_customer = self.ledger.world, f"cus_{self.customer}"
        notes = await world.list("/v1/credit_notes", customer=stripe_customer)
        entries = await world.list(f"/v1/customers/{stripe_customer}/balance_transactions")
        issued = {one["id"] for one in [*notes, *entries] if _MARK in (one.get("metadata") or {})}
        credits_said = (credit.id for found in self._done.values() for credit in found.credits)
        said = {name for name in credits_said if not name.startswith("ii_")}  # A line was lowered.
        if issued != said:
            self.ledger.complain(f"Stripe has the credits {sorted(issued)}, corrections name {sorted(said)}")
        for line, cents in self._by_line("credits").items():
            await self._check_credited(*line, cents)
        for line, cents in self._by_line("by_hand_lines").items():
            await self._check_credited(*line, cents)

    def _by_line(self, name: str) -> Counter[tuple[str, str]]:
        cents = Counter[tuple[str, str]]()
        for found in self._done.values():
            for one in getattr(found, name):
                if one.invoice:  # Else no invoice has them yet.
                    cents[one.invoice, one.line] += one.cents
        return cents

    async def _check_credited(self, invoice: str, line: str, cents: int) -> None:
        lines = await self.ledger.world.list(f"/v1/invoices/{invoice}/lines")
        (billed,) = [one for one in lines if one["id"] == line]
        if cents > written_cents(billed):
            self.ledger.complain(f"{cents} cents of {billed['amount']} on {line} are given back")
