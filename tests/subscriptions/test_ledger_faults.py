"""A ledger that contradicts the state is named by `check`; whatever meterkit itself does is not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from drivers.shop import Shop

pytestmark = pytest.mark.anyio


async def ledger_messages(at: Shop) -> list[str]:
    drifts = (await at.kit.subscriptions.check()).get("acme", ())
    return [drift.message for drift in drifts if drift.kind == "ledger"]


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
    at: Shop, change: tuple[str, bytes, bytes], words: str
) -> None:
    await at.subscribed(plan="team", seats=7)
    client: Any = (await at.kit.store.admin()).client
    key, (_, old, new) = at.kit.store.keys.customer("acme").state, change
    data = await client.hget(key, "data")
    assert old in data
    await client.hset(key, "data", data.replace(old, new))
    assert await ledger_messages(at) == [words]
