"""Figures of OpenAI-shaped usage objects, under the price table's units, and what they amount to.

- https://platform.openai.com/docs/api-reference, https://github.com/openai/openai-python (`openai.types`)
- https://docs.mistral.ai/api, https://docs.perplexity.ai/api-reference, https://docs.x.ai/docs/api-reference
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llm_usage.call_usage import figure
from llm_usage.json_values import Paths, paths, read_counts, table
from llm_usage.providers.reader_interface import UsageShape

if TYPE_CHECKING:
    from collections.abc import Sequence

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
_OF_PERPLEXITY: Final = paths(output_citation_tokens="citation_tokens", web_searches="num_search_queries")
_PERPLEXITY: Final = Paths({**_CHAT, **_OF_PERPLEXITY})
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
_OF_IMAGES: Final = paths(
    cached_input_tokens="cached_tokens input_tokens_details.cached_tokens",
    cache_text_read_tokens="cached_tokens_details.cached_text_tokens",
    cache_image_read_tokens="cached_tokens_details.cached_image_tokens",
)
IMAGE_PATHS: Final = Paths({**_RESPONSES, **_OF_IMAGES})
SVG_PATHS: Final = paths(
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

SHAPES: Final = (
    UsageShape("Chat Completions and Completions", "usage", _CHAT),
    UsageShape("those of Perplexity, besides", "usage", _OF_PERPLEXITY),
    UsageShape("Responses, Realtime and transcriptions", "usage", _RESPONSES),
    UsageShape("images and the image tool, besides", "usage, tool_usage.image_gen", _OF_IMAGES),
    UsageShape("drawings as SVG", "svg_usage, output[].svg_usage", SVG_PATHS),
    UsageShape("embeddings and rankings", "usage", _TOTAL),
    UsageShape("sound by the second", "usage", {unit: [["seconds"]] for unit in _HEARD}),
    *(
        UsageShape("sound beside tokens", "usage", {unit: [[name]] for unit in units})
        for name, units in _SECONDS
    ),
)


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
        found = read_counts(usage, IMAGE_PATHS if makes_images else _RESPONSES)
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
    return (fill_image_figures(counts) if makes_images else counts), refused


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


def fill_image_figures(counts: Counts) -> Counts:
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
