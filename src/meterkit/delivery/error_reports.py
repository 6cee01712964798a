"""Stripe's error reports on meter events that it accepted and does not count: these are parked."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from meterkit.errors import MeterkitError, StripeError
from meterkit.outbox.intents import REFUSED, unpack_batch
from meterkit.store.event_names import read_meters

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from meterkit.outbox.journal import Journal
    from meterkit.store.event_names import ReportedMeter
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi

_logger = logging.getLogger("meterkit.delivery")
BATCH: Final = "batch-"
"""Begins the idempotency key of a call with several intents."""
_SAMPLES_MAX: Final = 1_000
_WORDS_MAX: Final = 200
# The idempotency key of a later try is the identifier and eight hex digits.
_KEY: Final = re.compile(r"(?P<identifier>[0-9a-f]{32}(-[0-9]{1,6})?r*)(-[0-9a-f]{8})?")
_BATCH_KEY: Final = re.compile(rf"{BATCH}[0-9a-f]{{32}}")
_OF_THE_METER: Final = frozenset({"archived_meter", "no_meter"})
# Events that another setting at Stripe would accept can be sent again. The rest cannot.
_DEAD: Final = frozenset(
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
        "link the customer to one of this account for what comes, meterkit customers unlink and link; what"
        " was sent stays addressed to the old one: bill it by hand"
    ),
}
_CURE: Final = "meterkit doctor compares the meters at Stripe with the plans file"
_DAY_MS: Final = 86_400_000
_DAYS_NEAR: Final = 3
_DAYS_KEPT: Final = 37
_DAYS_OF_BATCHES: Final = 9
RefusalOutcome = Literal["done", "gone", "sending", "damaged"]
"""The outcome: it is parked or dead, it is gone, it is just being sent, or its customer's
totals cannot be counted in."""
_REFUSED: Final[dict[int, RefusalOutcome]] = {0: "gone", 1: "done", 2: "sending", 3: "damaged"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorSample:
    """One meter event of many: what names it, and Stripe's words."""

    name: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorCause:
    """Why meter events do not count.

    Attributes:
        code: Stripe's, such as ``meter_event_customer_not_found``.
        count: of how many events.
        samples: some of them; Stripe does not name all.
    """

    code: str
    count: int
    samples: tuple[ErrorSample, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorReport:
    """What a thin event tells.

    Attributes:
        meter: Stripe's id of it; None where there is none.
        span: the seconds that it is about, as Stripe writes them; empty where it does not say.
    """

    meter: str | None
    count: int
    causes: tuple[ErrorCause, ...]
    span: str


def read_report(event: Mapping[str, Any]) -> ErrorReport:
    """Read an event as ``GET /v2/core/events/:id`` shows it; what cannot be read of it is left out."""
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
    """Of our intents that a report names: identifier to the code and Stripe's words."""
    found: dict[str, tuple[str, str]] = {}
    for cause in report.causes:
        for sample in cause.samples:
            match = _KEY.fullmatch(sample.name)
            if match is not None:
                found[match["identifier"]] = (cause.code, sample.message)
    return found


def batches_of(report: ErrorReport) -> dict[ErrorCause, dict[str, str]]:
    """Of our calls with several intents that a report names: for each cause, their keys to Stripe's words."""
    found: dict[ErrorCause, dict[str, str]] = {}
    for cause in report.causes:
        keys = {sample.name: sample.message for sample in cause.samples if _BATCH_KEY.fullmatch(sample.name)}
        if keys:
            found[cause] = keys
    return found


def is_of_meter(code: str) -> bool:
    """Whether a code says that a meter takes nothing at all."""
    return code in _OF_THE_METER


def state_of(code: str) -> Literal["parked", "dead"]:
    """Where an intent goes that was refused with a code: one that is not known here is for a person, too."""
    return "dead" if code in _DEAD else "parked"


def _samples(kind: Mapping[str, Any]) -> Iterator[ErrorSample]:
    for sample in _objects(kind.get("sample_errors")):
        request = _object(sample.get("request"))
        # Stripe's reference says the one, an example on its pages the other.
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


async def find_in_batches(
    api: StripeApi, refusing: IntentRefuser, report: ErrorReport
) -> dict[str, tuple[str, str]]:
    """The intents that a report means by naming batches: identifier to the code and Stripe's words.

    ``request.identifier`` of a sample is "The request idempotency key", as Stripe's SDKs document
    ``V1BillingMeterErrorReportTriggeredEvent``: of a stream that is one for up to a hundred events. Of those
    that are of the report's meter it means the only one; all, where the meter takes nothing and no fewer are
    counted; those without a customer at Stripe, if it says so. Else they are unknown: that is logged,
    with their identifiers.

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
    """The event name of the report's meter; where it is of none, those of all meters that there are."""
    if report.meter is not None:
        return {(await api.get(f"/v1/billing/meters/{report.meter}"))["event_name"]}
    return {meter["event_name"] for meter in await api.list("/v1/billing/meters")}


async def _find_refused(
    api: StripeApi, cause: ErrorCause, one_of: list[ReportedIntent]
) -> list[ReportedIntent]:
    if len(one_of) == 1 or (is_of_meter(cause.code) and cause.count >= len(one_of)):
        return one_of
    if cause.code == _NO_CUSTOMER:
        gone = {name for name in {one.stripe_customer for one in one_of} if await _is_gone(api, name)}
        return [one for one in one_of if one.stripe_customer in gone]
    if one_of:
        _logger.error(
            "Stripe refuses %d of these intents, which were sent in one call, and does not say which: %s: %s",
            cause.count,
            cause.code,
            ", ".join(one.identifier for one in one_of),
        )
    return []


async def _is_gone(api: StripeApi, stripe_customer: str) -> bool:
    try:
        return bool((await api.get(f"/v1/customers/{stripe_customer}")).get("deleted"))
    except StripeError as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        return True


async def park_refused(store: Store, api: StripeApi, event_id: str, journal: Journal | None = None) -> None:
    """Fetch what an event tells of meter events that Stripe does not count, and do with each what it says.

    An intent that it names, by itself or by the call that it was sent in, is parked or dead, with Stripe's
    words, and counted so. Stripe names only some of the events: how many are left, and what to do, is logged.
    Repeated, it does nothing again.

    Raises:
        StripeError: Stripe refuses, or does not answer.
        StoreError: the store does not answer.
        MeterkitError: an intent is just being sent; it is to be tried again.
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
        state, why = state_of(code), f"refused after it was taken: {code}: {message}"
        refused = await refusing.refuse(one, state=state, why=why)
        if refused == "done":
            apart += 1
            done.append(identifier)
            _logger.error(
                "%d units of %s of customer %r are %s: Stripe took intent %s and does not count it: %s: %s",
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
    """Take off the journal what Stripe does not have. A row that stays makes a restore bill too little."""
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
        "%d of %d meter events%s%s that Stripe has taken and does not count are not known here by name: %s;"
        " they count as delivered, so meterkit shows more than the invoice will. To do: %s. Event %s",
        left,
        report.count,
        where,
        when,
        kinds,
        "; ".join(cures),
        event_id,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedIntent:
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


class IntentRefuser:
    """Each method raises :class:`~meterkit.errors.StoreError` where the store does not answer.

    Args:
        store: where usage is counted.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._meters: Mapping[str, ReportedMeter] | None = None

    async def find(self, identifiers: Iterable[str]) -> dict[str, ReportedIntent]:
        """By identifier, what is known of each: of the last days first, then of all 37 that are kept."""
        wanted, now_ms, found = list(identifiers), self._store.now_ms(), dict[str, ReportedIntent]()
        for days in (range(-1, _DAYS_NEAR), range(_DAYS_NEAR, _DAYS_KEPT)):
            for shard in range(self._store.keys.shards):
                left = [identifier for identifier in wanted if identifier not in found]
                if not left:
                    return found
                for one in await self._find_in_shard(shard, left, [now_ms - day * _DAY_MS for day in days]):
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
                    batch: unpack_batch(text.decode())
                    for batch, text in zip(wanted, texts, strict=True)
                    if text
                }
        return found

    async def refuse(
        self, one: ReportedIntent, *, state: Literal["parked", "dead"], why: str
    ) -> RefusalOutcome:
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
                told = (kept["customer"], kept["stripe"], kept["event"], kept["value"])
                one = _reported_intent(identifier, told, shard)
                is_apart = name != identifier or kept["state"] in {"parked", "dead"}
                found.append(replace(one, is_apart=is_apart))
        for day_ms, lines in zip(days_ms, delivered, strict=True):
            for identifier, data in zip(identifiers, lines, strict=True):
                if data is not None:
                    customer, stripe_customer, event_name, _, value = json.loads(data)
                    told = (customer, stripe_customer, event_name, value)
                    found.append(_reported_intent(identifier, told, shard, day_ms))
        return found


def _reported_intent(
    identifier: str, told: tuple[str, str, str, str], shard: int, day_ms: int = 0
) -> ReportedIntent:
    customer, stripe_customer, event_name, value = told
    return ReportedIntent(
        identifier=identifier,
        customer=customer,
        stripe_customer=stripe_customer,
        event_name=event_name,
        value=int(value),
        shard=shard,
        day_ms=day_ms,
    )
