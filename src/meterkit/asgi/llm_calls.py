"""Model calls of one request, each counted once: read from its response and taps, or reported by the app."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias
from weakref import ref

from llm_usage import CallUsage
from llm_usage.batch_lines import call_event_id
from llm_usage.call_usage import fill_estimates
from llm_usage.joined_reports import deduplicate_calls, join_reports, join_response
from llm_usage.json_values import short_id
from llm_usage.objects import UsageReports
from meterkit.catalog.model_prices import first_match, is_pattern
from meterkit.decisions.periods import from_ms
from meterkit.store.call_amounts import (
    ALL_CALLS,
    Amounts,
    amounts_beyond,
    amounts_of,
    call_of_figures,
    used_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from weakref import ReferenceType

    from llm_usage import StreamTap
    from meterkit.asgi.response_usage import ResponseUsage
    from meterkit.catalog import Route
    from meterkit.store.compiled_catalog import CompiledCatalog
    from meterkit.store.settlement_parts import UsedQuantities

_KEPT: Final = 64, 16
"""Counted calls that are kept at most, and how many of each side once these are exceeded."""
_READ_KEPT: Final = 16, 8
"""Counted calls that are kept where the app reports no call itself, likewise."""

_STORED: Final = ("chatcmpl-", "resp_")
"""Beginnings of the ids of responses that OpenAI stores, shows again, and changes the metadata of."""

NameCalls: TypeAlias = "Callable[[Sequence[CallUsage]], Sequence[CallUsage]]"
"""Gives calls what they lack: model and provider; see :func:`meterkit.asgi.llm_calls.name_calls`."""
RequestedModels: TypeAlias = "Callable[[], Sequence[str]]"
"""Gives the models that a request names."""


class OpenTap(NamedTuple):
    """Tap of a stream that is being read.

    Attributes:
        tap_ref: weak, as a tap reports once it is collected.
        snapshot: calls of the stream that were added before its end.
    """

    tap_ref: ReferenceType[StreamTap[Any]]
    snapshot: tuple[CallUsage, ...] = ()


class LlmCalls:
    """Calls that a request's response, its taps and its app report, each counted once.

    Args:
        reading: of the response; None where its route reads none.
        path: of the request, which may name a stored response.

    Attributes:
        fetched: the one call in a response that was taken for a stored one, once it is ended.
    """

    __slots__ = (
        "_body",
        "_counted",
        "_fields",
        "_open_taps",
        "_path",
        "_taps",
        "fetched",
        "reading",
        "reports",
    )

    def __init__(self, reading: ResponseUsage | None = None, path: str = "") -> None:
        self.reading = reading
        self._path = path
        self.fetched: CallUsage | None = None
        self.reports = UsageReports()
        self._taps: list[CallUsage] = []
        self._open_taps: dict[object, OpenTap] = {}
        self._body: tuple[CallUsage, ...] = ()
        self._counted: Amounts = {}
        self._fields: Mapping[str, int] = {}

    def input_tokens(self) -> int:
        """Estimated tokens of the request; 0 where the route does not keep it."""
        return 0 if self.reading is None else self.reading.input_tokens()

    @property
    def has_text(self) -> bool:
        """Whether a model's text was seen in the response."""
        return self.reading is not None and self.reading.has_text

    @property
    def unread_figure(self) -> str | None:
        """Path of a token figure in the response that is not read; None if the app reported usage."""
        if self.reading is None or self.reading.is_fetched or self._taps or self.reports.usages():
            return None
        return self.reading.unread_figure

    def open_tap(self, key: object, tap: StreamTap[Any]) -> None:
        """Note a stream that is being read; see :meth:`snapshot_taps`."""
        self._open_taps[key] = OpenTap(ref(tap))

    def add_tap(self, key: object, calls: tuple[CallUsage, ...]) -> None:
        """Add the calls of a tapped stream; see :class:`llm_usage.tap.StreamTap`."""
        known = self._open_taps.pop(key, None)
        if known is not None and known.snapshot:
            self._taps = [call for call in self._taps if all(call is not one for one in known.snapshot)]
        self._taps += calls

    def add_read(self, calls: Sequence[CallUsage]) -> None:
        """Add calls that a message of an open websocket has reported, in place of those of the same ids."""
        names = {call.response_id for call in calls if call.response_id}
        self._body = (*(call for call in self._body if call.response_id not in names), *calls)

    def snapshot_taps(self) -> None:
        """Add the calls of streams that have not ended by what was read of them; their end replaces this.

        The generator around a tap may be in a reference cycle: then only the garbage collector ends it.
        """
        for key, (tap_ref, _) in tuple(self._open_taps.items()):
            tap = tap_ref()
            if tap is not None:
                calls = tap.snapshot(self.input_tokens)
                self._open_taps[key] = OpenTap(tap_ref, calls)
                self._taps += calls

    def estimate_cancelled_call(self) -> None:
        """Estimate the prompt of a call that was cancelled before it answered, unless usage is known."""
        if self.reading is None or self._taps or self.reports.usages():
            return
        asked = CallUsage(source="missing")
        self._taps += fill_estimates((asked,), input_tokens=self.input_tokens, output_tokens=0, at_least=1)

    def end(self, *, complete: bool, gone: bool) -> tuple[CallUsage, ...]:
        """End the response; see :meth:`meterkit.asgi.response_usage.ResponseUsage.close`.

        Returns:
            The usage read from it, completed by the app's own reports.
        """
        if self.reading is not None:
            # With some servers a client chooses the id of a response that it asks for.
            may_be_stored = any(name in self._path for name in _STORED) and not self.reading.asks_model()
            self._body = self.reading.close(complete=complete, gone=gone)
            self._fields = self.reading.figures
            if self.reading.is_fetched or may_be_stored:
                stored = [call for call in self._body if not call.outlives and self._is_stored(call)]
                self._body = tuple(call for call in self._body if call not in stored)
                self.fetched = stored[0] if len(stored) == 1 else None
        if any(call.source == "reported" for call in (*self.reports.usages(), *self._taps)):
            self.fetched = None
            return tuple(call for call in self._body if call.source in ("reported", "partial"))
        return self._body

    def _is_stored(self, call: CallUsage) -> bool:
        """Whether a call in the response was made by an earlier request, which has counted it."""
        if self.reading is not None and self.reading.is_fetched:
            return True
        name = call.response_id or ""
        return name.startswith(_STORED) and name in map(short_id, self._path.split("/"))

    def uncounted(
        self, compiled: CompiledCatalog, name: NameCalls, requested: RequestedModels
    ) -> list[UsedQuantities]:
        """Count the usage that was not counted before, by model and provider where meters filter by them.

        Late usage is counted on top. A later report that amounts to less counts nothing.

        Args:
            compiled: knows the meters.
            name: gives each call its model and provider, as the route and the request have them.
            requested: gives the models that the request names.
        """
        more = self._sum_amounts(compiled, name, requested)
        if self._counted:
            more = amounts_beyond(self._counted, more)
        for place, amount in more.items():
            self._counted[place] = self._counted.get(place, 0) + amount
        return used_of(more, compiled)

    def reprice(self, compiled: CompiledCatalog, name: NameCalls, requested: RequestedModels) -> None:
        """Value the counted calls by another plans file, so that none of them is counted once more."""
        if self._counted:
            self._counted = self._sum_amounts(compiled, name, requested)

    def forget_oldest(self, compiled: CompiledCatalog, name: NameCalls, requested: RequestedModels) -> None:
        """Forget the oldest counted calls once there are many: a websocket or a task may last for days."""
        reported = len(self.reports) + len(self._taps)
        is_read_only = not (reported or self._open_taps)
        most, least = _READ_KEPT if is_read_only else _KEPT
        if len(self._body) + reported <= most or any(tap.snapshot for tap in self._open_taps.values()):
            return
        self.reports.keep_newest(least)
        self._taps = self._taps[-least:]
        # Reports and what is read of the same calls go together.
        forgotten = reported - len(self.reports) - len(self._taps)
        self._body = self._body[-min(least, max(least // 2, len(self._body) - forgotten)) :]
        self._counted = self._sum_amounts(compiled, name, requested)

    def _sum_amounts(self, compiled: CompiledCatalog, name: NameCalls, requested: RequestedModels) -> Amounts:
        """Add up all calls that end with their request, and the figures of ``usage_fields``."""
        joined = [call for call in self._joined_calls(requested) if call_event_id(call) is None]
        calls = self._name_unpriced(name(joined), joined, compiled)
        more = amounts_of(calls, compiled, has_figures=bool(self._fields))
        figures = call_of_figures(self._fields, compiled) if compiled.charges else None
        if figures is not None:  # Its tokens are counted below, as they stand.
            for place, amount in amounts_of(name([figures]), compiled).items():
                if place[2] in compiled.charges or place[2] not in compiled.counters:
                    more[place] = more.get(place, 0) + amount
        for meter, quantity in self._fields.items():
            if quantity and meter in compiled.counters:
                more[ALL_CALLS, True, meter] = more[ALL_CALLS, False, meter] = quantity
        return more

    def outliving(self, name: NameCalls, requested: RequestedModels) -> dict[str, CallUsage]:
        """Calls that outlive their request, by the event ids under which they are counted."""
        outliving = [call for call in self._joined_calls(requested) if call.outlives]
        named = {call_event_id(call): call for call in (name(outliving) if outliving else ())}
        return {name: call for name, call in named.items() if name is not None}

    def _name_unpriced(
        self, calls: Sequence[CallUsage], joined: Sequence[CallUsage], compiled: CompiledCatalog
    ) -> Sequence[CallUsage]:
        """Name the model of the app's calls by its response where neither the app nor the request names it.

        A client may have chosen that name: it counts only where nothing would be charged otherwise.
        """
        if not compiled.charges or all(call.model is not None for call in calls):
            return calls
        alone = set(map(id, joined))
        taken = (call for call in self._body if id(call) not in alone and call_event_id(call) is None)
        names = [call.model for call in taken if call.model is not None]
        at = from_ms(compiled.now_ms())
        return [
            replace(call, model=dearest_name(call, names, compiled))
            if call.model is None and any(one.amount(call, at) is None for one in compiled.charges.values())
            else call
            for call in calls
        ]

    def _joined_calls(self, requested: RequestedModels) -> Sequence[CallUsage]:
        read = deduplicate_calls(self._body) if len(self._body) > 1 else self._body
        reported = self.reports.usages()
        if not (reported or self._taps):
            return read
        return join_response(deduplicate_calls(join_reports(reported, self._taps)), read, requested)


def name_calls(
    calls: Sequence[CallUsage],
    requested: RequestedModels,
    provider: str | None,
    compiled: CompiledCatalog,
) -> Sequence[CallUsage]:
    """Name the model of calls by their request, where the response names none.

    Args:
        calls: of one request.
        requested: the models that the request may be of; called only where a call has no model.
        provider: that the route names, over what the shape of an answer suggests; None: it names none.
        compiled: knows what models cost.
    """
    if provider is not None:
        calls = [replace(call, provider=provider) for call in calls]
    for call in calls:
        if call.model is None:
            break
    else:
        return calls
    names = requested()
    return [
        call if call.model is not None else replace(call, model=dearest_name(call, names, compiled))
        for call in calls
    ]


def called_models(route: Route, named: Sequence[str]) -> Sequence[str]:
    """Names of models that a call may be of whose answer names none; none: not known.

    Args:
        route: of the request.
        named: the models that the request names.
    """
    own = route.own_models
    if not own:
        return named
    names = [model for model in own if not is_pattern(model)]
    return (*names, *(model for model in named if first_match(own, model) and model not in names))


def dearest_name(call: CallUsage, names: Sequence[str], compiled: CompiledCatalog) -> str | None:
    """Find the most expensive of the named models: a client may name more than one.

    If their prices are equal or unknown, it is one that derived meters count, otherwise the first. None: no
    model is named, or the request could not be read: prices by model then take their highest.
    """
    if len(names) <= 1:
        return (names[0] or None) if names else None
    if "" in names and compiled.has_model_prices and not compiled.charges:
        return None
    at = from_ms(compiled.now_ms())
    costs = compiled.call_costs()

    def cost_at(name: str) -> tuple[Fraction | int, Fraction, int]:
        cost = 0 if costs is None else sum(costs.of(replace(call, model=name), at).values())
        return cost, _price_of_tables(name, compiled), _derived_meters(name, compiled)

    return max(names, key=cost_at)


def _price_of_tables(name: str, compiled: CompiledCatalog) -> Fraction:
    """The sum of a model's prices in all tables of the plans file."""
    catalog = compiled.catalog
    found = Fraction(
        sum(table.of(name) for one in catalog.credits.values() for table in one.by_model.values())
    )
    for plan in catalog.all_plans:
        for given in plan.entitlements.values():
            if given.overage.rows is not None:
                found += plan.entitlements[given.overage.rows.of(name)].overage.unit_price
    return found


def _derived_meters(name: str, compiled: CompiledCatalog) -> int:
    """Count the derived meters that a model is counted on."""
    patterns = (meter.where.get("model") for meter in compiled.catalog.meters.values())
    return sum(pattern is not None and fnmatchcase(name, pattern) for pattern in patterns)
