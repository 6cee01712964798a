"""OpenAI's agents SDK: responses, counters, and results of runs, call by call.

https://openai.github.io/openai-agents-python/usage/, https://openai.github.io/openai-agents-python/results/
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from llm_usage.json_values import rows, table, text
from llm_usage.plain_values import instance_members, table_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llm_usage.json_values import Table

_COMPARED: Final = ("input_tokens", "output_tokens")
_LAST_AGENTS: Final = ("_last_agent", "last_agent", "current_agent")
_ROUTED_BY: Final = ("litellm/", "any-llm/")
"""Prefixes by which the agents SDK chooses its client, not part of a model's name."""


def agents_parts(event: Table) -> Sequence[Table] | None:
    """The calls of a response or a counter of OpenAI's agents SDK; None: it is none of these."""
    if "response_id" in event and "output" in event and "usage" in event:
        return [_agents_response(event)]
    entries = [entry for item in rows(event.get("request_usage_entries")) if (entry := table(item))]
    same = all(sum(entry.get(name) or 0 for entry in entries) == event.get(name) for name in _COMPARED)
    return [{"object": "response", "usage": entry} for entry in entries] if entries and same else None


def _agents_response(response: Table) -> Table:
    """A response of the agents SDK, as the API has it."""
    named = {"id": response.get("response_id"), "model": response.get("model")}
    return {"object": "response", "usage": response.get("usage"), "output": response["output"], **named}


def responses_of_run(result: Mapping[str, Any]) -> Sequence[Table]:
    """Responses of a run of OpenAI's agents, each with the model of its agent: they name none themselves."""
    last = _model_of(next((result[name] for name in _LAST_AGENTS if result.get(name) is not None), None))
    models = {
        id(members_of(item).get("raw_item")): _model_of(members_of(item).get("agent"))
        for item in rows(result.get("new_items"))
    }
    found: list[Table] = []
    for response in rows(result["raw_responses"]):
        event = table_of(response)
        if event is not None:
            output = rows(members_of(response).get("output"))
            named = (models[id(item)] for item in output if id(item) in models)
            found.append({**event, "model": next(named, last)})
    return found


def _model_of(agent: object) -> str | None:
    """The model of an agent, as a name or as a client that holds one; None: the SDK's default."""
    model = members_of(agent).get("model")
    name = text(model) or text(members_of(model).get("model"))
    return None if name is None else name.removeprefix(_ROUTED_BY[0]).removeprefix(_ROUTED_BY[1])


def members_of(value: object) -> Mapping[str, Any]:
    """Members of a dict or an instance."""
    return table(value) or instance_members(value)
