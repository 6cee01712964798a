"""Google's generateContent.

https://ai.google.dev/api/generate-content#UsageMetadata
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from llm_usage.batch_lines import interaction_of, outliving_state
from llm_usage.json_values import dig, paths, read_counts, rows, short_id, table, text
from llm_usage.providers.reader_interface import ProviderApi, UsageShape, context_of, sum_rows
from llm_usage.reported_calls import EventUsage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from llm_usage.json_values import Counts, Table

# The wire is in camel case, the SDK's objects are not.
_PROMPT: Final = "promptTokenCount prompt_token_count"
_PATHS: Final = paths(
    prompt=_PROMPT,
    tools="toolUsePromptTokenCount tool_use_prompt_token_count",
    answer="candidatesTokenCount candidates_token_count",
    turn="responseTokenCount response_token_count",
    reasoning_tokens="thoughtsTokenCount thoughts_token_count",
    total="totalTokenCount total_token_count",
    cached_input_tokens="cachedContentTokenCount cached_content_token_count",
)
_MODALITIES: Final = {
    **dict.fromkeys(("text", "modality_unspecified", "#0", "#1"), "text"),
    **dict.fromkeys(("image", "document", "#2", "#5"), "image"),
    **dict.fromkeys(("video", "#3"), "video"),
    **dict.fromkeys(("audio", "#4"), "audio"),
}
"""Modalities of the API, each with that of the price table: pages of a document are priced as images.

They are numbers where the request says `$alt=json;enum-encoding=int`, and in dicts of Google's messages:
https://googleapis.dev/python/generativelanguage/latest/ (`Modality`).
"""
_OF_PROMPT: Final = "promptTokensDetails prompt_tokens_details promptTokenDetails input_tokens_by_modality"
_OF_TOOLS: Final = "toolUsePromptTokensDetails tool_use_prompt_tokens_details tool_use_tokens_by_modality"
_OF_CANDIDATES: Final = "candidatesTokensDetails candidates_tokens_details output_tokens_by_modality"
_OF_TURN: Final = "responseTokensDetails response_tokens_details"
_OF_CACHE: Final = "cacheTokensDetails cache_tokens_details cached_tokens_by_modality"
_DETAILS: Final = [
    (names.split(), {modality: unit.format(known) for modality, known in _MODALITIES.items()})
    for names, unit in (
        (_OF_PROMPT, "input_{}_tokens"),
        (_OF_TOOLS, "input_{}_tokens"),
        (_OF_TOOLS, "input_{}_tool_tokens"),
        (f"{_OF_CANDIDATES} {_OF_TURN}", "output_{}_tokens"),
        (_OF_CACHE, "cache_{}_read_tokens"),
    )
]
"""Names of arrays of tokens by modality, and the unit that they count of each."""
_DETAIL_FIELDS: Final = {
    unit: [[f"{name}[]"] for names, units in _DETAILS if unit in units.values() for name in names]
    for unit in sorted({unit for _, units in _DETAILS for unit in units.values()})
}
"""Unit to the paths of its arrays."""
_EMBEDDED: Final = paths(input_tokens=_PROMPT)
_STATISTICS: Final = {"": "input_tokens"}
_CHARACTERS: Final = paths(
    input_characters="metadata.billableCharacterCount metadata.billable_character_count"
)
_COUNTED: Final = paths(input_tokens="tokenCount token_count")
_BATCH: Final = "batches/"
_RESPONSES: Final = [
    path.split(".")
    for path in (
        "response.inlinedResponses.inlinedResponses",
        "metadata.output.inlinedResponses.inlinedResponses",
        "output.inlinedResponses.inlinedResponses",
        "dest.inlined_responses",
        "response.inlinedEmbedContentResponses.inlinedResponses",
        "metadata.output.inlinedEmbedContentResponses.inlinedResponses",
        "dest.inlined_embed_content_responses",
    )
]
"""Places of the responses in a batch: of the API, and of the SDK's object."""
_OTHER_TOOLS: Final = "other_tools"
_TOOL_STEPS: Final = ("_call", "_result")
_FREE_STEPS: Final = ("google_search_", "function_")
_SEARCHES_OF_TYPE: Final = {"google_search": "web_searches"}
_EACH_SEARCH: Final = re.compile(r"gemini-(?!(?:(?:flash|pro|live|robotics-er)-)?[12]\.\d)|deep-research-")
"""Names of models whose searches Google charges one by one, such as `gemini-flash-latest`, and of agents."""

