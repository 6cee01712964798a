"""Lives in which units are taken back that grants and credits have paid for, or that had compensation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.decisions.keys import meter_token
from store.delivery_checks import own_keys
from store.delivery_corrections import CLASSES, Billed, Prices
from store.delivery_driver import NAME, Anew
from store.delivery_model import METERS, TOKENS, VALUE_MAX
from store.script_counts import DAY_MS, MINUTE_MS
from store.script_model import NEVER_MS
from store.script_plans import START_MS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from store.script_model import Customer

PAID: Final = (0, 1, 2, 700)
ASKED: Final = "tokens"
ROWS: Final = ("pages", "rows")
SPEND: Final = "requests"
ENDED: Final = ("1/5 9 3;", "1/7 0 5;", "1/5 0 690;")
LONG_MS: Final = 31 * DAY_MS
PAST: Final = (START_MS - 3 * LONG_MS, START_MS - 2 * LONG_MS)
SPENT: Final = (0, 5, 900, 10**6)


class Restoring(Anew):
    """Some of a customer's usage is taken back."""

    def step(self) -> None:
        """Plant usage, what paid for it and what became of it, and take some of it back."""
        self.steps += 1
        customer = self.begin_anew()
        self.plant_usage(NAME)
        for meter in METERS:
            self._plant_meter(customer, meter)
        self._plant_lines(customer)
        if self.random.random() < 0.3:
            customer.closed[f"{customer.begun[0]}|w"] = self.wall + self.random.choice((-1, 0, 1))
        if self.random.random() < 0.5:
            customer.closed[f"{customer.begun[0]}|y"] = self.wall
        self.shard.ttls[f"t:{NAME}"] = DAY_MS
        self.store(*own_keys(NAME, "cstgj"))
        self.restore(NAME)
        self.shard.fresh.clear()
        self.restore(NAME)  # What had compensation is as good as taken back.

    def billed(self, tokens: Mapping[str, Sequence[str]]) -> Billed | None:
        """Invoices of some of the meters, of this period and of earlier ones."""
        random, every = self.random, list(dict.fromkeys(token for own in tokens.values() for token in own))
        customer = self.shard.customers[NAME]
        start = customer.begun[0]
        read = str(customer.closed.get(f"{start}|y", ""))
        changed = random.choice((None, None, "", str(self.wall), read, read, read))
        if changed is None:
            return None
        ends = PAST[1] + LONG_MS
        instants = (start, start, start + 1, start - 1, *PAST, PAST[0] - 1, ends, ends - 1)
        items = {token: random.choice((0, 0, 3, 700)) for token in every}
        units = {
            token: [(random.choice(instants), random.choice(PAID)) for _ in range(random.choice((1, 2)))]
            for token in every
            if random.random() < 0.5
        }
        lines: dict[str, list[tuple[str, str, int, int, str]]] = {}
        for meter, own in tokens.items():
            lines[meter] = []
            for nth in random.sample(range(6), random.choice((0, 1, 3, 5))):
                on_line = random.choice(own), f"line@{nth}", random.choice(instants)
                lines[meter].append((*on_line, random.choice((1, 6, 700)), f"kept {nth}"))
        return Billed(changed, items, units, lines)

    def _plant_lines(self, customer: Customer) -> None:
        """Earlier periods, and units that corrections have left to credit notes."""
        random = self.random
        for period in PAST:
            customer.closed[f"{period}|e"] = period + LONG_MS
        for period in (*PAST, customer.begun[0]):
            for token in TOKENS:
                if period in PAST and random.random() < 0.7:
                    customer.closed[f"{period}|{token}o"] = random.choice((5, 600, 700))
                if random.random() < 0.3:
                    customer.closed[f"{period}|{token}r"] = random.choice((1, 3, 500))
                if random.random() < 0.3:
                    units = random.choice(("line@0 5;", "line@1 2;line@0 699;", "line@5 1;line@2 700;"))
                    customer.closed[f"{period}|{token}H"] = units

    def _plant_meter(self, customer: Customer, meter: str) -> None:
        random, period = self.random, customer.begun[0]
        for counts in (customer.granted, customer.credited, customer.over_cap):
            counts[meter] = random.choice(PAID)
        customer.overage[meter] = random.choice((0, 7, 700))
        if random.random() < 0.5:
            customer.included[meter] = random.choice(PAID)
        for letter in random.sample("qldxraf", random.choice((0, 2, 4))):
            customer.closed[f"{period}|{meter_token(meter)}{letter}"] = random.choice((1, 5, 700))
        for kind in "mc":
            for nth in range(random.choice((0, 1, 3))):
                self._plant_grant(f"{random.choice('ap')} {kind}:{meter} {nth}", meter, period)
        if random.random() < 0.4:
            self._plant_debt(f"c:{meter}", meter, period)

    def _plant_debt(self, target: str, meter: str, period: int) -> None:
        """Use beyond a balance: it is owed, or a part of it; grants have repaid some of a debt."""
        random = self.random
        grants, ledger = self.shard.grants.setdefault(NAME, {}), self.shard.ledgers.setdefault(NAME, {})
        at = random.choice((period, period, period, period - DAY_MS))
        ledger[f"beyond {meter} {at} {target}"] = str(random.choice((1, 4, 2000)))
        if random.random() < 0.6:
            # No grant repays what arose then.
            grants[f"d {target}"] = f"{random.choice((1, 3, 2000))} {NEVER_MS}"
        for name in [name for name in grants if f" {target} " in name and random.random() < 0.6]:
            ledger[f"repay {name}"] = str(random.choice((1, 3, 2000)))

    def _plant_grant(self, name: str, meter: str, period: int) -> None:
        """A grant that paid for a meter: in the list, or it has left that, all of it used, or was voided."""
        random = self.random
        grants, ledger = self.shard.grants.setdefault(NAME, {}), self.shard.ledgers.setdefault(NAME, {})
        used, expires = random.choice((1, 4, 2000)), self.wall + random.choice((0, 1, DAY_MS))
        expires = random.choice((expires, NEVER_MS))
        terms = f"{random.choice((1, 2))} 0 {expires} {random.choice((1, 2))}"
        quantity = used if random.random() < 0.3 else used + 5
        if random.random() < 0.8:
            ledger[f"grant {name}"] = f"{quantity} {terms}"
        if random.random() < 0.7:
            grants[name] = f"{name.split()[1]} {quantity} {used} {terms} {expires}"
        if random.random() < 0.2:
            ledger[f"void {name}"] = "1"
        if random.random() < 0.5:
            grants["balance"] = "as it was"
        by = random.choice((meter, meter, meter, "others"))
        at = random.choice((period, period, period, period - DAY_MS))
        ledger[f"burn {by} {at} {name}"] = str(random.choice((used, used, 1)))


