"""Stripe's error reports on meter events that it accepted and refused later: park their intents.

A refused event gets a new identifier: sent again under the old one, Stripe might take it for a repeat and
drop it.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from meterkit.decisions.periods import DAY_MS
from meterkit.errors import MeterkitError
from meterkit.outbox.intents import REFUSED, unpack_batch
from meterkit.store import replies
from meterkit.store.event_names import read_meters

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from meterkit.outbox.journal import Journal
    from meterkit.store.event_names import ReportedMeter
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi

_logger = logging.getLogger("meterkit.delivery")
BATCH: Final = "batch-"
"""Prefix of the idempotency key of a call with several intents."""
_SAMPLES_MAX: Final = 1_000
_WORDS_MAX: Final = 200
# The idempotency key of a later try is the identifier and eight hex digits.
_KEY: Final = re.compile(r"(?P<identifier>[0-9a-f]{32}(-[0-9]{1,6})?r*)(-[0-9a-f]{8})?")
_BATCH_KEY: Final = re.compile(rf"{BATCH}[0-9a-f]{{32}}")
_METER_CODES: Final = frozenset({"archived_meter", "no_meter"})
# Events refused with other codes, unknown ones included, may be accepted after a change of settings.
_DEAD_CODES: Final = frozenset(
    {
        "meter_event_customer_not_found",
        "meter_event_invalid_value",
        "meter_event_value_not_found",
        "meter_event_value_too_many_digits",
    }
)
_NO_CUSTOMER: Final = "meter_event_customer_not_found"
_CURES: Final = {
    "archived_meter": "reactivate the meter at Stripe",
    "no_meter": "make a meter of that event name at Stripe: meterkit stripe sync",
    "meter_event_customer_not_found": (
        "link the customer to a Stripe customer of this account (meterkit customers unlink, then link); units"
        " already sent stay with the old one: bill them by hand"
    ),
}
_CURE: Final = "meterkit doctor compares the meters at Stripe with the plans file"
_DAYS_NEAR: Final = 3
_DAYS_KEPT: Final = 37
_DAYS_OF_BATCHES: Final = 9
RefusalOutcome = Literal["done", "gone", "sending", "damaged"]
"""Outcome: the intent is parked or dead; it is gone; it is being sent; its totals are damaged."""
_REFUSED: Final[dict[int, RefusalOutcome]] = {
    replies.INTENT_GONE: "gone",
    replies.INTENT_REFUSED: "done",
    replies.INTENT_LEASED: "sending",
    replies.TOTALS_UNCOUNTABLE: "damaged",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorSample:
    """A sample of the refused events: an identifier or idempotency key, and Stripe's message."""

    name: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorCause:
    """Cause of refused meter events.

    Attributes:
        code: Stripe's, such as ``meter_event_customer_not_found``.
        count: number of refused events.
        samples: some of them; Stripe does not name all.
    """

    code: str
    count: int
    samples: tuple[ErrorSample, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorReport:
    """Report of a thin event.

    Attributes:
        meter: its id at Stripe; None: there is none.
        count: number of refused events.
        span: the validated time span, as Stripe writes it; empty: not known.
    """

    meter: str | None
    count: int
    causes: tuple[ErrorCause, ...]
    span: str


def read_report(event: Mapping[str, Any]) -> ErrorReport:
    """Read an event of ``GET /v2/core/events/:id``; unreadable parts are left out."""
    data = _object(event.get("data"))
    reason = _object(data.get("reason"))
    causes = tuple(
        ErrorCause(
            code=_text(kind.get("code")) or "unknown",
            count=_positive_int(kind.get("error_count")),
            samples=tuple(_samples(kind))[:_SAMPLES_MAX],
        )
        for kind in _objects(reason.get("error_types"))
    )
    return ErrorReport(
        meter=_text(_object(event.get("related_object")).get("id")) or None,
        count=max(_positive_int(reason.get("error_count")), sum(cause.count for cause in causes)),
        causes=causes,
        span=" to ".join(filter(None, (_text(data.get(f"validation_{end}")) for end in ("start", "end")))),
    )


def identifiers_of(report: ErrorReport) -> dict[str, tuple[str, str]]:
    """Find our intents that a report names: identifier to code and message."""
    found: dict[str, tuple[str, str]] = {}
    for cause in report.causes:
        for sample in cause.samples:
            match = _KEY.fullmatch(sample.name)
            if match is not None:
                found[match["identifier"]] = (cause.code, sample.message)
    return found


def batches_of(report: ErrorReport) -> dict[ErrorCause, dict[str, str]]:
    """Find our batches that a report names: for each cause, idempotency key to message."""
    found: dict[ErrorCause, dict[str, str]] = {}
    for cause in report.causes:
        keys = {sample.name: sample.message for sample in cause.samples if _BATCH_KEY.fullmatch(sample.name)}
        if keys:
            found[cause] = keys
    return found


def _samples(kind: Mapping[str, Any]) -> Iterator[ErrorSample]:
    for sample in _objects(kind.get("sample_errors")):
        request = _object(sample.get("request"))
        # Stripe's reference has the first name, an example in its documentation the second.
        name = _text(request.get("identifier")) or _text(request.get("idempotency_key"))
        if name:
            yield ErrorSample(name=name, message=_text(sample.get("error_message"))[:_WORDS_MAX])


def _object(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}


def _objects(value: object) -> list[Mapping[str, Any]]:
    return [_object(one) for one in cast("list[object]", value)] if isinstance(value, list) else []


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _positive_int(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedIntent:
    """An intent that an error report names: queued, delivered or refused before.

    Attributes:
        stripe_customer: the customer at Stripe.
        value: in the meter's unit.
        day_ms: within the day of its delivery; 0: it is not delivered.
        is_apart: whether it is parked or dead already.
    """

    identifier: str
    customer: str
    stripe_customer: str
    event_name: str
    value: int
    shard: int
    day_ms: int = 0
    is_apart: bool = False


class IntentRefuser:
    """Finds intents by identifier or batch, and parks refused ones.

    Each method raises :class:`~meterkit.errors.StoreError` if the store does not answer.

    Args:
        store: has the intents.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._meters: Mapping[str, ReportedMeter] | None = None

    async def find(self, identifiers: Iterable[str]) -> dict[str, ReportedIntent]:
        """Find intents by identifier: in deliveries of the last days first, then of all 37 stored days."""
        wanted, now_ms, found = list(identifiers), self._store.now_ms(), dict[str, ReportedIntent]()
        for days in (range(-1, _DAYS_NEAR), range(_DAYS_NEAR, _DAYS_KEPT)):
            for shard in range(self._store.keys.shards):
                left = [identifier for identifier in wanted if identifier not in found]
                if not left:
                    return found
                for one in await self._find_in_shard(shard, left, [now_ms - day * DAY_MS for day in days]):
                    found[one.identifier] = one
        return found

    async def batches(self, batches: Iterable[str]) -> dict[str, list[str]]:
        """Read the intents of batches by idempotency key; they are stored for eight days."""
        wanted, now_ms = list(batches), self._store.now_ms()
        found: dict[str, list[str]] = {}
        admin, keys = await self._store.admin(), self._store.keys
        for shard in range(keys.shards):
            server = await admin.at(keys.shard(shard, "intents"))
            days = [keys.batches(shard, now_ms - day * DAY_MS) for day in range(-1, _DAYS_OF_BATCHES)]
            for texts in await server.ask_all(("hmget", day, wanted) for day in days):
                found |= {
                    batch: unpack_batch(text.decode())
                    for batch, text in zip(wanted, texts, strict=True)
                    if text
                }
        return found

    async def refuse(
        self, one: ReportedIntent, *, state: Literal["parked", "dead"], why: str
    ) -> RefusalOutcome:
        """Park an intent or make it dead, atomically with the totals, under a new identifier."""
        keys = self._store.keys
        admin = await self._store.admin()
        if self._meters is None:
            self._meters = await read_meters(admin, keys, self._store.catalog)
        tokens = [token for token, counted in self._meters.items() if counted.event_name == one.event_name]
        if not tokens:  # The customer's price is older than the event name in the plans file.
            subscribed_meters = await read_meters(admin, keys, self._store.catalog, one.customer)
            tokens = [
                token for token, counted in subscribed_meters.items() if counted.event_name == one.event_name
            ]
        names = [keys.shard(one.shard, name) for name in ("intents", "outbox")]
        names += [keys.delivered(one.shard, one.day_ms), keys.shard(one.shard, state)]
        names.append(keys.customer(one.customer).totals)
        arguments = (
            one.identifier,
            one.identifier + REFUSED,
            state,
            why,
            "".join(f"{token} " for token in tokens),
            one.customer,
        )
        return _REFUSED[await admin.run(self._store.scripts["refuse_intent"], names, *arguments)]

    async def _find_in_shard(
        self, shard: int, identifiers: Sequence[str], days_ms: Sequence[int]
    ) -> list[ReportedIntent]:
        keys = self._store.keys
        server = await (await self._store.admin()).at(keys.shard(shard, "intents"))
        names = [(identifier, identifier) for identifier in identifiers]
        names += [(identifier + REFUSED, identifier) for identifier in identifiers]
        pipe = server.client.pipeline(transaction=False)
        pipe.hmget(keys.shard(shard, "intents"), [name for name, _ in names])
        for day_ms in days_ms:
            pipe.hmget(keys.delivered(shard, day_ms), list(identifiers))
        intents, *delivered = await server.ask(pipe.execute())
        found: list[ReportedIntent] = []
        for (name, identifier), data in zip(names, intents, strict=True):
            if data is not None:
                kept: dict[str, Any] = json.loads(data)
                one = ReportedIntent(
                    identifier=identifier,
                    customer=kept["customer"],
                    stripe_customer=kept["stripe"],
                    event_name=kept["event"],
                    value=int(kept["value"]),
                    shard=shard,
                    is_apart=name != identifier or kept["state"] in {"parked", "dead"},
                )
                found.append(one)
        for day_ms, lines in zip(days_ms, delivered, strict=True):
            for identifier, data in zip(identifiers, lines, strict=True):
                if data is not None:
                    customer, stripe_customer, event_name, _, value = json.loads(data)
                    one = ReportedIntent(
                        identifier=identifier,
                        customer=customer,
                        stripe_customer=stripe_customer,
                        event_name=event_name,
                        value=int(value),
                        shard=shard,
                        day_ms=day_ms,
                    )
                    found.append(one)
        return found


async def find_in_batches(
    api: StripeApi, refusing: IntentRefuser, report: ErrorReport
) -> dict[str, tuple[str, str]]:
    """Find the refused intents of the batches that a report names: identifier to code and message.

    ``request.identifier`` of a sample is "The request idempotency key", as Stripe's SDKs document
    ``V1BillingMeterErrorReportTriggeredEvent``. In a stream, that is one key for up to a hundred events. Of
    the batch's events of the report's meter, these are refused:

    - the only one;
    - all, if the meter accepts none and the report counts no fewer;
    - those without a customer at Stripe, if that is the cause.

    Otherwise they are unknown, and logged with their identifiers.

    Raises:
        StripeError: Stripe refuses, or does not answer.
        StoreError: the store does not answer.
    """
    batches = batches_of(report)
    if not batches:
        return {}
    events = await _event_names(api, report)
    intents = await refusing.batches({key for keys in batches.values() for key in keys})
    found: dict[str, tuple[str, str]] = {}
    for cause, keys in batches.items():
        words = {identifier: message for key, message in keys.items() for identifier in intents.get(key, ())}
        known = await refusing.find(words)
        one_of = [one for one in known.values() if (one.event_name in events) != (report.meter is None)]
        for one in await _find_refused(api, cause, one_of):
            found[one.identifier] = (cause.code, words[one.identifier])
    return found


async def _event_names(api: StripeApi, report: ErrorReport) -> Collection[str]:
    """Read the event name of the report's meter; of all meters if it names none."""
    if report.meter is not None:
        return {(await api.get(f"/v1/billing/meters/{report.meter}"))["event_name"]}
    return {meter["event_name"] for meter in await api.list("/v1/billing/meters")}


async def _find_refused(
    api: StripeApi, cause: ErrorCause, one_of: list[ReportedIntent]
) -> list[ReportedIntent]:
    if len(one_of) == 1 or (cause.code in _METER_CODES and cause.count >= len(one_of)):
        return one_of
    if cause.code == _NO_CUSTOMER:
        named = {one.stripe_customer for one in one_of}
        gone = {name for name in named if not await api.has_customer(name)}
        return [one for one in one_of if one.stripe_customer in gone]
    if one_of:
        _logger.error(
            "Stripe refuses %d of these intents, which were sent in one call, and does not say which: %s: %s",
            cause.count,
            cause.code,
            ", ".join(one.identifier for one in one_of),
        )
    return []


async def park_refused(store: Store, api: StripeApi, event_id: str, journal: Journal | None = None) -> None:
    """Fetch an error report, and park the intents that it names or make them dead. Idempotent.

    Stripe names only some of the refused events, by identifier or by batch. The number of the others is
    logged, with the cure.

    Raises:
        StripeError: Stripe refuses, or does not answer.
        StoreError: the store does not answer.
        MeterkitError: an intent is being sent; try again later.
    """
    report = read_report(await api.get(f"/v2/core/events/{event_id}"))
    refusing = IntentRefuser(store)
    named = await find_in_batches(api, refusing, report) | identifiers_of(report)
    found = await refusing.find(named)
    apart, sending, done = 0, list[str](), list[str]()
    for identifier, one in found.items():
        code, message = named[identifier]
        if one.is_apart:
            apart += 1
            continue
        state: Literal["parked", "dead"] = "dead" if code in _DEAD_CODES else "parked"
        why = f"refused after it was accepted: {code}: {message}"
        refused = await refusing.refuse(one, state=state, why=why)
        if refused == "done":
            apart += 1
            done.append(identifier)
            _logger.error(
                "%d units of %s of customer %r are %s: Stripe accepted intent %s and does not count it: %s:"
                " %s",
                one.value,
                one.event_name,
                one.customer,
                state,
                identifier,
                code,
                message,
            )
        elif refused == "sending":
            sending.append(identifier)
    if done and journal is not None:
        await _remove(journal, done)
    if sending:
        raise MeterkitError(f"intents that Stripe refuses are being sent: {', '.join(sending[:3])}")
    _log_unknown(report, apart, event_id)


async def _remove(journal: Journal, identifiers: Sequence[str]) -> None:
    """Remove refused events from the journal. A row that stays makes a restore bill too little."""
    try:
        await journal.remove(identifiers)
    except MeterkitError as error:
        _logger.warning(
            "the journal of deliveries still has intents that Stripe refuses: %s: %s",
            ", ".join(identifiers[:3]),
            error,
        )


def _log_unknown(report: ErrorReport, apart: int, event_id: str) -> None:
    left = report.count - apart
    if left <= 0:
        return
    kinds = ", ".join(f"{cause.code} ({cause.count})" for cause in report.causes) or "for no reason given"
    cures = dict.fromkeys(_CURES.get(cause.code, _CURE) for cause in report.causes) or {_CURE: None}
    where = "" if report.meter is None else f" of meter {report.meter}"
    when = f" from {report.span}" if report.span else ""
    _logger.error(
        "%d of %d meter events%s%s that Stripe has accepted and does not count are not identified: %s; they"
        " count as delivered, so meterkit shows more than the invoice will have. To do: %s. Event %s",
        left,
        report.count,
        where,
        when,
        kinds,
        "; ".join(cures),
        event_id,
    )