_INTERACTION: Final = paths(
    prompt="total_input_tokens",
    tools="total_tool_use_tokens",
    answer="total_output_tokens",
    reasoning_tokens="total_thought_tokens",
    total="total_tokens",
    cached_input_tokens="total_cached_tokens",
)


def _settle(counts: Counts) -> Counts:
    prompt, turn, total = counts.get("prompt"), counts.get("turn"), counts.get("total")
    answer = counts.get("answer") if turn is None else turn
    thoughts = counts.get("reasoning_tokens")
    entered = None if prompt is None else prompt + counts.get("tools", 0)
    output = answer
    if answer is None:
        # An answer that is blocked or still being thought about is not named; the total has the thoughts.
        output = thoughts
        if entered is not None and total is not None:
            output = max(0, total - entered)
    elif thoughts is not None and (
        turn is not None or entered is None or entered + answer != total or thoughts > answer
    ):
        # Some endpoints count thoughts among the candidates: then the total is reached without them. Gemini
        # Live leaves them out of its turn and of the total.
        output = answer + thoughts
    known = {"input_tokens": entered, "output_tokens": output, "input_tool_tokens": counts.get("tools")}
    if counts.get("tools") and counts.get("web_searches") and not counts.get(_OTHER_TOOLS):
        known["billed_input_tokens"] = prompt  # Google charges the searches, not what they have found.
    return {**counts, **{name: count for name, count in known.items() if count is not None}}


def _details(usage: Table) -> tuple[dict[str, int], bool]:
    """Tokens by modality, as the price table's units; and whether a figure was refused."""
    sums = Counter[str]()
    refused = False
    for names, units in _DETAILS:
        array = next((usage[name] for name in names if usage.get(name)), None)
        if array is not None:
            counts, odd = sum_rows(array, "modality", "tokenCount token_count tokens", units)
            sums.update(counts)
            refused |= odd
    return sums, refused


def _searches(event: Table, *models: str | None) -> dict[str, int]:
    """Searches of an event that Google charges."""
    live = event.get("serverContent") or event.get("server_content")
    answers = (*rows(event.get("candidates")), live, event)
    return grounding_searches(
        [dig(one, ("groundingMetadata",)) or dig(one, ("grounding_metadata",)) for one in answers], *models
    )


_PARTS: Final = (("content", "parts"), ("modelTurn", "parts"), ("model_turn", "parts"))
_CODE: Final = ("executableCode", "executable_code", "codeExecutionResult", "code_execution_result")


def _other_tools(event: Table) -> dict[str, int]:
    """Whether a model has read URLs or run code: that is charged as input, even beside a search.

    https://ai.google.dev/gemini-api/docs/url-context, https://ai.google.dev/gemini-api/docs/code-execution
    """
    answers = (
        *rows(event.get("candidates")),
        event.get("serverContent") or event.get("server_content"),
    )
    read = [
        dig(one, ("urlContextMetadata", "urlMetadata")) or dig(one, ("url_context_metadata", "url_metadata"))
        for one in answers
    ]
    parts = [part for one in answers for path in _PARTS for part in rows(dig(one, path))]
    ran_code = any(key in (table(part) or {}) for part in parts for key in _CODE)
    return {_OTHER_TOOLS: 1} if ran_code or any(map(rows, read)) else {}


def _other_tools_of_work(work: Table) -> dict[str, int]:
    """Whether an interaction may have used tools beside searches, as those of agents do."""
    steps = rows(work.get("steps")) or rows(work.get("outputs"))
    kinds = [text(dig(step, ("type",))) or "" for step in steps]
    others = [kind for kind in kinds if kind.endswith(_TOOL_STEPS) and not kind.startswith(_FREE_STEPS)]
    return {_OTHER_TOOLS: 1} if others or not kinds or text(work.get("agent")) else {}


def grounding_searches(groundings: Iterable[object], *models: str | None) -> dict[str, int]:
    """Searches that Google charges: each different query since Gemini 3, before that one for each prompt.

    https://ai.google.dev/gemini-api/docs/google-search

    Args:
        groundings: what the answers to a prompt are grounded on.
        models: those that may have answered.
    """
    queries = set[str]()
    for grounding in groundings:
        found = dig(grounding, ("webSearchQueries",)) or dig(grounding, ("web_search_queries",))
        queries.update(query for query in rows(found) if isinstance(query, str) and query.strip())
    return {"web_searches": charged_searches(len(queries), *models)} if queries else {}


def charged_searches(made: int, *models: str | None) -> int:
    """Searches that Google charges of those that a model has made; one, where it is not known which it is."""
    names = [(model or "").rpartition("/")[2] for model in models]
    return made if names and all(map(_EACH_SEARCH.match, names)) else min(made, 1)


