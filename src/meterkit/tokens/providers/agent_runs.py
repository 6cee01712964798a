"""Model calls of agent runs: results of pydantic-ai and of OpenAI's agents SDK, read call by call.

https://ai.pydantic.dev/api/run/
https://openai.github.io/openai-agents-python/results/
"""

from __future__ import annotations

from contextlib import suppress
from inspect import ismethod
from typing import TYPE_CHECKING, Any, Final

from meterkit.tokens.json_values import rows, table, text
from meterkit.tokens.plain_values import held_by, kind_of, table_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.tokens.json_values import Table

_COMPARED: Final = ("input_tokens", "output_tokens")
_LAST_AGENTS: Final = ("_last_agent", "last_agent", "current_agent")
_ROUTED_BY: Final = ("litellm/", "any-llm/")
"""Prefixes by which the agents SDK chooses its client, not part of a model's name."""


def responses_of_run(obj: object) -> Sequence[Table] | None:
    """Model responses of the result of a run; None: the object is anything else. Never raises.

    They are tables as :func:`meterkit.tokens.plain_values.table_of` makes them of one response.
    """
    module = str(kind_of(obj).__module__)
    with suppress(Exception):  # Foreign code.
        if module.startswith("pydantic_ai."):
            return _pydantic_ai_responses(obj)
        if isinstance(_members_of(obj).get("raw_responses"), list):
            return _agents_responses(_members_of(obj))
    return None


def _pydantic_ai_responses(obj: object) -> Sequence[Table] | None:
    """A result keeps its usage and messages where only its own members find them."""
    result: Any = obj if hasattr(kind_of(obj), "usage") else held_by(obj).get("result")  # The last event's.
    if not (hasattr(kind_of(result), "usage") and hasattr(kind_of(result), "all_messages")):
        return None
    found: dict[str, Any] = {}
    for name in ("usage", "run_id", "response", "new_messages"):
        with suppress(Exception):
            value = getattr(result, name)
            found[name] = value() if ismethod(value) else value  # `usage` was a method in the first release.
    total = table_of(found.get("usage")) or {}
    messages = [held_by(message) for message in rows(found.get("new_messages"))]
    calls = [_response_of(message) for message in messages if message.get("kind") == "response"]
    run_id = text(found.get("run_id"))
    for nth, call in enumerate(calls):
        # Without an id of the provider the run tells its calls from those of others.
        if run_id is not None and not text(call["provider_response_id"]):
            call["provider_response_id"] = f"{run_id}/{nth}"
    if calls and all(
        sum(_figure(call["usage"], name) for call in calls) == _figure(total, name) for name in _COMPARED
    ):
        return calls
    # Other runs have counted on the same usage, or messages were dropped: only the sum is known.
    last = _response_of(held_by(found.get("response")))
    return [{**last, "usage": total, "provider_response_id": run_id, "is_sum": True}]


def _response_of(message: Mapping[str, Any]) -> dict[str, Any]:
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


def _agents_responses(result: Mapping[str, Any]) -> Sequence[Table]:
    """Responses of a run of OpenAI's agents, each with the model of its agent: they name none themselves."""
    last = _model_of(next((result[name] for name in _LAST_AGENTS if result.get(name) is not None), None))
    models = {
        id(_members_of(item).get("raw_item")): _model_of(_members_of(item).get("agent"))
        for item in rows(result.get("new_items"))
    }
    found: list[Table] = []
    for response in rows(result["raw_responses"]):
        event = table_of(response)
        if event is not None:
            output = rows(_members_of(response).get("output"))
            named = (models[id(item)] for item in output if id(item) in models)
            found.append({**event, "model": next(named, last)})
    return found


def _model_of(agent: object) -> str | None:
    """The model of an agent, as a name or as a client that holds one; None: the SDK's default."""
    model = _members_of(agent).get("model")
    name = text(model) or text(_members_of(model).get("model"))
    return None if name is None else name.removeprefix(_ROUTED_BY[0]).removeprefix(_ROUTED_BY[1])


def _members_of(value: object) -> Mapping[str, Any]:
    return table(value) or held_by(value)
