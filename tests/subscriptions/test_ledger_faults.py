"""A ledger that contradicts the state is named by `check`; whatever meterkit itself does is not."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from drivers.shop import END, HALF, shop

if TYPE_CHECKING:
    from drivers.shop import Shop

pytestmark = pytest.mark.anyio


async def ledger_messages(at: Shop) -> list[str]:
    drifts = (await at.kit.subscriptions.check()).get("acme", ())
    return [drift.message for drift in drifts if drift.kind == "ledger"]


async def test_changes_of_a_life_contradict_nothing(store_url: str) -> None:
    async with shop(store_url) as at:
        await at.subscribed(plan="team", seats=7)
        assert await ledger_messages(at) == []
        await at.kit.customers.set_plan("acme", "pro")
        assert await ledger_messages(at) == []
        await at.kit.customers.set_plan("acme", None)
        at.clock.set(HALF)
        await at.kit.subscriptions.change_plan("acme", "pro")
        await at.kit.subscriptions.change_plan("acme", "team")
        assert await ledger_messages(at) == []
        at.clock.set(END + timedelta(hours=1))  # The downgrade is in force, and nothing has looked at it yet.
        assert await ledger_messages(at) == []
        await at.kit.customers.set_status("acme", "past_due")
        at.clock.advance(timedelta(days=20))  # Restricted by the clock.
        assert await ledger_messages(at) == []
        await at.kit.subscriptions.cancel("acme", immediately=True)
        assert await ledger_messages(at) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("plan", b'"plan":"team"', b'"plan":"pro"'), "its state has plan 'pro', and its ledger 'team'"),
        (("seats", b'"seats":7', b'"seats":70'), "its state has seats '70', and its ledger '7'"),
        (
            ("status", b'"status":"active"', b'"status":"trialing"'),
            "its state has status 'trialing', and its ledger 'active'",
        ),
    ],
)
async def test_a_state_that_was_changed_by_hand_is_named(
    store_url: str, change: tuple[str, bytes, bytes], words: str
) -> None:
    async with shop(store_url) as at:
        await at.subscribed(plan="team", seats=7)
        client: Any = (await at.kit.store.admin()).client
        key, (_, old, new) = at.kit.store.keys.customer("acme").state, change
        data = await client.hget(key, "data")
        assert old in data
        await client.hset(key, "data", data.replace(old, new))
        assert await ledger_messages(at) == [words]
