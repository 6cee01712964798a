"""What a simulation says of another plans file is what the same traffic meets when it is served under it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest

from drivers.served_traffic import (
    CUSTOMERS,
    START,
    TODAY,
    Call,
    agree,
    charged,
    drain,
    served,
    simulated,
    traffic,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from meterkit import MeterKit
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


CREDITS: Final = ("routes:", "credits:\n  ai: {costs: {output_tokens: 2 per 1000, pages: 1}}\nroutes:")
GRANT: Final = "    meters:\n      requests:      "
CHANGED: Final = {
    "today's file": TODAY,
    "other prices": changed(("amount_cents: 3}", "amount_cents: 5}"), ("500, interval", "700, interval")),
    "a ceiling of requests": changed((BILLED, "{included: 12, overage: deny}")),
    "a ceiling of pages that a request of three may straddle": changed(
        ("{included: 5, overage: {bill: {per: 1, amount_cents: 4}}}", "{included: 20, overage: deny}")
    ),
    "a ceiling of tokens, known when they are used": changed(
        ("{included: 0, overage: {bill: {per: 100, amount_cents: 9}}}", "{included: 900, overage: deny}")
    ),
    "a cap": changed(("{per: 1, amount_cents: 4}", "{per: 1, amount_cents: 4, cap: 13}")),
    "a sliding window": changed((BILLED, BILLED.replace("{included", "{rate: 4/minute, included", 1))),
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
    "credits": changed(
        CREDITS,
        (
            "    meters:\n      requests:      ",
            "    grants: [{credit: ai, quantity: 7, every: period}]\n" + GRANT,
        ),
        ("{included: 5, overage: {bill: {per: 1, amount_cents: 4}}}", "{included: 4, overage: deny}"),
    ),
    "credits at prices by model": changed(
        (
            CREDITS[0],
            'prices: {out: {default: 2 per 1000, models: {"*-large": 30 per 1000}}}\n'
            + CREDITS[1].replace("2 per 1000", "prices.out"),
        ),
        (
            "    meters:\n      requests:      ",
            "    grants: [{credit: ai, quantity: 40, every: period}]\n" + GRANT,
        ),
        ("{included: 0, overage: {bill: {per: 100, amount_cents: 9}}}", "{included: 900, overage: deny}"),
    ),
    "grants of meters, with a rate and a ceiling": changed(
        (
            "    meters:\n      requests:      " + BILLED,
            "    grants:\n"
            "      - {meter: requests, quantity: 5, every: period}\n"
            "      - {meter: pages, quantity: 9, every: period}\n"
            + GRANT
            + "{rate: 6/minute, included: 9, overage: deny}",
        ),
    ),
    "a credit that the first meter of a line uses up": changed(
        ("routes:", "credits:\n  ai: {costs: {requests: 2, pages: 1}}\nroutes:"),
        ("consume: {pages: 3, requests: 1}", "consume: {requests: 1, pages: 3}"),
        (
            "    meters:\n      requests:      " + BILLED,
            "    grants: [{credit: ai, quantity: 8, every: period}]\n" + GRANT + BILLED.replace("10", "0", 1),
        ),
    ),
    "a budget": changed((GRANT, "    budget: {amount_cents: 25}\n" + GRANT)),
    "a budget of an hour": changed((GRANT, "    budget: {amount_cents: 6, per: hour}\n" + GRANT)),
    "a budget behind credits": changed(
        CREDITS,
        (
            GRANT,
            "    budget: {amount_cents: 12}\n"
            "    grants: [{credit: ai, quantity: 7, every: period}]\n" + GRANT,
        ),
    ),
    "no plan pro, and no pages": changed(
        ("  pages:         {unit: page, stripe: {event_name: pages}}\n", ""),
        ("      pages:         {included: 5, overage: {bill: {per: 1, amount_cents: 4}}}\n", ""),
        ("consume: {pages: 3, requests: 1}", "consume: {requests: 1}"),
        ("  pro:\n", "  other:\n"),
    ),
}


SAMPLED: Final = (
    "today's file",
    "a ceiling of pages that a request of three may straddle",
    "a token bucket, and a fixed window of tokens",
    "credits at prices by model",
    "a budget of an hour",
    "no plan pro, and no pages",
)


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(SAMPLED, id="sampled"),
        pytest.param(list(CHANGED.keys() - set(SAMPLED)), id="rest", marks=pytest.mark.whole),
    ],
)
@pytest.mark.dear("each plans file serves a day's requests")
async def test_changed_files_are_tried_as_they_serve(
    valkey: Server, tmp_path: Path, names: Sequence[str]
) -> None:
    calls, url = list(traffic()), f"sqlite:///{tmp_path}/audit.db"
    checked = 0
    async with served(valkey, TODAY, "today", calls, audit_url=url) as (kit, none):
        assert not none
        await drain(kit, url)
        for nth, name in enumerate(names):
            plans = CHANGED[name]
            found = await simulated(kit, url, plans, calls)
            checked += found.checked
            async with served(valkey, plans, f"then{nth}", calls) as (then, refused):
                await agree(found, then, refused, name)
                for one in found.customers:
                    assert one.now_cents == await charged(kit, one.customer), (name, one)
    assert checked > len(CUSTOMERS)  # By sums and by the scripts.


async def test_calls_of_one_instant_are_tried_in_their_order(valkey: Server, tmp_path: Path) -> None:
    calls = [Call(START, "ada", "/chat", (1, 500 if nth == TENTH else 1)) for nth in range(1, 13)]
    url, plans = f"sqlite:///{tmp_path}/audit.db", CHANGED["a ceiling of tokens, known when they are used"]
    async with served(valkey, TODAY, "today", calls, audit_url=url) as (kit, _):
        await drain(kit, url)
        found = await simulated(kit, url, plans.replace("900", "5"), calls)
    (ada,) = (one for one in found.customers if one.customer == "ada")
    assert ada.refused == {"requests": 7, "input_tokens": 7, "output_tokens": 506}


async def test_windows_that_share_no_multiple_are_tried(valkey: Server, tmp_path: Path) -> None:
    """The time of the store that tries them would have more digits than a request has room for."""
    calls = [Call(START, "ada", "/pages", (0, 0)) for _ in range(8)]
    rates = "rate: [50/97 seconds, 50/13 hours, 50/101 days], "
    grant = "    grants: [{meter: pages, quantity: 9, every: period}]\n"
    url = f"sqlite:///{tmp_path}/audit.db"
    plans = changed((BILLED, f"{{{rates}{BILLED[1:]}"), (GRANT, grant + GRANT))
    async with served(valkey, TODAY, "today", calls, audit_url=url) as (kit, _):
        await drain(kit, url)
        found = await simulated(kit, url, plans, calls)
    (ada,) = (one for one in found.customers if one.customer == "ada")
    assert (ada.now_cents, ada.then_cents, ada.refused) == (500 + 19 * 4, 500 + 10 * 4, {})


SUBJECTS: Final = """    subjects:
      user:
        requests: {rate: 40/minute}
