"""Layout of responses: a tree of the members that readers of all APIs look at, from :data:`ROOT` down.

A large response is kept only where the tree has a place, and text of the model is measured only there.
"""

from __future__ import annotations

import json
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

from llm_usage.json_values import dig, paths, short_id, text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


_CALL_NAMES: Final = paths(
    id="id message.id response.id interaction.id responseId response_id",
    model="model message.model response.model interaction.model modelVersion model_version",
)
CALL_ID: Final = _CALL_NAMES["id"]
"""Paths of the call's id in an event."""
CALL_MODEL: Final = _CALL_NAMES["model"]
"""Paths of the model's name in an event."""
JSON_MARKS: Final = b'{}[]:,"\\ \t\r\n'
"""Bytes that structure JSON, and blanks."""
# An escape such as `\u65e5` has 5 bytes beside its backslash, and stands for at least 2 bytes of UTF-8.
_CODE_EXTRA_BYTES: Final = 3


@dataclass(slots=True, eq=False)
class ValuePlace:
    """A place of a value in a response. The items of an array stand in the place of the array.

    A value may be a text in one API and an object in another: then both ``is_text`` and ``members`` are set.

    Attributes:
        members: the places of the members to read, if the value is an object.
        is_text: whether the model wrote the value, if it is a text.
        is_tool_input: whether it is the input of a tool call, which may be any JSON.
        keeps_all: whether all members are read; they stand in this place, too.
        repeats: members that repeat the text of another member, each with the name of that.
        text_members: those of the members that may hold text.
        is_textless: whether the model's text is nowhere in it.
        is_entered: whether anything in it is read, if it is an object or an array.
    """

    members: dict[str, ValuePlace] = field(default_factory=dict["str", "ValuePlace"])
    _: KW_ONLY
    is_text: bool = False
    is_tool_input: bool = False
    keeps_all: bool = False
    repeats: Mapping[str, str] = field(default_factory=dict[str, str])
    # Derived from the others once. Code that adds a member later must set them itself.
    text_members: dict[str, ValuePlace] = field(init=False)
    is_textless: bool = field(init=False)
    is_entered: bool = field(init=False)

    def __post_init__(self) -> None:
        self.text_members = {name: inner for name, inner in self.members.items() if not inner.is_textless}
        self.is_textless = not self.is_text and not self.text_members
        self.is_entered = bool(self.members) or self.keeps_all or (self.is_text and not self.is_tool_input)

    def member(self, name: str) -> ValuePlace | None:
        """The place of a member; None if it is not read."""
        return self if self.keeps_all else self.members.get(name)


def find_name(event: object, alternatives: Sequence[Sequence[str]]) -> str | None:
    """Find the first id or model name at one of several paths.

    Args:
        event: parsed JSON.
        alternatives: :data:`CALL_ID` or :data:`CALL_MODEL`. A long id is shortened, a long name is ignored.
    """
    parse = short_id if alternatives is CALL_ID else text
    for path in alternatives:
        found = parse(dig(event, path))
        if found is not None:
            return found
    return None


def utf8_bytes(value: str) -> int:
    """Number of UTF-8 bytes of a text."""
    return len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))


def tool_input_bytes(raw: bytes) -> int:
    """Size of a tool call's input: its JSON without marks and blanks, each escaped character as 2 bytes."""
    return max(0, len(raw.translate(None, JSON_MARKS)) - raw.count(b"\\u") * _CODE_EXTRA_BYTES)


