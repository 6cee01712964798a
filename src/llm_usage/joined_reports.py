"""Join the reports of two sides about the same calls: each call counts once.

Who gains if a report lies? What the app hands over itself, an object or a tapped stream, comes from its
provider: two such reports are equals, and the better one counts. What the app responds may be what a user
made the model write: it can raise the figures that the app reports, never lower them, and it lowers no price.
Only under the provider's id of a call, which no client knows before the call is made, it also tells what the
app's report leaves open: the model, what it costs, as what it was processed.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from llm_usage.call_usage import COUNTED, RANKS, CallUsage, sum_calls
from llm_usage.listed_models import listed_name
from llm_usage.units import UNIT_OF, WHOLE_OF

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence


_ROUGH: Final = ("partial", "estimated")
_SEVERAL: Final = 2
# An estimate of a text may be so many times its tokens: docs/design/decisions/0031.
_ESTIMATE_MAX: Final = 3
_WHOLES: Final = frozenset({"input_tokens", "output_tokens"})
_DATED: Final = re.compile(r"-(?:\d{4}-?\d{2}-?\d{2}|latest)$")
_ID_PARTS: Final = re.compile(r"[-_]")
_BILLED: Final = {"billed_input_tokens": "input_tokens", "billed_output_tokens": "output_tokens"}


def join_reports(known: Sequence[CallUsage], more: Sequence[CallUsage]) -> list[CallUsage]:
    """The calls that two sides of the app report, each once. In doubt, two reports are of one call.

    Reports of one call: they name the same id; or one of them names none, and the figures are the same as far
    as both know them, or both are rough. A report without an id that comes to the same as all calls of the
    other side together is their sum, and no call of its own.

    Args:
        known: what one side says; the first among equals.
        more: what the other side says.
    """
    if not known or not more:
        return [*known, *more]
    left = list(known)
    pairs: list[CallUsage] = []
    alone: list[CallUsage] = []
    for call in more:
        at = next((at for at, other in enumerate(left) if _may_be_one(call, other)), None)
        if at is None:
            alone.append(call)
        else:
            pairs.append(_merge_reports(left.pop(at), call))
    alone = _without_sum(alone, known)
    return _without_sum(left, more) + pairs + alone


def join_response(
    own: Sequence[CallUsage], read: Sequence[CallUsage], requested: Callable[[], Sequence[str]] = tuple
) -> list[CallUsage]:
    """The calls that the app reports, and those that its response adds to them.

    A call in the response is one of the app's if it has the same id; or, whatever their ids, if the figures
    are the same or both are rough: apps pass on a provider's answer as their own. Two models under two ids
    of the provider are two calls nevertheless. A call that comes to the same as all calls of the other side
    together is their sum. Estimates of the response are of the app's calls, unless they are of far more
    output than those came to.

    Args:
        own: what the app reports.
        read: off its response.
        requested: gives the models that the request names; asked only where two calls name two models.
    """
    pairs: dict[int, CallUsage] = {}
    alone = list(read)

    def is_passed_on(known: CallUsage, call: CallUsage) -> bool:
        return _may_be_passed_on(known, call) and not _are_apart(known, call, requested)

    for is_one in (_have_same_id, is_passed_on):
        unpaired: list[CallUsage] = []
        for call in alone:
            places = (at for at, known in enumerate(own) if at not in pairs and is_one(known, call))
            at = next(places, None)
            if at is None:
                unpaired.append(call)
            else:
                pairs[at] = call
        alone = unpaired
    whole = _find_sum([call if at not in pairs else None for at, call in enumerate(own)], read)
    if whole is not None:
        pairs[whole], alone = sum_calls(read), []
    joined = [call if at not in pairs else _add_read(call, pairs[at]) for at, call in enumerate(own)]
    return joined + _without_estimates(_without_sum(alone, own, may_be_named=True), own)


def deduplicate_calls(calls: Iterable[CallUsage]) -> list[CallUsage]:
    """The calls that are reported under providers' ids, each once; those without an id are all kept.

    Of two reports of a call the better one stays, the first among equals, with what only the other one knows.
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


def _add_read(own: CallUsage, read: CallUsage) -> CallUsage:
    """The app's call with what its response adds to it."""
    is_named = _have_same_id(own, read)
    better = RANKS[read.source] - RANKS[own.source]
    more = _raise_figures(own, read, is_named=is_named) if better >= 0 else {}
    if not is_named:
        return replace(own, **more)
    names = ["model", "provider"]
    if own.reported_cost_micros is None and read.reported_cost_micros is not None:
        more["reported_cost_micros"] = read.reported_cost_micros
        more["provider"] = read.provider or own.provider  # Whose amount it is.
    more |= {name: getattr(read, name) for name in names if getattr(own, name) is None}
    more["context"] = tuple(sorted({**dict(read.context), **dict(own.context)}.items()))
    more["outlives"] = own.outlives or read.outlives
    if better > 0 and own.source == "estimated" and _figures_of(own).items() - _figures_of(read).items():
        more["snapshot"] = read
    elif better > 0:
        more |= {"source": read.source, "notes": read.notes, "snapshot": None}
    return replace(own, **more)


