"""Layout of responses: the places of figures and of model text, for all APIs together."""

from __future__ import annotations

import json
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

from llm_usage.json_values import dig, paths, short_id, text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


_NAMES: Final = paths(
    id="id message.id response.id interaction.id responseId response_id",
    model="model message.model response.model interaction.model modelVersion model_version",
)
CALL_ID: Final = _NAMES["id"]
"""Paths of the call's id in an event."""
CALL_MODEL: Final = _NAMES["model"]
"""Paths of the model's name in an event."""
JSON_MARKS: Final = b'{}[]:,"\\ \t\r\n'
_CODE_EXTRA_BYTES: Final = 3  # `u65e5`, as it is without its backslash, for two bytes of UTF-8


@dataclass(slots=True, eq=False)
class ValuePlace:
    """A value somewhere in an answer. The items of an array stand in the place of the array.

    Attributes:
        names: the members to read, if the value is an object.
        text: whether the model wrote it, if the value is a text.
        handed: whether it is the input of a tool call, which may be any JSON.
        whole: whether all members are read, and stand in this place too.
        repeats: members that repeat the text of another one, each with the name of that.
        spoken: the members of the names that may hold text.
        silent: whether no text is in it.
        entered: whether anything in it is read, if the value is an object or an array.
    """

    names: dict[str, ValuePlace] = field(default_factory=dict["str", "ValuePlace"])
    _: KW_ONLY
    text: bool = False
    handed: bool = False
    whole: bool = False
    repeats: Mapping[str, str] = field(default_factory=dict[str, str])
    spoken: dict[str, ValuePlace] = field(init=False)
    silent: bool = field(init=False)
    entered: bool = field(init=False)

    def __post_init__(self) -> None:
        self.spoken = {name: inner for name, inner in self.names.items() if not inner.silent}
        self.silent = not self.text and not self.spoken
        self.entered = bool(self.names) or self.whole or (self.text and not self.handed)

    def member(self, name: str) -> ValuePlace | None:
        """The place of a member; None where it is not looked at."""
        return self if self.whole else self.names.get(name)


def first_text(event: object, alternatives: Sequence[Sequence[str]]) -> str | None:
    """The first name or id that stands at one of some paths."""
    parse = short_id if alternatives is CALL_ID else text
    for path in alternatives:
        found = parse(dig(event, path))
        if found is not None:
            return found
    return None


def utf8_bytes(value: str) -> int:
    """Number of UTF-8 bytes of a text."""
    return len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))


def handed_bytes(raw: bytes) -> int:
    """Bytes of JSON without its marks and blanks, escapes taken for less than they may stand for."""
    return max(0, len(raw.translate(None, JSON_MARKS)) - raw.count(b"\\u") * _CODE_EXTRA_BYTES)


