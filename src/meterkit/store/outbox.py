"""The outbox of one shard at a time: what is sealed for Stripe, leased, sent and settled with it."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final, Literal

from meterkit.errors import StoreError
from meterkit.store.durability import Keeping
from meterkit.store.keys import meter_token
from meterkit.store.state import NO_STATE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.store.admin import Admin
    from meterkit.store.store import Store

__all__ = ["Attempt", "Outbox", "Sealed", "Work"]

_logger = logging.getLogger("meterkit.store")

State = Literal["leased", "queued", "delivered", "parked", "dead"]

_STALE: Final = 2
_FORTY_DAYS_MS: Final = 3_456_000_000
_QUARTER_HOUR_MS: Final = 900_000
_TRIES: Final = 5
_SURELY_ON_DISK_MS: Final = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """An intent as the outbox keeps it.

    Attributes:
        value: quantity in the meter's unit.
        timestamp: Unix seconds, a whole minute.
        key: the idempotency key of the next try.
        due_ms: when it is, or was, due.
    """

    identifier: str
    customer: str
    stripe_customer: str
    period: str
    meter_token: str
    event_name: str
    value: int
    timestamp: int
    key: str
    due_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """An intent that was leased: the store's clock then, its first attempt, and how many there were."""

    intent: Sealed
    now_ms: int
    first_ms: int
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a shard has to do: customers with pending usage, intents on their way."""

    shard: int
    dirty: int
    outbox: int


class Outbox:
    """The delivery side of a store.

    Each method raises :class:`~meterkit.errors.StoreError` where the store does not answer.
    """

    def __init__(self, store: Store, admin: Admin) -> None:
        self._store = store
        self._admin = admin.for_delivery()
        self._keys = store.keys
        self._keeping = Keeping(self._admin, store.address, needed=not store.deliver_without_persistence)
        self.token = token_hex(8)

    async def refusal(self) -> str | None:
        """Why nothing can be delivered from this store now; None where it can."""
        try:
            await self._keeping.way()
        except StoreError as error:
            return str(error)
        return None

    async def work(self, *, due_ms: int | None) -> list[Work]:
        """The shards that have anything to do by an instant, or ever (None)."""
        most = "+inf" if due_ms is None else due_ms
        shards = range(self._keys.shards)
        pipe = self._client.pipeline(transaction=False)
        for shard in shards:
            pipe.zcount(self._keys.shard(shard, "dirty"), "-inf", most)
            pipe.zcount(self._keys.shard(shard, "outbox"), "-inf", most)
        counts: list[int] = await self._admin.ask(pipe.execute())
        found = zip(shards, counts[::2], counts[1::2], strict=True)
        return [Work(shard=s, dirty=dirty, outbox=out) for s, dirty, out in found if dirty or out]

    async def unlinked(self) -> list[str]:
        """The customers whose usage waits for a link to Stripe."""
        pipe = self._client.pipeline(transaction=False)
        for shard in range(self._keys.shards):
            pipe.zrange(self._keys.shard(shard, "unlinked"), 0, -1)
        lists: list[list[bytes]] = await self._admin.ask(pipe.execute())
        return sorted(member.decode() for members in lists for member in members)

    async def lease(self, shard: int, *, ttl_ms: int) -> bool:
        """Take a shard's deliveries, or keep them, for a while; with 0, give them back."""
        key = self._keys.shard(shard, "lease")
        return bool(await self._admin.run(self._store.scripts["lease"], [key], self.token, ttl_ms))

    async def seal(self, shard: int, *, due_ms: int | None, most: int) -> int:
        """Seal pending usage of ``most`` customers that are due, or of all; how many intents that made."""
        dirty = self._keys.shard(shard, "dirty")
        # What cannot be sealed yet is first in the order: where all is wanted, it must not fill the page.
        limit, most = ("+inf", -1) if due_ms is None else (due_ms, most)
        members: list[bytes] = await self._admin.ask(
            self._client.zrangebyscore(dirty, "-inf", limit, start=0, num=most)
        )
        made = 0
        for member in members:
            try:
                made += await self._seal_customer(shard, member.decode())
            except StoreError:
                raise
            except Exception:
                # One customer that cannot be read does not hold up the others of its shard.
                _logger.exception("usage of customer %r cannot be sealed", member.decode())
        return made

    async def due(self, shard: int, *, due_ms: int | None, most: int) -> list[Sealed]:
        """Intents to send: at most one of each customer and meter, the oldest first."""
        outbox, intents = self._keys.shard(shard, "outbox"), self._keys.shard(shard, "intents")
        limit = "+inf" if due_ms is None else due_ms
        members: list[tuple[bytes, float]] = await self._admin.ask(
            self._client.zrangebyscore(outbox, "-inf", limit, start=0, num=most, withscores=True)
        )
        if not members:
            return []
        found = await self._admin.ask(self._client.hmget(intents, [member for member, _ in members]))
        oldest: dict[tuple[str, str], Sealed] = {}
        for (member, score), data in zip(members, found, strict=True):
            if data is not None:
                sealed = _sealed(member.decode(), int(score), json.loads(data))
                oldest.setdefault((sealed.customer, sealed.event_name), sealed)
        return list(oldest.values())

    async def attempt(self, shard: int, intents: Sequence[Sealed]) -> list[Attempt]:
        """Lease intents and make that durable, before a byte of them is sent.

        Raises:
            StoreError: also where the store cannot make it durable; then nothing may be sent.
        """
        script, durability = self._store.scripts["move"], await self._keeping.way()
        if durability == "age":
            settled_ms = self._store.now_ms() - _SURELY_ON_DISK_MS
            intents = [sealed for sealed in intents if sealed.due_ms <= settled_ms]
        await self._admin.load(script)
        pipe = self._client.pipeline(transaction=False)
        for sealed in intents:
            keys = self._move_keys(shard, sealed)
            arguments = (sealed.identifier, self.token, "queued leased ", "leased", 0, "", "", 0)
            pipe.evalsha(script.sha, len(keys), *keys, *arguments, self._store.now_ms())
        wait = self._keeping.command(durability)
        if wait is not None:
            pipe.execute_command(*wait)
        replies: list[Any] = await self._admin.ask(pipe.execute(raise_on_error=False))
        if wait is not None:
            await self._keeping.check(replies.pop())
        for reply in replies:
            if isinstance(reply, Exception):
                raise StoreError(f"the store failed: {reply}") from reply
        return [
            Attempt(intent=sealed, now_ms=reply[1], first_ms=reply[2], attempts=reply[3])
            for sealed, reply in zip(intents, replies, strict=True)
            if reply[0] == 0
        ]

    async def move(
        self,
        shard: int,
        sealed: Sealed,
        state: State,
        *,
        delay_ms: int = 0,
        key: str | None = None,
        untried: bool = False,
        why: str = "",
    ) -> bool:
        """Put a leased intent into its next state; False where the lease was lost meanwhile.

        Into ``queued`` it goes with a delay, a new idempotency key or None, and ``untried`` where Stripe
        certainly knows nothing of it, as if it had never been tried.
        """
        reply = await self._admin.run(
            self._store.scripts["move"],
            self._move_keys(shard, sealed),
            sealed.identifier,
            self.token,
            "leased ",
            state,
            delay_ms,
            key or "",
            why,
            int(untried),
        )
        return bool(reply[0] == 0)

    async def _seal_customer(self, shard: int, customer: str) -> int:
        account = self._store.accounts.get(customer)
        keys, catalog = account.keys, self._store.catalog
        events = [
            part
            for meter in catalog.meters.values()
            if meter.stripe is not None
            for part in (meter_token(meter.name), meter.stripe.event_name)
        ]
        for _ in range(_TRIES):
            reply = await self._admin.run(
                self._store.scripts["seal"],
                [keys.counters, keys.state, keys.totals, keys.dirty]
                + [self._keys.shard(shard, name) for name in ("intents", "outbox")],
                account.rev,
                account.terms(
                    _QUARTER_HOUR_MS if account.rev == NO_STATE else _FORTY_DAYS_MS, account.keep_ms()
                ),
                *(token_hex(16), customer, account.state.stripe_customer or ""),
                *events,
            )
            if reply[0] == 0:
                return int(reply[2])
            if reply[0] != _STALE:
                raise StoreError(
                    f"this host's clock and the store's differ by more than 60 s ({reply[1]} ms)"
                )
            account.take(reply)
        raise StoreError(f"customer {customer!r} changed {_TRIES} times while usage was sealed")

    @property
    def _client(self) -> Any:
        # Redis-py's types speak of texts, bytes and both protocols at once.
        return self._admin.client

    def _move_keys(self, shard: int, sealed: Sealed) -> list[str]:
        totals = self._keys.customer(sealed.customer).totals
        intents, outbox, lease, delivered = (
            self._keys.shard(shard, name) for name in ("intents", "outbox", "lease", "delivered")
        )
        return [intents, outbox, totals, lease, delivered]


def _sealed(identifier: str, due_ms: int, fields: dict[str, str]) -> Sealed:
    return Sealed(
        identifier=identifier,
        customer=fields["customer"],
        stripe_customer=fields["stripe"],
        period=fields["period"],
        meter_token=fields["meter"],
        event_name=fields["event"],
        value=int(fields["value"]),
        timestamp=int(fields["time"]),
        key=fields["key"],
        due_ms=due_ms,
    )
