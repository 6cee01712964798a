"""What is stored and shown, compared with the model."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from meterkit.store.keys import Keys
from meterkit.store.resp import pack
from meterkit.store.scripts import Script
from meterkit.store.state import CustomerState, standing_at
from meterkit.store.usage import usage_of
from store.script_counts import DAY_MS
from store.script_model import NEVER_MS, Model, ceiling_of
from store.script_plans import ANONYMOUS, CATALOG, START_MS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.store.keys import CustomerKeys
    from store.script_model import Customer
    from store.script_wires import Wire


class MismatchError(AssertionError):
    """The scripts and the model do not agree."""


class Checks:
    """A store with the scripts in it, and the model of what it holds."""

    def __init__(self, wire: Wire, texts: Mapping[str, str]) -> None:
        self.wire = wire
        self.wire(pack("FLUSHALL"))
        self.scripts = {name: self.load(name, text) for name, text in texts.items()}
        self.keys = Keys("mk", 1)
        self.catalog, self.model = CATALOG, Model(CATALOG)
        self.wall = START_MS
        self.writers = ["w0", "w1", "w2"]
        self.log: deque[str] = deque(maxlen=12)

    def check(self, name: str) -> None:
        """Compare all that is stored of a customer, and what is shown of it."""
        keys = self.keys.customer(name, anonymous=name == ANONYMOUS)
        customer = self.model.customers[name]
        flat = self.ask("HGETALL", keys.counters)
        stored = {field.decode(): value.decode() for field, value in zip(flat[::2], flat[1::2], strict=True)}
        expected = {field: str(value) for field, value in customer.fields().items()}
        self.compare(f"counters of {name}", expected, {f: v for f, v in stored.items() if v != "0"})
        expires = -2 if not expected else -1 if customer.lives == NEVER_MS else customer.lives
        self.compare(f"expiry of {name}", expires, self.ask("PEXPIRETIME", keys.counters))
        self._check_totals(customer, keys)
        for key, members in ((keys.dirty, self.model.dirty), (keys.unlinked, self.model.unlinked)):
            score = self.ask("ZSCORE", key, name)
            self.compare(key, members.get(name), None if score is None else int(float(score)))
        for writer in self.writers:
            known = self.model.writers[writer]
            text = "c" * known.retired + str(known.last)
            key = self.keys.writer(0, writer)
            found = self.ask("GET", key)
            self.compare(
                f"writer {writer}", text if known.last or known.retired else "", (found or b"").decode()
            )
            if found:  # Eight days by the server's own clock, less the minutes that a test may take.
                lives = 690_000_000 < self.ask("PTTL", key) <= 691_200_000
                self.compare(f"life of {writer}", True, lives)
        self._check_usage(name)

    def _check_totals(self, customer: Customer, keys: CustomerKeys) -> None:
        flat = self.ask("HGETALL", keys.totals)
        stored = {field.decode(): value.decode() for field, value in zip(flat[::2], flat[1::2], strict=True)}
        expected = {field: str(value) for field, value in customer.closed.items()}
        self.compare(keys.totals, expected, stored)
        days = self.ask("PTTL", keys.totals) / DAY_MS
        self.compare(f"life of {keys.totals}", bool(expected), 399 < days <= 400)

    def _check_usage(self, name: str) -> None:
        customer, keys = self.model.customers[name], self.keys.customer(name, anonymous=name == ANONYMOUS)
        ask = ("EVALSHA", self.scripts["usage"].sha, 3, keys.counters, keys.state, keys.totals, self.wall)
        shown = usage_of(name, self.catalog, self.ask(*ask))
        state = CustomerState.parse(customer.data)
        standing = standing_at(state, self.catalog, self.wall)
        entitlements, period = standing.plan.entitlements, customer.period
        over = period is None or self.wall >= period[1] or standing.bounds.start_ms > period[0]
        for meter, given in entitlements.items():
            held = sum(customer.holds[meter].live(max(self.wall, customer.seen)))
            counts = (customer.included, customer.overage, customer.pending)
            covered, overage, pending = (0 if over else counter[meter] for counter in counts)
            ceiling = ceiling_of(given)
            left: int | str = "unlimited"
            if ceiling is not None and given.included is not None:
                beyond = ceiling - given.included - overage if given.overage.mode == "bill" else 0
                left = max(0, max(0, given.included - covered) + beyond - held)
            paid = 0 if over else customer.granted[meter] + customer.credited[meter]
            recorded = covered + overage + paid
            expected = (recorded + held, held, left, overage, recorded, pending)
            is_linked, row = state.stripe_customer is not None, shown["meters"][meter]
            found = (row["used"], row["held"], row["remaining"], row["overage"], row["recorded"])
            waiting = row["pending"] if is_linked else row["unlinked"]
            self.compare(f"usage of {name}, {meter}", expected, (*found, waiting))

    def compare(self, what: str, expected: Any, found: Any) -> None:
        self.log.append(what)
        if expected != found:
            before = "\n  ".join(self.log)
            raise MismatchError(f"after\n  {before}\nexpected {expected!r}\n   found {found!r}")

    def ask(self, *words: str | int) -> Any:
        """The reply to a command that cannot fail unless something is stored that should not be."""
        reply = self.wire(pack(*words))
        if isinstance(reply, Exception):
            raise MismatchError(f"{words}: {reply}")
        return reply

    def load(self, name: str, text: str) -> Script:
        """Have the server compile a script."""
        sha = self.wire(pack("SCRIPT", "LOAD", text))
        if not isinstance(sha, bytes | str):
            raise MismatchError(f"{name} does not compile: {sha}")
        return Script(name, text, sha.decode() if isinstance(sha, bytes) else sha)
