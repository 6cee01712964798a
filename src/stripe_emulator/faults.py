"""The fault script: what goes wrong with which of the next requests."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, fields
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Literal, cast, get_args

from stripe_emulator.call import METER_EVENT_STREAM, METER_EVENTS
from stripe_emulator.protocol import ApiError, ApiReply

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stripe_emulator.call import Call

FaultAction = Literal["error", "drop", "reset", "hang", "delay", "lose"]
FaultTime = Literal["before", "after"]

REFUSALS: Final[Mapping[int, tuple[str, str | None, str]]] = {
    400: ("invalid_request_error", None, "Received unknown parameter."),
    401: ("invalid_request_error", None, "Invalid API Key provided: sk_test_********************0000"),
    403: ("invalid_request_error", None, "The provided key does not have the required permissions."),
    409: (
        "invalid_request_error",
        "idempotency_key_in_use",
        "There is currently another in-progress request using this Idempotent Key.",
    ),
    429: ("invalid_request_error", "rate_limit", "Request rate limit exceeded."),
}
REASON_HEADER: Final = "stripe-rate-limited-reason"


@dataclass(frozen=True, slots=True)
class Fault:
    """A scripted failure.

    Attributes:
        action: ``error`` answers with ``status``; ``drop`` closes the connection without an answer and
            ``reset`` resets it; ``hang`` never answers; ``delay`` answers after ``delay_s``; ``lose`` answers
            200 to a meter event and does not count it.
        when: ``before`` the request takes effect (which it then does not, except after a ``delay``), or
            ``after`` it has. Ignored for ``lose``.
        times: how many matching requests it happens to; None: all.
        skip: how many matching requests pass first.
        customer: only meter events of this Stripe customer, or a batch with one; None: of any.
        event_name: only meter events of this name, or a batch with one; None: of any.
        path: only this path; ``*``: any. That of meter events stands for that of their stream, too.
        status: of ``error``.
        code: ``error.code`` of ``error``; None: what is usual for the status.
        message: ``error.message`` of ``error``; None: what is usual for the status.
        delay_s: of ``delay``, real seconds.
    """

    action: FaultAction
    _: KW_ONLY
    when: FaultTime = "before"
    times: int | None = 1
    skip: int = 0
    customer: str | None = None
    event_name: str | None = None
    path: str = METER_EVENTS
    status: int = HTTPStatus.INTERNAL_SERVER_ERROR
    code: str | None = None
    message: str | None = None
    delay_s: float = 0.0

    def __post_init__(self) -> None:
        refuse_unknown_choice("action", self.action, get_args(FaultAction))
        refuse_unknown_choice("when", self.when, get_args(FaultTime))
        refused_before = self.action == "error" and self.status < HTTPStatus.INTERNAL_SERVER_ERROR
        if refused_before and self.when == "after":
            raise ValueError(f"status {self.status} means that nothing was done: use when='before'")

    def matches(self, call: Call) -> bool:
        """Return whether it applies to this request."""
        streams = self.path == METER_EVENTS and call.path == METER_EVENT_STREAM
        if self.path not in ("*", call.path) and not streams:
            return False
        if self.customer is None and self.event_name is None:
            return True
        return any(
            self.customer in (None, customer) and self.event_name in (None, event_name)
            for customer, event_name in call.metered_pairs
        )

    @property
    def reply(self) -> ApiReply:
        """The reply of an ``error``."""
        kind, code, message = REFUSALS.get(
            self.status, ("api_error", None, "An unknown error occurred, as the test requested.")
        )
        headers: dict[str, str] = {}
        if self.status == HTTPStatus.TOO_MANY_REQUESTS:
            headers[REASON_HEADER] = "endpoint-rate" if self.customer is None else "resource-specific"
        if self.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            headers["stripe-should-retry"] = "false"
        return ApiError(
            self.message or message,
            status=self.status,
            kind=kind,
            code=self.code or code,
            headers=headers,
            stored=self.status not in REFUSALS,
        ).reply


@dataclass(slots=True, eq=False)
class PendingFault:
    """A pending fault. ``seen``: the number of matching requests so far."""

    fault: Fault
    seen: int = 0


def take_fault(queue: list[PendingFault], call: Call) -> Fault | None:
    """Return the fault of this request, and count it."""
    for entry in queue:
        fault = entry.fault
        if not fault.matches(call):
            continue
        entry.seen += 1
        if entry.seen <= fault.skip:
            continue
        if fault.times is not None and entry.seen >= fault.skip + fault.times:
            queue.remove(entry)
        return fault
    return None


def fault_from_json(body: object) -> Fault:
    """Return the fault that a JSON object describes. Raises ValueError if it is not one."""
    allowed = [field.name for field in fields(Fault)]
    given = cast("dict[str, Any]", body) if isinstance(body, dict) else {}
    unknown = given.keys() - set(allowed)
    if "action" not in given or unknown:
        raise ValueError(
            f"a fault is a JSON object with an action ({', '.join(get_args(FaultAction))}) and, if need be, "
            f"{', '.join(allowed[1:])}; received {sorted(given) if given else body!r}"
        )
    return Fault(**given)


def refuse_unknown_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise ValueError if a value is not allowed."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
