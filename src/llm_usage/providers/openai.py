"""OpenAI's APIs and compatible servers: shapes, counters by the price table's unit, and calls of tools.

- https://platform.openai.com/docs/api-reference, https://github.com/openai/openai-python (`openai.types`)
- https://docs.mistral.ai/api, https://docs.perplexity.ai/api-reference, https://docs.x.ai/docs/api-reference
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

from llm_usage.batch_lines import is_async_completion, outliving_state
from llm_usage.call_usage import figure
from llm_usage.json_values import Paths, dig, paths, read_counts, rows, short_id, table, text
from llm_usage.providers.gemini import charged_searches
from llm_usage.providers.reader_interface import OPENROUTER, ProviderApi, is_openrouter, read_cost
from llm_usage.reported_calls import EventUsage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llm_usage.json_values import Counts, Table

_MODALITIES: Final = ("text", "audio", "image", "video")


def _by_modality(entered: str, left: str) -> dict[str, str]:
    """Paths of the parts of each modality, for the places where an API may have its details."""
    found: dict[str, str] = {}
    for modality in _MODALITIES:
        name = f"{modality}_tokens"
        found[f"input_{name}"] = " ".join(f"{place}.{name}" for place in entered.split())
        found[f"output_{name}"] = " ".join(f"{place}.{name}" for place in left.split())
        found[f"cache_{modality}_read_tokens"] = " ".join(
            f"{place}.cached_tokens_details.{name}" for place in entered.split()
        )
    return found


# Hosted tools, as xAI and Mistral report them, and LiteLLM and OpenRouter of other providers' models.
_HOSTED: Final = {
    "web_searches": "server_side_tool_usage_details.web_search_calls connectors.web_search"
    " server_tool_use.web_search_requests server_tool_use_details.web_search_requests",
    "social_searches": "server_side_tool_usage_details.x_search_calls",
    "storage_searches": "server_side_tool_usage_details.file_search_calls",
    "code_executions": "server_side_tool_usage_details.code_interpreter_calls connectors.code_interpreter",
}
# LiteLLM's and Alibaba's, of models that write caches for minutes or an hour.
_WRITTEN: Final = (
    "prompt_tokens_details.cache_creation_token_details",
    "prompt_tokens_details.cache_creation",
)
_CHAT: Final = paths(
    input_tokens="prompt_tokens",
    output_tokens="completion_tokens",
    total="total_tokens",
    cached_input_tokens="prompt_tokens_details.cached_tokens prompt_cache_hit_tokens cached_tokens"
    " cached_prompt_text_tokens cache_read_input_tokens num_cached_tokens",
    cache_write_tokens="prompt_tokens_details.cache_write_tokens prompt_tokens_details.cache_creation_tokens"
    " prompt_tokens_details.cache_creation_input_tokens cache_creation_input_tokens",
    cache_write_5m_tokens=" ".join(f"{place}.ephemeral_5m_input_tokens" for place in _WRITTEN),
    cache_write_1h_tokens=" ".join(f"{place}.ephemeral_1h_input_tokens" for place in _WRITTEN),
    reasoning_tokens="completion_tokens_details.reasoning_tokens reasoning_tokens",
    connector="connector_tokens",
    google_searches="prompt_tokens_details.web_search_requests",
    **_by_modality("prompt_tokens_details", "completion_tokens_details"),
    **_HOSTED,
)
_PERPLEXITY: Final = Paths(
    {
        **_CHAT,
        **paths(output_citation_tokens="citation_tokens", web_searches="num_search_queries"),
    }
)
# The Realtime API and transcriptions have the singular, `input_token_details`.
_RESPONSES: Final = paths(
    input_tokens="input_tokens",
    output_tokens="output_tokens",
    total="total_tokens",
    cached_input_tokens="input_tokens_details.cached_tokens input_token_details.cached_tokens"
    " input_tokens_details.cache_read_input_tokens",
    cache_write_tokens="input_tokens_details.cache_write_tokens input_token_details.cache_write_tokens"
    " input_tokens_details.cache_creation_input_tokens",
    reasoning_tokens="output_tokens_details.reasoning_tokens output_token_details.reasoning_tokens",
    input_text_messages="input_text_messages",
    **_by_modality("input_tokens_details input_token_details", "output_tokens_details output_token_details"),
    **{**_HOSTED, "web_searches": f"{_HOSTED['web_searches']} tool_calls_details.search_web.invocation"},
)
_IMAGES: Final = Paths(
    {
        **_RESPONSES,
        **paths(
            cached_input_tokens="cached_tokens input_tokens_details.cached_tokens",
            cache_text_read_tokens="cached_tokens_details.cached_text_tokens",
            cache_image_read_tokens="cached_tokens_details.cached_image_tokens",
        ),
    }
)
_SVG: Final = paths(
    input_tokens="input_tokens",
    output_tokens="output_tokens",
    total="total_tokens",
    reasoning_tokens="reasoning_tokens",
)
# Embeddings and rankings of Voyage, Jina, vLLM and OpenRouter.
_TOTAL: Final = paths(
    input_tokens="total_tokens", input_pixels="image_pixels", rerank_searches="search_units"
)

_HEARD: Final = ("audio_seconds", "input_audio_seconds")
"""Units of sound that went in: some models have a price for one of them, some for both."""
_SECONDS: Final = (
    ("prompt_audio_seconds", _HEARD),
    ("billable_audio_seconds", ("audio_seconds",)),
)
"""Seconds of sound beside tokens: of Mistral's models, and of xAI's voices."""

_TOOL_ITEMS: Final = {
    "web_search_call": "web_searches",
    "file_search_call": "storage_searches",
    "code_interpreter_call": "code_executions",
}
"""Items of a response's output that are billed by the call."""

