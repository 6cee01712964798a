"""Amazon Bedrock: Converse, and InvokeModel with another provider's answer inside.

https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_TokenUsage.html
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from meterkit.tokens.calls import Sighting
from meterkit.tokens.figures import Figures
from meterkit.tokens.providers.anthropic import ANTHROPIC
from meterkit.tokens.providers.api import Api
from meterkit.tokens.providers.cohere import COHERE
from meterkit.tokens.providers.openai import OPENAI
from meterkit.tokens.shape import dig, read_counts, table

if TYPE_CHECKING:
    from meterkit.tokens.shape import Counts, Paths, Table

__all__ = ["BEDROCK", "PROVIDER"]

PROVIDER: Final = "aws.bedrock"

_CONVERSE: Final[Paths] = {
    "input": (("inputTokens",), ("inputTokenCount",)),
    "output": (("outputTokens",), ("outputTokenCount",)),
    "cached": (("cacheReadInputTokens",), ("cacheReadInputTokenCount",)),
    "cache_write": (("cacheWriteInputTokens",), ("cacheWriteInputTokenCount",)),
}
# Names that no other API has: the figures of the answer inside go before these.
_METRICS: Final[Paths] = {f"metrics_{name}": paths for name, paths in _CONVERSE.items()}
_INVOKED: Final = "amazon-bedrock-invocationMetrics"
_STREAMED: Final = (
    "messageStart",
    "contentBlockStart",
    "contentBlockDelta",
    "contentBlockStop",
    "messageStop",
    "metadata",
)


def _settle(counts: Counts) -> Figures:
    prefix = "" if "input" in counts or "output" in counts else "metrics_"
    fresh, cached = counts.get(f"{prefix}input"), counts.get(f"{prefix}cached")
    written = counts.get(f"{prefix}cache_write")
    apart = [part for part in (fresh, cached, written) if part is not None]
    return Figures(
        input_tokens=None if fresh is None else sum(apart),
        output_tokens=counts.get(f"{prefix}output"),
        cached_input_tokens=cached,
        cache_write_tokens=written,
    )


def _see(event: Table, strict: bool) -> Sighting | None:
    found = _see_converse(event, strict)
    if found is not None:
        return found
    if not strict:
        for api in (ANTHROPIC, OPENAI, COHERE):
            found = api.see(event, True)
            if found is not None:
                return replace(found, provider=PROVIDER)
    return _see_metrics(event)


def _see_converse(event: Table, strict: bool) -> Sighting | None:
    usage = table(dig(event, ("metadata", "usage")))
    if usage is None:
        usage = table(event.get("usage"))
        if usage is None or (strict and not _is_document(event)):
            return None
    if not ("inputTokens" in usage and "outputTokens" in usage):
        return None
    counts, refused = read_counts(usage, _CONVERSE)
    # There are no ids, and every call has exactly one metadata event.
    return Sighting(counts=counts, settle=_settle, provider=PROVIDER, refused=refused, opens=True, final=True)


def _see_metrics(event: Table) -> Sighting | None:
    metrics = table(event.get(_INVOKED))
    if metrics is None:
        return None
    counts, refused = read_counts(metrics, _METRICS)
    return Sighting(counts=counts, settle=_settle, provider=PROVIDER, refused=refused, final=True)


def _is_document(event: Table) -> bool:
    return "stopReason" in event and table(event.get("output")) is not None


def _knows(event: Table) -> bool:
    if _is_document(event) or _INVOKED in event:
        return True
    return len(event) == 1 and any(table(event.get(name)) is not None for name in _STREAMED)


BEDROCK: Final = Api(name="bedrock", provider=PROVIDER, see=_see, knows=_knows)
