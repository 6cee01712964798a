"""Operator commands on the outbox (``kit.outbox``): list, show, redrive, park or drop undelivered intents.

Each is a compare-and-set on an intent that no flusher is sending, with an entry in the customer's ledger.
"""

from __future__ import annotations

import json
from dataclasses import replace
from secrets import token_hex
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from meterkit.decisions.periods import from_ms
from meterkit.errors import MeterkitError
from meterkit.outbox.intents import (
    BY_HAND,
    CANNOT_BE_COUNTED,
    RESTORED,
    Intent,
    IntentState,
    can_resend,
    compare_in_ms,
    count_members,
    find_intent,
    is_refused,
    read_intents_in,
)
from meterkit.outbox.invoice_item_queue import QueuedItems
from meterkit.store.event_names import read_meters
from meterkit.store.input_checks import check_customer, check_text, is_text, shown
from meterkit.store.unreadable_data import DamagedTotalsError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence

    from meterkit.outbox.intents import StoredIntent
    from meterkit.store.event_names import ReportedMeter
    from meterkit.store.store import Store

_CHANGED: Final = 1
_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})
_OF_STATE: Final = ("why", "look", "looked")
TargetState = Literal["queued", "parked", "dead", "delivered", "dropped"]
"""State that an intent is moved into; ``dropped``: it counts as dead, and is removed."""
_PLACES: Final = {"queued": "outbox", "leased": "outbox", "parked": "parked", "dead": "dead"}
_TRIES: Final = 8
_Verb = Literal["redriven", "parked", "dropped"]
_FROM: Final[Mapping[_Verb, tuple[IntentState, ...]]] = {
    "redriven": ("parked", "dead"),
    "parked": ("queued",),
    "dropped": ("queued", "parked", "dead"),
}


async def change_state(
    store: Store,
    kept: StoredIntent,
    state: TargetState,
    *,
    cause: str,
    after: str = "",
    replacement: StoredIntent | None = None,
    compare_in_ms: int | None = None,
    fields: Mapping[str, str] = _NOTHING,
) -> bool:
    """Move an intent into a state, atomically with the totals; False: it has changed since it was read.

    Args:
        store: has the intent.
        kept: the intent as it was read.
        state: the new state.
        cause: for the customer's ledger.
        after: the outcome, for that ledger; empty: no entry.
        replacement: the intent with other fields, or under another identifier; default: as it was read.
        compare_in_ms: time until it is compared with Stripe's summaries; None: it is not compared.
        fields: of the new state: ``why``; ``look`` and ``looked``, Stripe's summary and when it was read.

    Raises:
        StoreError: the store does not answer, or the customer's totals cannot be counted in.
    """
    replacement, keys = replacement or kept, store.keys.customer(kept.customer)
    stored = {name: text for name, text in replacement.fields.items() if name not in _OF_STATE}
    stored |= {"state": state, **{name: text for name, text in fields.items() if text}}
    entry = ("intent", str(store.now_ms()), kept.in_words(), after, cause)
    admin = (await store.admin()).for_delivery()
    names = ("intents", "outbox", "parked", "dead", "compare")
    reply: list[Any] = await admin.run(
        store.scripts["change_state"],
        [
            *(store.keys.shard(kept.shard, name) for name in names),
            *(keys.totals, keys.history, store.keys.delivered(kept.shard, store.now_ms())),
            *[store.keys.audit(kept.shard)] * store.is_audited,
        ],
        kept.identifier,
        kept.text,
        replacement.identifier,
        json.dumps(stored),
        "" if compare_in_ms is None else compare_in_ms,
        json.dumps([entry] if after else []),
        json.dumps({**kept.fields, "id": kept.identifier, "by": cause, "reason": after}),
    )
    return _is_changed(reply, kept, keys.totals)


async def withdraw(store: Store, kept: StoredIntent, *, cause: str, why: str) -> bool:
    """Make the usage of an intent pending again; False: the intent has changed since it was read.

    Args:
        store: has the intent.
        kept: the intent as it was read, queued or parked; Stripe does not have it.
        cause: for the customer's ledger.
        why: the reason, for that ledger; empty: no entry.

    Raises:
        StoreError: the store does not answer, or the customer's totals cannot be counted in.
    """
    keys, admin = store.keys.customer(kept.customer), (await store.admin()).for_delivery()
    entry = ("intent", str(store.now_ms()), kept.in_words(), f"not sent: {why}", cause)
    shard = (store.keys.shard(kept.shard, name) for name in ("intents", "outbox", "parked", "compare"))
    reply: list[Any] = await admin.run(
        store.scripts["withdraw_intent"],
        [*shard, keys.totals, keys.dirty, keys.history],
        kept.identifier,
        kept.text,
        json.dumps([entry] if why else []),
    )
    return _is_changed(reply, kept, keys.totals)


