"""F-30n: the lines of its plan decide whether the rest of a period that was cut short is paid."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from random import Random
from typing import Any, Final, TypeVar

import pytest

from drivers.plans import plans_text
from drivers.sampled import some, whole
from drivers.world import Refused, World, run
from meterkit import MeterkitError
from meterkit.catalog import loads

_T = TypeVar("_T")

METERS: Final = plans_text("paid_rest")
AT_ONCE: Final = "billing: {changes: {downgrade: now}}\n"
LINES: Final = METERS + "billing: {usage: lines, changes: {downgrade: now}}\n"
MODES: Final = {
    "meters": METERS + AT_ONCE,
    "lines": LINES,
    "report usage": METERS.replace("event_name: calls}", "event_name: calls, report: usage}").replace(
        "    addons: [pack]\n", ""
    )
    + AT_ONCE,
}
START: Final = datetime(2031, 6, 1, tzinfo=UTC)
GIVEN: Final = {"basic": 100, "team": 300, "pro": 1_000, "year": 100, "seated": 200}
ENDS: Final = {
    "keep": {},
    "bill": {"invoice_now": "true"},
    "credit": {"prorate": "true"},
    "invoice": {"prorate": "true", "invoice_now": "true"},
}


class Customer:
    """Customer ``acme`` with a saved card."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def do(self, *acts: str, days: int = 1) -> None:
        """Act as texts say: the name of a method, and its arguments. After each act a day passes."""
        for act in acts:
            name, *words = act.split()
            await getattr(self, name)(*words)
            await self.world.tell()
            await self.world.do(self.world.kit.subscriptions.sync("acme"))
            await self.world.sleep(days=days)

    async def create(self, plan: str, seats: str = "1", packs: str = "0") -> None:
        world, addons = self.world, {"pack": int(packs)} if int(packs) else {}
        made = await world.do(world.kit.subscriptions.create("acme", plan, int(seats), addons=addons))
        if made.client_secret is not None and made.subscription.status == "incomplete":
            world.emulator.confirm_payment(made.client_secret)

    async def change(self, plan: str) -> None:
        await self.world.do(self.world.kit.subscriptions.change_plan("acme", plan))

    async def seats(self, seats: str) -> None:
        await self.world.do(self.world.kit.subscriptions.set_seats("acme", int(seats)))

    async def packs(self, packs: str) -> None:
        await self.world.do(self.world.kit.subscriptions.set_addons("acme", {"pack": int(packs)}))

    async def use(self, calls: str) -> None:
        await self.world.do(self.world.kit.record("acme", "calls", int(calls)))

    async def wait(self, days: str) -> None:
        await self.world.sleep(days=int(days))

    async def cancel(self, how: str = "") -> None:
        cancel = self.world.kit.subscriptions.cancel
        await self.world.do(cancel("acme", immediately=True, give_back=how == "back"))

    async def classic(self, plan: str) -> None:
        """Begin a subscription in the Dashboard, in classic billing mode."""
        item, mode = {"items[0][price]": f"price_{plan}"}, {"billing_mode[type]": "classic"}
        await self.world.ask("POST", "/v1/subscriptions", customer="cus_acme", **item, **mode)

    async def switch(self, plan: str, behavior: str) -> None:
        """Change the plan in the Dashboard; seats and add-ons stay."""
        found, changed = await self._live(), {"proration_behavior": behavior}
        for place, item in enumerate(_sold_by_plan(found)):
            changed[f"items[{place}][id]"] = item["id"]
            suffix = "_calls" * item["price"]["id"].endswith("_calls")
            changed[f"items[{place}][price]"] = f"price_{plan}{suffix}"
        await self.world.ask("POST", f"/v1/subscriptions/{found['id']}", **changed)

    async def replace(self, plan: str, behavior: str) -> None:
        """Remove the plan's item in the Dashboard, and add one of another plan."""
        found = await self._live()
        old = {"items[0][id]": _sold_by_plan(found)[0]["id"], "items[0][deleted]": "true"}
        new = {"items[1][price]": f"price_{plan}", "proration_behavior": behavior}
        await self.world.ask("POST", f"/v1/subscriptions/{found['id']}", **old, **new)

    async def anew(self, behavior: str) -> None:
        """Begin the cycle anew in the Dashboard."""
        anew = {"billing_cycle_anchor": "now", "proration_behavior": behavior}
        await self.world.ask("POST", f"/v1/subscriptions/{(await self._live())['id']}", **anew)

    async def end(self, how: str) -> None:
        """End the subscription in the Dashboard."""
        await self.world.ask("DELETE", f"/v1/subscriptions/{(await self._live())['id']}", **ENDS[how])

    async def collect(self) -> None:
        """End the subscription in the Dashboard with a credit, and put that on an invoice of its own."""
        await self.end("credit")
        pending = await self.world.list("/v1/invoiceitems", customer="cus_acme", pending="true")
        made = await self.world.ask("POST", "/v1/invoices", customer="cus_acme")
        lines = {f"lines[{place}][invoice_item]": item["id"] for place, item in enumerate(pending)}
        await self.world.ask("POST", f"/v1/invoices/{made['id']}/add_lines", **lines)

    async def void(self) -> None:
        """Void the invoice of the last change, which is not paid."""
        await self.world.ask("POST", f"/v1/invoices/{(await self._live())['latest_invoice']}/void")

    async def fail(self) -> None:
        self.world.emulator.fail_payments("cus_acme")

    async def mend(self) -> None:
        self.world.emulator.mend_payments("cus_acme")

    async def _live(self) -> dict[str, Any]:
        (found,) = await self.world.list("/v1/subscriptions")
        return found

    async def included(self) -> int:
        usage = await self.world.do(self.world.kit.usage("acme"))
        return int(usage["meters"]["calls"]["included"] or 0)

    async def has_paid_rest(self) -> bool:
        """Whether a charge of a plan for the last period is named by no credit at Stripe."""
        (found,) = await self.world.list("/v1/subscriptions", status="all")
        end_s = found["items"]["data"][0]["current_period_end"]
        charged, credited = set[str](), set[str]()
        for invoice in await self.world.list("/v1/invoices", customer="cus_acme"):
            for line in await self.world.list(f"/v1/invoices/{invoice['id']}/lines"):
                named = _credited_by(line["parent"]["subscription_item_details"] or {})
                if invoice["status"] != "void":
                    credited |= set(named.get("invoice_line_items", ()))
                if invoice["status"] in {"paid", "open"} and _is_plan_until(line, end_s):
                    charged.add(line["id"])
        for item in await self.world.list("/v1/invoiceitems", customer="cus_acme", pending="true"):
            named = _credited_by(item)
            credited |= set(named.get("invoice_line_item_details", {}).get("invoice_line_items", ()))
            credited |= {named.get("invoice_item", "")}
            if _is_plan_until(item, end_s):
                charged.add(item["id"])
        return bool(charged - credited)


