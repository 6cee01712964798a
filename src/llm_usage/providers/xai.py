"""Responses and chunks of xAI's own SDK, which are messages of protobuf.

https://github.com/xai-org/xai-sdk-python
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from llm_usage.json_values import paths, read_counts, short_id, table, text
from llm_usage.plain_values import instance_members, kind_of
from llm_usage.providers.reader_interface import ProviderApi, UsageShape, read_cost
from llm_usage.reported_calls import EventUsage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_usage.json_values import Counts, Table

_PACKAGE: Final = "xai_api."
_USAGE: Final = f"{_PACKAGE}SamplingUsage"
_CHUNK: Final = f"{_PACKAGE}GetChatCompletionChunk"
_PROVIDER: Final = "x_ai"
_PATHS: Final = paths(
    input_tokens="prompt_tokens",
    answer="completion_tokens",
    reasoning_tokens="reasoning_tokens",
    total="total_tokens",
    cached_input_tokens="cached_prompt_text_tokens",
    input_text_tokens="prompt_text_tokens",
    input_image_tokens="prompt_image_tokens",
)
_FIGURES: Final = (*(names[0][0] for names in _PATHS.values()), "cost_in_usd_ticks")


def xai_event(obj: object) -> Table | None:
    """A response, chunk or usage of the SDK as a table; None: the object is anything else. Never raises."""
    message: Any = instance_members(obj).get("_proto", obj)
    descriptor: Any = getattr(kind_of(message), "DESCRIPTOR", None)
    name = getattr(descriptor, "full_name", None)
    if not (isinstance(name, str) and name.startswith(_PACKAGE)):
        return None
    with suppress(Exception):  # Foreign code.
        usage: Any = message if name == _USAGE else message.usage
        figures = {figure: getattr(usage, figure) for figure in _FIGURES}
        if name == _USAGE:
            return {"kind": name, "usage": figures}
        outputs: Sequence[Any] = message.outputs if name == _CHUNK else ()
        delta = "".join(str(output.delta.content) for output in outputs)
        return {"kind": name, "id": message.id, "model": message.model, "usage": figures, "delta": delta}
    return None


def _settle(counts: Counts) -> Counts:
    answer, thoughts = counts.get("answer", 0), counts.get("reasoning_tokens", 0)
    output = answer + thoughts
    if counts.get("total"):
        # The total tells whether the completion has the reasoning in it.
        output = max(answer, counts["total"] - counts.get("input_tokens", 0))
    return {**counts, "output_tokens": output}


def _usage_in(event: Table, strict: bool) -> EventUsage | None:
    usage = table(event.get("usage"))
    if usage is None or not _recognises(event):
        return None
    del strict
    counts, refused = read_counts(usage, _PATHS)
    cost, has_refused_cost = read_cost(usage)
    if not (any(counts.values()) or cost):
        return None  # Chunks before the last one have zeros; images and videos have an amount alone.
    return EventUsage(
        counts=counts,
        settle=_settle,
        provider=_PROVIDER,
        refused=refused or has_refused_cost,
        call_id=short_id(event.get("id")),
        model=text(event.get("model")),
        final=event.get("kind") != _CHUNK,
        cost_micros=cost or None,  # A message of protobuf without an amount has 0.
    )


def _recognises(event: Table) -> bool:
    return str(event.get("kind")).startswith(_PACKAGE)


XAI: Final = ProviderApi(
    name="xai",
    provider=_PROVIDER,
    usage_in=_usage_in,
    recognises=_recognises,
    shapes=(UsageShape("messages of the SDK", "usage", _PATHS),),
)
