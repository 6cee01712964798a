"""pydantic-ai: responses, and results of runs; parts are contained in input and output.

https://ai.pydantic.dev/api/usage/, https://ai.pydantic.dev/api/run/
"""

from __future__ import annotations

from contextlib import suppress
from inspect import ismethod
from typing import TYPE_CHECKING, Any, Final

from llm_usage.call_usage import figure
from llm_usage.json_values import paths, read_counts, rows, short_id, table, text
from llm_usage.plain_values import instance_members, kind_of, table_of
from llm_usage.providers.provider_names import provider_of
from llm_usage.providers.reader_interface import ProviderApi, UsageShape, read_gateway_cost
from llm_usage.reported_calls import EventUsage
from llm_usage.units import UNIT_OF, UNITS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llm_usage.json_values import Table

_PATHS: Final = paths(
    input_tokens="input_tokens",
    output_tokens="output_tokens",
    cached_input_tokens="cache_read_tokens",
    cache_write_tokens="cache_write_tokens",
    reasoning_tokens="output_reasoning_tokens details.reasoning_tokens",
)
_UNIT_PATHS: Final = paths(
    **{unit: unit for unit in sorted(UNITS - {*_PATHS, *UNIT_OF.values()})},
)
"""Further counters of pydantic-ai: attributes that have the names of the price table's units."""
_COMPARED: Final = ("input_tokens", "output_tokens")


def _response_usage(event: Table, strict: bool) -> EventUsage | None:
    usage = table(event.get("usage"))
    if usage is None or (strict and not _is_response(event)):
        return None
    counts, refused = read_counts(usage, _PATHS)
    if not counts and not refused:
        return None
    further, _ = read_counts(usage, _UNIT_PATHS)
    details = table(event.get("provider_details")) or {}
    provider, tier = provider_of(event.get("provider_name")), text(details.get("service_tier"))
    return EventUsage(
        counts={**counts, **{unit: count for unit, count in further.items() if count}},
        provider=provider,
        refused=refused,
        call_id=short_id(event.get("provider_response_id")),
        model=text(event.get("model_name")),
        # Each response without an id is a call of its own.
        opens=event.get("provider_response_id") is None,
        final=True,
        context={} if tier is None else {"service_tier": tier},
        cost_micros=read_gateway_cost(provider, details.get("cost")),
        sums=event.get("is_sum") is True or (figure(usage.get("requests")) or 0) > 1,
    )


def _is_response(event: Table) -> bool:
    return event.get("kind") == "response" and isinstance(event.get("parts"), list)


def responses_of_result(obj: object) -> Sequence[Table] | None:
    """A result keeps its usage and messages where only its own members find them."""
    result: Any = (
        obj if hasattr(kind_of(obj), "usage") else instance_members(obj).get("result")
    )  # The last event's.
    if not (hasattr(kind_of(result), "usage") and hasattr(kind_of(result), "all_messages")):
        return None
    found: dict[str, Any] = {}
    for name in ("usage", "run_id", "response", "new_messages"):
        with suppress(Exception):
            value = getattr(result, name)
            found[name] = value() if ismethod(value) else value  # `usage` was a method in the first release.
    total = table_of(found.get("usage")) or {}
    messages = [instance_members(message) for message in rows(found.get("new_messages"))]
    calls = [_run_response(message) for message in messages if message.get("kind") == "response"]
    run_id = text(found.get("run_id"))
    for nth, call in enumerate(calls):
        # Without an id of the provider the run tells its calls from those of others.
        if run_id is not None and not short_id(call["provider_response_id"]):
            call["provider_response_id"] = f"{run_id}/{nth}"
    if calls and all(
        sum(_figure(call["usage"], name) for call in calls) == _figure(total, name) for name in _COMPARED
    ):
        return calls
    # Other runs have counted on the same usage, or messages were dropped: only the sum is known.
    last = _run_response(instance_members(found.get("response")))
    return [{**last, "usage": total, "provider_response_id": run_id, "is_sum": True}]


def _run_response(message: Mapping[str, Any]) -> dict[str, Any]:
    names = ("model_name", "provider_name", "provider_response_id")
    return {
        "kind": "response",
        "parts": [],
        "usage": table_of(message.get("usage")) or {},
        "provider_details": table_of(message.get("provider_details")) or {},
        **{name: message.get(name) for name in names},
    }


def _figure(usage: Table, name: str) -> int:
    value = usage.get(name)
    return value if isinstance(value, int) else 0


PYDANTIC_AI: Final = ProviderApi(
    name="pydantic-ai",
    provider=None,
    usage_in=_response_usage,
    recognises=_is_response,
    shapes=(
        UsageShape("responses and results of runs", "usage", _PATHS),
        UsageShape("further counters, by the price table's units", "usage", _UNIT_PATHS),
    ),
)