def text_bytes(value: object, place: ValuePlace) -> int:
    """UTF-8 bytes of the model's text in a value.

    Args:
        value: parsed JSON, of bounded depth.
        place: of the value.
    """
    if isinstance(value, str):
        return utf8_bytes(value) if place.is_text else 0
    is_object = isinstance(value, dict)
    if not is_object and not isinstance(value, list):
        return 0
    if place.is_tool_input:
        return tool_input_bytes(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    found = 0
    if is_object:
        members, text_members = cast("dict[str, Any]", value), place.text_members
        # Most members hold no text, or are empty.
        names = members.keys() & text_members.keys()
        if len(names) > 1:
            names -= {name for name, first in place.repeats.items() if members.get(first)}
        for name in names:
            if members[name]:
                found += text_bytes(members[name], text_members[name])
    else:
        for item in cast("list[object]", value):
            found += text_bytes(item, place)
    return found


_LEAF: Final = ValuePlace()


def _at_each(names: str, place: ValuePlace = _LEAF) -> dict[str, ValuePlace]:
    """Members that have one place in common; their names are separated by blanks."""
    return dict.fromkeys(names.split(), place)


_FIGURES: Final = ValuePlace(keeps_all=True)
_TEXT: Final = ValuePlace(is_text=True)
# The input of a tool call is JSON in some APIs, and a text that holds JSON in others.
_TOOL_INPUT: Final = ValuePlace(is_text=True, is_tool_input=True)
_TOOL_CALL: Final = ValuePlace({"arguments": _TOOL_INPUT, "args": _TOOL_INPUT, "input": _TOOL_INPUT})
# A piece of content: a block, a part, or a bare text.
_CONTENT_BLOCK: Final = ValuePlace(
    {
        **_at_each("text refusal transcript code partial_json", _TEXT),
        **_at_each("arguments input", _TOOL_INPUT),
        **_at_each("functionCall function_call toolUse", _TOOL_CALL),
        "executableCode": ValuePlace({"code": _TEXT}),
        "reasoningContent": ValuePlace({"text": _TEXT, "reasoningText": ValuePlace({"text": _TEXT})}),
        "stop_reason": _LEAF,
    },
    is_text=True,
)
# Blocks are nested. `is_textless` and `is_entered` are right already.
_CONTENT_BLOCK.members.update(_at_each("parts thinking", _CONTENT_BLOCK))
_CONTENT_BLOCK.text_members.update(_at_each("parts thinking", _CONTENT_BLOCK))
_MESSAGE: Final = ValuePlace(
    {
        **_at_each("id model role stop_reason"),
        **_at_each("reasoning_content reasoning refusal thinking tool_plan", _CONTENT_BLOCK),
        "content": _CONTENT_BLOCK,
        "usage": _FIGURES,
        "audio": ValuePlace({"transcript": _TEXT}),
        "tool_calls": ValuePlace({"function": _TOOL_CALL, "custom": _TOOL_CALL}),
        "function_call": _TOOL_CALL,
    },
    # vLLM and gateways write both: https://github.com/vllm-project/vllm/issues/27755
    repeats={"reasoning": "reasoning_content"},
)
_CHOICE: Final = ValuePlace(
    {"delta": _MESSAGE, "message": _MESSAGE, "text": _TEXT, "usage": _FIGURES, "finish_reason": _LEAF},
    # Together's chunks repeat the piece in `text`, Perplexity's the whole text so far in `message`.
    repeats={"text": "delta", "message": "delta"},
)
# An item of `output`, `outputs` or `steps`.
_OUTPUT: Final = ValuePlace(
    {
        **_CONTENT_BLOCK.members,
        **_at_each("content summary", _CONTENT_BLOCK),
        **_at_each("type status model finish_reason"),
        "message": _MESSAGE,
        "choices": _CHOICE,
        "action": ValuePlace(_at_each("type")),
        "svg_usage": _FIGURES,
    }
)
# Cohere's `meta`.
_META: Final = ValuePlace({**_at_each("billed_units tokens", _FIGURES), "cached_tokens": _LEAF})
# The response object of the Responses API and of its events; a mere text in other APIs. Its members also
# stand at the root of a response without a stream.
_RESPONSE: Final = ValuePlace(
    {
        **_at_each("id model object error background status service_tier provider generation_id"),
        **_at_each("system_fingerprint timings request_id"),
        "meta": _META,
        **_at_each("usage tool_usage svg_usage", _FIGURES),
        "tools": ValuePlace(_at_each("type model")),
        "output": _OUTPUT,
        "choices": _CHOICE,
        "x_groq": ValuePlace({"usage": _FIGURES}),
    },
    is_text=True,
)
_LIVE_CONTENT: Final = ValuePlace(
    _at_each("modelTurn model_turn outputTranscription output_transcription", _CONTENT_BLOCK)
)
_EMBEDDING: Final = ValuePlace({"statistics": _FIGURES})
_GROUNDING: Final = ValuePlace(_at_each("webSearchQueries web_search_queries", _FIGURES))
_URLS: Final = ValuePlace(_at_each("urlMetadata url_metadata", _FIGURES))
_DELTA: Final = ValuePlace({**_CONTENT_BLOCK.members, "message": _MESSAGE, "usage": _FIGURES}, is_text=True)
ROOT: Final = ValuePlace(
    {
        **_RESPONSE.members,
        **_at_each("type created created_at done text stopReason finish_reason stop_reason"),
        # Ollama.
        **_at_each("prompt_eval_count eval_count prompt_eval_cached_count"),
        # Bedrock InvokeModel, and the types of Cohere's stream.
        **_at_each("prompt_token_count generation_token_count inputTextTokenCount totalOutputTextTokenCount"),
        **_at_each("completionReason embeddingsByType event_type"),
        # Embeddings of several APIs.
        **_at_each("embeddings embedding", _EMBEDDING),
        "predictions": ValuePlace({"embeddings": _EMBEDDING}),
        # Gemini, and events of its agents.
        **_at_each("modelVersion model_version responseId response_id promptFeedback prompt_feedback"),
        **_at_each("invocationId invocation_id author partial"),
        **_at_each("groundingMetadata grounding_metadata", _GROUNDING),
        # Bedrock Converse.
        **_at_each("messageStart messageStop contentBlockStart contentBlockStop"),
        # Endpoints that count tokens: see `observer.py`.
        **_at_each("input_tokens context_management"),
        **_at_each("inputTokens totalBillableCharacters tokensInfo tokens token_strings"),
        **_at_each("totalTokens cachedContentTokenCount promptTokensDetails cacheTokensDetails"),
        # Several APIs, from here on.
        **_at_each("usageMetadata usage_metadata amazon-bedrock-invocationMetrics model_usage", _FIGURES),
        **_at_each("thinking tool_plan completion generation outputText", _TEXT),
        "data": ValuePlace(
            {
                **_at_each("embedding embeddings prediction relevance_score"),
                "data": ValuePlace(_at_each("embedding")),
            }
        ),
        "results": ValuePlace(
            {**_at_each("relevance_score tokenCount category_scores"), "outputText": _TEXT}
        ),
        "result": ValuePlace({"usage": _FIGURES, "model": _LEAF, "response": _TEXT}),
        "answers": ValuePlace(_at_each("type")),
        **_at_each("item_id success document_annotation"),
        "pages": ValuePlace({"images": ValuePlace(_at_each("image_annotation"))}),
        "usage_info": _FIGURES,
        "trace": ValuePlace({"promptRouter": _FIGURES}),
        **_at_each("serviceTier performanceConfig", _FIGURES),
        "delta": _DELTA,
        "message": _MESSAGE,
        "content": _CONTENT_BLOCK,
        "response": _RESPONSE,
        "interaction": _RESPONSE,
        "event": ValuePlace({"type": _LEAF, "response": _RESPONSE}),
        "session": ValuePlace(_at_each("id model")),
        **_at_each("serverContent server_content", _LIVE_CONTENT),
        **_at_each("outputs steps", _OUTPUT),
        "agent": _LEAF,
        "tool_call_delta": ValuePlace({"parameters": _TOOL_INPUT}),
        "candidates": ValuePlace(
            {
                "content": _CONTENT_BLOCK,
                **_at_each("finishReason finish_reason"),
                **_at_each("groundingMetadata grounding_metadata", _GROUNDING),
                **_at_each("urlContextMetadata url_context_metadata", _URLS),
            }
        ),
        "contentBlockDelta": ValuePlace({"delta": _CONTENT_BLOCK}),
        "metadata": ValuePlace(
            {
                **_at_each("usage serviceTier performanceConfig", _FIGURES),
                "trace": ValuePlace({"promptRouter": _FIGURES}),
                **_at_each("billableCharacterCount billable_character_count"),
            }
        ),
    }
)
"""Place of an event, or a whole response, of any API."""
TEXT_ROOT: Final = ValuePlace({**ROOT.members, "text": _TEXT})
"""Place of an event whose ``text`` at the root is counted: see :data:`TEXT_EVENTS`.

In other events it repeats earlier text, or is the app's own.
"""
TEXT_EVENTS: Final = ("text-generation", "tool-calls-chunk", "transcription.text.delta")
"""Types of the events for :data:`TEXT_ROOT`: of Cohere's Chat v1, and of transcriptions."""
