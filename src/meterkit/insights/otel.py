"""Metrics and marks on spans, by OpenTelemetry's global providers, where its API is installed."""

from __future__ import annotations

from collections import Counter
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

from meterkit.redis.tallies import everywhere

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opentelemetry.metrics import CallbackOptions, Observation

    from meterkit.store.store import Store

    MarkSpan = Callable[[str | None, str | None, bool], None]

__all__ = ["observe"]


def observe(store: Store) -> None:
    """Have what a store decides counted, and put on spans, by the providers that there are.

    Nothing is done where the API is not installed, or no provider has been set: FastAPI brings the API along.
    """
    try:
        if find_spec("opentelemetry.metrics") is None:
            return
    except ModuleNotFoundError:
        return
    from opentelemetry.metrics import get_meter_provider  # noqa: PLC0415 - an extra, looked for above
    from opentelemetry.trace import get_tracer_provider  # noqa: PLC0415 - likewise

    if _is_set(get_meter_provider()):
        _make_instruments()
        store.tally()
    if _is_set(get_tracer_provider()):
        store.mark_span = _marks_span()


def _is_set(provider: object) -> bool:
    """Whether it is more than the API's own, which does nothing."""
    return not type(provider).__module__.startswith(("opentelemetry.metrics", "opentelemetry.trace"))


@cache
def _marks_span() -> MarkSpan:
    """What puts a decision on the span that is served in, if it is recorded."""
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
    from opentelemetry import metrics  # noqa: PLC0415 - an extra, looked for above
    from opentelemetry.metrics import Observation  # noqa: PLC0415 - likewise

    def requests(_: CallbackOptions) -> Iterable[Observation]:
        found: Counter[tuple[str, str, str]] = Counter()
        for tallies in everywhere():
            found.update(dict(tallies.requests))
        for (plan, outcome, reason), number in found.items():
            labels = {"meterkit.plan": plan, "meterkit.outcome": outcome, "meterkit.reason": reason}
            yield Observation(number, labels)

    def degraded(_: CallbackOptions) -> Iterable[Observation]:
        yield Observation(sum(tallies.degraded for tallies in everywhere()))

    def decisions(_: CallbackOptions) -> Iterable[Observation]:
        yield Observation(sum(sum(tallies.durations) for tallies in everywhere()))

    def duration(_: CallbackOptions) -> Iterable[Observation]:
        yield Observation(sum(tallies.duration_s for tallies in everywhere()))

    meter = metrics.get_meter("meterkit")
    meter.create_observable_counter("meterkit.requests", [requests], unit="{request}")
    meter.create_observable_counter("meterkit.requests.degraded", [degraded], unit="{request}")
    meter.create_observable_counter("meterkit.decisions", [decisions], unit="{decision}")
    meter.create_observable_counter("meterkit.decisions.duration", [duration], unit="s")
