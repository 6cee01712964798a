"""Amazon Bedrock: Converse, and InvokeModel with another provider's answer inside.

https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_TokenUsage.html
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from meterkit.tokens.calls import EventUsage
from meterkit.tokens.json_values import dig, paths, read_counts, table
from meterkit.tokens.providers.anthropic import ANTHROPIC
from meterkit.tokens.providers.api import Api, cache_included
from meterkit.tokens.providers.cohere import COHERE
from meterkit.tokens.providers.openai import OPENAI

if TYPE_CHECKING:
    from meterkit.tokens.json_values import Counts, Paths, Table

_PROVIDER: Final = "aws.bedrock"
_PATHS: Final = paths(
    input_tokens="inputTokens inputTokenCount",
    output_tokens="outputTokens outputTokenCount",
    cached_input_tokens="cacheReadInputTokens cacheReadInputTokenCount",
    cache_write_tokens="cacheWriteInputTokens cacheWriteInputTokenCount",
)
# Names that no other API has: the figures of the answer inside go before these.
_METRICS: Final = "metrics_"
_METRIC_PATHS: Final[Paths] = {_METRICS + name: alternatives for name, alternatives in _PATHS.items()}
_INVOKED: Final = "amazon-bedrock-invocationMetrics"
_BLOCK_EVENTS: Final = ("contentBlockStart", "contentBlockDelta", "contentBlockStop")
_STREAMED: Final = ("messageStart", *_BLOCK_EVENTS, "messageStop", "metadata")


def _settle(counts: Counts) -> Counts:
    of_metrics = counts.keys().isdisjoint({"input_tokens", "output_tokens"})
    told = {name: n for name, n in counts.items() if name.startswith(_METRICS) == of_metrics}
    return cache_included({name.removeprefix(_METRICS): n for name, n in told.items()})


def _usage_in(event: Table, strict: bool) -> EventUsage | None:
    usage = table(dig(event, ("metadata", "usage")))
    if usage is None and (not strict or _is_document(event)):
        usage = table(event.get("usage"))
    if usage is not None and "inputTokens" in usage and "outputTokens" in usage:
        # There are no ids, and every call has exactly one metadata event.
        return _found(usage, _PATHS, opens=True)
    if not strict:
        for api in (ANTHROPIC, OPENAI, COHERE):
            found = api.usage_in(event, True)
            if found is not None:
                return replace(found, provider=_PROVIDER)
    metrics = table(event.get(_INVOKED))
    return None if metrics is None else _found(metrics, _METRIC_PATHS, opens=False)


def _found(usage: Table, places: Paths, *, opens: bool) -> EventUsage:
    counts, refused = read_counts(usage, places)
    return EventUsage(
        counts=counts, settle=_settle, provider=_PROVIDER, refused=refused, opens=opens, final=True
    )


def _is_document(event: Table) -> bool:
    return "stopReason" in event and table(event.get("output")) is not None


def _recognises(event: Table) -> bool:
    if _is_document(event) or _INVOKED in event:
        return True
    return len(event) == 1 and any(table(event.get(name)) is not None for name in _STREAMED)


BEDROCK: Final = Api(name="bedrock", provider=_PROVIDER, usage_in=_usage_in, recognises=_recognises)