def _is_changed(reply: list[Any], kept: StoredIntent, totals: str) -> bool:
    """Whether a script has changed an intent; raise DamagedTotalsError where the totals are damaged."""
    if reply[0] == CANNOT_BE_COUNTED:
        raise DamagedTotalsError(
            f"intent {kept.identifier} is unchanged: the totals in the store under {totals} are damaged"
        )
    return bool(reply[0] != _CHANGED)


class Intents:
    """Lists, redrives, parks and drops intents: usage that is sealed for Stripe and not delivered.

    Each method raises :class:`~meterkit.errors.StoreError` if the store does not answer. Each change is
    entered into the customer's ledger (:meth:`meterkit.Customers.history`), with its author and reason.

    Attributes:
        items: the invoice items for late usage that Stripe does not have yet.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.items = QueuedItems(store)

    async def list(
        self, *, state: IntentState | None = None, customer: str | None = None, limit: int = 1_000
    ) -> Sequence[Intent]:
        """List intents, oldest first.

        Args:
            state: ``queued``, ``leased``, ``parked`` or ``dead``; default: all of these.
            customer: only of this customer; default: of all.
            limit: largest number of intents.

        Raises:
            CustomerError: the id is not allowed.
            MeterkitError: there is no such state, or the limit is below 1.
        """
        if state is not None and state not in get_args(IntentState):
            words = ", ".join(get_args(IntentState))
            raise MeterkitError(f"state: found {shown(state)}; allowed are {words} and None")
        if type(limit) is not int or limit < 1:
            raise MeterkitError(f"limit: found {shown(limit)}; allowed is a whole number from 1")
        shard = None if customer is None else self._store.keys.customer(check_customer(customer)).shard
        found: list[Intent] = []
        async for page in self._intent_pages(state, shard):
            found += (one for one in page if customer in {None, one.customer})
            if len(found) > 2 * limit:
                found = sorted(found, key=_sort_key)[:limit]
        return sorted(found, key=_sort_key)[:limit]

    async def show(self, identifier: str) -> Intent:
        """Show an undelivered intent.

        Raises:
            MeterkitError: no undelivered intent has this identifier.
        """
        return await self._as_shown(await self._find_stored(identifier))

    async def redrive(self, identifier: str, *, reason: str = "", by: str = "api") -> Intent:
        """Deliver a parked or dead intent.

        If its first try is younger than 23 hours, or Stripe certainly does not have it, it is sent again
        under the same identifier. Otherwise it stays parked, and 26 hours after its first try it is compared
        with Stripe's summary of its minute: see ``compared_at``. An intent that Stripe accepted and refused
        later is compared three hours after the refusal. An intent parked after a restore (``restored``) is
        compared with all that Stripe has.

        Args:
            identifier: of the intent.
            reason: for the ledger.
            by: the operator, for the ledger.

        Raises:
            MeterkitError: there is no such intent, or it is neither parked nor dead.
        """

        async def redriven(kept: StoredIntent, cause: str) -> bool:
            now_ms = self._store.now_ms()
            if (
                RESTORED not in kept.fields
                and can_resend(kept.first_ms, now_ms)
                and not is_refused(identifier)
            ):
                # A new key: Stripe answers a known one with its saved response.
                renewed = replace(kept, fields={**kept.fields, "key": f"{identifier}-{token_hex(4)}"})
                after = _with_reason("queued", reason)
                return await change_state(
                    self._store, kept, "queued", cause=cause, replacement=renewed, after=after
                )
            if RESTORED in kept.fields:
                after, wait_ms = "parked, to be compared with what Stripe has", 0
                why = "Stripe may have it: the store was restored, and what Stripe has is compared first"
            else:
                wait_ms = compare_in_ms(kept.tried_since_ms, now_ms)
                after = "parked, to be compared with Stripe's summary"
                why = "Stripe may have it: it is compared with Stripe's summary of its minute"
            return await change_state(
                self._store,
                kept,
                "parked",
                cause=cause,
                compare_in_ms=wait_ms,
                after=_with_reason(after, reason),
                fields={"why": why},
            )

        return await self._apply_command("redriven", identifier, redriven, reason, by)

    async def park(self, identifier: str, *, reason: str = "", by: str = "api") -> Intent:
        """Stop a queued intent from being sent until it is redriven or dropped.

        Args:
            identifier: of the intent.
            reason: for the ledger.
            by: the operator, for the ledger.

        Raises:
            MeterkitError: there is no such intent, or it is not queued, or it is being sent.
        """

        async def parked(kept: StoredIntent, cause: str) -> bool:
            why = _with_reason(BY_HAND, reason)
            return await change_state(
                self._store, kept, "parked", cause=cause, after=why, fields={"why": why}
            )

        return await self._apply_command("parked", identifier, parked, reason, by)

    async def drop(self, identifier: str, *, reason: str, by: str = "api") -> Intent:
        """Drop an intent: it is never sent again, and its quantity counts as dead.

        Only the entry in the customer's history remains. Bill units that Stripe lacks by hand.

        Args:
            identifier: of the intent.
            reason: for the ledger; required.
            by: the operator, for the ledger.

        Returns:
            The intent as it was.

        Raises:
            MeterkitError: no reason is given, there is no such intent, or it is being sent.
        """
        if not reason:
            raise MeterkitError("reason: found none; say why the intent is dropped")

        async def dropped(kept: StoredIntent, cause: str) -> bool:
            return await change_state(self._store, kept, "dropped", cause=cause, after=f"dropped: {reason}")

        return await self._apply_command("dropped", identifier, dropped, reason, by)

    async def _apply_command(
        self,
        verb: _Verb,
        identifier: str,
        act: Callable[[StoredIntent, str], Awaitable[bool]],
        reason: str,
        by: str,
    ) -> Intent:
        """Apply a command to an intent in an allowed state, and retry if it has changed; return it."""
        check_text("reason", reason, may_be_empty=True)
        check_text("by", by, may_be_empty=True)
        for _ in range(_TRIES):
            kept = await self._find_stored(identifier)
            state = kept.fields["state"]
            if state not in _FROM[verb]:
                words = " or ".join(_FROM[verb])
                hint = "; it is being sent, try again in a minute" if state == "leased" else ""
                raise MeterkitError(
                    f"intent {identifier} is {state}: only {words} intents can be {verb}{hint}"
                )
            if await act(kept, by or "api"):
                return await (self._as_shown(kept) if verb == "dropped" else self.show(identifier))
        raise MeterkitError(f"intent {identifier} changed {_TRIES} times meanwhile; try again")

    async def _find_stored(self, identifier: str) -> StoredIntent:
        is_possible = is_text(identifier) and identifier.isascii()
        kept = await find_intent(self._store, identifier) if is_possible else None
        if kept is None:
            raise MeterkitError(
                f"intent: found {shown(identifier)}; no undelivered intent has this identifier:"
                " `meterkit outbox list` lists them"
            )
        return kept

    async def _as_shown(self, kept: StoredIntent) -> Intent:
        compared = await self._store.ask(
            "zscore", self._store.keys.shard(kept.shard, "compare"), kept.identifier
        )
        compared_ms = {} if compared is None else {kept.identifier: int(compared)}
        return _shown_intent(kept, await self._meters(), compared_ms, self._store.now_ms())

    async def _meters(self) -> Mapping[str, ReportedMeter]:
        return await read_meters(await self._store.admin(), self._store.keys, self._store.catalog)

    async def _intent_pages(
        self, state: IntentState | None, shard: int | None
    ) -> AsyncGenerator[Sequence[Intent]]:
        admin, meters = await self._store.admin(), await self._meters()
        keys, client, now_ms = self._store.keys, admin.client, self._store.now_ms()
        places = dict.fromkeys(_PLACES.values()) if state is None else [_PLACES[state]]
        for at, place in await count_members(self._store, admin, places, limit="+inf"):
            if shard not in {None, at}:
                continue
            looks = await admin.ask(client.zrange(keys.shard(at, "compare"), 0, -1, withscores=True))
            compared_ms = {member.decode(): int(score) for member, score in looks}
            async for page in read_intents_in(self._store, admin, at, place):
                yield [
                    _shown_intent(kept, meters, compared_ms, now_ms)
                    for kept in page
                    if state in {None, kept.fields["state"]}
                ]


def _shown_intent(
    kept: StoredIntent, meters: Mapping[str, ReportedMeter], compared_ms: Mapping[str, int], now_ms: int
) -> Intent:
    fields, compared = kept.fields, compared_ms.get(kept.identifier)
    counted = meters.get(fields["meter"])
    states: dict[str, IntentState] = {state: state for state in get_args(IntentState)}
    return Intent(
        identifier=kept.identifier,
        customer=fields["customer"],
        stripe_customer=fields["stripe"],
        meter=fields["event"] if counted is None else counted.meter,
        event_name=fields["event"],
        quantity=kept.value,
        minute=from_ms(kept.minute_s * 1000),
        period_start=from_ms(int(fields["period"])),
        state=states[fields["state"]],
        why=fields.get("why", ""),
        attempts=int(fields["attempts"]),
        first_attempt_at=from_ms(kept.first_ms) if kept.first_ms else None,
        sealed_at=from_ms(int(fields["at"])),
        age_s=max(0, (now_ms - int(fields["at"])) // 1000),
        compared_at=None if compared is None else from_ms(compared),
        restored=RESTORED in fields,
    )


def _sort_key(intent: Intent) -> tuple[float, str]:
    return intent.sealed_at.timestamp(), intent.identifier


def _with_reason(what: str, reason: str) -> str:
    return f"{what}: {reason}" if reason else what
