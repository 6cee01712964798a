"""A simulation of a plans file says what the same traffic meets under it, and what invoices come to."""

from __future__ import annotations

import re
import sys
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import pytest

from drivers.audit_database import drain_all
from drivers.served_traffic import CUSTOMERS, START, TODAY, Call, agree, charged, served, simulated, traffic
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.testing import Clock
from servers.stores import Server

pytestmark = pytest.mark.anyio

TENTH: Final = 10
BILLED: Final = "{included: 10, overage: {bill: {per: 10, amount_cents: 3}}}"


def changed(*pairs: tuple[str, str]) -> str:
    text = TODAY
    for before, after in pairs:
        assert before in text
        text = text.replace(before, after)
    return text


GRANT: Final = "    meters:\n      requests:      "
CEILING_OF_TOKENS: Final = changed(
    ("{included: 0, overage: {bill: {per: 100, amount_cents: 9}}}", "{included: 900, overage: deny}")
)
CHANGED: Final = {
    "a ceiling of pages that a request of three may straddle": changed(
        ("{included: 5, overage: {bill: {per: 1, amount_cents: 4}}}", "{included: 20, overage: deny}")
    ),
    "a token bucket, and a fixed window of tokens": changed(
        (
            BILLED,
            BILLED.replace(
                "{included", "{rate: {limit: 6/minute, algorithm: token-bucket, burst: 3}, included", 1
            ),
        ),
        (
            "output_tokens: {included: 0",
            "output_tokens: {rate: {limit: 400/2 minutes, algorithm: fixed-window}, included: 0",
        ),
    ),
    "credits at prices by model": changed(
        (
            "routes:",
            (
                'prices: {out: {default: 2 per 1000, models: {"*-large": 30 per 1000}}}\n'
                "credits:\n  ai: {costs: {output_tokens: prices.out, pages: 1}}\nroutes:"
            ),
        ),
        (GRANT, "    grants: [{credit: ai, quantity: 40, every: period}]\n" + GRANT),
        ("{included: 0, overage: {bill: {per: 100, amount_cents: 9}}}", "{included: 900, overage: deny}"),
    ),
    "a budget of an hour": changed((GRANT, "    budget: {amount_cents: 6, per: hour}\n" + GRANT)),
}


@pytest.mark.dear("each plans file serves a day's requests")
async def test_changed_files_are_tried_as_they_serve(valkey: Server, tmp_path: Path) -> None:
    calls, url = list(traffic()), f"sqlite:///{tmp_path}/audit.db"
    checked = 0
    async with served(valkey, TODAY, "today", calls, audit_url=url) as (kit, none):
        assert not none
        await drain_all(kit, url)
        for nth, (name, plans) in enumerate(CHANGED.items()):
            found = await simulated(kit, url, plans, calls)
            checked += found.checked
            async with served(valkey, plans, f"then{nth}", calls) as (then, refused):
                await agree(found, then, refused, name)
                for one in found.customers:
                    assert one.now_cents == await charged(kit, one.customer), (name, one)
    assert checked > 0  # By sums, and all others by the scripts.


async def tried(valkey: Server, directory: Path, calls: list[Call], plans: str) -> Any:
    """A simulation of a plans file by calls that were served today."""
    url = f"sqlite:///{directory}/audit.db"
    async with served(valkey, TODAY, "today", calls, audit_url=url) as (kit, _):
        await drain_all(kit, url)
        return await simulated(kit, url, plans, calls)


STRADDLED: Final = CHANGED["a ceiling of pages that a request of three may straddle"]


@pytest.mark.parametrize(
    ("calls", "plans", "refused"),
    [
        (
            [Call(START, "ada", "/chat", (1, 500 if nth == TENTH else 1)) for nth in range(1, 13)],
            CEILING_OF_TOKENS.replace("900", "5"),
            {"requests": 7, "input_tokens": 7, "output_tokens": 506},
        ),
        ([Call(START, "ada", "/pages", (0, 0))] * 7, STRADDLED, {"requests": 1, "pages": 3}),
    ],
    ids=["in their order", "only the last one straddles"],
)
async def test_calls_of_one_instant_are_tried_as_they_came(
    valkey: Server, tmp_path: Path, calls: list[Call], plans: str, refused: dict[str, int]
) -> None:
    found = await tried(valkey, tmp_path, calls, plans)
    assert [one.refused for one in found.customers if one.customer == "ada"] == [refused]


SUBJECTS: Final = """    subjects:
      user:
        requests: {rate: 40/minute}
"""
USERS: Final = changed((GRANT, SUBJECTS + GRANT))
OF_USERS: Final = {
    "a ceiling of tokens": "{output_tokens: {included: 900}}",
    "a budget of an hour": "{budget: {amount_cents: 35, per: hour}}",
}


