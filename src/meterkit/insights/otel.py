"""OpenTelemetry metrics and span attributes, through the app's global providers."""

from __future__ import annotations

import os
import sys
from collections import Counter
from fractions import Fraction
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final
from weakref import WeakSet

from meterkit.insights.audit.draining import noted_backlogs
from meterkit.insights.process_readings import LANE_FIGURES, spools_by_state
from meterkit.metric_tallies import all_tallies
from meterkit.store.spool_file import list_spools

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from opentelemetry.metrics import CallbackOptions, Observation

    from meterkit.insights.process_readings import SpoolsInState
    from meterkit.metric_tallies import Tallies
    from meterkit.redis.lane import Lane
    from meterkit.store.spool_file import SpoolInfo, SpoolState
    from meterkit.store.store import Store

    MarkSpan = Callable[[str | None, str | None, bool], None]
    _ByModel = Mapping[tuple[str, str], Fraction]
    Observe = Callable[[CallbackOptions], Iterable[Observation]]

_PROVIDER_VARIABLES: Final = ("OTEL_PYTHON_METER_PROVIDER", "OTEL_PYTHON_TRACER_PROVIDER")
_observed: WeakSet[Store] = WeakSet()


def observe_store(store: Store) -> None:
    """Count a store's decisions and mark spans, through the global providers.

    Nothing is done where the API is not installed, or no provider has been set: FastAPI brings the API along.
    An app that sets a provider has imported the API, or names the provider in a variable.
    """
    if "opentelemetry" not in sys.modules and not any(map(os.environ.get, _PROVIDER_VARIABLES)):
        return
    try:
        if find_spec("opentelemetry.metrics") is None:
            return
    except ModuleNotFoundError:
        return
    from opentelemetry.metrics import get_meter_provider  # noqa: PLC0415 - an extra, looked for above
    from opentelemetry.trace import get_tracer_provider  # noqa: PLC0415 - likewise

    if _is_set(get_meter_provider()):
        _observed.add(store)
        _make_instruments()
        store.tally()
    if _is_set(get_tracer_provider()):
        store.mark_span = _span_marker()


def _is_set(provider: object) -> bool:
    """Whether it is more than the API's own, which does nothing."""
    return not type(provider).__module__.startswith(("opentelemetry.metrics", "opentelemetry.trace"))


@cache
def _span_marker() -> MarkSpan:
    """Callback that sets the attributes of a decision on the current span, if it is recorded."""
    from opentelemetry.trace import get_current_span  # noqa: PLC0415 - an extra, looked for above

    def mark_span(plan: str | None, reason: str | None, is_degraded: bool) -> None:
        span = get_current_span()
        if not span.is_recording():
            return
        span.set_attribute("meterkit.plan", plan or "none")
        if reason is not None:
            span.set_attribute("meterkit.reason", reason)
        if is_degraded:
            span.set_attribute("meterkit.degraded", value=True)

    return mark_span


