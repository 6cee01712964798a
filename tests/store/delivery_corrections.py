"""What taking recorded units back must come to, at Stripe and of what grants have paid."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil
from typing import Any

from meterkit.decisions.keys import meter_token
from store.delivery_model import AHEAD_MS, TOKENS, TOTALS_MS, VALUE_MAX, Intent, Shard, free_minute, lines_of
from store.script_model import Customer, Times, View, stand

ONCE = "r:1"
CLASSES = ("over_cap", "overage", "credited", "granted", "included")
"""In the order in which units are taken back."""


@dataclass(frozen=True, slots=True)
class Prices:
    """What units cost that are taken back.

    Attributes:
        rows: what counts the prices by model: tokens, each with that of its event and the label of its price.
        of: token to micro-units, for how many units, and 1 where what grants and credits paid counts, too.
        spend: the meter that counts what is spent; empty: none does.
        paid: token to its price, for the audit log.
    """

    rows: Sequence[tuple[str, str, str | None]] = ()
    of: Mapping[str, tuple[int, int, int]] = field(default_factory=dict[str, "tuple[int, int, int]"])
    spend: str = ""
    paid: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Billed:
    """What invoices have.

    Attributes:
        changed: when prices were changed last, as was read with them.
        items: token to the units that invoice items for late usage bill.
        units: token to lines of ended prices and earlier periods: an instant within it (ms), and its units.
        lines: meter to lines: token of its event, name, an instant within it (ms), units, what is kept of it.
    """

    changed: str
    items: Mapping[str, int]
    units: Mapping[str, Sequence[tuple[int, int]]]
    lines: Mapping[str, Sequence[tuple[str, str, int, int, str]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Restore:
    """What is to be taken back: meter to quantity."""

    quantities: Mapping[str, int]
    tokens: Mapping[str, Sequence[str]]  # Meter to what stands for it and for the meters derived from it.
    included_too: Sequence[str]  # Those of them that are sent included units too.
    text: str
    digest: str
    entries: tuple[str, str]
    stripe: str  # Whom all that was delivered went to; empty: nobody.
    nonce: str
    events: Mapping[str, str]  # Token to event name.
    taken: Sequence[int]  # Minutes that no intent may have (ms).
    prices: Prices
    billed: Billed | None  # None: no price ended.
    by_lines: bool = False


def restore(
    shard: Shard, name: str, view: View, asked: Restore, times: Times, *, is_audited: bool
) -> tuple[list[Any], Any]:
    """The reply but for its last, and what that says."""
    customer = shard.customers[name]
    now, ending = stand(customer, view, times)
    if ending:
        return ending, None
    if ONCE in shard.strings:
        return [1, now], None
    shard.roll(name, view, now)
    start = customer.period[0] if customer.period else view.period_at(now)[0]
    is_held = customer.closed[f"{start}|w"] > now
    billed = asked.billed
    if billed is not None and (is_held or str(customer.closed.get(f"{start}|y", "")) != billed.changed):
        return [9, now, int(is_held)], None
    work, before = _Work(shard, name, asked, start, now), _numbers(customer)
    done = {meter: work.take(meter, quantity) for meter, quantity in asked.quantities.items()}
    closed = (count for field, count in customer.closed.items() if field[-1] == "p")
    if not any((*customer.pending.values(), *closed)):
        shard.unlinked.pop(name, None)
    if is_audited:
        _enter(shard, work, before)
    shard.keep(ONCE, TOTALS_MS)
    shard.corrections.setdefault(name, set()).add(asked.digest)
    shard.keep(f"k:{name}", TOTALS_MS)
    ends = customer.period_at(view, now)[1]
    kept: dict[str, Any] = {"asked": asked.text, "done": done, "ends": str(ends)}
    if billed is not None:
        kept["by_hand"] = {meter: work.by_hand[meter] or {} for meter in done}
    return [0, now], kept


def _turn(name: str, fields: Sequence[str]) -> tuple[int, int, int, str]:
    """When a grant pays: by priority, expiry and creation."""
    return int(fields[3]), int(fields[5]), int(fields[6]), name


def _numbers(customer: Customer) -> dict[str, tuple[int, ...]]:
    """By token what the audit log is told of a meter."""
    kinds = (*CLASSES[::-1], "pending", "marked")
    return {token: tuple(getattr(customer, kind)[meter] for kind in kinds) for token, meter in TOKENS.items()}


def _enter(shard: Shard, work: _Work, before: Mapping[str, tuple[int, ...]]) -> None:
    """Enter what was taken back of each meter; of one that stays as it is there is nothing to say."""
    meters: dict[str, str] = {}
    for token, numbers in _numbers(work.customer).items():
        less = [was - now for was, now in zip(before[token], numbers, strict=True)]
        less[5] += work.back.get(token, 0)
        if any(less):
            meters[token] = " ".join(map(str, less))
    if meters:
        reason, by = work.asked.entries
        who = {"customer": work.name, "at": str(work.now), "period": str(work.start)}
        told = {"id": "c-1", "by": by, "reason": reason, "meters": meters}
        prices = {"prices": work.asked.prices.paid} if work.asked.prices.paid else {}
        shard.enter("corrected", {**who, **told, **prices}, work.now)


class _Work:
    def __init__(self, shard: Shard, name: str, asked: Restore, start: int, now: int) -> None:
        self.shard, self.name, self.asked, self.start, self.now = shard, name, asked, start, now
        self.customer: Customer = shard.customers[name]
        self.made = 0
        self.back: dict[str, int] = {}
        self.by_hand: dict[str, list[list[str]]] = {}

    def count(self, token: str, letter: str) -> int:
        return int(self.customer.closed[f"{self.start}|{token}{letter}"])

    def net(self, tokens: Sequence[str], letters: str) -> int:
        """What was sealed of meters and is in some states, less what was taken back."""
        every = [(token, letter) for token in tokens for letter in letters]
        return sum(self.count(*of) - self.count(of[0], of[1].upper()) for of in every)

    def take(self, meter: str, quantity: int) -> str:
        customer, asked = self.customer, self.asked
        tokens = asked.tokens[meter]
        lost = {event: -self.sent(event) for _, event, _ in asked.prices.rows}
        too = [token for token in tokens if token in asked.included_too]
        repaid, paid = self.count(meter_token(meter), "r"), customer.credited[meter]
        granted = customer.granted[meter]
        behind = customer.included[meter] if len(too) == len(tokens) else 0
        left, taken, missing = quantity, dict[str, int](), dict[str, int]()
        for kind in CLASSES:
            counts = getattr(customer, kind)
            part = min(left, max(0, counts[meter] - (repaid if kind == "overage" else 0)))
            left -= part
            reported = {"overage": tokens, "included": too}.get(kind, ())
            unsent, off = counts[meter] + (behind if kind == "overage" else 0), 0
            for token in reported:
                known = TOKENS.get(token)
                if known is not None:
                    unsent -= customer.pending[known]
                    less = min(part - off, customer.pending[known])
                    customer.pending[known] -= less
                    off += less
                unsent = max(0, unsent - self.net([token], "qlkdxzaf"))
            done = off + min(part - off, unsent, counts[meter])
            counts[meter] -= done
            taken[kind], missing[kind] = done, part - done
        by_item = sum(asked.billed.items.get(token, 0) for token in tokens) if asked.billed else 0
        owed = max(0, min(missing["overage"], self.net(tokens, "qlkd") + by_item - behind - repaid))
        back = self.at_stripe(tokens, owed)
        back_included = self.at_stripe(too, missing["included"])
        customer.overage[meter] -= back
        customer.included[meter] -= back_included
        taken["overage"] += back
        taken["included"] += back_included
        owed, ended, earlier = self.by_credit_note(meter, owed - back, behind, repaid, left)
        self.lower_spent(meter, taken["overage"], taken["credited"] + taken["granted"])
        self.lower_rows(taken["overage"], {event: left + self.sent(event) for event, left in lost.items()})
        recorded = sum(getattr(customer, kind)[meter] for kind in CLASSES)
        customer.marked[meter] = min(customer.marked[meter], recorded)
        self.lower_marks(tokens)
        if owed + ended:
            customer.closed[f"{self.start}|{meter_token(meter)}r"] = repaid + owed + ended
            self.shard.keep(f"t:{self.name}", TOTALS_MS)
        micro = self.give_back("c", meter, Fraction(taken["credited"], paid)) if taken["credited"] else 0
        units = self.give_back("m", meter, Fraction(taken["granted"], granted)) if taken["granted"] else 0
        sent, left = sum(missing.values()) - back - back_included + earlier, left - earlier
        words = f"{sum(taken.values())} taken back, {sent} sent to Stripe before, {left} never recorded: "
        reason, by = asked.entries
        told = f"{quantity} of {meter} to be taken back"
        self.shard.histories[self.name].append(["correction", str(self.now), told, words + reason, by])
        over_cap = taken.pop("over_cap")
        numbers = (*taken.values(), sent, owed, left, units, micro, back + back_included, over_cap)
        return " ".join(map(str, numbers))

    def lower_marks(self, tokens: Sequence[str]) -> None:
        """Have no ended price of a line more units than are left."""
        for token in tokens if self.asked.by_lines else ():
            sent = self.customer.pending[TOKENS[token]] + self.net([token], "qlkdx")
            left, field = self.customer.overage[TOKENS[token]], f"{self.start}|{token}s"
            lines = lines_of(self.customer.closed, field)
            if lines:
                texts = [
                    f"{label} {min(int(sealed), sent)} {min(int(over), left)};"
                    for label, sealed, over in lines
                ]
                self.customer.closed[field] = "".join(texts)

    def on_lines(self, token: str) -> int:
        """How many units of this period are on lines of prices that ended."""
        lines = () if self.asked.billed is None else self.asked.billed.units.get(token, ())
        return sum(units for instant, units in lines if instant >= self.start)

    def by_credit_note(
        self, meter: str, owed: int, behind: int, repaid: int, left: int
    ) -> tuple[int, int, int]:
        """What stays at Stripe: of the open price, and on lines of this and earlier periods."""
        if self.asked.billed is None:
            return owed, 0, 0
        tokens, lines = self.asked.tokens[meter], self.asked.billed.lines[meter]
        gone = {token: self.on_lines(token) for token in tokens}
        open_ = sum(max(0, self.net([token], "qlkd") - gone[token]) for token in tokens)
        open_ -= max(0, behind - sum(gone.values()))
        assigned = sum(sum(self.assigned(self.start, token).values()) for token in tokens)
        stuck = max(0, min(owed, open_ - max(0, repaid - assigned)))
        ends = {int(name[:-2]): end for name, end in self.customer.closed.items() if name.endswith("|e")}
        by_period, kept = Counter[int](), dict[bool, list[list[str]]]({True: [], False: []})
        rest = {True: owed - stuck, False: left}
        for token, name, instant, units, told in lines:
            begun = [begin for begin, end in ends.items() if begin <= instant < end]
            if instant < self.start and not begun:
                continue
            period = self.start if instant >= self.start else begun[0]
            is_this, known = period == self.start, self.assigned(period, token)
            before, field = known.pop(name, 0), f"{period}|{meter_token(meter)}"
            closed = self.customer.closed
            # In a period before: but for what there was compensation for then, and not now.
            most = owed if is_this else closed[f"{field}o"] - closed[f"{field}r"] + by_period[period]
            part = min(rest[is_this], units - before, most - by_period[period])
            if part > 0:
                rest[is_this] -= part
                by_period[period] += part
                texts = [f"{other} {count};" for other, count in {**known, name: before + part}.items()]
                closed[f"{period}|{token}H"] = "".join(texts)
                kept[is_this].append([told, str(before), str(part)])
                if not is_this:
                    closed[f"{field}r"] += part
        self.by_hand[meter] = kept[True] + kept[False]
        if self.by_hand[meter]:
            self.shard.keep(f"t:{self.name}", TOTALS_MS)
        ended = by_period.pop(self.start, 0)
        return stuck, ended, by_period.total()

    def assigned(self, period: int, token: str) -> dict[str, int]:
        """By its lines, how many units of a period corrections have assigned to them."""
        return {name: int(count) for name, count in lines_of(self.customer.closed, f"{period}|{token}H")}

    def sent(self, token: str) -> int:
        """How many units an event has lost by now, and so many more."""
        return self.back.get(token, 0) - self.customer.pending[TOKENS[token]]

    def lower_rows(self, overage: int, lost: Mapping[str, int]) -> None:
        """Take units off the prices by model: where their events lost them, then in the order of rows."""
        for most in (lost, dict.fromkeys(lost, overage)):
            for token, event, label in self.asked.prices.rows:
                row = TOKENS[token]
                open_ = self.customer.overage[row] - self.ended(token, label)
                part = max(0, min(most[event], open_, overage))
                self.customer.overage[row] -= part
                overage -= part
                counted = self.customer.included[row] + self.customer.overage[row]
                self.customer.marked[row] = min(self.customer.marked[row], counted)
                self.lower_spent(row, part, 0)

    def ended(self, token: str, label: str | None) -> int:
        """How much overage of a row has the prices that ended; a change that Stripe refused ended none."""
        ends = lines_of(self.customer.closed, f"{self.start}|{token}s")
        if ends and ends[-1][0] == label:
            ends.pop()
        return int(ends[-1][2]) if ends else 0

    def lower_spent(self, meter: str, overage: int, paid: int) -> None:
        """Lower what is spent by the cost of units: of overage, and of those that grants and credits paid."""
        customer, prices, spend = self.customer, self.asked.prices, self.asked.prices.spend
        if not spend or meter_token(meter) not in prices.of:
            return
        micros, per, is_money = prices.of[meter_token(meter)]
        left = customer.overage[meter]
        cost = ceil(Fraction((left + overage) * micros, per)) - ceil(Fraction(left * micros, per))
        cost = overage + paid if is_money else cost
        beyond = min(cost, customer.overage[spend])
        customer.overage[spend] -= beyond
        customer.included[spend] = max(0, customer.included[spend] - cost + beyond)

    def give_back(self, kind: str, meter: str, share: Fraction) -> int:
        """Give back a share of what was paid: to a debt, to grants that repaid it, then to grants that paid.

        Among grants those that pay last are first. Returns how much was given back.
        """
        grants, ledger = self.shard.grants.get(self.name, {}), self.shard.ledgers.get(self.name, {})
        known: dict[str, list[str]] = {}
        repaid, burned, beyond, total = list[tuple[str, str]](), list[tuple[str, str]](), "", 0
        for line in ledger:
            match = re.fullmatch(rf"(burn|beyond) (\S+) (\d+) ((?:. )?{kind}:.+)", line)
            is_of = match is not None and (match[2], int(match[3])) == (meter, self.start)
            total += int(ledger[line]) if is_of else 0
            name = match[4] if match and is_of else line.removeprefix("repay ")
            if match and match[1] == "beyond":
                beyond = line if is_of else beyond
            elif is_of or re.fullmatch(rf"repay . {kind}:.+", line):
                text = grants.get(name) or self._away(name, ledger)
                if text and int(text.split()[5]) > self.now:
                    known[name] = text.split()
                    (burned if is_of else repaid).append((name, line))
        given, most = 0, ceil(total * share)
        if beyond:
            debt = f"d {beyond.split()[3]}"
            owed, since = map(int, grants.pop(debt, "0 0").split())
            given = min(most, int(ledger[beyond]), owed)
            ledger[beyond] = str(int(ledger[beyond]) - given)
            grants |= {debt: f"{owed - given} {since}"} if owed > given else {}
        for payments in (repaid, burned):
            for name, line in sorted(payments, key=lambda one: _turn(one[0], known[one[0]]), reverse=True):
                fields, is_repayment = known[name], payments is repaid
                rest = (int(ledger[beyond]) if beyond else 0) if is_repayment else most
                part = min(most - given, int(ledger[line]), int(fields[2]), rest)
                if part:
                    fields[2] = str(int(fields[2]) - part)
                    fields[1] = str(int(fields[1]) - self.give_up(name, part, ledger))
                    grants[name], ledger[line] = " ".join(fields), str(int(ledger[line]) - part)
                    if fields[1] == fields[2]:
                        del grants[name]
                    ledger |= {beyond: str(int(ledger[beyond]) - part)} if is_repayment else {}
                    given += part
        if given:
            grants.pop("balance", None)
        if grants:
            self.shard.grants[self.name] = grants
        return given

    def give_up(self, name: str, part: int, ledger: dict[str, str]) -> int:
        """Of what a grant gets back, take what its refund has not taken yet; how much."""
        line = f"refund {name}"
        refunded, taken, _, owed = map(int, ledger.get(line, "0 0 0 0").split())
        part = min(part, refunded - taken - owed)
        if part:
            ledger[line] = f"{refunded} {taken + part} {self.now} {owed}"
        return part

    @staticmethod
    def _away(name: str, ledger: Mapping[str, str]) -> str:
        """An app's grant that has left the list, all of it used; empty: there is none, or it was voided."""
        is_void = f"void {name}" in ledger
        if f"grant {name}" not in ledger or is_void or not name.startswith("a "):
            return ""
        quantity, priority, effective, expires, created = ledger[f"grant {name}"].split()
        used = int(quantity) - int(ledger.get(f"refund {name}", "0 0").split()[1])
        target = name.split(" ")[1]
        return f"{target} {used} {used} {priority} {effective} {expires} {created} {expires}"

    def at_stripe(self, tokens: Sequence[str], most: int) -> int:
        """Take back what is delivered, an event each, while there is a minute for it; how much."""
        customer, asked, done = self.customer, self.asked, 0
        if customer.period is None or not asked.stripe:
            return 0
        for token in tokens:
            there = self.count(token, "d") - sum(self.count(token, letter) for letter in "QLKDXZ")
            there -= self.on_lines(token)
            part = min(most - done, there, VALUE_MAX)
            names = {meter_token(other): other for other, stamp in customer.stamps.items() if stamp}
            if part <= 0 or token not in asked.events or token not in names:
                continue
            minute, last = free_minute(customer, asked.events, asked.taken, token, self.now)
            if minute > min(last, self.now + AHEAD_MS):
                continue
            self.made, done = self.made + 1, done + part
            self.back[token] = self.back.get(token, 0) + part
            identifier = f"{asked.nonce}-{self.made}"
            known = (self.name, asked.stripe, customer.period[0], token, asked.events[token])
            intent = Intent(*known, -part, minute, self.now, key=identifier)
            self.shard.intents[identifier], self.shard.outbox[identifier] = intent, self.now
            customer.closed[intent.field("queued")] += part
            customer.stamps[names[token]] = minute
            self.shard.keep(f"t:{self.name}", TOTALS_MS)
        return done
