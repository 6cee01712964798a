"""What one call of a language model used, in one vocabulary for every API."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final, Literal

from meterkit.catalog.models import QUANTITY_MAX
from meterkit.tokens.provider_prices import prices_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from meterkit.tokens.provider_prices import TokenPrices

Source = Literal["reported", "partial", "estimated", "missing"]
Note = Literal[
    "corrupt",  # a frame failed its checksum
    "encoding",  # the response is in a content coding that is not decoded here
    "ended_early",  # the response ended before any figure came
    "no_usage",  # the response ended without a figure
    "not_asked",  # likewise, as answers of its kind do that were not asked for figures
    "refused",  # a figure was no integer from 0 to 10^15 - 1 and was ignored
    "residual",  # the total named output tokens that the parts did not
    "too_large",  # the response was larger than the bound
    "too_many_calls",  # calls beyond the bound were not counted
    "unreadable",  # something that should be JSON was not
]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallUsage:
    """What one call used. Of the figures None is unknown, 0 is a reported zero.

    Attributes:
        input_tokens: everything that went in, cache reads and writes included.
        output_tokens: everything that came out, reasoning included.
        cached_input_tokens: the part of the input that was read from a cache.
        cache_write_tokens: the part of the input that was written to a cache.
        reasoning_tokens: the part of the output that was reasoning.
        billed_input_tokens: what the provider says it bills, where that is a measure of its own (Cohere).
        billed_output_tokens: likewise for the output.
        notes: what was odd about the figures, sorted.
        model: as the response names it; None where it does not.
        provider: as OpenTelemetry names it (``openai``, ``aws.bedrock``), as far as the response shows it.
        response_id: the provider's id of the call; None where it has none.
        source: ``reported`` by the provider; ``partial``: the last report before the response ended early;
            ``estimated`` from texts; ``missing``: nothing is known, and ``notes`` say why.
        outlives: whether the provider goes on after the request, as with background responses: what it used
            is counted once under ``response_id``, wherever its end is seen.
        cost_micros: of what ``record_usage`` has counted, what the provider charges, in micro-units of US
            dollars, exactly; None: not known, or nothing asks for it. Not compared.
        charged_micros: likewise what the customer's balance in money is charged; None: there is none.
        revenue_micros: likewise what the customer pays for it: overage at its price, and what the balance
            has paid, in micro-units of the currency; None: not known, as where the store was away or had
            counted it before. Not compared.
        snapshot: of an estimate that goes beyond a provider's last report, that report. It is billed in
            place of the estimate where ``billing.sources`` leaves out ``estimated``.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_input_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    billed_input_tokens: int | None = None
    billed_output_tokens: int | None = None
    notes: tuple[Note, ...] = ()
    model: str | None = None
    provider: str | None = None
    response_id: str | None = None
    source: Source
    outlives: bool = False
    cost_micros: Fraction | None = field(default=None, repr=False, compare=False)
    charged_micros: Fraction | None = field(default=None, repr=False, compare=False)
    revenue_micros: Fraction | None = field(default=None, repr=False, compare=False)
    snapshot: CallUsage | None = field(default=None, repr=False, compare=False)

    @property
    def total_tokens(self) -> int | None:
        """Input and output together; None unless both are known and the sum is at most 10^15 - 1."""
        if self.input_tokens is None or self.output_tokens is None:
            return None
        total = self.input_tokens + self.output_tokens
        return total if total <= QUANTITY_MAX else None

    def cost(self, at: datetime) -> Fraction | None:
        """What the provider charges for the call by its list prices, in micro-units of US dollars; exact.

        It is that of the tokens and of the request: searches, pages, seconds and discounts are not in it. A
        model without a known price costs the highest prices of its provider, which is logged once.

        Args:
            at: when the model was called (aware): prices have dates.

        Returns:
            None where a figure, the model, or the provider's prices are not known.

        Raises:
            MeterkitError: the extra ``prices`` is not installed.
        """
        if None in charged_tokens(self) or self.model is None:
            return None
        prices = prices_of(self.provider, self.model, at)
        return None if prices is None else cost_at(prices, self)

    def quantities(self) -> dict[str, int]:
        """The figures that are known, under the names of the meters they feed."""
        named = {name: getattr(self, name) for name in _METERS}
        return {name: value for name, value in named.items() if value is not None}