def _raise_figures(own: CallUsage, read: CallUsage, *, is_named: bool) -> dict[str, Any]:
    """The figures of the app's call, larger where its response has larger ones, with those that only it has.

    Parts of the input or output may be cheaper than the rest, such as what a cache has read. Without the
    call's id they do not count for its price, unless they are of input that the app has left out.
    """
    known, found = _figures_of(own), _figures_of(read)
    raised = found.get("input_tokens", 0) - known.get("input_tokens", 0)
    adds_cache = raised == sum(found.get(name, 0) for name in ("cached_input_tokens", "cache_write_tokens"))
    adds_cache &= "billed_input_tokens" not in known  # These have their price, whatever the input is.
    unproven: set[str] = set()
    for name, count in found.items():
        is_unproven = not is_named and name in WHOLE_OF
        if name in _BILLED:
            known[name] = max(count, known.get(name, known.get(_BILLED[name], 0)))
        elif name not in known:
            known[name] = count
            if is_unproven and not (adds_cache and "cache" in name):
                unproven.add(UNIT_OF.get(name, name))
        elif not is_unproven:
            known[name] = max(count, known[name])
    fields: dict[str, Any] = {name: known.pop(name) for name in COUNTED if name in known}
    return {**fields, "details": known, "unproven": frozenset(unproven)}


def _figures_of(call: CallUsage) -> dict[str, int]:
    """All figures that a call has, by the names of its fields and further units."""
    fields = ((name, getattr(call, name)) for name in COUNTED)
    return {**{name: count for name, count in fields if count is not None}, **call.details}


def _have_same_id(one: CallUsage, other: CallUsage) -> bool:
    return bool(one.response_id) and one.response_id == other.response_id


def _may_be_one(call: CallUsage, other: CallUsage) -> bool:
    if call.response_id and other.response_id:
        return call.response_id == other.response_id
    if call.source in _ROUGH and other.source in _ROUGH:
        return call.provider == other.provider
    return call.source == other.source and _have_same_figures(call, other)


def _may_be_passed_on(own: CallUsage, read: CallUsage) -> bool:
    """Whether a call in the response may be one that the app reports, under an id of the app's."""
    if own.source in _ROUGH and read.source in _ROUGH:
        return True
    return own.source == read.source and _have_same_figures(own, read)


def _are_apart(own: CallUsage, read: CallUsage, requested: Callable[[], Sequence[str]]) -> bool:
    """Whether a provider has certainly made two calls, of two of its models, although the figures are equal.

    An app's own answer has an id of another form than the provider's; or a model that is an alias, no model
    of the provider's, or what the request has named while another one answered.
    """
    if own.provider != read.provider or not own.model or not read.model:
        return False
    if own.model == read.model or not _have_alike_ids(own.response_id or "", read.response_id or ""):
        return False
    if not {read.model, ""}.isdisjoint(requested()):  # The empty text: it may name any model.
        return False
    names = {_DATED.sub("", listed_name(own.provider, model) or "") for model in (own.model, read.model)}
    return len(names) == _SEVERAL and "" not in names


def _have_alike_ids(one: str, other: str) -> bool:
    """Whether two ids are of one form, such as ``msg_`` and 24 characters."""
    if not one or len(one) != len(other):
        return False
    return _ID_PARTS.split(one)[:-1] == _ID_PARTS.split(other)[:-1]


def _have_same_figures(call: CallUsage, other: CallUsage) -> bool:
    """Whether the figures that both know are the same; some that count must be among them."""
    one, two = _known_figures(call), _known_figures(other)
    shared = one.keys() & two.keys()
    differing = {name for name in shared if one[name] != two[name]}
    if differing and (
        not differing <= _WHOLES or not (_is_other_measure(one, two) or _is_other_measure(two, one))
    ):
        return False
    return not shared.isdisjoint(_WHOLES) or call.quantities() == other.quantities()


def _is_other_measure(more: Mapping[str, int], less: Mapping[str, int]) -> bool:
    """Whether one report has the other's call in another measure.

    It has the tokens that the provider bills; or leaves out what a cache has read, or written, or both, or
    what the model has thought: Gemini's API counts thoughts apart.
    """
    entered, left = less.get("input_tokens"), less.get("output_tokens")
    if entered is None or left is None:
        return False
    if (entered, left) == (more.get("billed_input"), more.get("billed_output")):
        return True
    read, written = more.get("cache_read_tokens", 0), more.get("cache_write_tokens", 0)
    thought = more.get("output_reasoning_tokens", 0)
    is_input = more.get("input_tokens", entered) - entered in (0, read, written, read + written)
    return is_input and more.get("output_tokens", left) - left in (0, thought)


def _known_figures(call: CallUsage) -> dict[str, int]:
    billed = {"billed_input": call.billed_input_tokens, "billed_output": call.billed_output_tokens}
    return {**call.units, **{name: count for name, count in billed.items() if count is not None}}


def _find_sum(
    calls: Sequence[CallUsage | None], parts: Sequence[CallUsage], *, may_be_named: bool = False
) -> int | None:
    """The place of a call that has the sum of all parts; only one without an id, unless another may be."""
    if len(parts) < _SEVERAL:
        return None
    total = sum_calls(parts)
    for at, call in enumerate(calls):
        if call is None or (call.response_id and not may_be_named):
            continue
        if call.source == "reported" == total.source and _have_same_figures(call, total):
            return at
    return None


def _without_sum(
    calls: list[CallUsage], parts: Sequence[CallUsage], *, may_be_named: bool = False
) -> list[CallUsage]:
    at = _find_sum(calls, parts, may_be_named=may_be_named)
    return calls if at is None else [*calls[:at], *calls[at + 1 :]]


def _without_estimates(calls: list[CallUsage], known: Sequence[CallUsage]) -> list[CallUsage]:
    outputs = [call.output_tokens or 0 for call in known if call.source == "reported"]
    if not outputs:
        return calls
    bound = _ESTIMATE_MAX * sum(outputs)
    return [call for call in calls if call.source not in _ROUGH or (call.output_tokens or 0) > bound]


def _quality(call: CallUsage) -> tuple[int, int, bool]:
    return RANKS[call.source], call.total_tokens or 0, call.model is not None
