"""Limit fields of responses, ``RateLimit`` and ``X-RateLimit-*``, merged with the headers of the app.

They follow draft-ietf-httpapi-ratelimit-headers-11 and are written as
Structured Fields (RFC 9651).
"""

from __future__ import annotations

import re
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Self

from meterkit.catalog.value_parsers import is_money, micros_per_shown_unit
from meterkit.decisions.limit_policies import EXACT_WINDOW_MS_MAX, SLIDING_WINDOW
from meterkit.decisions.refusal_reasons import reset_ms

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from meterkit.catalog import Headers
    from meterkit.decisions.compiled_decision import Program
    from meterkit.decisions.decision import Decision, Policy
    from meterkit.decisions.limit_policies import PolicyMeasure
    from meterkit.store.views import PreparedDecision

EXPOSE: Final = b"access-control-expose-headers"

# Fields that are read together: with one of ours, none of the app's may stay.
_FAMILIES: Final = (
    frozenset({b"ratelimit-policy", b"ratelimit"}),
    frozenset({b"x-ratelimit-limit", b"x-ratelimit-remaining", b"x-ratelimit-reset"}),
)
INTEGER_MAX: Final = 10**15 - 1

_HIDDEN_KINDS: Final = frozenset({"gauge", "uncapped"})
_UNWRITABLE: Final = re.compile(r"[^\x20-\x7e]")


def merge_headers(
    headers: Iterable[tuple[bytes, bytes]], ours: Sequence[tuple[bytes, bytes]], *, expose: bool
) -> list[tuple[bytes, bytes]]:
    """Replace the app's headers of the same names and families by ours, in a new list.

    Args:
        headers: what the app sent; what cannot be compared is passed on as it is.
        ours: lower-cased names and their values.
        expose: whether scripts of other origins are to be shown our fields.
    """
    items = list(headers)
    names = dict(ours)
    replaced = _replaced_names(tuple(names))
    try:
        kept = [pair for pair in items if pair[0].lower() not in replaced]
        if expose and names:
            kept = _expose(kept, names)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        kept = items
    kept += ours
    return kept


@lru_cache(maxsize=64)  # Few sets of fields are sent, each with most responses.
def _replaced_names(names: tuple[bytes, ...]) -> frozenset[bytes]:
    """Find the names that none of the app's headers may keep beside ours."""
    return frozenset(names).union(*(family for family in _FAMILIES if family.intersection(names)))


def _expose(headers: list[tuple[bytes, bytes]], names: Iterable[bytes]) -> list[tuple[bytes, bytes]]:
    """Join the lists of exposed names into one, at the place of the app's first."""
    rest: list[tuple[bytes, bytes]] = []
    shown = b""
    place = None
    for pair in headers:
        if pair[0].lower() == EXPOSE:
            place = len(rest) if place is None else place
            shown = join_names(shown, pair[1])
        else:
            rest.append(pair)
    rest.insert(len(rest) if place is None else place, (EXPOSE, join_names(shown, b",".join(names))))
    return rest


def join_names(first: bytes, second: bytes) -> bytes:
    """Join two lists of names; each name once, in the case in which it stands first."""
    found: dict[bytes, bytes] = {}
    for token in (*first.split(b","), *second.split(b",")):
        name = token.strip()
        if name:
            found.setdefault(name.lower(), name)
    return b", ".join(found.values())


def policy_field(policies: Sequence[Policy]) -> bytes:
    """Format the value of ``RateLimit-Policy``; empty without policies: then the field is left out.

    Gauges are left out, as time alone does not free them, and meters that are billed without a cap.
    """
    return b", ".join(_policy(policy) for policy in policies if policy.kind not in _HIDDEN_KINDS)


def limit_field(name: str, remaining: int, reset_s: int | None) -> bytes:
    """Format the value of ``RateLimit`` for a policy; ``reset_s`` in seconds from now."""
    if reset_s is None:
        return b"%b;r=%d" % (quote(name), _integer(remaining))
    return b"%b;r=%d;t=%d" % (quote(name), _integer(remaining), _integer(reset_s))


def x_ratelimit_fields(quota: int, remaining: int, reset_at_s: int | None) -> list[tuple[bytes, bytes]]:
    """Format the ``X-RateLimit-*`` fields; ``reset_at_s`` in seconds since the epoch."""
    found = [
        (b"x-ratelimit-limit", b"%d" % _integer(quota)),
        (b"x-ratelimit-remaining", b"%d" % _integer(remaining)),
    ]
    if reset_at_s is not None:
        found.append((b"x-ratelimit-reset", b"%d" % _integer(reset_at_s)))
    return found


