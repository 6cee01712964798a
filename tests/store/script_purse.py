"""What a customer has besides what the plan includes, said once more in plain Python: grants and credits.

A grant pays while it is in force, in an order; each line of the ledger says what became of how much of it.
What the plan gives is there as soon as its period begins, and on file with the first that is recorded in it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Final, NamedTuple

from store.script_counts import DAY_MS, MOST

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from meterkit.catalog import Catalog, Credit, Entitlement, Plan
    from meterkit.store.state import CustomerState

FOREVER_MS: Final = 9 * 10**15
NO_REV: Final = "1:0"
MICRO: Final = 10**6

Period = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A grant: units of a meter (``m:NAME``) or micro-credits of a credit (``c:NAME``), times in ms."""

    name: str
    target: str
    quantity: int
    priority: int
    effective: int
    expires: int
    created: int
    used: int = 0
    used_at: int = 0

    @property
    def left(self) -> int:
        return self.quantity - self.used

    @property
    def terms(self) -> tuple[int, int, int, int]:
        return self.priority, self.effective, self.expires, self.created

    @property
    def text(self) -> str:
        """As it is stored."""
        numbers = (self.quantity, self.used, *self.terms, self.used_at)
        return " ".join((self.target, *map(str, numbers)))

    def pays_at(self, now: int) -> bool:
        return self.effective <= now < self.expires

    def is_past(self, start: int) -> bool:
        """Whether it ended before a period began; what the plan gave stays until it expires."""
        is_used_up = self.name.startswith("a ") and self.left == 0 and self.used_at < start
        return self.expires <= start or is_used_up


def due(plan: Plan, period: Period) -> Iterable[Given]:
    """What a plan gives in a period."""
    start, end = period
    counted: Counter[str] = Counter()
    for grant in plan.grants:
        target = f"{'c' if grant.kind == 'credit' else 'm'}:{grant.name}"
        yield Given(
            name=f"p {target} {counted[target]} {start}",
            target=target,
            quantity=grant.quantity * (MICRO if grant.kind == "credit" else 1),
            priority=grant.priority,
            effective=start,
            expires=end if grant.expires_ms is None else start + grant.expires_ms,
            created=start,
        )
        counted[target] += 1


class Part(NamedTuple):
    """Units of one meter, classified; ``reported``: how many go to Stripe, under whose event."""

    meter: str
    quantity: int
    within: int
    granted: int
    credited: int
    overage: int
    reported: int
    reported_as: str
    is_too_much: bool


