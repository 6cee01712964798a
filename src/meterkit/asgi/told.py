"""What the clients of one program are told of its limits, written as far as it can be in advance."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from meterkit.asgi.headers import EXPOSE, fields, limit_field, merge, policy_field, quoted
from meterkit.decisions.verdict import DAY_MS, SLIDING, reset_ms

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meterkit.catalog import Headers
    from meterkit.decisions.decision import Decision
    from meterkit.decisions.program import Measure, Program
    from meterkit.store.views import PreparedDecision

__all__ = ["ShadowFields", "Told"]

# Of the app's own fields those that ours are to be merged with.
_NAMES: Final = frozenset({b"ratelimit", b"ratelimit-policy", EXPOSE})
_LENGTHS: Final = frozenset(map(len, _NAMES))
_EXPOSED: Final = (EXPOSE, b"ratelimit-policy, ratelimit")
_NEVER: Final = -1
_ORIGIN: Final = b"origin"


class Told:
    """Writes the limit fields of allowed answers.

    Args:
        program: what is asked of the customer's plan.
        mode: which family of fields the route sends.
    """

    __slots__ = ("_measures", "_mode", "_policies", "_policy_pair", "_quick")

    def __init__(self, program: Program, mode: Headers) -> None:
        policies = [measure.policy for measure in program.measures]
        self._measures = program.measures
        self._mode: Headers = mode
        self._policies = policy_field(policies)
        self._policy_pair = (b"ratelimit-policy", self._policies)
        self._quick = [_quick(measure) for measure in program.measures]

    def add(
        self,
        headers: Iterable[tuple[bytes, bytes]],
        decided: PreparedDecision,
        reply: list[int],
        request_headers: Iterable[tuple[bytes, bytes]],
    ) -> list[tuple[bytes, bytes]]:
        """The app's headers and the limit fields, as a new list.

        Args:
            headers: what the app answers.
            decided: the decision.
            reply: what the store replied to it: ``{0, now, n, remaining, before}``.
            request_headers: what the client sent.
        """
        _, now_ms, nth, left, before = reply
        exposed = False
        for name, _ in request_headers:
            if name == _ORIGIN:
                exposed = True
                break
        if self._mode != "ietf" or not nth:
            return merge(headers, self._fields(decided, reply), expose=exposed)
        items = list(headers)
        for name, _ in items:
            if len(name) in _LENGTHS and name.lower() in _NAMES:
                return merge(items, self._fields(decided, reply), expose=exposed)
        start, needed, limit, window = self._quick[nth - 1]
        if needed <= left < limit:
            # As reset_ms has it, but shorter: this is worked out for most answers.
            reset = window - now_ms % window
            if before:
                reset -= (before * reset - 1) // window * window // before
            else:
                reset += -(-window // (limit - left))
            text = b"%b%d;t=%d" % (start, left, (reset + 999) // 1000)
        else:
            text = limit_field(self._measures[nth - 1].policy.name, left, self._reset_s(decided, reply))
        if exposed:
            items.append(_EXPOSED)
        items += (self._policy_pair, (b"ratelimit", text))
        return items

    def _reset_s(self, decided: PreparedDecision, reply: list[int]) -> int | None:
        """Seconds, rounded up, until more is left under the limit that the reply names."""
        _, now_ms, nth, left, before = reply
        reset = reset_ms(self._measures[nth - 1], left, before, now_ms, decided.period_end_ms(now_ms))
        return None if reset is None else (reset + 999) // 1000

    def _fields(self, decided: PreparedDecision, reply: list[int]) -> list[tuple[bytes, bytes]]:
        _, now_ms, nth, left, _ = reply
        return fields(
            self._mode,
            policies=self._policies,
            limit=self._measures[nth - 1].policy if nth else None,
            remaining=max(0, left),
            reset_s=self._reset_s(decided, reply) if nth else None,
            now_s=now_ms // 1000,
        )


def _quick(measure: Measure) -> tuple[bytes, int, int, int]:
    """Of a sliding window: how its field begins, what is asked, its limit and window; of others, no limit."""
    is_quick = measure.kind == SLIDING and measure.window <= DAY_MS
    return (
        quoted(measure.policy.name) + b";r=",
        measure.needed,
        measure.limit if is_quick else _NEVER,
        measure.window,
    )


class ShadowFields:
    """Writes the limit fields of an answer that a limit would have refused.

    Args:
        decision: what was decided.
        decided: how.
        mode: which family of fields the route sends.
    """

    __slots__ = ("_decision", "_mode", "_policies")

    def __init__(self, decision: Decision, decided: PreparedDecision, mode: Headers) -> None:
        self._decision = decision
        self._policies = [measure.policy for measure in decided.program.measures]
        self._mode: Headers = mode

    def add(
        self,
        headers: Iterable[tuple[bytes, bytes]],
        decided: PreparedDecision,
        reply: list[Any],
        request_headers: Iterable[tuple[bytes, bytes]],
    ) -> list[tuple[bytes, bytes]]:
        """See :meth:`Told.add`."""
        del decided
        decision = self._decision
        reset_after = decision.reset_after
        ours = fields(
            self._mode,
            policies=policy_field(self._policies),
            limit=next((policy for policy in self._policies if policy.name == decision.limit), None),
            remaining=decision.remaining,
            reset_s=None if reset_after is None else -(-reset_after // timedelta(seconds=1)),
            now_s=reply[1] // 1000,
        )
        return merge(headers, ours, expose=any(name == _ORIGIN for name, _ in request_headers))