def _interaction_usage(event: Table) -> EventUsage | None:
    """Usage of the Interactions API, https://ai.google.dev/api/interactions-api."""
    work = interaction_of(event)
    usage = None if work is None else table(work.get("usage"))
    if work is None or usage is None or outliving_state(event) == "pending":
        return None
    counts, refused = read_counts(usage, _INTERACTION)
    if not refused and "prompt" not in counts:
        return None
    details, odd = _details(usage)
    searches, odd_searches = sum_rows(usage.get("grounding_tool_count"), "type", "count", _SEARCHES_OF_TYPE)
    model = text(work.get("model")) or text(work.get("agent"))
    return EventUsage(
        counts={
            **counts,
            **details,
            **{unit: charged_searches(made, model) for unit, made in searches.items()},
            **_other_tools_of_work(work),
        },
        settle=_settle,
        provider="gcp.gemini",
        refused=refused or odd or odd_searches,
        call_id=short_id(work.get("id")),
        model=model,
        final=True,
        outlives=outliving_state(event) is not None,
        context=context_of(service_tier=work.get("service_tier")),
    )


def _usage_in(event: Table, strict: bool) -> EventUsage | None:
    if "usage" in event or "interaction" in event:
        return _interaction_usage(event)
    found = _batch_usage(event) or _embedding_usage(event)
    if found is not None:
        return found
    usage = table(event.get("usageMetadata") or event.get("usage_metadata")) or {}
    if strict and not _has_shape(event):
        return None
    counts, refused = read_counts(usage, _PATHS)
    model = text(event.get("modelVersion", event.get("model_version")))
    searches = _searches(event, model)
    if not refused and ("prompt" not in counts or not counts.keys() & {"total", "answer", "turn"}):
        if not searches:
            return None
        counts = {}  # With Vertex AI figures come in the last chunk, and searches in one before.
    candidates = rows(event.get("candidates"))
    is_live = _has_live_usage(usage)
    is_whole = _is_of_agent(event) and event.get("partial") is not True
    details, odd = _details(usage)
    return EventUsage(
        counts={**counts, **details, **searches, **_other_tools(event)},
        settle=_settle,
        provider="gcp.gemini",
        refused=refused or odd,
        call_id=short_id(event.get("responseId", event.get("response_id"))),
        model=model,
        opens=is_live,
        final=is_live
        or is_whole
        or _is_blocked(event)
        or any(_finish_reason(candidate) is not None for candidate in candidates),
        alone=not candidates,
        closes=is_whole,
        context=_context(usage),
    )


def _batch_usage(event: Table) -> EventUsage | None:
    """Usage of a batch that has its responses in it: each is a call, and counts once.

    https://ai.google.dev/gemini-api/docs/batch-api
    """
    name = text(event.get("name"))
    if name is None or not name.startswith(_BATCH):
        return None
    arrays = (rows(dig(event, path)) for path in _RESPONSES)
    found = next(filter(None, arrays), None) or []
    answers = ((at, table(dig(row, ("response",)))) for at, row in enumerate(found))
    usages = [(at, _usage_in(answer, False)) for at, answer in answers if answer is not None]
    calls = [
        replace(usage, call_id=str(at), context={**usage.context, "processing": "batch"})
        for at, usage in usages
        if usage is not None
    ]
    if not calls:
        return None
    return EventUsage(
        counts={}, provider="gcp.gemini", call_id=name, opens=True, final=True, outlives=True, others=calls
    )


def _embedding_usage(event: Table) -> EventUsage | None:
    """Usage of embeddings: of the Gemini API and its SDK, and of Vertex AI, which has it beside each vector.

    https://ai.google.dev/api/embeddings
    """
    predictions = [table(dig(row, ("embeddings",))) for row in rows(event.get("predictions"))]
    vectors = rows(event.get("embeddings")) or [event.get("embedding"), *filter(None, predictions)]
    if not any(table(vector) is not None for vector in vectors):
        return None
    usage = table(event.get("usageMetadata") or event.get("usage_metadata")) or {}
    counts, refused = read_counts(usage, _EMBEDDED)
    details, odd = _details(usage)
    statistics = [dig(vector, ("statistics",)) for vector in vectors]
    sums, odd_sums = sum_rows(statistics, "", "tokenCount token_count", _STATISTICS)
    counted, odd_counted = read_counts(event, _COUNTED)
    characters, _ = read_counts(event, _CHARACTERS)
    found = {**counted, **sums, **characters, **counts, **details}
    if not found and not refused:
        return None
    return EventUsage(
        counts={**found, "output_tokens": 0},
        provider="gcp.gemini",
        refused=refused or odd or odd_sums or odd_counted,
        model=text(event.get("modelVersion", event.get("model_version"))),
        opens=True,
        final=True,
        context=_context(usage),
    )


