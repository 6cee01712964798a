"""Usage of one call of a language model, in one vocabulary for every API, and the names of models."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from llm_usage.listed_models import list_prices
from llm_usage.units import FIGURE_MAX, UNIT_OF, WHOLE_OF

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import datetime

    from llm_usage.published_factors import Context

Source = Literal["reported", "partial", "estimated", "missing"]
Note = Literal[
    "beyond_whole",  # a part was larger than what it is a part of, and counts as all of it
    "corrupt",  # a frame failed its checksum
    "encoding",  # the response is in a content coding that is not decoded here
    "ended_early",  # the response ended before any figure came
    "no_usage",  # the response ended without a figure
    "not_asked",  # likewise, as answers of its kind do that were not asked for figures
    "refused",  # a figure was no integer from 0 to 10^15 - 1 and was ignored
    "residual",  # the total named output tokens that the parts did not
    "summed",  # the figures of several calls together: prices by input length are the lowest
    "too_large",  # the response was larger than the bound
    "too_many_calls",  # calls beyond the bound were not counted
    "unreadable",  # something that should be JSON was not
]
WRITTEN_CHARS_MAX: Final = 2_048
"""Characters of a written name that count; the rest is cut off."""
_NAME_CHARS_MAX: Final = 256
_RESOURCE: Final = re.compile(
    r"(?:projects/[^/]+/locations/[^/]+/)?(?:publishers/[^/]+/)?models/(?P<google>[^/]+)"
    r"|arn:[^/]+:(?:foundation-model|inference-profile)/(?P<aws>.+)"
)
"""Names of resources that end in a model's name. Other resources, such as a provisioned model, stay whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallUsage:
    """Usage of one call. Of the figures None is unknown, 0 is a reported zero.

    Attributes:
        input_tokens: everything that went in, cache reads and writes included.
        output_tokens: everything that came out, reasoning included.
        cached_input_tokens: the part of the input that was read from a cache.
        cache_write_tokens: the part of the input that was written to a cache.
        reasoning_tokens: the part of the output that was reasoning.
        billed_input_tokens: what the provider says it bills, where that is a measure of its own (Cohere).
        billed_output_tokens: likewise for the output.
        details: further counters by the price table's unit: parts of the input or output, such as
            ``input_audio_tokens``, and others, such as ``web_searches``.
        context: how the provider processed the call, where that has a price: sorted pairs such as
            ``("service_tier", "priority")``.
        reported_cost_micros: what the provider says that it charges, in micro-units of US dollars.
        notes: what was odd about the figures, sorted.
        model: as the response names it, without its resource; None where it does not. The empty text is
            another model than the request's, which nothing names.
        provider: as OpenTelemetry names it (``openai``, ``aws.bedrock``), as far as the response shows it.
        response_id: the provider's id of the call; None where it has none.
        source: ``reported`` by the provider; ``partial``: the last report before the response ended early;
            ``estimated`` from texts; ``missing``: nothing is known, and ``notes`` say why.
        outlives: whether the provider may go on after the request, as with background responses: what it used
            is counted once under ``response_id``, wherever its end is seen.
        unproven: parts of the input or output, by unit, that only an app's own response names, and that may
            be what its user made the model write: they are counted, and do not lower the price.
        snapshot: of an estimate that goes beyond a provider's last report, that report.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_input_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    billed_input_tokens: int | None = None
    billed_output_tokens: int | None = None
    details: Mapping[str, int] = field(default_factory=dict[str, int], hash=False)
    context: Context = ()
    reported_cost_micros: Fraction | None = None
    notes: tuple[Note, ...] = ()
    model: str | None = None
    provider: str | None = None
    response_id: str | None = None
    source: Source
    outlives: bool = False
    unproven: frozenset[str] = field(default=frozenset(), repr=False)
    snapshot: CallUsage | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.model:
            object.__setattr__(self, "model", plain_name(self.model))

    @property
    def total_tokens(self) -> int | None:
        """Input and output together; None unless both are known and the sum is at most 10^15 - 1."""
        if self.input_tokens is None or self.output_tokens is None:
            return None
        total = self.input_tokens + self.output_tokens
        return total if total <= FIGURE_MAX else None

    @property
    def units(self) -> dict[str, int]:
        """Every counter that is known, by the price table's unit: each part within its whole."""
        found: dict[str, int] = {}
        for name, unit in _UNIT_FIGURES:
            count = getattr(self, name)
            if count is not None:
                found[unit] = count
        found.update(self.details)
        return found

    def cost(self, at: datetime) -> Fraction | None:
        """Provider's charge for the call at list prices, in micro-units of US dollars; exact.

        Args:
            at: when the model was called (aware): prices have dates.

        Returns:
            None where the tokens of only one direction are known, no figure at all, or no price of the model.

        Raises:
            LlmUsageError: the package ``genai-prices`` is not installed.
        """
        units = billed_units(self)
        if self.model is None or not units or ("input_tokens" in units) != ("output_tokens" in units):
            return None
        prices = list_prices(self.provider, self.model, at, self.context)
        return None if prices is None else prices.cost(units, is_sum="summed" in self.notes)

    def quantities(self) -> dict[str, int]:
        """The figures that are known, under the names of the meters they feed."""
        found = self.units
        for name in _FIGURES_AND_TOTAL:
            count = getattr(self, name)
            if count is not None:
                found[name] = count
        return found


def billed_units(call: CallUsage) -> dict[str, int]:
    """The counters that a provider charges for: its own measure of tokens where it has one."""
    units = call.units
    for unit in call.unproven:
        units.pop(unit, None)
    for unit, billed in (
        ("input_tokens", call.billed_input_tokens),
        ("output_tokens", call.billed_output_tokens),
    ):
        if billed is not None:
            units[unit] = billed
    return units