def reset_instant_s(now_ms: int, after: timedelta) -> int:
    """The instant so long after now, in seconds since the epoch; rounded up, so that none is too early."""
    return (now_ms + after // timedelta(milliseconds=1) + 999) // 1000


def format_fields(
    mode: Headers,
    *,
    policies: bytes,
    limit: Policy | None,
    remaining: int | None,
    reset_s: int | None,
    reset_at_s: int | None,
) -> list[tuple[bytes, bytes]]:
    """Format all limit fields of a response.

    Args:
        mode: which family of fields the route sends.
        policies: the value of ``RateLimit-Policy``, made once per plan by `policy_field`.
        limit: the policy nearest to exhaustion, or None where none applies.
        remaining: units left under ``limit``; of money, the fields have whole cents.
        reset_s: seconds until ``limit`` is whole again, or None where that is not known.
        reset_at_s: that instant, in seconds since the epoch, rounded up.
    """
    found: list[tuple[bytes, bytes]] = []
    if mode == "none":
        return found
    ietf = mode != "x-ratelimit"
    if ietf and policies:
        found.append((b"ratelimit-policy", policies))
    if limit is None or limit.kind == "gauge" or remaining is None:
        return found
    counted = micros_per_shown_unit(limit.quota_unit)
    remaining //= counted
    if ietf:
        found.append((b"ratelimit", limit_field(limit.name, remaining, reset_s)))
    if mode != "ietf":
        found += x_ratelimit_fields(limit.quota // counted, remaining, reset_at_s)
    return found


def _policy(policy: Policy) -> bytes:
    unit = policy.quota_unit
    text = b"%b;q=%d" % (quote(policy.name), _integer(policy.quota // micros_per_shown_unit(unit)))
    if unit is not None:
        text += b";qu=%b" % quote("cents" if is_money(unit) else unit)
    if policy.window_s is not None:
        text += b";w=%d" % _integer(policy.window_s)
    return text


@lru_cache(maxsize=1024)
def quote(text: str) -> bytes:
    """Format a Structured Field String (RFC 9651 section 3.3.3), which is ASCII only."""
    printable = _UNWRITABLE.sub("?", text)
    return b'"%b"' % printable.replace("\\", "\\\\").replace('"', '\\"').encode("ascii")


def _integer(value: int) -> int:
    """Clamp a number to a non-negative Structured Field Integer: 15 digits at most."""
    if 0 <= value <= INTEGER_MAX:
        return value
    return 0 if value < 0 else INTEGER_MAX


# Of the app's own fields those that ours are to be merged with.
_NAMES: Final = frozenset({b"ratelimit", b"ratelimit-policy", EXPOSE})
_LENGTHS: Final = frozenset(map(len, _NAMES))
_EXPOSED: Final = (EXPOSE, b"ratelimit-policy, ratelimit")
_NEVER: Final = -1
_NO_QUICK_MEASURE: Final = (b"", 0, _NEVER, 1)
_ORIGIN: Final = b"origin"


class LimitFields:
    """Writes the limit fields of allowed answers.

    Args:
        program: what is asked of the customer's plan.
        mode: which family of fields the route sends.
    """

    __slots__ = ("_measures", "_mode", "_policies", "_policy_pair", "_quick_measures")

    def __init__(self, program: Program, mode: Headers) -> None:
        policies = [measure.policy for measure in program.measures]
        self._measures = program.measures
        self._mode: Headers = mode
        self._policies = policy_field(policies)
        self._policy_pair = (b"ratelimit-policy", self._policies)
        of_all = [_quick_measure(measure) for measure in program.measures]
        # By the number in a reply; 0 means that there is no policy.
        self._quick_measures = [
            _NO_QUICK_MEASURE,
            *(of_all if mode == "ietf" else len(of_all) * [_NO_QUICK_MEASURE]),
        ]

    def add(
        self,
        headers: Iterable[tuple[bytes, bytes]],
        decided: PreparedDecision | None,
        reply: Sequence[int],
        request_headers: Iterable[tuple[bytes, bytes]],
    ) -> list[tuple[bytes, bytes]]:
        """Add the limit fields to the app's headers, in a new list.

        Args:
            headers: what the app answers.
            decided: the decision.
            reply: what the store replied to it: ``{0, now, n, remaining, before}``.
            request_headers: what the client sent.
        """
        _, now_ms, nth, left, before = reply
        start, needed, limit, window = self._quick_measures[nth]
        if not needed <= left < limit:
            return self._merge_fields(headers, decided, reply, request_headers)
        items = list(headers)
        for name, _ in items:
            if len(name) in _LENGTHS and name.lower() in _NAMES:
                return self._merge_fields(items, decided, reply, request_headers)
        # As reset_ms has it, but shorter: this is worked out for most answers.
        reset = window - now_ms % window
        if before:
            reset -= (before * reset - 1) // window * window // before
        else:
            reset += -(-window // (limit - left))
        for name, _ in request_headers:
            if name == _ORIGIN:
                items.append(_EXPOSED)
                break
        items += (self._policy_pair, (b"ratelimit", b"%b%d;t=%d" % (start, left, (reset + 999) // 1000)))
        return items

    def _merge_fields(
        self,
        headers: Iterable[tuple[bytes, bytes]],
        decided: PreparedDecision | None,
        reply: Sequence[int],
        request_headers: Iterable[tuple[bytes, bytes]],
    ) -> list[tuple[bytes, bytes]]:
        """Add any fields to any headers."""
        return _merge_ours(headers, self._format_fields(decided, reply), request_headers)

    def _reset_ms(self, decided: PreparedDecision | None, reply: Sequence[int]) -> int | None:
        """Milliseconds until more is left under the limit that the reply names; None: not known."""
        _, now_ms, nth, left, before = reply
        if decided is None or not nth:
            return None
        return reset_ms(self._measures[nth - 1], left, before, now_ms, decided.period_end_ms(now_ms))

    def _format_fields(
        self, decided: PreparedDecision | None, reply: Sequence[int]
    ) -> list[tuple[bytes, bytes]]:
        _, now_ms, nth, left, _ = reply
        reset = self._reset_ms(decided, reply)
        return format_fields(
            self._mode,
            policies=self._policies,
            limit=self._measures[nth - 1].policy if nth else None,
            remaining=max(0, left),
            reset_s=None if reset is None else (reset + 999) // 1000,
            reset_at_s=None if reset is None else (now_ms + reset + 999) // 1000,
        )


def _quick_measure(measure: PolicyMeasure) -> tuple[bytes, int, int, int]:
    """Precompute the field of a sliding window: its start, demand, limit, window. Others have no limit."""
    is_quick = (
        measure.kind == SLIDING_WINDOW
        and measure.window <= EXACT_WINDOW_MS_MAX
        and not is_money(measure.policy.quota_unit)
    )
    return (
        quote(measure.policy.name) + b";r=",
        measure.needed,
        measure.limit if is_quick else _NEVER,
        measure.window,
    )


class FixedFields:
    """Writes limit fields that are known before the response: in shadow mode, and without the store."""

    __slots__ = ("_ours",)

    def __init__(self, ours: Sequence[tuple[bytes, bytes]]) -> None:
        self._ours = ours

    @classmethod
    def of_shadow(cls, decision: Decision, decided: PreparedDecision, mode: Headers, now_ms: int) -> Self:
        """Format the fields of a response that a limit would have refused."""
        policies = [measure.policy for measure in decided.program.measures]
        reset_after = decision.reset_after
        ours = format_fields(
            mode,
            policies=policy_field(policies),
            limit=next((policy for policy in policies if policy.name == decision.limit), None),
            remaining=decision.remaining,
            reset_s=None if reset_after is None else -(-reset_after // timedelta(seconds=1)),
            reset_at_s=None if reset_after is None else reset_instant_s(now_ms, reset_after),
        )
        return cls(ours)

    @classmethod
    def of_policies(cls, program: Program, mode: Headers) -> Self:
        """Format the one field that is true without the store, which has no remaining quantities."""
        policies = policy_field([measure.policy for measure in program.measures])
        return cls(
            format_fields(mode, policies=policies, limit=None, remaining=None, reset_s=None, reset_at_s=None)
        )

    def add(
        self,
        headers: Iterable[tuple[bytes, bytes]],
        decided: object,
        reply: object,
        request_headers: Iterable[tuple[bytes, bytes]],
    ) -> list[tuple[bytes, bytes]]:
        """See :meth:`LimitFields.add`."""
        del decided, reply
        return _merge_ours(headers, self._ours, request_headers)


def _merge_ours(
    headers: Iterable[tuple[bytes, bytes]],
    ours: Sequence[tuple[bytes, bytes]],
    request_headers: Iterable[tuple[bytes, bytes]],
) -> list[tuple[bytes, bytes]]:
    """Merge our fields into an answer; scripts of other origins may read them if the client is one."""
    return merge_headers(headers, ours, expose=any(name == _ORIGIN for name, _ in request_headers))
