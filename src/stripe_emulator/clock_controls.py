"""The clock of the emulator: read, moved and set, by code or over HTTP."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, cast

from starlette.routing import Route

from stripe_emulator.account_controls import AccountControls
from stripe_emulator.clock import Clock
from stripe_emulator.scripting import control_endpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

    from stripe_emulator.protocol import JsonObject


CLOCK_MAX: Final = datetime(3000, 1, 1, tzinfo=UTC).timestamp()


class ClockControls(AccountControls):
    """The emulator's clock and its customers' payments; a part of ``StripeEmulator``."""

    def move_clock(self, *, to: float) -> None:
        """Move the emulator's clock, and bring about all that is due by then.

        Args:
            to: Unix seconds. A clock that runs goes on from there.

        Raises:
            ValueError: it lies in the past, or after the year 2999.
        """
        with self._account.lock:
            now = self.clock()
            if not to <= CLOCK_MAX:
                raise ValueError(f"the clock can be moved to {_utc_text(CLOCK_MAX)} at most")
            if to < now:
                raise ValueError(f"the clock cannot be moved back: it is {_utc_text(now)} already")
            if isinstance(self.clock, Clock):
                self.clock.set(datetime.fromtimestamp(to, UTC))
            else:
                self.clock = OffsetClock(self.clock, by_s=to - now)
            self.advance()
            self._account.wake()

    def _clock_routes(self) -> list[Route]:
        return [
            Route("/_emulator/clock", control_endpoint(self._control_clock), methods=["GET", "POST"]),
            Route("/_emulator/customers/{id}", control_endpoint(self._control_customer), methods=["POST"]),
        ]

    async def _control_clock(self, request: Request) -> JsonObject:
        if request.method == "POST":
            self.move_clock(to=_read_target(await request.body(), now=self.clock()))
        now = self.clock()
        return {"now": now, "utc": _utc_text(now)}

    async def _control_customer(self, request: Request) -> JsonObject:
        customer = str(request.path_params["id"])
        given = _read_fields(await request.body(), allowed=("card", "payments"))
        if given.get("payments", "fail") not in {"fail", "succeed"}:
            raise ValueError(f"payments is {given['payments']!r}; it must be fail or succeed")
        with self._account.lock:
            self._account.customers.find_alive(customer)
            if "card" in given:
                self.add_payment_method(customer, str(given["card"]))
            if "payments" in given:
                (self.fail_payments if given["payments"] == "fail" else self.mend_payments)(customer)
            fail = customer in self._account.payment_methods.failing
        return {"customer": customer, "payments": "fail" if fail else "succeed"}


class OffsetClock:
    """A clock that is ahead of another."""

    def __init__(self, clock: Callable[[], float], *, by_s: float) -> None:
        self._clock = clock
        self._by_s = by_s

    def __call__(self) -> float:
        """Return Unix seconds."""
        return self._clock() + self._by_s


def _read_fields(body: bytes, *, allowed: tuple[str, ...]) -> dict[str, Any]:
    given: object = json.loads(body)
    if not isinstance(given, dict):
        raise ValueError("the body is no JSON object")  # noqa: TRY004 - a wrong value, as others are
    found = cast("dict[str, Any]", given)
    for name in found.keys() - set(allowed):
        raise ValueError(f"there is no {name}; there is {', '.join(allowed)}")
    return found


def _read_target(body: bytes, *, now: float) -> float:
    given = _read_fields(body, allowed=("advance", "to"))
    if len(given) != 1:
        raise ValueError("give either `advance`, in seconds, or `to`, an instant")
    return now + float(given["advance"]) if "advance" in given else _read_unix(given["to"])


def _read_unix(instant: object) -> float:
    if isinstance(instant, int | float):
        return float(instant)
    moment = datetime.fromisoformat(str(instant))
    if moment.tzinfo is None:
        raise ValueError(f"{instant} has no time zone: write it like 2026-05-01T00:00:00Z")
    return moment.timestamp()


def _utc_text(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).isoformat()