@cache  # Instruments are the process's, whatever kits come and go.
def _make_instruments() -> None:
    """Requests, decisions, how the stores are reached, and what waits in this process and on this host."""
    from opentelemetry import metrics  # noqa: PLC0415 - an extra, looked for above
    from opentelemetry.metrics import Observation  # noqa: PLC0415 - likewise

    def requests(_: CallbackOptions) -> Iterable[Observation]:
        found: Counter[tuple[str, str, str]] = Counter()
        for tallies in all_tallies():
            found.update(dict(tallies.requests))
        for (plan, outcome, reason), number in found.items():
            labels = {"meterkit.plan": plan, "meterkit.outcome": outcome, "meterkit.reason": reason}
            yield Observation(number, labels)

    def of_tallies(count: Callable[[Tallies], float]) -> Observe:
        return lambda _: [Observation(sum(map(count, all_tallies())))]

    def excess(_: CallbackOptions) -> Iterable[Observation]:
        found = sum((tallies.excess for tallies in all_tallies()), Counter[str]())
        return [Observation(units, {"meterkit.meter": meter}) for meter, units in found.items()]

    def of_lanes(count: Callable[[Sequence[Lane]], int]) -> Observe:
        return lambda _: [Observation(count(_lanes()))]

    def of_spools(figure: Callable[[SpoolsInState], float]) -> Observe:
        return lambda _: [
            Observation(figure(found), {"meterkit.state": state}) for state, found in _spools().items()
        ]

    # Of the audit logs that this process drains, as it saw them within the last seconds.
    def undrained(_: CallbackOptions) -> Iterable[Observation]:
        found = noted_backlogs(list(_observed)).values()
        return [Observation(sum(one.entries for one in found))] if found else []

    def undrained_age(_: CallbackOptions) -> Iterable[Observation]:
        found = noted_backlogs(list(_observed)).items()
        ages = [backlog.age_s(store.now_ms()) for store, backlog in found]
        return [Observation(max(ages))] if ages else []

    def task_failures(_: CallbackOptions) -> Iterable[Observation]:
        found = sum((store.task_failures for store in list(_observed)), Counter[str]())
        return [Observation(number, {"meterkit.task": name}) for name, number in found.items()]

    meter = metrics.get_meter("meterkit")
    for name, counted, unit in (
        ("requests", requests, "{request}"),
        ("requests.degraded", of_tallies(lambda tallies: tallies.degraded), "{request}"),
        ("units.beyond_limits", excess, "{unit}"),
        ("decisions", of_tallies(lambda tallies: sum(tallies.durations)), "{decision}"),
        ("decisions.duration", of_tallies(lambda tallies: tallies.duration_s), "s"),
        ("background.failures", task_failures, "{failure}"),
        ("llm.cost", _of_models(_costs), "{micro_usd}"),
        ("llm.charged", _of_models(_charges), "{micro_usd}"),
        ("unpriced.calls", _of_models(_unpriced_calls), "{call}"),
        ("revenue", _observe_revenue, "{micro_unit}"),
    ):
        meter.create_observable_counter(f"meterkit.{name}", [counted], unit=unit)
    for figure in LANE_FIGURES:
        create = meter.create_observable_counter if figure.only_grows else meter.create_observable_gauge
        create(f"meterkit.{figure.name}", [of_lanes(figure.of)])
    meter.create_observable_gauge("meterkit.spool.size", [of_spools(lambda found: found.size)], unit="By")
    meter.create_observable_gauge("meterkit.spool.age", [of_spools(lambda found: found.age_s)], unit="s")
    meter.create_observable_gauge("meterkit.audit.waiting", [undrained], unit="{entry}")
    meter.create_observable_gauge("meterkit.audit.age", [undrained_age], unit="s")


def _costs(tallies: Tallies) -> _ByModel:
    return {key: cost for key, (cost, _) in dict(tallies.llm).items()}


def _charges(tallies: Tallies) -> _ByModel:
    return {key: charged for key, (_, charged) in dict(tallies.llm).items()}


def _unpriced_calls(tallies: Tallies) -> _ByModel:
    return {key: Fraction(calls) for key, calls in dict(tallies.unpriced).items()}


def _of_models(amounts_of: Callable[[Tallies], _ByModel]) -> Observe:
    from opentelemetry.metrics import Observation  # noqa: PLC0415 - an extra, looked for before

    def observed(_: CallbackOptions) -> Iterable[Observation]:
        for (model, provider), total in _add_up(map(amounts_of, all_tallies())).items():
            labels = {"gen_ai.request.model": model, "gen_ai.provider.name": provider}
            yield Observation(float(total), labels)

    return observed


def _observe_revenue(_: CallbackOptions) -> Iterable[Observation]:
    """Observes revenue by model and provider, and by currency where a plans file has several."""
    from opentelemetry.metrics import Observation  # noqa: PLC0415 - an extra, looked for before

    kept = [{"": dict(one.revenue), **one.revenue_in} for one in all_tallies()]
    for currency in sorted({name for of in kept for name in of}):
        own = {"meterkit.currency": currency} if currency else {}
        for (model, provider), total in _add_up(dict(of.get(currency, {})) for of in kept).items():
            labels = {"gen_ai.request.model": model, "gen_ai.provider.name": provider, **own}
            yield Observation(float(total), labels)


def _add_up(amounts: Iterable[_ByModel]) -> _ByModel:
    found: dict[tuple[str, str], Fraction] = {}
    for of in amounts:
        for key, amount in of.items():
            found[key] = found.get(key, Fraction(0)) + amount
    return found


def _lanes() -> list[Lane]:
    """Lanes of all event loops of all kits; called in an exporter's thread."""
    return [lane for store in list(_observed) for lane in tuple(store.lanes.values())]


def _spools() -> Mapping[SpoolState, SpoolsInState]:
    """Spools in the directories of all kits; each directory is listed once."""
    found: dict[str, SpoolInfo] = {}
    looked = set[tuple[object, ...]]()
    for store in list(_observed):
        directory, address, keys = store.spool_dir, str(store.address), store.keys
        if directory is None or (directory, address, keys) in looked:
            continue
        looked.add((directory, address, keys))
        try:
            seen = list_spools(directory, keys, store=address, now_ms=store.now_ms())
        except OSError:
            continue
        for one in seen:
            # One kit's own is another's foreign, where they share a directory.
            if str(one.path) not in found or found[str(one.path)].state == "foreign":
                found[str(one.path)] = one
    now_ms = max((store.now_ms() for store in list(_observed)), default=0)
    return spools_by_state(found.values(), now_ms)