# The documented default, gpt-image-2.6-sunburst, costs the same, and the price table does not have it yet:
# docs/design/decisions/0031. https://github.com/openai/openai-python `types/responses/tool.py`
_IMAGE_MODEL: Final = "gpt-image-2.5-sunburst"


def read_usage(usage: Table, *, has_only_total: bool, makes_images: bool) -> tuple[Counts, bool] | None:
    """The figures of a usage object, for its API's :func:`settle`, and whether one was refused.

    Args:
        usage: the usage object.
        has_only_total: whether it may say no more than a total: embeddings and rankings.
        makes_images: whether it is of a model that answers with images.

    Returns:
        None where it is not OpenAI-shaped.
    """
    if usage.get("type") == "duration" or ("seconds" in usage and "input_tokens" not in usage):
        return read_duration(usage, _HEARD)
    is_chat = "prompt_tokens" in usage and ("completion_tokens" in usage or "total_tokens" in usage)
    has_both = is_chat and "input_tokens" in usage and "output_tokens" in usage
    # A batch says the figures of a chat too, as zeros: https://github.com/BerriAI/litellm/issues/14884
    if is_chat and not (has_both and _is_empty(usage)):
        is_perplexity = "citation_tokens" in usage or "num_search_queries" in usage
        found = read_counts(usage, _PERPLEXITY if is_perplexity else _CHAT)
    elif "input_tokens" in usage and "output_tokens" in usage:
        found = read_counts(usage, _IMAGES if makes_images else _RESPONSES)
    elif has_only_total and ("total_tokens" in usage or "search_units" in usage):
        counts, refused = read_counts(usage, _TOTAL)
        return {**({"output_tokens": 0} if "total_tokens" in usage else {}), **counts}, refused
    else:
        return None
    counts, refused = found
    for name, units in _SECONDS:
        value = usage.get(name)
        if value is not None and table(value) is None:  # Mistral says `{}` where there is no sound.
            seconds = parse_seconds(value)
            refused |= seconds is None
            counts.update(dict.fromkeys(units, seconds) if seconds is not None else {})
    return (_fill_image_figures(counts) if makes_images else counts), refused


def _is_empty(chat: Table) -> bool:
    return not any(figure(chat.get(name)) for name in ("prompt_tokens", "completion_tokens"))


