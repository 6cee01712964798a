"""Transactional outbox in the store: seal pending usage, lease intents, record their next states."""

from __future__ import annotations

import json
import logging
from collections import Counter
from itertools import zip_longest
from secrets import token_hex
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Literal

from meterkit.decisions.periods import DAY_MS
from meterkit.errors import StoreError
from meterkit.outbox.intents import (
    CANNOT_BE_COUNTED,
    RESTORED,
    IntentMove,
    SealedIntent,
    SendAttempt,
    ShardWork,
    Undelivered,
    count_members,
    pack_batch,
    parse_intents,
    parse_sealed,
    read_intents_in,
)
from meterkit.outbox.sealer import PriceCut, SealResult, UsageSealer
from meterkit.redis.durability import SURELY_ON_DISK_MS, DurabilityCheck
from meterkit.store.event_names import read_meters, remember_meters

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Container, Iterable, Mapping, Sequence

    from meterkit.redis.admin import Admin
    from meterkit.store.event_names import ReportedMeter
    from meterkit.store.store import Store

_logger = logging.getLogger("meterkit.store")
_PAGE: Final = 500
_DEPTH: Final = 20_000
_PER_CUSTOMER_AND_METER: Final = 8
_SOON_MS: Final = 300_000


class Outbox:
    """The delivery side of a store.

    Each method raises :class:`~meterkit.errors.StoreError` if the store does not answer.
    """

    def __init__(self, store: Store, admin: Admin) -> None:
        self._store = store
        self._admin = admin.for_delivery()
        self._client = self._admin.client
        self._keys = store.keys
        self._meters: Mapping[str, ReportedMeter] = {}
        self._seen_s: dict[str, float] = {}  # When intents were first read that may not be on disk yet.
        self.token = token_hex(8)

    @property
    def admin(self) -> Admin:
        """Connection for delivery."""
        return self._admin

    async def refusal(self) -> str | None:
        """Explain why the store cannot be delivered from now; None: it can."""
        try:
            for server in await self._admin.servers():
                await self._durability(server).find_method()
        except StoreError as error:
            return str(error)
        return None

    async def meters(self) -> Mapping[str, ReportedMeter]:
        """Read all meters that are or were delivered, by token; remember those of this plans file."""
        if not self._meters:
            await remember_meters(self._admin, self._keys, self._store.catalog)
            self._meters = await read_meters(self._admin, self._keys, self._store.catalog)
        return self._meters

    async def work(self, *, due_ms: int | None, is_flush: bool = False) -> list[ShardWork]:
        """List the shards with work that is due by an instant, or with any (None).

        Args:
            due_ms: the instant.
            is_flush: leave out usage that waits for the end of its period, which invoice lines bill.
        """
        names, limit = ("dirty", "outbox"), "+inf" if due_ms is None else due_ms
        counts = await self._count_members(names, limit=limit)
        if is_flush and due_ms is None:
            # With `usage: meters`, lines bill only customers that are still to be moved.
            ahead_ms = _SOON_MS if self._store.catalog.billing.is_by_lines else DAY_MS
            until_ms = self._store.now_ms() + ahead_ms
            sealable = await self._count_members(("dirty",), limit=until_ms)
            counts = {name: count for name, count in counts.items() if name[1] != "dirty"} | sealable
        found: dict[int, dict[str, int]] = {}
        for (shard, name), members in counts.items():
            found.setdefault(shard, dict.fromkeys(names, 0))[name] = members
        return [ShardWork(shard=shard, **counted) for shard, counted in sorted(found.items())]

    async def undelivered(self) -> list[Undelivered]:
        """List all intents that are parked or dead, sorted by customer."""
        meters, found = await self.meters(), list[Undelivered]()
        states: tuple[Literal["parked", "dead"], ...] = ("parked", "dead")
        for shard, state in await self._count_members(states, limit="+inf"):
            async for page in read_intents_in(self._store, self._admin, shard, state):
                for kept in page:
                    counted = meters.get(kept.fields["meter"])
                    found.append(
                        Undelivered(
                            customer=kept.customer,
                            meter=kept.fields["event"] if counted is None else counted.meter,
                            quantity=kept.value,
                            state=state,
                            why=kept.fields.get("why", ""),
                            restored=RESTORED in kept.fields,
                        )
                    )
        return sorted(found, key=lambda one: (one.customer, one.meter, one.state))

    async def unlinked(self) -> list[str]:
        """List the customers whose usage waits for a link to Stripe, and has not expired."""
        lists: list[list[bytes]] = []
        for shard, name in await self._count_members(("unlinked",), limit="+inf"):
            key, since = self._keys.shard(shard, name), f"({self._store.now_ms()}"
            lists.append(await self._admin.ask(self._client.zrangebyscore(key, since, "+inf")))
        return sorted(member.decode() for members in lists for member in members)

    async def lease(self, shard: int, *, ttl_ms: int) -> bool:
        """Take or renew the lease of a shard; with a TTL of 0, release it."""
        key = self._keys.shard(shard, "lease")
        return bool(await self._admin.run(self._store.scripts["lease_shard"], [key], self.token, ttl_ms))

    async def seal(
        self,
        shard: int,
        *,
        due_ms: int | None,
        most: int,
        first: Callable[[Mapping[str, int]], Awaitable[object]] | None = None,
    ) -> SealResult:
        """Seal pending usage; see :meth:`meterkit.outbox.sealer.UsageSealer.seal`."""
        return await (await self._sealer(shard)).seal(due_ms=due_ms, most=most, first=first)

    async def cut(self, customer: str, cut: PriceCut | None) -> SealResult:
        """Seal a customer's pending usage; see :meth:`meterkit.outbox.sealer.UsageSealer.cut`."""
        sealer = await self._sealer(self._keys.customer(customer).shard)
        return await sealer.cut(customer, cut)

    async def seal_customer(self, customer: str) -> SealResult:
        """Seal one customer's pending usage."""
        return await (await self._sealer(self._keys.customer(customer).shard)).seal_customer(customer)

    async def _sealer(self, shard: int) -> UsageSealer:
        server = await self._admin.at(self._keys.shard(shard, "dirty"))
        return UsageSealer(self._store, server, shard, await self.meters())

    async def due(
        self,
        shard: int,
        *,
        due_ms: int | None,
        most: int,
        tried: Collection[str] = (),
        closed: Collection[str] = (),
        put_off: Container[tuple[str, str]] = (),
        only_repeats: bool = False,
    ) -> list[SealedIntent]:
        """Read intents to send, oldest first, interleaved by customer and meter.

        Args:
            shard: the shard.
            due_ms: until when they are due; None: all.
            most: largest number of intents.
            tried: identifiers to pass over.
            closed: event names to pass over.
            put_off: customers with event names to pass over.
            only_repeats: whether intents never sent before are passed over, too.
        """
        outbox, intents = self._keys.shard(shard, "outbox"), self._keys.shard(shard, "intents")
        limit, found = "+inf" if due_ms is None else due_ms, dict[tuple[str, str], list[SealedIntent]]()
        for start in range(0, _DEPTH, _PAGE):
            members: list[bytes] = await self._admin.ask(
                self._client.zrangebyscore(outbox, "-inf", limit, start=start, num=_PAGE)
            )
            if not members:
                break
            kept = await self._admin.ask(self._client.hmget(intents, members))
            identifiers = [member.decode() for member in members]
            page = parse_intents(self._admin, shard, identifiers, kept)
            for identifier, fields in zip(identifiers, page, strict=True):
                if fields and identifier not in tried and not (only_repeats and fields["first"] == "0"):
                    sealed = parse_sealed(identifier, fields)
                    name = sealed.customer, sealed.event_name
                    line = found.setdefault(name, [])
                    is_skipped = sealed.event_name in closed or name in put_off
                    if not is_skipped and len(line) < _PER_CUSTOMER_AND_METER:
                        line.append(sealed)
            if len(members) < _PAGE or sum(map(len, found.values())) >= 2 * most:
                break
        rounds = zip_longest(*found.values())
        return [sealed for one in rounds for sealed in one if sealed is not None][:most]

    async def unanswered(self, shard: int) -> Mapping[tuple[str, str], int]:
        """Read the attempts of the most tried intent by customer and event name.

        Only intents count whose last outcome is unknown, or was when its process ended.
        """
        found: dict[tuple[str, str], int] = {}
        read = 0
        async for page in read_intents_in(self._store, self._admin, shard, "outbox"):
            for kept in page:
                if kept.first_ms:
                    name, attempts = (kept.customer, kept.fields["event"]), int(kept.fields["attempts"])
                    found[name] = max(attempts, found.get(name, 0))
            read += len(page)
            if read >= _DEPTH:
                break
        return found

    async def count_queued(self, shard: int) -> Mapping[str, int]:
        """Count a shard's intents in the outbox by event name."""
        found = Counter[str]()
        async for page in read_intents_in(self._store, self._admin, shard, "outbox"):
            found.update(kept.fields["event"] for kept in page)
        return found

    async def attempt(self, shard: int, intents: Sequence[SealedIntent]) -> list[SendAttempt]:
        """Lease intents and make the lease durable before they are sent.

        Raises:
            StoreError: also if the store cannot make it durable; then nothing may be sent.
        """
        server = await self._admin.at(self._keys.shard(shard, "intents"))
        check, script = self._durability(server), self._store.scripts["move_intents"]
        durability = await check.find_method()
        if durability == "age":
            intents = [sealed for sealed in intents if self._is_on_disk(sealed)]
        if not intents:
            return []
        moves = [IntentMove(intent=sealed, state="leased") for sealed in intents]
        keys, arguments = self._move_arguments(shard, moves, "queued leased ")
        pipe = server.client.pipeline(transaction=False)
        pipe.script_load(script.text)
        pipe.evalsha(script.sha, len(keys), *keys, *arguments, self._admin.now_ms())
        waits = check.commands(durability)
        for wait in waits:
            pipe.execute_command(*wait)
        replies: list[Any] = await server.ask(pipe.execute(raise_on_error=False))
        for _ in waits:
            await check.check(replies.pop(2))
        for reply in replies:
            if isinstance(reply, Exception):
                raise StoreError(f"the store failed: {reply}") from reply
        made = replies[1]
        return [
            SendAttempt(intent=move.intent, now_ms=made[1], first_ms=reply[1], attempts=reply[2])
            for move, reply in self._moves_made(moves, made)
        ]

    def _is_on_disk(self, sealed: SealedIntent) -> bool:
        """Whether an intent is two seconds old by the kit's clock, or since it was first read here.

        The second matters if a test has stopped the kit's clock.
        """
        seen_s = self._seen_s.setdefault(sealed.identifier, monotonic())
        seen_ms = (monotonic() - seen_s) * 1000
        is_old = max(seen_ms, self._store.now_ms() - sealed.sealed_ms) >= SURELY_ON_DISK_MS
        if is_old:
            del self._seen_s[sealed.identifier]
        return is_old

    async def settle(self, shard: int, moves: Sequence[IntentMove]) -> list[IntentMove]:
        """Move leased intents into their next states; return the moves that were made under the lease."""
        if not moves:
            return []
        keys, arguments = self._move_arguments(shard, moves, "leased ")
        reply = await self._admin.run(self._store.scripts["move_intents"], keys, *arguments)
        return [move for move, _ in self._moves_made(moves, reply)]

    def _move_arguments(
        self, shard: int, moves: Sequence[IntentMove], states: str
    ) -> tuple[list[str], list[str]]:
        names = ("intents", "outbox", "lease")
        keys = [self._keys.shard(shard, name) for name in names]
        keys.append(self._keys.delivered(shard, self._store.now_ms()))
        keys += [self._keys.shard(shard, name) for name in ("parked", "dead", "compare")]
        keys.append(self._keys.batches(shard, self._store.now_ms()))
        keys += [self._keys.totals(shard, move.intent.customer) for move in moves]
        asked = [
            (move.intent.identifier, move.state, move.delay_ms, move.key, move.why, int(move.untried))
            for move in moves
        ]
        batches: dict[str, list[str]] = {}
        for move in moves:
            if move.batch:
                batches.setdefault(move.batch, []).append(move.intent.identifier)
        sent = [(batch, pack_batch(identifiers)) for batch, identifiers in batches.items()]
        return keys, [self.token, states, json.dumps(asked), json.dumps(sent)]

    def _moves_made(self, moves: Sequence[IntentMove], reply: Any) -> Iterable[tuple[IntentMove, list[int]]]:
        """Yield the moves that were made with their replies; log customers whose totals are damaged."""
        for move, answer in zip(moves, reply[2:], strict=False):
            if answer[0] == 0:
                yield move, answer
            elif answer[0] == CANNOT_BE_COUNTED:
                _logger.error(
                    "intent %s of customer %r waits: its totals in the store under %s are damaged",
                    move.intent.identifier,
                    move.intent.customer,
                    self._keys.customer(move.intent.customer).totals,
                )

    def _durability(self, server: Admin) -> DurabilityCheck:
        needed = not self._store.deliver_without_persistence
        return DurabilityCheck(server, server.address, needed=needed, kind=self._store.address.kind)

    async def _count_members(self, names: Sequence[str], *, limit: str | int) -> dict[tuple[int, Any], int]:
        return await count_members(self._store, self._admin, names, limit=limit)
