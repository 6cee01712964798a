"""The metrics of all kits of this process by OpenTelemetry's global provider, where its API is installed."""

from __future__ import annotations

from collections import Counter
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

from meterkit.redis.tallies import everywhere

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opentelemetry.metrics import CallbackOptions, Observation

    from meterkit.store.store import Store

__all__ = ["observe"]


def observe(store: Store) -> None:
    """Have what a store decides counted, for whatever provider there is or will be.

    Nothing is done where the API is not installed.
    """
    if _observed():
        store.tally()


@cache  # Instruments are the process's, whatever kits come and go.
def _observed() -> bool:
    try:
        if find_spec("opentelemetry.metrics") is None:
            return False
    except ModuleNotFoundError:
        return False
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
    return True
