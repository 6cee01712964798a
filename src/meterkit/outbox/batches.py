"""Batches: the events of one asynchronous request, and events that Stripe accepted and refused later."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from meterkit.outbox.intents import REFUSED
from meterkit.store.event_names import read_meters

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meterkit.store.event_names import Counted
    from meterkit.store.store import Store

NONCE_DIGITS: Final = 32
"""Hex digits that an identifier begins with: the same for all that is sealed of a customer at once."""
SEALED_DIGITS: Final = 28
"""Those of them that are the same for all customers that are sealed with it."""

# How many characters a word has from the one before, by what it begins with: no identifier begins so.
_SHARED: Final[Mapping[str, int]] = {".": NONCE_DIGITS + 1, ":": SEALED_DIGITS, "!": 0}


def batch_text(identifiers: Iterable[str]) -> str:
    """Identifiers as they are kept, a word each; see :func:`intents_in`."""
    words, before = list[str](), ""
    for identifier in sorted(identifiers):
        for mark, shared in _SHARED.items():
            if identifier[:shared] == before[:shared]:
                words.append(mark + identifier[shared:])
                break
        before = identifier
    return " ".join(words)


def intents_in(text: str) -> list[str]:
    """The identifiers that are kept; also those of releases before, which kept them as they are."""
    found, before = list[str](), ""
    for word in text.split(" "):
        shared = _SHARED.get(word[:1])
        before = word if shared is None else before[:shared] + word[1:]
        found.append(before)
    return found


_DAY_MS: Final = 86_400_000
_DAYS_NEAR: Final = 3
_DAYS_KEPT: Final = 37
_DAYS_OF_BATCHES: Final = 9
Refused = Literal["done", "gone", "sending", "damaged"]
"""The outcome: it is parked or dead, it is gone, it is just being sent, or its customer's
totals cannot be counted in."""
_REFUSED: Final[dict[int, Refused]] = {0: "gone", 1: "done", 2: "sending", 3: "damaged"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusable:
    """Sealed usage that is on its way to Stripe or delivered, or was refused before.

    Attributes:
        stripe_customer: whom it was addressed to.
        value: in the meter's unit.
        day_ms: of the day that it was delivered on; any where it was not.
        is_apart: whether it is parked or dead already.
    """

    identifier: str
    customer: str
    stripe_customer: str
    event_name: str
    value: int
    shard: int
    day_ms: int
    is_apart: bool = False


class Refusing:
    """Each method raises :class:`~meterkit.errors.StoreError` where the store does not answer.

    Args:
        store: where usage is counted.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._meters: Mapping[str, Counted] | None = None

    async def find(self, identifiers: Iterable[str]) -> dict[str, Refusable]:
        """By identifier, what is known of each: of the last days first, then of all 37 that are kept."""
        wanted, now_ms, found = list(identifiers), self._store.now_ms(), dict[str, Refusable]()
        for days in (range(-1, _DAYS_NEAR), range(_DAYS_NEAR, _DAYS_KEPT)):
            for shard in range(self._store.keys.shards):
                left = [identifier for identifier in wanted if identifier not in found]
                if not left:
                    return found
                for one in await self._look(shard, left, [now_ms - day * _DAY_MS for day in days]):
                    found[one.identifier] = one
        return found

    async def batches(self, batches: Iterable[str]) -> dict[str, list[str]]:
        """Idempotency key to the intents that were sent with it, of eight days."""
        wanted, now_ms = list(batches), self._store.now_ms()
        found: dict[str, list[str]] = {}
        admin, keys = await self._store.admin(), self._store.keys
        for shard in range(keys.shards):
            server = await admin.at(keys.shard(shard, "intents"))
            pipe = server.client.pipeline(transaction=False)
            for day in range(-1, _DAYS_OF_BATCHES):
                pipe.hmget(keys.batches(shard, now_ms - day * _DAY_MS), wanted)
            for texts in await server.ask(pipe.execute()):
                found |= {
                    batch: intents_in(text.decode())
                    for batch, text in zip(wanted, texts, strict=True)
                    if text
                }
        return found

    async def refuse(self, one: Refusable, *, state: Literal["parked", "dead"], why: str) -> Refused:
        """Have it parked or dead, under a new identifier, and counted so, at once."""
        keys = self._store.keys
        admin = await self._store.admin()
        if self._meters is None:
            self._meters = await read_meters(admin, keys, self._store.catalog)
        tokens = [token for token, counted in self._meters.items() if counted.event_name == one.event_name]
        if not tokens:  # Of an item that is older than the event name in the plans file.
            own = await read_meters(admin, keys, self._store.catalog, one.customer)
            tokens = [token for token, counted in own.items() if counted.event_name == one.event_name]
        names = [keys.shard(one.shard, name) for name in ("intents", "outbox")]
        names += [keys.delivered(one.shard, one.day_ms), keys.shard(one.shard, state)]
        names.append(keys.customer(one.customer).totals)
        arguments = (one.identifier, one.identifier + REFUSED, state, why, "".join(tokens[:1]), one.customer)
        return _REFUSED[await admin.run(self._store.scripts["refuse"], names, *arguments)]

    async def _look(self, shard: int, identifiers: Sequence[str], days_ms: Sequence[int]) -> list[Refusable]:
        keys = self._store.keys
        server = await (await self._store.admin()).at(keys.shard(shard, "intents"))
        names = [(identifier, identifier) for identifier in identifiers]
        names += [(identifier + REFUSED, identifier) for identifier in identifiers]
        pipe = server.client.pipeline(transaction=False)
        pipe.hmget(keys.shard(shard, "intents"), [name for name, _ in names])
        for day_ms in days_ms:
            pipe.hmget(keys.delivered(shard, day_ms), list(identifiers))
        intents, *delivered = await server.ask(pipe.execute())
        found: list[Refusable] = []
        for (name, identifier), data in zip(names, intents, strict=True):
            if data is not None:
                kept: dict[str, Any] = json.loads(data)
                told = (kept["customer"], kept["stripe"], kept["event"], kept["value"])
                one = _refusable(identifier, told, shard)
                is_apart = name != identifier or kept["state"] in {"parked", "dead"}
                found.append(replace(one, is_apart=is_apart))
        for day_ms, lines in zip(days_ms, delivered, strict=True):
            for identifier, data in zip(identifiers, lines, strict=True):
                if data is not None:
                    customer, stripe_customer, event_name, _, value = json.loads(data)
                    told = (customer, stripe_customer, event_name, value)
                    found.append(_refusable(identifier, told, shard, day_ms))
        return found


def _refusable(identifier: str, told: tuple[str, str, str, str], shard: int, day_ms: int = 0) -> Refusable:
    customer, stripe_customer, event_name, value = told
    return Refusable(
        identifier=identifier,
        customer=customer,
        stripe_customer=stripe_customer,
        event_name=event_name,
        value=int(value),
        shard=shard,
        day_ms=day_ms,
    )