class Repricing(Restoring):
    """The same where a model of a meter has a price of its own, and where a budget counts what is spent.

    The default row's units go to Stripe under the meter's event, those of the other row under its own.
    """

    def _plant_meter(self, customer: Customer, meter: str) -> None:
        super()._plant_meter(customer, meter)
        random = self.random
        customer.pending[meter] = random.choice((0, 3, 7, 700))
        customer.stamps[meter] = (self.wall // MINUTE_MS - random.randrange(9)) * MINUTE_MS
        if meter == SPEND:
            customer.included[meter], customer.overage[meter] = random.choice(SPENT), random.choice(SPENT)
        elif meter in ROWS:
            for counts in (customer.included, customer.granted, customer.credited, customer.over_cap):
                counts[meter] = 0
            if random.random() < 0.2:  # A row that nothing was counted at.
                for counts in (customer.overage, customer.pending, customer.stamps):
                    counts[meter] = 0
        if meter in ROWS and random.random() < 0.5:
            ended = "".join(random.sample(ENDED, random.choice((1, 2))))
            customer.closed[f"{customer.begun[0]}|{meter_token(meter)}s"] = ended
        recorded = min(VALUE_MAX, sum(getattr(customer, kind)[meter] for kind in CLASSES))
        customer.marked[meter] = random.choice((0, recorded // 2, recorded))

    def to_restore(self) -> dict[str, list[str]]:
        return {ASKED: [meter_token(ASKED), meter_token(ROWS[1])]}

    def prices(self) -> Prices:
        random, tokens = self.random, [meter_token(meter) for meter in (ASKED, *ROWS)]
        labels = [random.choice(("1/5", "1/7", "1/9", None)) for _ in ROWS]
        rows = list(zip(tokens[1:], (tokens[0], tokens[2]), labels, strict=True))
        priced = random.sample(tokens, random.choice((0, 1, 2, 3)))
        asked = random.choice((rows, rows, rows[:1], ()))
        of = {
            token: (random.randrange(1, 20), random.randrange(1, 9), int(random.random() < 0.3))
            for token in priced
        }
        spend, paid = random.choice((SPEND, SPEND, SPEND, "")), random.sample(tokens, random.choice((0, 1)))
        return Prices(asked, of, spend, {token: [7, 3] for token in paid})