def _sold_by_plan(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The item of a plan, and its metered one."""
    sold = {f"price_{plan}{suffix}" for plan in GIVEN for suffix in ("", "_calls")}
    return [item for item in found["items"]["data"] if item["price"]["id"] in sold]


def _credited_by(line: dict[str, Any]) -> dict[str, Any]:
    """What a line names as the charges that it credits."""
    details: dict[str, Any] = line.get("proration_details") or {}
    return details.get("credited_items") or {}


def _is_plan_until(line: dict[str, Any], end_s: int) -> bool:
    """Whether a line charges a plan until the end of a period."""
    sold = line["pricing"]["price_details"]["price"].removeprefix("price_")
    return sold in GIVEN and line["amount"] > 0 and line["period"]["end"] == end_s


def live(patched: pytest.MonkeyPatch, plans: str, story: Callable[[Customer], Awaitable[_T]]) -> _T:
    async def lived(world: World) -> _T:
        world.emulator.add_plans(world.kit.catalog)
        world.emulator.add_customer("cus_acme")
        world.emulator.add_payment_method("cus_acme")
        await world.do(world.kit.customers.link("acme", "cus_acme"))
        return await story(Customer(world))

    return run(patched, lived, catalog=loads(plans), start=START)


def included_after(patched: pytest.MonkeyPatch, plans: str, acts: str) -> int:
    """What is included at the end of acts, which commas separate."""

    async def story(acme: Customer) -> int:
        await acme.do(*acts.split(", "))
        return await acme.included()

    return live(patched, plans, story)


PAID: Final = {
    "two upgrades": "create basic, change team, change pro, use 500, cancel, create basic",
    "seats given back": "create basic, seats 20, use 100, seats 2, cancel, create basic",
    "seats and an add-on dropped": "create basic 10 3, change pro, use 600, cancel, create pro",
    "cycle begun anew": "create team, wait 1, anew create_prorations, use 270, wait 5, cancel, create team",
}


@pytest.mark.parametrize("mode", ["meters", "lines"])
@pytest.mark.parametrize("what", PAID)
def test_f_30n_a_paid_period_is_included_again(monkeypatch: pytest.MonkeyPatch, what: str, mode: str) -> None:
    acts = PAID[what]
    assert included_after(monkeypatch, MODES[mode], acts) == GIVEN[acts.split()[-1]]


@pytest.mark.parametrize(
    ("acts", "included"),
    [
        whole("create team, use 300, end keep, create team", 300),
        whole("create team, use 300, end bill, create team", 300),
        whole("create team, use 300, end credit, create team", 20),  # Two days of 30 give 20 of 300.
        whole("create team, use 300, end invoice, create team", 20),
        whole("create team, use 300, cancel back, create team", 20),
        ("create team, use 300, collect, create team", 20),
        whole("create team, use 300, anew none", 300),
        whole("create team, use 300, anew create_prorations", 20),
        ("create pro, switch basic always_invoice, use 1000, end keep, create pro", 1_000),
        whole("create basic, switch team create_prorations, use 300, end keep, create team", 300),
        whole("create basic, switch team create_prorations, use 300, end credit, create team", 30),
        ("create team, replace pro none, use 1000, end keep, create pro", 1_000),
        whole("create team, replace pro always_invoice, use 1000, end keep, create pro", 1_000),
        whole(
            "create basic, fail, switch team always_invoice, mend, void, use 100, end keep, create team", 300
        ),
        whole("create seated 3, use 200, end keep, create seated 3", 200),
        whole("create seated 3, use 200, end credit, create seated 3", 14),
        ("create seated 3, wait 28, fail, wait 3, mend, void, use 200, end keep, create seated 3", 52),
        ("create basic, wait 28, fail, wait 3, mend, void, seats 9, use 100, end bill, create basic", 30),
        ("create basic, wait 28, fail, wait 3, mend, void, packs 2, use 200, end keep, create basic", 0),
        ("create year, use 100, end keep, create year", 100),
        whole("create year, use 100, end credit, create year", 7),
        ("create basic, switch year always_invoice, use 100, end keep, create basic", 100),
        ("classic basic, switch team always_invoice, use 300, end keep, create team", 300),
        whole("classic basic, switch team always_invoice, use 300, end credit, create team", 30),
    ],
)
def test_f_30n_each_way_to_cut_a_period(monkeypatch: pytest.MonkeyPatch, acts: str, included: int) -> None:
    assert included_after(monkeypatch, LINES, acts) == included


def test_f_30n_changes_within_one_second_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(acme: Customer) -> int:
        await acme.do("create basic")
        await acme.do("switch team always_invoice", "use 300", "end keep", "create team", days=0)
        return await acme.included()

    assert live(monkeypatch, LINES, story) == GIVEN["team"]


def test_f_30n_a_missed_renewal_pays_for_its_own_month(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(acme: Customer) -> int:
        await acme.do("create team")
        acme.world.hooks_are_lost = True
        await acme.world.sleep(days=32)
        await acme.world.tell()
        await acme.use("300")
        await acme.do("end credit", "create team")
        return await acme.included()

    assert live(monkeypatch, LINES, story) == 30  # Three days of 31 give 29.03 of 300.


def test_f_30n_tiers_of_a_paid_period_may_begin_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``report: usage`` a plan whose money was kept was refused until the period's end."""
    acts = (
        "create basic, switch team always_invoice, switch pro always_invoice, use 100, end keep, create basic"
    )
    assert included_after(monkeypatch, MODES["report usage"], acts) == 100


MIDDLE: Final = (
    *("change basic", "change team", "change pro", "seats 3", "seats 9", "packs 0", "packs 2", "wait 2"),
    *(f"switch {plan} {how}" for plan in ("basic", "team", "pro") for how in ("always_invoice", "none")),
    *(
        "switch team create_prorations",
        "switch pro create_prorations",
        "replace basic none",
        "replace pro always_invoice",
    ),
    *("anew create_prorations", "anew none"),
)


def random_acts(seed: int) -> list[str]:
    """A subscription that is changed at random, used up, and ended amid its period."""
    random = Random(seed)  # noqa: S311 - it draws tests
    begin = random.choice(["create basic 4 1", "create team", "create pro", "classic basic"])
    return [
        begin,
        *random.choices(MIDDLE, k=random.randint(1, 5)),
        "use 5000",
        f"end {random.choice([*ENDS])}",
    ]


@pytest.mark.parametrize("seed", some(range(60), range(4)))
def test_f_30n_a_charge_without_a_credit_is_included_again(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    acts = random_acts(seed)

    async def story(acme: Customer) -> tuple[bool, bool]:
        for act in acts:
            with suppress(MeterkitError, Refused):  # Refused: it changes nothing.
                await acme.do(act)
        is_paid = await acme.has_paid_rest()
        await acme.do("create basic")
        return await acme.included() == GIVEN["basic"], is_paid

    is_included, is_paid = live(monkeypatch, LINES, story)
    assert (acts, is_included) == (acts, is_paid)