def read_duration(usage: Table, units: Sequence[str]) -> tuple[Counts, bool]:
    """The seconds of a usage object, as so many of each unit: there are no tokens to miss."""
    seconds = parse_seconds(usage.get("seconds"))
    if seconds is None:
        return {}, usage.get("seconds") is not None
    return dict.fromkeys(units, seconds), False


def parse_seconds(value: object) -> int | None:
    """Whole seconds of a duration, in doubt fewer; None for what cannot be one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return figure(value // 1)


def _fill_image_figures(counts: Counts) -> Counts:
    """The figures of an image model: what comes out is images, except where the details say otherwise."""
    entered = sum(counts.get(f"input_{modality}_tokens", 0) for modality in _MODALITIES)
    parts = [counts.get(f"output_{modality}_tokens") for modality in _MODALITIES]
    left = counts.get("output_tokens", sum(part or 0 for part in parts))
    images = {"output_image_tokens": left} if all(part is None for part in parts) else {}
    return {"input_tokens": entered, **counts, "output_tokens": left, **images}


def settle(counts: Counts) -> Counts:
    """Normalise the figures of one call: total and parts say together what went in and came out."""
    prompt, completion, total = map(counts.get, ("input_tokens", "output_tokens", "total"))
    if completion is not None and "output_citation_tokens" in counts:
        return _add_citations(counts, completion)
    if prompt is None or total is None:
        return counts
    if completion is not None and "connector" in counts:
        # Mistral's tools have read or found them: they went in, and the total has them once.
        return {**counts, "input_tokens": max(prompt, total - completion)}
    if counts.get("input_audio_seconds"):
        return counts  # Mistral bills sound by the second; the total has its tokens too.
    # Embeddings have no completion, and some servers leave hidden reasoning out of it: the total has it.
    residual = max(0, total - prompt - (completion or 0))
    if completion is None:
        return {**counts, "output_tokens": residual}
    if not residual:
        return counts
    more = {"output_tokens": completion + residual, "residual": residual}
    return {"reasoning_tokens": residual, **counts, **more}


def _add_citations(counts: Counts, completion: int) -> Counts:
    """The figures of Perplexity, which bills reasoning and citations on top of the completion."""
    added = counts["output_citation_tokens"] + counts.get("reasoning_tokens", 0)
    by_total = counts.get("total", 0) - counts.get("input_tokens", 0)
    return {**counts, "output_tokens": max(completion + added, by_total)}


def count_tool_calls(response: Table) -> dict[str, int]:
    """Calls of hosted tools in a response that are billed each; none where it has none.

    A search that opened a page or failed is not billed. Where the response says how many searches are, that
    counts: https://github.com/openai/openai-python `types/responses/response.py`
    """
    if "output" not in response and "tool_usage" not in response:
        return {}
    found = Counter[str]()
    for item in rows(response.get("output")):
        kind = dig(item, ("type",))
        unit = _TOOL_ITEMS.get(kind) if isinstance(kind, str) else None
        is_search = kind != "web_search_call" or dig(item, ("action", "type")) == "search"
        if unit is not None and is_search and dig(item, ("status",)) in ("completed", None):
            found[unit] += 1
    billed = figure(dig(response, ("tool_usage", "web_search", "num_requests")))
    return dict(found) if billed is None else {**found, "web_searches": billed}


def read_other_calls(holder: Table, provider: str) -> Iterator[EventUsage]:
    """Yield the calls of other models inside an answer: the image tool's, and those that draw SVG."""
    shared: dict[str, Any] = {"provider": provider, "settle": settle, "final": True}
    used = table(dig(holder, ("tool_usage", "image_gen")))
    if used is not None:
        figures, refused = read_counts(used, _IMAGES)
        if refused or any(figures.values()):
            counts = _fill_image_figures(figures) if figures else figures
            yield EventUsage(
                counts=counts, refused=refused, call_id="image_gen", model=_image_model(holder), **shared
            )
    for name, place in (("svg", holder), *_named_items(holder)):
        drawn = table(place.get("svg_usage"))
        if drawn is not None and (model := text(drawn.get("model"))) is not None:
            counts, refused = read_counts(drawn, _SVG)
            yield EventUsage(counts=counts, refused=refused, call_id=name, model=model, **shared)