def cap_parts(figures: Mapping[str, int]) -> dict[str, int]:
    """The figures by their names or units; a part that is larger than its whole is as large as that."""
    found = dict(figures)
    for name, count in figures.items():
        most = figures.get(WHOLE_OF.get(name, name), count)
        if count > most:
            found[name] = most
    return found


RANKS: Final[Mapping[Source, int]] = {"reported": 3, "partial": 2, "estimated": 1, "missing": 0}
"""Rank of a source, the best highest."""
_PARTS: Final = ("cached_input_tokens", "cache_write_tokens", "reasoning_tokens")
_FIGURES: Final = ("input_tokens", "output_tokens", *_PARTS)
_FIGURES_AND_TOTAL: Final = (*_FIGURES, "total_tokens")
_UNIT_FIGURES: Final = tuple((name, UNIT_OF.get(name, name)) for name in _FIGURES)
COUNTED: Final = (*_FIGURES, "billed_input_tokens", "billed_output_tokens")


def figure(value: object) -> int | None:
    """An integer from 0 to 10^15 - 1, also where it is written as ``12.0``; None for anything else."""
    if type(value) is int:
        return value if 0 <= value <= FIGURE_MAX else None
    return figure(int(value)) if type(value) is float and value.is_integer() else None


def sum_calls(calls: Sequence[CallUsage]) -> CallUsage:
    """Several calls as one: what only some of them know is not known of it, and so with names that differ.

    Its source is the worst of theirs. Of further units it has what is known.

    Args:
        calls: one at least.
    """
    figures: dict[str, Any] = {}
    for name in COUNTED:
        values: list[int | None] = [getattr(call, name) for call in calls]
        figures[name] = None if None in values else min(sum(value or 0 for value in values), FIGURE_MAX)
    details = Counter[str]()
    for call in calls:
        details.update(call.details)
    shared: dict[str, Any] = {
        "context": calls[0].context if len({call.context for call in calls}) == 1 else ()
    }
    for name in ("model", "provider", "response_id"):
        names: set[str | None] = {getattr(call, name) for call in calls}
        shared[name] = names.pop() if len(names) == 1 else None
    reported = [call.reported_cost_micros for call in calls if call.reported_cost_micros is not None]
    shared["reported_cost_micros"] = sum(reported, Fraction(0)) if len(reported) == len(calls) else None
    sources: list[Source] = [call.source for call in calls]
    worst = min(sources, key=RANKS.__getitem__)
    summed: tuple[Note, ...] = ("summed",) if len(calls) > 1 else ()
    notes = tuple(sorted({note for call in calls for note in call.notes}.union(summed)))
    figures["details"] = {unit: min(count, FIGURE_MAX) for unit, count in details.items()}
    return replace(calls[0], **figures, **shared, source=worst, notes=notes, snapshot=None)


def is_pending(call: CallUsage) -> bool:
    """Whether a call may go on after its request, and has no figures yet."""
    return call.outlives and call.source == "missing"


def _has_zeros(call: CallUsage) -> bool:
    return call.input_tokens == call.output_tokens == 0 and not any(call.details.values())


def fill_estimates(
    calls: Sequence[CallUsage], *, input_tokens: Callable[[], int], output_tokens: int, at_least: int = 0
) -> tuple[CallUsage, ...]:
    """The calls of an answer that was cut, or has ended, with estimates where figures are lacking.

    Args:
        calls: as far as they are known; it is the last of them that may lack some.
        input_tokens: estimates the request; called only where that is needed.
        output_tokens: estimated of the text that no figures cover.
        at_least: output tokens of a call that was made, whatever its text: 1 where it was cut. With 0, a call
            without figures, or with zeros before its end, and without text stays as it is.
    """
    if not calls:
        return ()
    *before, last = calls
    if is_pending(last) and not ("ended_early" in last.notes and output_tokens):
        return tuple(calls)
    # Some servers say zeros in each chunk before the last.
    is_unknown = last.source == "missing" or (last.source == "partial" and _has_zeros(last))
    more = max(at_least, output_tokens) if is_unknown else output_tokens
    if not more:
        return tuple(calls)
    if last.source not in ("missing", "partial"):
        # The next call had begun; what went into it is not known.
        before.append(last)
        last = CallUsage(model=last.model, provider=last.provider, input_tokens=0, source="estimated")
    entered = last.input_tokens
    if not entered and last.source != "estimated":
        entered = input_tokens()
    left = min((last.output_tokens or 0) + more, FIGURE_MAX)
    snapshot = last if last.source == "partial" else None
    return (
        *before,
        replace(last, input_tokens=entered, output_tokens=left, source="estimated", snapshot=snapshot),
    )


def plain_name(written: str) -> str | None:
    """A model's name without blanks around it, and without its resource; None: nothing is left of it."""
    name = written[:WRITTEN_CHARS_MAX]
    if not name.isprintable():
        name = "".join(letter for letter in name if letter.isprintable())
    name = name.strip()
    found = _RESOURCE.fullmatch(name) if "/" in name else None
    if found is not None:
        name = found["google"] or found["aws"]
    return name[:_NAME_CHARS_MAX].strip() or None


T = TypeVar("T")
NAMES_MAX: Final = 8


def names_of(written: Iterable[str]) -> tuple[str, ...]:
    """Each name once; of many the first and the last ones, which are those that readers of repeats take."""
    found = (plain_name(text) for text in first_and_last(written))
    return tuple(dict.fromkeys(name for name in found if name is not None))


def first_and_last(written: Iterable[T]) -> Sequence[T]:
    """Each once; of many the first and the last ones."""
    found = list(dict.fromkeys(written))
    half = NAMES_MAX // 2
    return found if len(found) <= NAMES_MAX else (*found[:half], *found[-half:])
