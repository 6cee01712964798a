"""Join the reports of two sides about the same calls: each call counts once."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from meterkit.tokens.call_usage import COUNTED, RANKS, CallUsage, sum_calls

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


_ROUGH: Final = ("partial", "estimated")
_SEVERAL: Final = 2
# An estimate of a text may be so many times its tokens: docs/design/decisions/0031.
_ESTIMATE_MAX: Final = 3


def join_reports(
    known: Sequence[CallUsage], more: Sequence[CallUsage], *, renamed: bool = False
) -> list[CallUsage]:
    """The calls that two sides report, each once. In doubt, two reports are of one call.

    Reports of one call: they name the same id; or one of them names none, and the figures are the same as far
    as both know them, or both are rough. A report without an id that comes to the same as all calls of the
    other side together is their sum, and no call of its own.

    Args:
        known: what one side says; the first among equals.
        more: what the other side says.
        renamed: whether the other side may have given the calls ids of its own, as apps do that pass on a
            provider's answer as theirs. Its estimates are of calls that are known, too, unless they are of
            far more output than those came to.
    """
    if not known or not more:
        return [*known, *more]
    left = list(known)
    pairs: list[CallUsage] = []
    alone: list[CallUsage] = []
    for call in more:
        at = next((at for at, other in enumerate(left) if _may_be_one(call, other, renamed=renamed)), None)
        if at is None:
            alone.append(call)
        else:
            pairs.append(_merge_reports(left.pop(at), call))
    alone = _without_sum(alone, known, renamed=renamed)
    left = _without_sum(left, more, renamed=False)
    if renamed:
        alone = _without_estimates(alone, known)
    return left + pairs + alone


def deduplicate_calls(calls: Iterable[CallUsage]) -> list[CallUsage]:
    """The calls that several sides report under providers' ids, each once; those without an id are all kept.

    Of a call that a tap and the response's body both report, the better report stays, the first among equals,
    with what only the other one knows.
    """
    named: dict[str, CallUsage] = {}
    nameless: list[CallUsage] = []
    for call in calls:
        if call.response_id:
            known = named.get(call.response_id)
            named[call.response_id] = call if known is None else _merge_reports(known, call)
        else:
            nameless.append(call)
    return [*named.values(), *nameless]


def _merge_reports(first: CallUsage, second: CallUsage) -> CallUsage:
    """One call of two reports of it: the better one, with what only the other one knows.

    The better one has the better source, the larger total, the known model; else it is the first one.
    """
    best, other = (first, second) if _quality(first) >= _quality(second) else (second, first)
    names = ["model", "provider", "response_id", "reported_cost_micros"]
    more: dict[str, Any] = {}
    if best.source == other.source:
        names += COUNTED
        if other.details.keys() - best.details.keys():
            more["details"] = {**other.details, **best.details}
    more |= {
        name: value
        for name in names
        if getattr(best, name) is None and (value := getattr(other, name)) is not None
    }
    if "reported_cost_micros" in more and other.provider is not None:
        more["provider"] = other.provider  # Whose amount it is.
    context = tuple(sorted({**dict(other.context), **dict(best.context)}.items()))
    if context != best.context:
        more["context"] = context
    return replace(best, **more) if more else best


def _may_be_one(call: CallUsage, other: CallUsage, *, renamed: bool) -> bool:
    both_named = bool(call.response_id and other.response_id)
    if both_named and call.response_id == other.response_id:
        return True
    if both_named and not renamed:
        return False
    if call.source in _ROUGH and other.source in _ROUGH:
        return renamed or call.provider == other.provider
    return call.source == other.source and _have_same_figures(call, other)


def _have_same_figures(call: CallUsage, other: CallUsage) -> bool:
    """Whether the figures that both know are the same; some that count must be among them."""
    one, two = _known_figures(call), _known_figures(other)
    shared = one.keys() & two.keys()
    differing = [name for name in shared if one[name] != two[name]]
    if differing and (differing != ["input_tokens"] or not _differ_by_cache(one, two)):
        return False
    return not shared.isdisjoint(("input_tokens", "output_tokens")) or call.quantities() == other.quantities()


def _differ_by_cache(one: Mapping[str, int], two: Mapping[str, int]) -> bool:
    """Whether the input of one is that of the other without what a cache has read and written."""
    if "output_tokens" not in one or "output_tokens" not in two:
        return False
    less, more = sorted((one, two), key=lambda figures: figures["input_tokens"])
    cached = more.get("cache_read_tokens", 0) + more.get("cache_write_tokens", 0)
    return more["input_tokens"] - less["input_tokens"] == cached


def _known_figures(call: CallUsage) -> dict[str, int]:
    billed = {"billed_input": call.billed_input_tokens, "billed_output": call.billed_output_tokens}
    return {**call.units, **{name: count for name, count in billed.items() if count is not None}}


def _without_sum(calls: list[CallUsage], parts: Sequence[CallUsage], *, renamed: bool) -> list[CallUsage]:
    """The calls without the one that has the sum of all parts."""
    if len(parts) < _SEVERAL:
        return calls
    total = sum_calls(parts)
    for at, call in enumerate(calls):
        is_reported = call.source == "reported" == total.source and (renamed or not call.response_id)
        if is_reported and _have_same_figures(call, total):
            return [*calls[:at], *calls[at + 1 :]]
    return calls


def _without_estimates(calls: list[CallUsage], known: Sequence[CallUsage]) -> list[CallUsage]:
    outputs = [call.output_tokens or 0 for call in known if call.source == "reported"]
    if not outputs:
        return calls
    bound = _ESTIMATE_MAX * sum(outputs)
    return [call for call in calls if call.source not in _ROUGH or (call.output_tokens or 0) > bound]


def _quality(call: CallUsage) -> tuple[int, int, bool]:
    return RANKS[call.source], call.total_tokens or 0, call.model is not None