def text_bytes(value: object, place: ValuePlace) -> int:
    """UTF-8 bytes of what the model wrote in a value.

    Args:
        value: parsed JSON, of bounded depth.
        place: where it stands.
    """
    if isinstance(value, str):
        return utf8_bytes(value) if place.text else 0
    is_object = isinstance(value, dict)
    if not is_object and not isinstance(value, list):
        return 0
    if place.handed:
        return handed_bytes(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    found = 0
    if is_object:
        members, spoken = cast("dict[str, Any]", value), place.spoken
        # Most members are not looked at, or hold nothing.
        names = members.keys() & spoken.keys()
        if len(names) > 1:
            names -= {name for name, first in place.repeats.items() if members.get(first)}
        for name in names:
            if members[name]:
                found += text_bytes(members[name], spoken[name])
    else:
        for item in cast("list[object]", value):
            found += text_bytes(item, place)
    return found


_LEAF: Final = ValuePlace()


def _members(names: str, place: ValuePlace = _LEAF) -> dict[str, ValuePlace]:
    return dict.fromkeys(names.split(), place)


_FIGURES: Final = ValuePlace(whole=True)
_TEXT: Final = ValuePlace(text=True)
# The input of a tool call is a text of JSON with some APIs, and JSON with others.
_HANDED: Final = ValuePlace(text=True, handed=True)
_CALLED: Final = ValuePlace({"arguments": _HANDED, "args": _HANDED, "input": _HANDED})
_BLOCK: Final = ValuePlace(
    {
        **_members("text refusal transcript code partial_json", _TEXT),
        **_members("arguments input", _HANDED),
        **_members("functionCall function_call toolUse", _CALLED),
        "executableCode": ValuePlace({"code": _TEXT}),
        "reasoningContent": ValuePlace({"text": _TEXT, "reasoningText": ValuePlace({"text": _TEXT})}),
        "stop_reason": _LEAF,
    },
    text=True,
)
_BLOCK.names.update(_members("parts thinking", _BLOCK))
_BLOCK.spoken.update(_members("parts thinking", _BLOCK))
_MESSAGE: Final = ValuePlace(
    {
        **_members("id model role stop_reason"),
        **_members("reasoning_content reasoning refusal thinking tool_plan", _BLOCK),
        "content": _BLOCK,
        "usage": _FIGURES,
        "audio": ValuePlace({"transcript": _TEXT}),
        "tool_calls": ValuePlace({"function": _CALLED, "custom": _CALLED}),
        "function_call": _CALLED,
    },
    # vLLM and gateways write both: https://github.com/vllm-project/vllm/issues/27755
    repeats={"reasoning": "reasoning_content"},
)
_CHOICE: Final = ValuePlace(
    {"delta": _MESSAGE, "message": _MESSAGE, "text": _TEXT, "usage": _FIGURES, "finish_reason": _LEAF},
    # Together's chunks have the piece twice, Perplexity's the whole text so far beside it.
    repeats={"text": "delta", "message": "delta"},
)
_OUTPUT: Final = ValuePlace(
    {
        **_BLOCK.names,
        **_members("content summary", _BLOCK),
        **_members("type status model finish_reason"),
        "message": _MESSAGE,
        "choices": _CHOICE,
        "action": ValuePlace(_members("type")),
        "svg_usage": _FIGURES,
    }
)
_META: Final = ValuePlace({**_members("billed_units tokens", _FIGURES), "cached_tokens": _LEAF})
_RESPONSE: Final = ValuePlace(
    {
        **_members("id model object error background status service_tier provider generation_id"),
        **_members("system_fingerprint timings request_id"),
        "meta": _META,
        **_members("usage tool_usage svg_usage", _FIGURES),
        "tools": ValuePlace(_members("type model")),
        "output": _OUTPUT,
        "choices": _CHOICE,
        "x_groq": ValuePlace({"usage": _FIGURES}),
    },
    text=True,
)
_SPOKEN: Final = ValuePlace(_members("modelTurn model_turn outputTranscription output_transcription", _BLOCK))
_VECTORS: Final = ValuePlace({"statistics": _FIGURES})
_GROUNDING: Final = ValuePlace({**_members("webSearchQueries web_search_queries", _FIGURES)})
_URLS: Final = ValuePlace(_members("urlMetadata url_metadata", _FIGURES))
_DELTA: Final = ValuePlace({**_BLOCK.names, "message": _MESSAGE, "usage": _FIGURES}, text=True)
ROOT: Final = ValuePlace(
    {
        **_RESPONSE.names,
        **_members("type created created_at done text error data stopReason finish_reason stop_reason"),
        **_members("prompt_eval_count eval_count prompt_eval_cached_count"),
        **_members("prompt_token_count generation_token_count inputTextTokenCount totalOutputTextTokenCount"),
        **_members("completionReason embeddingsByType event_type document_annotation"),
        **_members("embeddings embedding", _VECTORS),
        "predictions": ValuePlace({"embeddings": _VECTORS}),
        **_members("modelVersion model_version responseId response_id promptFeedback prompt_feedback"),
        **_members("invocationId invocation_id author partial"),
        **_members("groundingMetadata grounding_metadata", _GROUNDING),
        **_members("messageStart messageStop contentBlockStart contentBlockStop"),
        **_members("input_tokens context_management"),
        **_members("inputTokens totalBillableCharacters tokensInfo tokens token_strings"),
        **_members("totalTokens cachedContentTokenCount promptTokensDetails cacheTokensDetails"),
        **_members("usageMetadata usage_metadata amazon-bedrock-invocationMetrics model_usage", _FIGURES),
        **_members("thinking tool_plan completion generation outputText", _TEXT),
        "data": ValuePlace(
            {
                **_members("embedding embeddings prediction relevance_score"),
                "data": ValuePlace(_members("embedding")),
            }
        ),
        "results": ValuePlace(
            {**_members("relevance_score tokenCount category_scores"), "outputText": _TEXT}
        ),
        "result": ValuePlace({"usage": _FIGURES, "model": _LEAF, "response": _TEXT}),
        "answers": ValuePlace(_members("type")),
        **_members("item_id success document_annotation"),
        "pages": ValuePlace({"images": ValuePlace(_members("image_annotation"))}),
        "usage_info": _FIGURES,
        "trace": ValuePlace({"promptRouter": _FIGURES}),
        **_members("serviceTier performanceConfig", _FIGURES),
        "delta": _DELTA,
        "message": _MESSAGE,
        "content": _BLOCK,
        "response": _RESPONSE,
        "interaction": _RESPONSE,
        "event": ValuePlace({"type": _LEAF, "response": _RESPONSE}),
        "session": ValuePlace(_members("id model")),
        **_members("serverContent server_content", _SPOKEN),
        **_members("outputs steps", _OUTPUT),
        "agent": _LEAF,
        "tool_call_delta": ValuePlace({"parameters": _HANDED}),
        "candidates": ValuePlace(
            {
                "content": _BLOCK,
                **_members("finishReason finish_reason"),
                **_members("groundingMetadata grounding_metadata", _GROUNDING),
                **_members("urlContextMetadata url_context_metadata", _URLS),
            }
        ),
        "contentBlockDelta": ValuePlace({"delta": _BLOCK}),
        "metadata": ValuePlace(
            {
                **_members("usage serviceTier performanceConfig", _FIGURES),
                "trace": ValuePlace({"promptRouter": _FIGURES}),
                **_members("billableCharacterCount billable_character_count"),
            }
        ),
    }
)
"""An event, or a whole answer, of any of the APIs."""
TEXT_ROOT: Final = ValuePlace({**ROOT.names, "text": _TEXT})
"""An event whose ``text`` is the model's: other events say again there what came before, or are the app's."""
TEXT_EVENTS: Final = ("text-generation", "tool-calls-chunk", "transcription.text.delta")
"""Types of such events: Cohere's Chat v1 and Mistral's transcriptions."""