class Means:
    """All grants that a customer has at an instant: on file, and of the plan's what is due."""

    def __init__(self, on_file: Mapping[str, Given], plan: Plan, period: Period, now: int) -> None:
        self.now, self.start = now, period[0]
        self.grants = dict(on_file)
        for new in due(plan, period):
            known = self.grants.get(new.name)
            if known is None or known.quantity < new.quantity:
                self.grants[new.name] = replace(known or new, quantity=new.quantity)
        self.burned: Counter[str] = Counter()

    @property
    def in_order(self) -> Sequence[Given]:
        return sorted(self.grants.values(), key=lambda g: (g.priority, g.expires, g.created, g.name))

    def of(self, target: str) -> int:
        return sum(grant.left for grant in self.grants.values() if self._pays(grant, target))

    def had(self, targets: Iterable[str]) -> bool:
        """Whether any grant of some targets stood behind them in this period, whatever it has left."""
        return any(
            grant.target in targets and grant.effective <= self.now and not grant.is_past(self.start)
            for grant in self.grants.values()
        )

    def pay(self, meter: str, units: int, credit: Credit | None) -> tuple[int, int]:
        """How many units of a meter grants pay, and how many of the rest a credit."""
        granted = self._burn(meter, f"m:{meter}", units, 1)
        if credit is None:
            return granted, 0
        return granted, self._burn(meter, f"c:{credit.name}", units - granted, credit.costs[meter])

    def last(self, target: str) -> Given | None:
        """The grant of a target that was created last."""
        latest: Given | None = None
        for grant in self.in_order:
            if grant.target == target and (latest is None or grant.created >= latest.created):
                latest = grant
        return latest

    def _burn(self, meter: str, target: str, units: int, cost: int) -> int:
        paid = min(units, self.of(target) // cost)
        owed = paid * cost
        for grant in self.in_order:
            part = min(owed, grant.left) if self._pays(grant, target) else 0
            if part:
                self.grants[grant.name] = replace(grant, used=grant.used + part, used_at=self.now)
                self.burned[f"burn {meter} {self.start} {grant.name}"] += part
                owed -= part
        assert owed == 0
        return paid

    def _pays(self, grant: Given, target: str) -> bool:
        return grant.target == target and grant.pays_at(self.now)


class Purse:
    """The grants on file, the lines of their ledger, and until when both are kept (0: no key has been)."""

    def __init__(self) -> None:
        self.grants: dict[str, Given] = {}
        self.lines: dict[str, tuple[int, ...]] = {}
        self.lives = 0

    def add(self, new: Sequence[Given], now: int) -> list[int | bytes]:
        """Add grants of the app's, all or none of them."""
        left: Counter[str] = Counter()
        for grant in self.grants.values():
            left[grant.target] += grant.left
        fresh: list[Given] = []
        for grant in new:
            known = self.lines.get(f"grant {grant.name}")
            if known is not None and known[0] != grant.quantity:
                return [1, grant.name.encode(), str(known[0]).encode()]
            if known is None:
                left[grant.target] += grant.quantity
                if left[grant.target] > MOST:
                    return [2, grant.name.encode()]
                fresh.append(grant)
        for grant in fresh:
            self.grants[grant.name] = grant
            self.lines[f"grant {grant.name}"] = (grant.quantity, *grant.terms)
        if self.lines:
            self.lives = FOREVER_MS
        return [0, now]

    def void(self, names: Sequence[str], now: int) -> int:
        found = [self.grants.pop(name) for name in names if name in self.grants]
        for grant in found:
            self.lines[f"void {grant.name}"] = (grant.left, now)
        return len(found)

    def keep(self, means: Means, *, has_state: bool) -> None:
        """Keep what has been paid, what the plan gives, and nothing that is past."""
        grew = False
        for grant in means.grants.values():
            known = self.grants.get(grant.name)
            before = known.quantity if known is not None else 0
            if grant.quantity > before:
                grew = True
                line = f"grant {grant.name}"
                if line in self.lines:
                    self._add(f"raise {before} {grant.name}", grant.quantity - before)
                else:
                    self.lines[line] = (grant.quantity, *grant.terms)
            self.grants[grant.name] = grant
            if grant.is_past(means.start):
                del self.grants[grant.name]
                if grant.left:
                    self._add(f"expire {grant.name}", grant.left, grant.expires)
        for line, part in means.burned.items():
            self._add(line, part)
        if grew:
            last = max(grant.expires for grant in self.grants.values())
            self.lives = FOREVER_MS if has_state else last + 40 * DAY_MS

    def _add(self, line: str, quantity: int, *more: int) -> None:
        self.lines[line] = (self.lines.get(line, (0,))[0] + quantity, *more)


def ledger_sums(lines: Mapping[str, str]) -> Counter[str]:
    """The lines of each grant, added up."""
    sums: Counter[str] = Counter()
    for line, text in lines.items():
        what, _, rest = line.partition(" ")
        words = {"burn": 2, "raise": 1}.get(what, 0)
        name = rest.split(" ", words)[words]
        sums[name] += int(text.partition(" ")[0]) * (1 if what in {"grant", "raise"} else -1)
    return Counter({name: left for name, left in sums.items() if left})


def may_have(rev: str, state: CustomerState, plan: Plan, catalog: Catalog) -> bool:
    """Whether grants count: the app's, the plan's, or what an earlier plan gave, which stays."""
    plans = catalog.plans.values() if rev != NO_REV else (plan,)
    return state.granted or any(plan.grants for plan in plans)


def credit_of(catalog: Catalog, meter: str) -> Credit | None:
    """The credit that pays for a meter."""
    return next((credit for credit in catalog.credits.values() if meter in credit.costs), None)


def targets_of(catalog: Catalog, meter: str) -> set[str]:
    """What may stand behind a meter."""
    credit = credit_of(catalog, meter)
    return {f"m:{meter}"} | ({f"c:{credit.name}"} if credit else set())


def room(
    meter: str,
    means: Means,
    catalog: Catalog,
    entitlements: Mapping[str, Entitlement],
    *,
    counted: Callable[[str], int],
    held: Callable[[str], int],
) -> int:
    """Units that grants and credits add; what others hold beyond their own means claims the credit first."""
    units, credit = means.of(f"m:{meter}"), credit_of(catalog, meter)
    if credit is None:
        return units
    free = means.of(f"c:{credit.name}")
    for other, cost in credit.costs.items():
        included = entitlements[other].included
        if other != meter and included is not None:
            own = max(0, included - counted(other)) + means.of(f"m:{other}")
            free -= max(0, held(other) - own) * cost
    return units + max(0, free) // credit.costs[meter]


def lowered(catalog: Catalog, before: Means, after: Means) -> list[bytes]:
    """The credits whose balance has fallen below their share of the last grant."""
    low: list[bytes] = []
    for credit in catalog.credits.values():
        target = f"c:{credit.name}"
        last = after.last(target)
        if last is not None and credit.low_balance_percent is not None:
            threshold = Fraction(last.quantity * credit.low_balance_percent, 100)
            if before.of(target) >= threshold > after.of(target):
                low.append(target.encode())
    return low
