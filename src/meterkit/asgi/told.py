"""What the clients of one program are told of its limits, written as far as it can be in advance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.asgi.headers import fields, merge, policy_field, quoted
from meterkit.store.verdict import reset_ms

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meterkit.catalog import Headers
    from meterkit.store.accounts import DecideCall
    from meterkit.store.program import Program

__all__ = ["Told"]

_OURS: Final = frozenset({b"ratelimit", b"ratelimit-policy"})
_LENGTHS: Final = frozenset(map(len, _OURS))
_ORIGIN: Final = b"origin"
_WINDOWS: Final = 2  # the kinds of measure that are windows: 1 and 2


class Told:
    """Writes the limit fields of allowed answers.

    Args:
        program: what is asked of the customer's plan.
        mode: which family of fields the route sends.
    """

    __slots__ = ("_measures", "_mode", "_policies", "_policy_pair", "_starts")

    def __init__(self, program: Program, mode: Headers) -> None:
        policies = [measure.policy for measure in program.measures]
        self._measures = program.measures
        self._mode: Headers = mode
        self._policies = policy_field(policies)
        self._policy_pair = (b"ratelimit-policy", self._policies)
        self._starts = [quoted(policy.name) + b";r=" for policy in policies]

    def add(
        self,
        headers: Iterable[tuple[bytes, bytes]],
        call: DecideCall,
        reply: list[int],
        request_headers: Iterable[tuple[bytes, bytes]],
    ) -> list[tuple[bytes, bytes]]:
        """The app's headers and the limit fields, as a new list.

        Args:
            headers: what the app answers.
            call: the decision.
            reply: what the store replied to it: ``{0, now, n, remaining}``.
            request_headers: what the client sent.
        """
        _, now_ms, nth, left = reply
        for name, _ in request_headers:
            if name == _ORIGIN:
                return merge(headers, self._fields(call, reply), expose=True)
        if self._mode != "ietf" or not nth:
            return merge(headers, self._fields(call, reply), expose=False)
        items = list(headers)
        for name, _ in items:
            if len(name) in _LENGTHS and name.lower() in _OURS:
                return merge(items, self._fields(call, reply), expose=False)
        measure = self._measures[nth - 1]
        if measure.kind <= _WINDOWS:
            reset: int | None = measure.window - now_ms % measure.window
        else:
            reset = reset_ms(measure, left, now_ms, call.period_end_ms(now_ms))
        # As meterkit.asgi.headers.limit_field has it, but for the name, which is written already.
        left = max(left, 0)
        if reset is None:
            limit = b"%b%d" % (self._starts[nth - 1], left)
        else:
            limit = b"%b%d;t=%d" % (self._starts[nth - 1], left, (reset + 999) // 1000)
        items += (self._policy_pair, (b"ratelimit", limit))
        return items

    def _fields(self, call: DecideCall, reply: list[int]) -> list[tuple[bytes, bytes]]:
        _, now_ms, nth, left = reply
        measure = self._measures[nth - 1] if nth else None
        reset = None if measure is None else reset_ms(measure, left, now_ms, call.period_end_ms(now_ms))
        return fields(
            self._mode,
            policies=self._policies,
            limit=None if measure is None else measure.policy,
            remaining=max(0, left),
            reset_s=None if reset is None else (reset + 999) // 1000,
            now_s=now_ms // 1000,
        )
