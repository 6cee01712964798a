"""Amazon Bedrock: Converse, and InvokeModel with another provider's answer inside.

https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_TokenUsage.html
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from llm_usage.json_values import Paths, dig, paths, read_counts, table, text
from llm_usage.llm_request import WAYS_OF_HEADERS
from llm_usage.providers.anthropic import ANTHROPIC
from llm_usage.providers.cohere import COHERE
from llm_usage.providers.openai import OPENAI
from llm_usage.providers.reader_interface import (
    ProviderApi,
    UsageShape,
    context_of,
    include_cache_tokens,
    sum_rows,
)
from llm_usage.reported_calls import EventUsage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llm_usage.json_values import Counts, Table

_PROVIDER: Final = "aws.bedrock"
_PATHS: Final = paths(
    input_tokens="inputTokens inputTokenCount",
    output_tokens="outputTokens outputTokenCount",
    cached_input_tokens="cacheReadInputTokens cacheReadInputTokenCount",
    cache_write_tokens="cacheWriteInputTokens cacheWriteInputTokenCount",
)
_WRITES: Final = {"5m": "cache_write_5m_tokens", "1h": "cache_write_1h_tokens"}
# Names that no other API has: the figures of the answer inside go before these.
_METRICS: Final = "metrics_"
_METRIC_PATHS: Final = Paths({_METRICS + name: alternatives for name, alternatives in _PATHS.items()})
_INSIDE: Final = (ANTHROPIC, OPENAI, COHERE)
"""APIs of the answers that InvokeModel may have inside."""
_INVOKED: Final = "amazon-bedrock-invocationMetrics"
_BLOCK_EVENTS: Final = ("contentBlockStart", "contentBlockDelta", "contentBlockStop")
_STREAMED: Final = ("messageStart", *_BLOCK_EVENTS, "messageStop", "metadata")
# Models with a shape of their own, by the member that tells; figures of their streams are cumulative.
_LLAMA: Final = "generation"
_TITAN: Final = "inputTextTokenCount"
_LLAMA_PATHS: Final = paths(input_tokens="prompt_token_count", output_tokens="generation_token_count")
_TITAN_PATHS: Final = paths(input_tokens=_TITAN, output_tokens="totalOutputTextTokenCount")
# https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_InvokeModel.html
_HEADERS: Final = {
    "x-amzn-bedrock-input-token-count": _METRICS + "input_tokens",
    "x-amzn-bedrock-output-token-count": _METRICS + "output_tokens",
    "x-amzn-bedrock-cache-read-input-token-count": _METRICS + "cached_input_tokens",
    "x-amzn-bedrock-cache-write-input-token-count": _METRICS + "cache_write_tokens",
}
_DIGITS_MAX: Final = 15
_RESULT: Final = {"": "output_tokens"}  # Results are of one kind, which has no name.

_SHAPES: Final = (
    UsageShape("Converse", "usage, metadata.usage", _PATHS),
    UsageShape(
        "Converse: cache writes by time to live",
        "usage.cacheDetails[]",
        {unit: [[f"inputTokens ({ttl})"]] for ttl, unit in _WRITES.items()},
    ),
    UsageShape("InvokeModel: last event", _INVOKED, _PATHS),
    UsageShape(
        "InvokeModel: response headers",
        "",
        {unit.removeprefix(_METRICS): [[name]] for name, unit in _HEADERS.items()},
    ),
    UsageShape("InvokeModel of Llama", "", _LLAMA_PATHS),
    UsageShape("InvokeModel of Titan", "", _TITAN_PATHS),
    UsageShape("InvokeModel of Titan", "results[]", {"output_tokens": [["tokenCount"]]}),
)


def _settle(counts: Counts) -> Counts:
    of_metrics = counts.keys().isdisjoint({"input_tokens", "output_tokens"})
    chosen = {name: n for name, n in counts.items() if name.startswith(_METRICS) == of_metrics}
    return include_cache_tokens({name.removeprefix(_METRICS): n for name, n in chosen.items()})


def _usage_in(event: Table, strict: bool) -> EventUsage | None:
    holder = _find_holder(event, strict)
    usage = None if holder is None else table(holder.get("usage"))
    if holder is not None and usage is not None and "inputTokens" in usage and "outputTokens" in usage:
        return _converse_usage(usage, holder)
    if not strict:
        for api in _INSIDE:
            found = api.usage_in(event, True)
            if found is not None:
                others = [replace(other, provider=_PROVIDER) for other in found.others]
                return replace(found, provider=_PROVIDER, others=others)
    own = _model_usage(event)
    metrics = table(event.get(_INVOKED))
    if metrics is None:
        sent = table(dig(event, ("ResponseMetadata", "HTTPHeaders")))  # boto3's
        return header_usage(sent.items()) if own is None and sent is not None else own
    found = _event_usage(*read_counts(metrics, _METRIC_PATHS), final=True)
    return found if own is None else replace(found, counts={**own.counts, **found.counts})


def _find_holder(event: Table, strict: bool) -> Table | None:
    """The part of an event that has the usage of Converse: a document, or what is called its metadata.

    Servers repeat what a client calls its metadata, in the events of any API.
    """
    if _is_document(event):
        return event
    metadata = table(event.get("metadata"))
    if metadata is not None and "usage" in metadata:
        is_alone = len(event) == 1
        if is_alone or not (strict or any(api.recognises(event) for api in _INSIDE)):
            return metadata
    return None if strict else event


def _converse_usage(usage: Table, holder: Table) -> EventUsage:
    """Usage of Converse: there are no ids, and each call has exactly one such object."""
    counts, refused = read_counts(usage, _PATHS)
    writes, odd = sum_rows(usage.get("cacheDetails"), "ttl", "inputTokens", _WRITES)
    model = dig(holder, ("trace", "promptRouter", "invokedModelId"))
    latency = dig(holder, ("performanceConfig", "latency"))
    context = context_of(service_tier=dig(holder, ("serviceTier", "type")), speed=latency)
    found = _event_usage({**counts, **writes}, refused or odd, final=True)
    return replace(found, opens=True, model=text(model), context=context)


def _model_usage(event: Table) -> EventUsage | None:
    """Usage of models that have no shape of another provider: Llama, and Amazon's Titan."""
    if _LLAMA in event and not event.keys().isdisjoint({"prompt_token_count", "generation_token_count"}):
        return _event_usage(*read_counts(event, _LLAMA_PATHS), final=event.get("stop_reason") is not None)
    if _TITAN not in event:
        return None
    counts, refused = read_counts(event, _TITAN_PATHS)
    if "results" in event:
        sums, odd = sum_rows(event["results"], "", "tokenCount", _RESULT)
        return replace(_event_usage({**counts, **sums}, refused or odd, final=True), opens=True)
    if _is_embedding(event):
        return replace(_event_usage({**counts, "output_tokens": 0}, refused, final=True), opens=True)
    is_chunk = "outputText" in event
    return (
        _event_usage(counts, refused, final=event.get("completionReason") is not None) if is_chunk else None
    )


