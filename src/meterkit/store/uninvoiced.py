"""Late units that Stripe has counted: no invoice has them, and none can have them any more.

They stay part of what was delivered (``d``): ``PERIOD|METERb`` says how many of those they are.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.decisions.keys import meter_token
from meterkit.decisions.periods import to_ms
from meterkit.store.history import HISTORY_MOST

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meterkit.store.customer_usage import CustomerUsage
    from meterkit.store.store import Store

__all__ = ["Uninvoiced", "note_uninvoiced", "uninvoiced"]

_KEPT_MS: Final = 400 * 86_400_000


class Uninvoiced(NamedTuple):
    """Units of a meter.

    Attributes:
        meter: its name.
        quantity: how many are late now.
        known: how many of the same period were late before.
        price: what one costs, to stand behind a quantity; empty: not known.
    """

    meter: str
    quantity: int
    known: int
    price: str


async def uninvoiced(store: Store, usage: CustomerUsage) -> Mapping[str, int]:
    """Such units of each meter of a customer's usage, in its period.

    Raises:
        StoreError: the store does not answer.
    """
    meters, start_ms = list(usage["meters"]), to_ms(usage["period"]["start"])
    if not meters:
        return {}
    admin, totals = await store.admin(), store.keys.customer(usage["customer"]).totals
    fields = [f"{start_ms}|{meter_token(name)}b" for name in meters]
    found = await admin.ask(admin.client.hmget(totals, fields))
    return {name: int(value or 0) for name, value in zip(meters, found, strict=True)}


async def note_uninvoiced(store: Store, usage: CustomerUsage, late: Iterable[Uninvoiced]) -> None:
    """Count units as late from now on, and enter them into the customer's ledger.

    Raises:
        StoreError: the store does not answer.
    """
    keys, start_ms = store.keys.customer(usage["customer"]), to_ms(usage["period"]["start"])
    admin = (await store.admin()).for_delivery()
    if not await admin.ask(admin.client.exists(keys.state)):
        return  # The customer was deleted meanwhile.
    pipe = admin.client.pipeline(transaction=True)
    for one in late:
        pipe.hset(keys.totals, f"{start_ms}|{meter_token(one.meter)}b", str(one.known + one.quantity))
        words = f"{start_ms} {one.quantity} of {one.meter}{one.price}"
        entry = ("late", str(store.now_ms()), words, "not billed", "clock")
        pipe.rpush(keys.history, json.dumps(entry))
    pipe.pexpire(keys.totals, _KEPT_MS)
    pipe.ltrim(keys.history, -HISTORY_MOST, -1)
    await admin.ask(pipe.execute())