def charged_tokens(call: CallUsage) -> tuple[int | None, int | None]:
    """The tokens of the input and of the output that a provider charges for; None: not known."""
    entered, left = call.billed_input_tokens, call.billed_output_tokens
    return call.input_tokens if entered is None else entered, call.output_tokens if left is None else left


def cost_at(prices: TokenPrices, call: CallUsage) -> Fraction:
    """What a call costs at some prices, in micro-units; figures that are not known count as 0."""
    return sum(costs_at(prices, call).values(), Fraction(0))


def costs_at(prices: TokenPrices, call: CallUsage) -> dict[str, Fraction]:
    """The same by kind of token."""
    entered, left = charged_tokens(call)
    return prices.costs(
        entered=entered or 0,
        left=left or 0,
        cached=call.cached_input_tokens or 0,
        written=call.cache_write_tokens or 0,
        reasoning=call.reasoning_tokens or 0,
    )


RANKS: Final[Mapping[Source, int]] = {"reported": 3, "partial": 2, "estimated": 1, "missing": 0}
"""How good a source is."""
_PARTS: Final = ("cached_input_tokens", "cache_write_tokens", "reasoning_tokens")
_METERS: Final = ("input_tokens", "output_tokens", *_PARTS, "total_tokens")
COUNTED: Final = ("input_tokens", "output_tokens", *_PARTS, "billed_input_tokens", "billed_output_tokens")


def figure(value: object) -> int | None:
    """An integer from 0 to 10^15 - 1, also where it is written as ``12.0``; None for anything else."""
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value <= QUANTITY_MAX else None


def sum_of(calls: Sequence[CallUsage]) -> CallUsage:
    """Several calls as one: what only some of them know is not known of it, and so with names that differ.

    Its source is the worst of theirs.

    Args:
        calls: one at least.
    """
    figures: dict[str, Any] = {}
    for name in COUNTED:
        values: list[int | None] = [getattr(call, name) for call in calls]
        figures[name] = None if None in values else min(sum(value or 0 for value in values), QUANTITY_MAX)
    shared: dict[str, Any] = {}
    for name in ("model", "provider", "response_id"):
        names: set[str | None] = {getattr(call, name) for call in calls}
        shared[name] = names.pop() if len(names) == 1 else None
    sources: list[Source] = [call.source for call in calls]
    worst = min(sources, key=RANKS.__getitem__)
    notes = tuple(sorted({note for call in calls for note in call.notes}))
    return replace(calls[0], **figures, **shared, source=worst, notes=notes, snapshot=None)


def filled(
    calls: Sequence[CallUsage], *, input_tokens: Callable[[], int], output_tokens: int, at_least: int = 0
) -> tuple[CallUsage, ...]:
    """The calls of an answer that was cut, or has ended, with estimates where figures are lacking.

    Args:
        calls: as far as they are known; it is the last of them that may lack some.
        input_tokens: estimates the request; called only where that is needed.
        output_tokens: estimated of the text that no figures cover.
        at_least: output tokens of a call that was made, whatever its text: 1 where it was cut. With 0, a call
            without figures and without text stays as it is.
    """
    if not calls:
        return ()
    *before, last = calls
    if last.outlives and last.source == "missing":
        return tuple(calls)
    more = max(at_least, output_tokens) if last.source == "missing" else output_tokens
    if not more:
        return tuple(calls)
    if last.source not in ("missing", "partial"):
        # The next call had begun; what went into it is not known.
        before.append(last)
        last = CallUsage(model=last.model, provider=last.provider, input_tokens=0, source="estimated")
    entered = input_tokens() if last.input_tokens is None else last.input_tokens
    left = min((last.output_tokens or 0) + more, QUANTITY_MAX)
    snapshot = last if last.source == "partial" else None
    return (
        *before,
        replace(last, input_tokens=entered, output_tokens=left, source="estimated", snapshot=snapshot),
    )
