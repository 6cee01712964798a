"""What is stored and shown, compared with the model."""

from __future__ import annotations

from collections import Counter, deque
from fractions import Fraction
from math import floor
from typing import TYPE_CHECKING, Any, cast

from drivers.counters import flat_of
from meterkit.decisions.customer_state import CustomerState, entitlements_of
from meterkit.decisions.grants import Prepaid as PlanPurse
from meterkit.decisions.plan_shares import effective_terms
from meterkit.redis.connection import pack
from meterkit.store.customer_usage import usage_of
from store.script_counts import DAY_MS, MINUTE_MS
from store.script_model import NEVER_MS, Model
from store.script_plans import ANONYMOUS, PLAIN
from store.script_purse import MICRO, Claims, Means, Purse, ledger_sums, may_have, room
from store.script_weighing import ceiling_of, own_of
from store.script_world import MismatchError, ScriptWorld, fields_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random

    from meterkit.catalog import Entitlement
    from meterkit.decisions.keys import CustomerKeys
    from store.script_model import Customer
    from store.script_plans import Sales
    from store.script_wires import Wire


class Checks(ScriptWorld):
    """A store with the scripts in it, and the model of what it holds."""

    def __init__(self, wire: Wire, texts: Mapping[str, str], random: Random, sales: Sales = PLAIN) -> None:
        super().__init__(wire, texts, random)
        self._known: dict[tuple[str | int | bytes, ...], Any] = {}
        self.sales, self.catalog, self.model = sales, sales.catalog, Model(sales.catalog)
        self.writers = ["w0", "w1", "w2"]
        self.log: deque[str] = deque(maxlen=12)
        self.seen: Counter[str] = Counter()

    def check(self, name: str) -> None:
        """Compare all that is stored of a customer, and what is shown of it."""
        keys = self.keys.customer(name, anonymous=name == ANONYMOUS)
        customer = self.model.customers[name]
        self._look(name, keys)
        stored = flat_of(self.fields(keys.counters))
        expected = {field: str(value) for field, value in customer.fields().items()}
        self.compare(f"counters of {name}", expected, stored)
        expires = -2 if not expected else -1 if customer.lives == NEVER_MS else customer.lives
        self.compare(f"expiry of {name}", expires, self.ask("PEXPIRETIME", keys.counters))
        self._check_totals(customer, keys)
        self._check_purse(name, customer, keys)
        for key, members in ((keys.dirty, self.model.dirty), (keys.unlinked, self.model.unlinked)):
            score = self.ask("ZSCORE", key, name)
            self.compare(key, members.get(name), None if score is None else int(float(score)))
        for writer in self.writers:
            known = self.model.writers[writer]
            text = "c" * known.fenced + str(known.last)
            key = self.keys.producer(0, writer)
            found = self.ask("GET", key)
            expected_text = text if known.last or known.fenced else ""
            self.compare(f"writer {writer}", expected_text, (found or b"").decode())
            if found:  # Eight days by the server's own clock, less the minutes that a test may take.
                lives = 690_000_000 < self.ask("PTTL", key) <= 691_200_000
                self.compare(f"life of {writer}", True, lives)
        self._check_usage(name)
        self._known.clear()

    def _look(self, name: str, keys: CustomerKeys) -> None:
        """Ask in one round trip for all that :meth:`check` compares."""
        writers = [self.keys.producer(0, writer) for writer in self.writers]
        asked: list[tuple[str | int | bytes, ...]] = [
            *(("HGETALL", key) for key in (keys.counters, keys.totals, keys.grants, keys.ledger)),
            *(("PEXPIRETIME", key) for key in (keys.counters, keys.grants, keys.ledger)),
            *(("ZSCORE", key, name) for key in (keys.dirty, keys.unlinked)),
            *(("GET", key) for key in writers),
            *(("PTTL", key) for key in (keys.totals, *writers)),
            self._usage_of(keys),
        ]
        replies = self.wire(*(pack(*words) for words in asked))
        self._known = dict(zip(asked, replies, strict=True))

    def _usage_of(self, keys: CustomerKeys) -> tuple[str | int | bytes, ...]:
        names = (keys.counters, keys.state, keys.totals, keys.grants, keys.levels)
        return ("EVALSHA", self.scripts["usage"].sha, len(names), *names, self.wall)

    def _check_totals(self, customer: Customer, keys: CustomerKeys) -> None:
        stored = self._texts(keys.totals)
        expected = {field: str(value) for field, value in customer.closed.items()}
        self.compare(keys.totals, expected, stored)
        days = self.ask("PTTL", keys.totals) / DAY_MS
        self.compare(f"life of {keys.totals}", bool(expected), 399 < days <= 400)

    def _check_purse(self, name: str, customer: Customer, keys: CustomerKeys) -> None:
        purse = customer.purse
        for key, expected in ((keys.grants, purse.texts()), (keys.ledger, purse.ledger())):
            stored = self._texts(key)
            try:
                self._check_balance(name, stored.pop("balance", None))
            except ValueError as error:
                raise MismatchError(f"balance of {name}: {error}") from error
            self.compare(f"{key}", expected, stored)
            self.seen["owed"] += any(field.startswith("d ") for field in stored)
            self.seen["repaid"] += any(field.startswith("repay ") for field in stored)
            expires = -2 if not stored else -1 if purse.lives == NEVER_MS else purse.lives
            self.compare(f"expiry of {key}", expires, self.ask("PEXPIRETIME", key))
            if key == keys.ledger:
                left = {grant.name: grant.left for grant in purse.grants.values() if grant.left}
                self.compare(f"what the ledger of {name} comes to", left, dict(ledger_sums(stored)))

    def _check_balance(self, name: str, text: str | None) -> None:
        """What is kept of what the grants come to, where it holds: for a plan, for a span of time."""
        if text is None:
            return
        customer = self.model.customers[name]
        head, *lines = text.splitlines()
        since, turns, start, mark, is_due, form = head.split(" ")
        self.compare(f"form of the balance of {name}", "2", form)
        now = max(self.wall, customer.seen)
        state = CustomerState.parse(customer.data)
        standing = effective_terms(state, self.catalog, now)
        period = standing.bounds.start_ms, standing.bounds.end_ms
        of_plan = PlanPurse.of(standing.plan, self.catalog).with_allowance(standing.allowance).mark
        if (int(start), mark) != (period[0], of_plan) or not int(since) <= now < int(turns):
            return
        self.seen["balance"] += 1
        means = Means(customer.purse, standing.plan, period, now, allowance=standing.allowance)
        found = {target: told for target, *told in (line.split(" ", 4) for line in lines)}
        granted = {grant.target for grant in (*means.grants.values(), *means.ended)}
        expected: dict[str, list[str]] = {}
        for target in granted | {*means.left, *means.debts}:
            paying = [g for g in means.in_order if g.target == target and g.pays_at(now) and g.left]
            numbers = means.of(target), int(means.had((target,))), means.last(target) or 0
            expected[target] = [*map(str, numbers), paying[0].name if paying else ""]
        self.compare(f"balance that is kept of {name}", expected, found)
        is_written = means.grants == customer.purse.grants
        self.compare(f"what is due of {name}", not is_written, is_due == "1")
        instants = [at for g in means.grants.values() for at in (g.effective, g.expires, g.stays)]
        turning = min((at for at in instants if at > now), default=NEVER_MS)
        self.compare(f"when the balance of {name} turns", turning, int(turns))

    def _texts(self, key: str) -> dict[str, str]:
        return {field: value.decode() for field, value in self.fields(key).items()}

    def fields(self, key: str) -> dict[str, bytes]:
        return fields_of(self.ask("HGETALL", key))

    def _check_usage(self, name: str) -> None:
        customer, keys = self.model.customers[name], self.keys.customer(name, anonymous=name == ANONYMOUS)
        shown = usage_of(name, self.catalog, self.ask(*self._usage_of(keys)))
        state = CustomerState.parse(customer.data)
        standing = effective_terms(state, self.catalog, self.wall)
        entitlements = entitlements_of(standing, self.catalog)
        period, bounds, now = customer.period, standing.bounds, max(self.wall, customer.seen)
        is_over = period is None or self.wall >= period[1]
        if period is not None and bounds.end_ms != period[1]:
            is_over |= bounds.start_ms >= period[0] + 2 * MINUTE_MS
        is_entitled = may_have(customer.rev, state, standing.plan, self.catalog)
        purse, span = customer.purse if is_entitled else Purse(), (bounds.start_ms, bounds.end_ms)
        means = Means(purse, standing.plan, span, self.wall, allowance=standing.allowance)
        balance = {credit: means.of(f"c:{credit}") // MICRO for credit in self.catalog.credits}
        self.compare(f"balance of {name}", balance, shown["balance"])

        claims = Claims(
            counted=lambda meter: 0 if is_over else customer.included[meter],
            held=lambda meter: sum(customer.holds[meter].live(now)),
            held_credit=lambda meter: sum(customer.credit_holds[meter].live(now)),
        )
        kinds = ("included", "overage", "pending", "granted", "credited", "over_cap")
        for meter, given in entitlements.items():
            counts: list[Counter[str]] = [getattr(customer, kind) for kind in kinds]
            numbers = [0 if is_over else counter[meter] for counter in counts]
            covered, overage, pending, granted, _, over_cap = numbers
            held, left = claims.held(meter), cast("int | str", "unlimited")
            if ceiling_of(given) is not None:
                more = room(meter, means, self.catalog, entitlements, claims)
                left = max(0, own_of(given, covered, overage) + more - held)
            recorded = sum(numbers) - pending
            expected = {
                "used": recorded + held,
                "included": "unlimited" if given.included is None else given.included,
                "granted": granted + means.of(f"m:{meter}"),
                "held": held,
                "remaining": left,
                "overage": overage,
                "overage_cents": _cents(given, overage),
                "over_cap": over_cap,
                "recorded": recorded,
                "unlinked" if state.stripe_customer is None else "pending": pending,
            }
            row = dict(shown["meters"][meter])
            self.compare(f"usage of {name}, {meter}", expected, {what: row[what] for what in expected})

    def compare(self, what: str, expected: Any, found: Any) -> None:
        self.log.append(what)
        if expected != found:
            if type(expected) is type(found) is dict:
                expected, found = _differing(expected, found)
            before = "\n  ".join(self.log)
            raise MismatchError(f"after\n  {before}\nexpected {expected!r}\n   found {found!r}")

    def ask(self, *words: str | int | bytes) -> Any:
        """The reply to a command that cannot fail unless something is stored that should not be."""
        reply = self._known[words] if words in self._known else self.wire(pack(*words))
        if isinstance(reply, Exception):
            raise MismatchError(f"{words}: {reply}")
        return reply


def _cents(given: Entitlement, overage: int) -> int | None:
    """What overage costs, half up."""
    per, cents = given.overage.per, given.overage.amount_cents
    return None if per is None or cents is None else floor(Fraction(overage * cents, per) + Fraction(1, 2))


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[Any, Any]:
    """Of two dictionaries what is not the same in both."""
    return (
        {key: value for key, value in one.items() if other.get(key) != value},
        {key: value for key, value in other.items() if one.get(key) != value},
    )