def header_usage(headers: Iterable[tuple[str, object]]) -> EventUsage | None:
    """Usage in the headers of InvokeModel: of several models the body has none.

    Args:
        headers: their names in lower case.
    """
    sent = list(headers)
    figures = {_HEADERS[name]: str(value).strip() for name, value in sent if name in _HEADERS}
    if not figures:
        return None
    readable = {name for name, n in figures.items() if n.isascii() and n.isdigit() and len(n) <= _DIGITS_MAX}
    found = _event_usage(
        {name: int(figures[name]) for name in readable}, len(readable) < len(figures), final=True
    )
    return replace(found, context=header_context(sent))


def header_context(headers: Iterable[tuple[str, object]]) -> dict[str, str]:
    """As what InvokeModel processed a call; its headers alone say so, and ask for it.

    Args:
        headers: their names in lower case.
    """
    named = {WAYS_OF_HEADERS[name]: value for name, value in headers if name in WAYS_OF_HEADERS}
    return context_of(**named)


def _event_usage(counts: Counts, refused: bool, *, final: bool) -> EventUsage:
    return EventUsage(counts=counts, settle=_settle, provider=_PROVIDER, refused=refused, final=final)


def _is_document(event: Table) -> bool:
    return "stopReason" in event and table(event.get("output")) is not None


def _is_embedding(event: Table) -> bool:
    return not event.keys().isdisjoint({"embedding", "embeddings", "embeddingsByType"})


def _recognises(event: Table) -> bool:
    if _is_document(event) or _INVOKED in event or _model_usage(event) is not None:
        return True
    return len(event) == 1 and any(table(event.get(name)) is not None for name in _STREAMED)


BEDROCK: Final = ProviderApi(
    name="bedrock",
    provider=_PROVIDER,
    usage_in=_usage_in,
    recognises=_recognises,
    shapes=_SHAPES,
    marks=(b'"messageStart"', b'"contentBlock', b'"generation"'),
)