@pytest.mark.parametrize("name", OF_USERS)
@pytest.mark.dear("each plans file serves a day's requests")
async def test_limits_of_users_are_tried_as_they_serve(valkey: Server, tmp_path: Path, name: str) -> None:
    """Of two users and of calls that name none; one user has an override."""
    url = f"sqlite:///{tmp_path}/audit.db"
    calls = [call._replace(user=("ann", "ben", "")[nth % 3]) for nth, call in enumerate(traffic())]
    plans = changed((GRANT, f"    subjects: {{user: {OF_USERS[name]}}}\n{GRANT}"))
    more: Any = {"budget": {"amount_cents": 50}, "requests": {"rate": "7/minute"}}
    async with served(valkey, USERS, "today", calls, audit_url=url) as (kit, none):
        assert not none
        await drain_all(kit, url)
        await kit.customers.subject("cyd", user="ann").override(more)
        found = await simulated(kit, url, plans, calls)
        assert (found.left_out, found.checked) == ([], 0)  # Each was served again.

    async def give(then: MeterKit) -> None:
        await then.customers.subject("cyd", user="ann").override(more)

    async with served(valkey, plans, "then", calls, before=give) as (then, refused):
        assert all(call.user for of in refused.values() for call in of)
        assert "cyd" in refused
        await agree(found, then, refused, name)


async def test_users_that_the_log_lacks_are_reported_as_left_out(valkey: Server, tmp_path: Path) -> None:
    calls = [Call(START, "ada", "/pages", (0, 0), "ann")] * 3
    found = await tried(valkey, tmp_path, calls, USERS.replace("40/minute", "1/minute"))
    (said,) = found.left_out
    assert said.startswith("limits of each user are not tried for 1 customers")
    assert [one.refused for one in found.customers if one.customer == "ada"] == [{}]


def test_without_duckdb_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "meterkit.insights.simulation.usage_log", raising=False)
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'meterkit[simulate]'")):
        import_module("meterkit.insights.simulation.usage_log")


ONCE: Final = """
schema: 1
currency: usd
default_plan: free
meters: {words: {unit: word, stripe: {event_name: words}}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters: {words: {included: 1_000, overage: {bill: {per: 100, amount_cents: 50}}}}
    grants: [{meter: words, quantity: 50, every: once}]
  pro: {extends: free, price: {amount_cents: 900, interval: month}}
"""


@pytest.mark.dear("usage is served again")
async def test_what_was_given_once_pays_in_no_later_period(store_url: str, tmp_path: Path) -> None:
    """Ada used some of it in April, bob, who had a plan by then, none; cyd came in June."""
    url, clock = f"sqlite:///{tmp_path}/audit.db", Clock(START - timedelta(days=61))
    async with MeterKit(loads(ONCE), redis_url=store_url, clock=clock, audit_url=url, flush=False) as kit:
        await kit.record("ada", "words", 1_030)
        await kit.customers.set_plan("bob", "pro")
        clock.set(START)
        for customer in ("ada", "bob", "cyd"):
            await kit.record(customer, "words", 1_100)
        await drain_all(kit, url)
        found = await simulated(kit, url, ONCE, [Call(START, "ada", "", (0, 0))])
    paid = [(one.customer, one.now_cents, one.then_cents) for one in found.customers]
    assert paid == [("ada", 50, 50), ("bob", 950, 950), ("cyd", 25, 25)]


OF_CORRECTIONS: Final = {
    "as today": TODAY,
    "a cap of pages": changed(
        ("{bill: {per: 1, amount_cents: 4}}", "{bill: {per: 1, amount_cents: 4, cap: 9}}")
    ),
    "a ceiling of pages": STRADDLED,
    "a grant of pages": changed(
        (GRANT, "    grants: [{meter: pages, quantity: 4, every: period}]\n" + GRANT)
    ),
}


@pytest.mark.parametrize("name", OF_CORRECTIONS)
@pytest.mark.dear("an hour's requests are served, and served again")
async def test_f_30m_corrected_units_are_tried_alike(valkey: Server, tmp_path: Path, name: str) -> None:
    """By sums and by scripts; what is recorded after a correction counts from what it has left."""
    url, calls = f"sqlite:///{tmp_path}/audit.db", list(traffic(60))
    async with served(valkey, TODAY, "today", calls, audit_url=url) as (kit, _):
        for nth, customer in enumerate(CUSTOMERS):
            taken = {"pages": 4 + 9 * nth, "input_tokens": 70}
            await kit.correct(customer, taken, reason="a loop", correction_id="c")
            await kit.record(customer, "pages", 5)
        await drain_all(kit, url)
        found = await simulated(kit, url, OF_CORRECTIONS[name], calls)
        assert (found.disagreeing, found.not_logged) == ([], {})
        for one in found.customers:
            assert one.now_cents == await charged(kit, one.customer)
            assert "units were taken back" not in one.estimates
            if name == "as today":
                assert one.then_cents == one.now_cents