def _context(usage: Table) -> dict[str, str]:
    """The tier that served a call: the Gemini API names it, and Vertex AI the kind of traffic."""
    traffic = text(usage.get("trafficType") or usage.get("traffic_type")) or ""
    tier = usage.get("serviceTier") or usage.get("service_tier")
    return context_of(service_tier=tier or traffic.lower().removeprefix("on_demand_"))


def live_api(models: Callable[[], Iterable[str]]) -> ProviderApi:
    """Messages of a websocket.

    Args:
        models: finds those that may answer: the messages name none.
    """
    return replace(GEMINI, usage_in=partial(_live_usage_in, models))


def _live_usage_in(models: Callable[[], Iterable[str]], event: Table, strict: bool) -> EventUsage | None:
    """Usage in a message of Gemini Live; searches come before the figures of their turn.

    On Vertex AI a turn has the name of a response's candidates for its tokens:
    https://github.com/googleapis/python-genai (`_UsageMetadata_from_vertex`)
    """
    usage = table(event.get("usageMetadata"))
    if usage is not None and "candidatesTokenCount" in usage:
        of_turn = {"responseTokenCount": usage["candidatesTokenCount"], **usage}
        event = {**event, "usageMetadata": of_turn}
    found, searches = _usage_in(event, strict), _searches(event)
    if searches:
        searches = _searches(event, *models())
        found = found or EventUsage(counts=searches, settle=_settle, provider="gcp.gemini")
    if found is None:
        return None
    return replace(found, opens=False, counts={**found.counts, **searches})  # A turn has its own reader.


def _has_live_usage(usage: Table) -> bool:
    """Whether it is the usage of a turn of Gemini Live."""
    return "responseTokenCount" in usage or usage.get("response_token_count") is not None


def _has_shape(event: Table) -> bool:
    if _has_live_usage(table(event.get("usageMetadata") or event.get("usage_metadata")) or {}):
        return True
    named = ("modelVersion", "model_version", "responseId", "response_id")
    return (
        _recognises(event) or _is_of_agent(event) or any(isinstance(event.get(name), str) for name in named)
    )


def _is_of_agent(event: Table) -> bool:
    """Whether it is an event of Google's ADK: each call of a run has one that is not partial, without an id.

    https://google.github.io/adk-docs/events/
    """
    named = ("invocationId", "invocation_id")
    return isinstance(event.get("author"), str) and any(isinstance(event.get(name), str) for name in named)


def _is_blocked(event: Table) -> bool:
    return table(event.get("promptFeedback", event.get("prompt_feedback"))) is not None


def _finish_reason(candidate: object) -> Any:
    found = dig(candidate, ("finishReason",)) or dig(candidate, ("finish_reason",))
    return found or None  # 0 is the number of none.


def _recognises(event: Table) -> bool:
    candidates = rows(event.get("candidates"))
    if not candidates:
        is_live = table(event.get("serverContent") or event.get("server_content")) is not None
        return is_live or _is_blocked(event) or interaction_of(event) is not None
    finished = isinstance(_finish_reason(candidates[0]), str | int)
    return finished or isinstance(dig(candidates[0], ("content", "parts")), list)


GEMINI: Final = ProviderApi(
    name="gemini",
    provider="gcp.gemini",
    usage_in=_usage_in,
    recognises=_recognises,
    shapes=(
        UsageShape("generateContent and Gemini Live", "usageMetadata", _PATHS),
        UsageShape("tokens by modality", "usageMetadata", _DETAIL_FIELDS),
        UsageShape("embeddings", "usageMetadata", _EMBEDDED),
        UsageShape("embeddings", "", {**_COUNTED, **_CHARACTERS}),
        UsageShape(
            "embeddings of Vertex AI",
            "predictions[].embeddings.statistics",
            {"input_tokens": [["token_count"]]},
        ),
        UsageShape("Interactions", "usage", _INTERACTION),
        UsageShape("searches", "groundingMetadata", {"web_searches": [["webSearchQueries[]"]]}),
    ),
    marks=(b'"candidates"', b'"serverContent"', b'"server_content"', b'"promptFeedback"', b'"interaction'),
)
