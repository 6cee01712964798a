"""Plans files made at random are tried as they serve: limits of all kinds, on meters that share credits."""

from __future__ import annotations

import os
from random import Random
from typing import TYPE_CHECKING, Final

import pytest

from drivers.served_traffic import TODAY, agree, drain, served, simulated, traffic

if TYPE_CHECKING:
    from pathlib import Path

    from servers.stores import Server

pytestmark = pytest.mark.anyio

# Files by their seeds; METERKIT_SIMULATED_FILES=400 tries as many more.
SEEDS: Final = (2, 11)
MORE: Final = int(os.environ.get("METERKIT_SIMULATED_FILES", "0"))
USED: Final = {
    "requests": (40, 1),
    "input_tokens": (900, 60),
    "output_tokens": (2_000, 200),
    "pages": (40, 3),
}
"""Meter to what a customer uses in a period, about, and in a call."""

_HEAD: Final = TODAY[: TODAY.index("routes:")]
_ROUTES: Final = TODAY[TODAY.index("routes:") : TODAY.index("plans:")]
_WINDOWS: Final = (
    "second",
    "minute",
    "hour",
    "7 seconds",
    "11 seconds",
    "13 minutes",
    "2 minutes",
    "5 hours",
)


class Maker:
    """Makes a plans file of the meters and lines of ``TODAY``."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)  # noqa: S311 - plans, not a secret

    def file(self) -> str:
        has_credits = self._random.random() < 0.6
        plans = "".join(self._plan(key, has_credits=has_credits) for key in ("free", "pro"))
        return f"{_HEAD}{self._credits() if has_credits else ''}{_ROUTES}plans:\n{plans}"

    def _credits(self) -> str:
        draw = self._random
        paid = draw.sample(list(USED), draw.randrange(1, 4))
        costs = ", ".join(f"{meter}: {draw.choice(('1 per 1000', '2', '3 per 10'))}" for meter in paid)
        return f"credits:\n  ai: {{costs: {{{costs}}}}}\n"

    def _plan(self, key: str, *, has_credits: bool) -> str:
        draw = self._random
        grants = [f"{{credit: ai, quantity: {draw.randrange(1, 60)}, every: period}}"] if has_credits else []
        grants += [
            f"{{meter: {meter}, quantity: {draw.randrange(1, much)}, every: period, priority: {nth}}}"
            for nth, (meter, (much, _)) in enumerate(USED.items(), 9)
            if draw.random() < 0.2
        ]
        meters = "".join(f"      {meter}: {self._entitlement(*USED[meter])}\n" for meter in USED)
        price = f"    price: {{amount_cents: {draw.randrange(3_000)}, interval: month}}\n"
        return f"  {key}:\n{price}    grants: [{', '.join(grants)}]\n    meters:\n{meters}"

    def _entitlement(self, much: int, each: int) -> str:
        draw = self._random
        included = draw.choice((3, much // 3, much // 2, much, "unlimited"))
        cap = draw.choice(("", f", cap: {draw.choice((0, 1, much // 4, much // 2))}"))
        bill = (
            f"{{bill: {{per: {draw.choice((1, 3, 7, 1_000))}, amount_cents: {draw.choice((1, 2, 9))}{cap}}}}}"
        )
        overage = "" if included == "unlimited" else f", overage: {draw.choice(('deny', bill))}"
        rates = ", ".join(
            self._rate(window, each) for window in draw.sample(_WINDOWS, draw.choice((0, 0, 0, 1, 2)))
        )
        rated = f"rate: [{rates}], " if rates else ""
        return f"{{{rated}included: {included}{overage}}}"

    def _rate(self, window: str, each: int) -> str:
        draw = self._random
        algorithm = draw.choice(("sliding-window", "fixed-window", "token-bucket"))
        burst = f", burst: {draw.randrange(3, 9) * each}" if algorithm == "token-bucket" else ""
        return f"{{limit: {draw.randrange(3, 12) * each}/{window}, algorithm: {algorithm}{burst}}}"


@pytest.mark.dear("each plans file serves eighty requests")
async def test_random_files_are_tried_as_they_serve(valkey: Server, tmp_path: Path) -> None:
    calls, url = list(traffic(80)), f"sqlite:///{tmp_path}/audit.db"
    async with served(valkey, TODAY, "today", calls, audit_url=url) as (kit, none):
        assert not none
        await drain(kit, url)
        for seed in (*SEEDS, *range(1_000, 1_000 + MORE)):
            plans = Maker(seed).file()
            found = await simulated(kit, url, plans, calls)
            async with served(valkey, plans, f"then{seed}", calls) as (then, refused):
                await agree(found, then, refused, f"seed {seed}")


@pytest.mark.dear("two plans files serve eighty requests")
async def test_what_a_file_has_served_it_serves_again(valkey: Server, tmp_path: Path) -> None:
    """Today's file against its own period: the log has what it served, so nothing of that is refused."""
    calls, url, plans = list(traffic(80)), f"sqlite:///{tmp_path}/audit.db", Maker(11).file()
    async with served(valkey, plans, "today", calls, audit_url=url) as (kit, refused):
        await drain(kit, url)
        assert refused
        found = await simulated(kit, url, plans, calls)
        await agree(found, kit, {}, "itself")
        assert [one.now_cents for one in found.customers] == [one.then_cents for one in found.customers]
        left = [call for call in calls if call not in refused.get(call.customer, ())]
        other = Maker(2).file()
        found = await simulated(kit, url, other, left)
        async with served(valkey, other, "then", left) as (then, also):
            assert also
            await agree(found, then, also, "another")
