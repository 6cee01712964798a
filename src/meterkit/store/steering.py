"""Intents that nobody is sending are taken from state to state, with an entry."""

from __future__ import annotations

import json
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

from meterkit.errors import StoreError
from meterkit.store.intents import CANNOT_BE_COUNTED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.store.kept_intents import Kept
    from meterkit.store.store import Store

__all__ = ["Steered", "steer"]

_CHANGED: Final = 1
_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})
_OF_ITS_PLACE: Final = ("why", "look", "looked")

Steered = Literal["queued", "parked", "dead", "delivered", "dropped"]
"""A state that an intent is taken into; ``dropped``: it is counted as dead, and kept no longer."""


async def steer(
    store: Store,
    kept: Kept,
    state: Steered,
    *,
    cause: str,
    after: str = "",
    to_be: Kept | None = None,
    compare_in_ms: int | None = None,
    more: Mapping[str, str] = _NOTHING,
) -> bool:
    """Take an intent into a state, at once with the totals, unless it has changed since it was read.

    Args:
        store: where it is.
        kept: as it was read.
        state: what it is to be in.
        cause: for the ledger of its customer.
        after: what became of it, for that ledger; empty: nothing is entered.
        to_be: what it is to be besides; default: as it was read.
        compare_in_ms: how long until it is compared with Stripe's summaries; None: it is not.
        more: its further fields: ``why``; ``look`` and ``looked``, what Stripe's summary said, and when.

    Raises:
        StoreError: the store does not answer, or the customer's totals cannot be counted in.
    """
    to_be, keys = to_be or kept, store.keys.customer(kept.customer)
    fields = {name: text for name, text in to_be.fields.items() if name not in _OF_ITS_PLACE}
    fields |= {"state": state, **{name: text for name, text in more.items() if text}}
    entry = ("intent", str(store.now_ms()), kept.in_words(), after, cause)
    admin = (await store.admin()).for_delivery()
    names = ("intents", "outbox", "parked", "dead", "compare")
    reply: list[Any] = await admin.run(
        store.scripts["steer"],
        [
            *(store.keys.shard(kept.shard, name) for name in names),
            *(keys.totals, keys.history, store.keys.delivered(kept.shard, store.now_ms())),
            *[store.keys.audit(kept.shard)] * store.is_audited,
        ],
        *(kept.identifier, kept.text, to_be.identifier, json.dumps(fields)),
        "" if compare_in_ms is None else compare_in_ms,
        json.dumps([entry] if after else []),
        json.dumps({**kept.fields, "id": kept.identifier, "by": cause, "reason": after}),
    )
    if reply[0] == CANNOT_BE_COUNTED:
        raise StoreError(
            f"intent {kept.identifier} stays as it is: what the store keeps under {keys.totals} cannot be"
            " counted in"
        )
    return bool(reply[0] != _CHANGED)
