"""What one request has seen of calls of language models, and what they amount to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from meterkit.catalog.models import QUANTITY_MAX
from meterkit.store.used import Used
from meterkit.tokens.merging import each_once, join_reports
from meterkit.tokens.objects import Reports

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from meterkit.asgi.reading import Reading
    from meterkit.store.compiled import CompiledCatalog
    from meterkit.tokens.call_usage import CallUsage

__all__ = ["LlmCalls", "dimensions_of", "used_by_model"]

_Key: TypeAlias = tuple[str | None, str | None]
"""Model and provider; both None for usage that is counted whatever it is of."""
_Amounts: TypeAlias = dict[tuple[_Key, bool, str], int]
"""Quantities by key, whether they are billed (else rated), and meter."""

_ALL: Final[_Key] = (None, None)


class LlmCalls:
    """The calls that a request's response, its taps and its app report, each counted once.

    Args:
        reading: of the response; None where its route reads none.
    """

    __slots__ = ("_body", "_counted", "_taps", "reading", "reports")

    def __init__(self, reading: Reading | None = None) -> None:
        self.reading = reading
        self.reports = Reports()
        self._taps: list[CallUsage] = []
        self._body: tuple[CallUsage, ...] = ()
        self._counted: _Amounts = {}

    def input_tokens(self) -> int:
        """Estimated tokens of the request; 0 where the route does not keep it."""
        return 0 if self.reading is None else self.reading.input_tokens()

    def take_tap(self, calls: tuple[CallUsage, ...]) -> None:
        """Take what a tap has seen; see :class:`meterkit.tokens.tap.StreamTap`."""
        self._taps += calls

    def end(self, *, complete: bool, gone: bool) -> tuple[CallUsage, ...]:
        """The response is over; see :meth:`meterkit.asgi.reading.Reading.close`.

        Returns:
            What was read off it, but for what it lacks and the app has reported.
        """
        if self.reading is not None:
            self._body = self.reading.close(complete=complete, gone=gone)
        if any(call.source == "reported" for call in (*self.reports.usages(), *self._taps)):
            return tuple(call for call in self._body if call.source in ("reported", "partial"))
        return self._body

    def uncounted(self, compiled: CompiledCatalog) -> list[Used]:
        """What is to be counted by now and was not yet: by model and provider where meters ask for them.

        What is reported late is counted on top of what was. Nothing is taken back: where a later report
        amounts to less, it counts nothing.
        """
        calls: Sequence[CallUsage] = join_reports(self.reports.usages(), self._taps)
        calls = join_reports(calls, self._body, renamed=True) if calls else self._body
        more = _amounts(each_once(calls) if len(calls) > 1 else calls, compiled)
        if self._counted:
            more = _beyond(self._counted, more)
        for place, quantity in more.items():
            self._counted[place] = self._counted.get(place, 0) + quantity
        return _used(more)


def used_by_model(calls: Iterable[CallUsage], compiled: CompiledCatalog) -> list[Used]:
    """What calls come to: by model and provider where meters ask for them."""
    return _used(_amounts(calls, compiled))


def dimensions_of(model: str | None, provider: str | None) -> dict[str, str]:
    """What meters that are derived from others look at."""
    return {name: value for name, value in (("model", model), ("provider", provider)) if value}


def _used(amounts: _Amounts) -> list[Used]:
    found: dict[_Key, tuple[dict[str, int], dict[str, int]]] = {}
    for (key, billed, meter), quantity in amounts.items():
        recorded, rated = found.setdefault(key, ({}, {}))
        (recorded if billed else rated)[meter] = quantity
    return [Used(*quantities, dimensions_of(*key)) for key, quantities in found.items()]


def _amounts(calls: Iterable[CallUsage], compiled: CompiledCatalog) -> _Amounts:
    """What calls amount to, on the meters that are declared as plain counters."""
    plain, by_model, sources = compiled.counters, compiled.derives, compiled.catalog.billing.sources
    found: _Amounts = {}
    for call in calls:
        key = (call.model, call.provider) if by_model else _ALL
        for meter, quantity in call.quantities().items():
            if quantity and meter in plain:
                for billed in (True, False) if call.source in sources else (False,):
                    place = (key, billed, meter)
                    found[place] = min(found.get(place, 0) + quantity, QUANTITY_MAX)
    return found


def _beyond(counted: _Amounts, found: _Amounts) -> _Amounts:
    """What was found beyond what was counted: of each key, and never more than of all keys together."""
    left: dict[tuple[bool, str], int] = {}
    for amounts, sign in ((found, 1), (counted, -1)):
        for (_, billed, meter), quantity in amounts.items():
            left[billed, meter] = left.get((billed, meter), 0) + sign * quantity
    more: _Amounts = {}
    for (key, billed, meter), quantity in found.items():
        place = (key, billed, meter)
        added = min(quantity - counted.get(place, 0), left[billed, meter])
        if added > 0:
            more[place] = added
            left[billed, meter] -= added
    return more