def _named_items(holder: Table) -> Iterator[tuple[str, Table]]:
    for at, item in enumerate(rows(holder.get("output"))):
        found = table(item)
        if found is not None and "svg_usage" in found:
            yield f"svg {at}", found


def _image_model(response: Table) -> str:
    """Model of the image tool: the response repeats the requested tools."""
    named = (
        text(dig(tool, ("model",)))
        for kind, place in (("image_generation_call", "output"), ("image_generation", "tools"))
        for tool in rows(response.get(place))
        if dig(tool, ("type",)) == kind
    )
    return next((model for model in named if model is not None), _IMAGE_MODEL)


_OPENAI: Final = "openai"
_TICKS: Final = "cost_in_usd_ticks"
_IMAGE_EVENTS: Final = ("image_generation.completed", "image_edit.completed")
_MEDIA_EVENTS: Final = ("transcript.text.done", "transcription.done", "speech.audio.done", *_IMAGE_EVENTS)
_COMPACTION: Final = "response.compaction"
_WHOLE: Final = ("response", _COMPACTION, "batch", "thread.run", "conversation.response")
"""Objects that have the usage of a call, or of several."""
_SUMS: Final = ("batch", "thread.run")
"""Objects that have the sum of several calls."""
_CONVERSED: Final = "conversation.response.done"  # Mistral's; its figures stand in the event.
_STREAMED: Final = (
    "response.",
    "transcript.text.",
    "transcription.",
    "speech.audio.",
    "image_generation.",
    "image_edit.",
)
"""Beginnings of the types of events."""
_TRANSCRIBED: Final = "conversation.item.input_audio_transcription.completed"
"""The Realtime API's event of another model's call, which transcribes what the user has said."""
SESSION_LENGTHS: Final = ("session.usage.updated", "session.closed")
"""Events of the Live API that say how long a session is so far."""
LIVE_SESSION: Final = "session"
"""Id of a live session in events that name none."""
_OTHER_EVENTS: Final = (*_MEDIA_EVENTS, *SESSION_LENGTHS, _CONVERSED, _TRANSCRIBED)
_NESTED: Final = "response.event"
"""The Live API's event that has one of the Responses API in it."""
_DECISIONS: Final = frozenset({"predicate", "choice", "score", "refusal"})
_VECTORS: Final = ("embedding", "embeddings", "prediction")
"""Members of the items in a list of vectors: OpenAI's, and Jina's several vectors of a text and classes."""
_MAY_HAVE_OTHERS: Final = frozenset({"output", "svg_usage", "tool_usage"})
"""Members of a response that may hold calls of other models."""
_STANDARD_TIERS: Final = frozenset({"auto", "default", "standard"})


def _usage_of(holder: Table) -> Table | None:
    """The usage object, where it is or where some servers put it."""
    found = table(holder.get("usage"))
    if found is None:
        found = table(dig(holder, ("x_groq", "usage")))
    if found is None:
        choices = rows(holder.get("choices"))
        found = table(dig(choices[0], ("usage",))) if choices else None
    return found


def _find_response(event: Table) -> Table | None:
    """The part of an event that is a response of the API, if the event is one."""
    kind = event.get("type")
    if isinstance(kind, str) and kind.startswith("response."):
        return table(event.get("response"))
    if (
        isinstance(event.get("choices"), list)
        or event.get("object") in _WHOLE
        or kind in _OTHER_EVENTS
        or _is_embeddings(event)
        or _is_ranking(event)
        or _is_transcription(event)
        or _is_images(event)
        or _is_decision(event)
        or _has_output(event)
    ):
        return event
    return _find_nested(event)