"""
USERS: Final = changed((GRANT, SUBJECTS + GRANT))
OF_USERS: Final = {
    "a ceiling of tokens": "{output_tokens: {included: 900}}",
    "two rates of requests, one in a window of odd seconds": "{requests: {rate: [6/minute, 9/97 seconds]}}",
    "a budget of the period": "{budget: {amount_cents: 60}}",
    "a budget of an hour": "{budget: {amount_cents: 35, per: hour}}",
}


@pytest.mark.parametrize(
    "name",
    [
        "a ceiling of tokens",
        "a budget of an hour",
        pytest.param("two rates of requests, one in a window of odd seconds", marks=pytest.mark.whole),
        pytest.param("a budget of the period", marks=pytest.mark.whole),
    ],
)
@pytest.mark.dear("each plans file serves a day's requests")
async def test_limits_of_users_are_tried_as_they_serve(valkey: Server, tmp_path: Path, name: str) -> None:
    """Of two users and of calls that name none; one user has an override."""
    url = f"sqlite:///{tmp_path}/audit.db"
    calls = [call._replace(user=("ann", "ben", "")[nth % 3]) for nth, call in enumerate(traffic())]
    plans = changed((GRANT, f"    subjects: {{user: {OF_USERS[name]}}}\n{GRANT}"))
    more: Any = {"budget": {"amount_cents": 50}, "requests": {"rate": "7/minute"}}
    async with served(valkey, USERS, "today", calls, audit_url=url) as (kit, none):
        assert not none
        await drain(kit, url)
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
    calls, url = [Call(START, "ada", "/pages", (0, 0), "ann")] * 3, f"sqlite:///{tmp_path}/audit.db"
    async with served(valkey, TODAY, "today", calls, audit_url=url) as (kit, _):
        await drain(kit, url)
        found = await simulated(kit, url, USERS.replace("40/minute", "1/minute"), calls)
    (said,) = found.left_out
    assert said.startswith("limits of each user are not tried for 1 customers")
    assert [one.refused for one in found.customers if one.customer == "ada"] == [{}]
