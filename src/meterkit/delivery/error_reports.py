"""What Stripe tells of meter events that it has taken and does not count. Pure.

https://docs.stripe.com/billing/subscriptions/usage-based/recording-usage-api#handle-meter-event-errors
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, cast

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "BATCH",
    "Cause",
    "ErrorReport",
    "Sample",
    "batches_of",
    "identifiers_of",
    "is_of_meter",
    "read_report",
    "state_of",
]

BATCH: Final = "batch-"
"""Begins the idempotency key of a call with several intents."""

_SAMPLES_MAX: Final = 1_000
_WORDS_MAX: Final = 200
# The idempotency key of a later try is the identifier and eight hex digits.
_KEY: Final = re.compile(r"(?P<identifier>[0-9a-f]{32}(-[0-9]{1,6})?r*)(-[0-9a-f]{8})?")
_BATCH_KEY: Final = re.compile(rf"{BATCH}[0-9a-f]{{32}}")
_OF_THE_METER: Final = frozenset({"archived_meter", "no_meter"})
# What another setting at Stripe would have taken, somebody can send again. The rest never will be.
_DEAD: Final = frozenset(
    {
        "meter_event_customer_not_found",
        "meter_event_invalid_value",
        "meter_event_value_not_found",
        "meter_event_value_too_many_digits",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One meter event of many: what names it, and Stripe's words."""

    name: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Why meter events do not count.

    Attributes:
        code: Stripe's, such as ``meter_event_customer_not_found``.
        count: of how many events.
        samples: some of them; Stripe does not name all.
    """

    code: str
    count: int
    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorReport:
    """What a thin event tells.

    Attributes:
        meter: Stripe's id of it; None where there is none.
        span: the seconds that it is about, as Stripe writes them; empty where it does not say.
    """

    meter: str | None
    count: int
    causes: tuple[Cause, ...]
    span: str


def read_report(event: Mapping[str, Any]) -> ErrorReport:
    """Read an event as ``GET /v2/core/events/:id`` shows it; what cannot be read of it is left out."""
    data = _object(event.get("data"))
    reason = _object(data.get("reason"))
    causes = tuple(
        Cause(
            code=_text(kind.get("code")) or "unknown",
            count=_whole(kind.get("error_count")),
            samples=tuple(_samples(kind))[:_SAMPLES_MAX],
        )
        for kind in _objects(reason.get("error_types"))
    )
    return ErrorReport(
        meter=_text(_object(event.get("related_object")).get("id")) or None,
        count=max(_whole(reason.get("error_count")), sum(cause.count for cause in causes)),
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


def batches_of(report: ErrorReport) -> dict[Cause, dict[str, str]]:
    """Of our calls with several intents that a report names: for each cause, their keys to Stripe's words."""
    found: dict[Cause, dict[str, str]] = {}
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


def _samples(kind: Mapping[str, Any]) -> Iterator[Sample]:
    for sample in _objects(kind.get("sample_errors")):
        request = _object(sample.get("request"))
        # Stripe's reference says the one, an example on its pages the other.
        name = _text(request.get("identifier")) or _text(request.get("idempotency_key"))
        if name:
            yield Sample(name=name, message=_text(sample.get("error_message"))[:_WORDS_MAX])


def _object(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}


def _objects(value: object) -> list[Mapping[str, Any]]:
    return [_object(one) for one in cast("list[object]", value)] if isinstance(value, list) else []


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