def _find_nested(event: Table) -> Table | None:
    """The answer of a model that Cloudflare has inside an answer of its own, or Perplexity inside a job."""
    if is_async_completion(event):
        return table(event.get("response"))
    result = table(event.get("result")) if isinstance(event.get("success"), bool) else None
    return None if dig(result, ("usage", "prompt_tokens")) is None else result


def _is_embeddings(event: Table) -> bool:
    """Whether it is a list of vectors, or of classes by vectors; those of a document may be together."""
    data = rows(event.get("data"))
    if event.get("object") != "list" or not data:
        return False
    inner = rows(dig(data[0], ("data",)))
    found = (dig(item, (name,)) for item in (data[0], *inner[:1]) for name in _VECTORS)
    return any(value is not None for value in found)


def _is_ranking(event: Table) -> bool:
    found = rows(event.get("results")) or rows(event.get("data"))
    return bool(found) and dig(found[0], ("relevance_score",)) is not None


def _is_transcription(event: Table) -> bool:
    """Whether it is a transcription; only its usage tells it from other JSON."""
    usage = table(event.get("usage"))
    if usage is None or not isinstance(event.get("text"), str):
        return False
    return usage.get("type") in ("tokens", "duration") or "seconds" in usage


def _is_images(event: Table) -> bool:
    """Whether images have come, in a list or one in an event; only its usage tells a list from other JSON."""
    if event.get("type") in _IMAGE_EVENTS:
        return True
    usage = table(event.get("usage"))
    if usage is None or not isinstance(event.get("data"), list):
        return False
    return "created" in event or _TICKS in usage  # Of xAI's there is nothing else.


def _is_decision(event: Table) -> bool:
    answers = rows(event.get("answers"))
    kind = dig(answers[0], ("type",)) if answers else None
    return isinstance(kind, str) and kind in _DECISIONS


def _has_output(event: Table) -> bool:
    """Whether it is an answer of Alibaba's DashScope, or an event of its stream, whose figures are sums."""
    output = table(event.get("output"))
    if output is None or not isinstance(event.get("request_id"), str):
        return False
    return "finish_reason" in output or isinstance(output.get("choices"), list)


def _usage_in(event: Table, strict: bool) -> EventUsage | None:
    nested = table(event.get("event")) if event.get("type") == _NESTED else None
    if nested is not None:
        event = nested
    if _is_part(event):
        return None
    state = outliving_state(event)
    holder = None if state == "pending" else _find_response(event)
    if holder is None:
        if strict or state == "pending":
            return None
        holder = event
    usage: Table = _usage_of(holder) or {}
    cost, has_refused_cost = read_cost(usage)
    found = _counts_in(event, usage)
    if found is None and (cost is None or not (_is_images(event) or _is_ranking(event))):
        return None
    counts, refused = found or ({}, False)  # Of images and rankings some say only what they cost.
    if holder.get("object") != _COMPACTION:
        counts = {**count_tool_calls(holder), **counts}
    if "google_searches" in counts:
        searches = charged_searches(counts["google_searches"], text(holder.get("model")))
        counts = {"web_searches": searches, **counts}
    provider = _find_provider(holder, usage)
    choices = rows(holder.get("choices"))
    finished = any(dig(choice, ("finish_reason",)) is not None for choice in choices)
    kind = event.get("type")
    is_transcribed = kind == _TRANSCRIBED
    session = table(event.get("session")) if kind in SESSION_LENGTHS else None
    named = holder if session is None else session
    if state is not None and is_async_completion(event):
        named = event
    return EventUsage(
        counts=counts,
        settle=settle,
        provider=provider,
        refused=refused or has_refused_cost,
        call_id=short_id(named.get("item_id" if is_transcribed else "id"))
        or (short_id(named.get("request_id")) if _has_output(named) else None)
        or (LIVE_SESSION if kind in SESSION_LENGTHS else None),
        model=text(named.get("model")) or _model_of_outputs(named),
        opens=is_transcribed or _is_complete_answer(event, holder),
        final=(finished or not choices) and kind != SESSION_LENGTHS[0],
        alone=not choices,
        outlives=state is not None,
        sums=holder.get("object") in _SUMS,
        context=_context(holder, usage),
        cost_micros=cost,
        others=_calls_of_others(holder, provider, cost),
    )


def _model_of_outputs(answer: Table) -> str | None:
    """The model that the outputs of an answer of Mistral's agents name, if it is one."""
    names = {name for output in rows(answer.get("outputs")) if (name := text(dig(output, ("model",))))}
    return names.pop() if len(names) == 1 else None


def _is_complete_answer(event: Table, holder: Table) -> bool:
    """Whether it is all of an answer, and no piece of a stream."""
    kind, choices = event.get("type"), rows(holder.get("choices"))
    if choices:
        return not str(holder.get("object")).endswith(".chunk") and all(map(_is_answer, choices))
    if "choices" in holder or (isinstance(kind, str) and kind not in _MEDIA_EVENTS):
        return False
    return _find_response(event) is not None


def _is_answer(choice: object) -> bool:
    return table(dig(choice, ("message",))) is not None and dig(choice, ("delta",)) is None


def _calls_of_others(holder: Table, provider: str, cost: Fraction | None) -> tuple[EventUsage, ...]:
    """The calls of other models inside an answer; an amount that the provider reports is for all of them."""
    if _MAY_HAVE_OTHERS.isdisjoint(holder):
        return ()
    found = tuple(read_other_calls(holder, provider))
    return found if cost is None else tuple(replace(other, cost_micros=Fraction(0)) for other in found)


def _counts_in(event: Table, usage: Table) -> tuple[Counts, bool] | None:
    if event.get("type") in SESSION_LENGTHS:
        return read_duration(usage, ("audio_seconds",))
    has_only_total = _is_embeddings(event) or _is_ranking(event)
    return read_usage(usage, has_only_total=has_only_total, makes_images=_is_images(event))


def _context(holder: Table, usage: Table) -> dict[str, str]:
    """As what a call was processed, where that may have a price of its own."""
    found: dict[str, str] = {}
    tier = text(holder.get("service_tier")) or text(usage.get("service_tier"))
    if tier is not None and tier not in _STANDARD_TIERS:
        found["service_tier"] = tier
    if holder.get("object") == "batch":
        found["processing"] = "batch"
    return found


def _is_part(event: Table) -> bool:
    """Whether it is a step of a run: the run's own usage has it."""
    named = event.get("object")
    return isinstance(named, str) and named.startswith("thread.run.step")


def _find_provider(holder: Table, usage: Table) -> str:
    """The provider, where an answer shows that it is not OpenAI."""
    if "cost" in usage and is_openrouter(holder, usage):
        return OPENROUTER
    if "x_groq" in holder:
        return "groq"
    if "timings" in holder:
        return "llama.cpp"
    if holder.get("system_fingerprint") == "fp_ollama":
        return "ollama"
    return "deepseek" if "prompt_cache_hit_tokens" in usage else _OPENAI


def _recognises(event: Table) -> bool:
    kind = event.get("type")
    if isinstance(kind, str) and kind.startswith(_STREAMED):
        return True
    named = event.get("object")
    if isinstance(named, str):
        known = named.startswith(("chat.completion", "text_completion", "thread.run")) or named in _WHOLE
        return known or _is_embeddings(event) or _is_ranking(event)
    choices = rows(event.get("choices"))
    first = table(choices[0]) if choices else None
    if kind in _OTHER_EVENTS or _is_ranking(event) or is_async_completion(event):
        return True
    return first is not None and _is_choice(first)


def _is_choice(choice: Table) -> bool:
    """Whether it is a choice of a server that does not say what object it sends."""
    message = table(choice.get("message"))
    if table(choice.get("delta")) is not None or (message is not None and "content" in message):
        return True
    return "finish_reason" in choice and (message is not None or "text" in choice)


OPENAI: Final = ProviderApi(
    name="openai",
    provider=_OPENAI,
    usage_in=_usage_in,
    recognises=_recognises,
    marks=(b'"choices"', b'"thread.run', *(b'"' + kind.encode() for kind in _STREAMED)),
)
