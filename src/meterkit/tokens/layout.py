"""The layout of answers: where each API has its figures, and where the model's text."""

from __future__ import annotations

import json
import re
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

from meterkit.tokens.json_values import dig, paths, text
from meterkit.tokens.unread_figures import may_have_figures

if TYPE_CHECKING:
    from collections.abc import Sequence

_NAMES: Final = paths(
    id="id message.id response.id responseId response_id",
    model="model message.model response.model modelVersion model_version",
)
CALL_ID: Final = _NAMES["id"]
"""Where an event names its call."""
CALL_MODEL: Final = _NAMES["model"]
"""Where an event names its model."""
_MARKS: Final = b'{}[]:,"\\ \t\r\n'
# A quotation mark within a JSON text is escaped, so that what a model says cannot look like these.
_ANSWERS: Final = (b'"choices"', b'"candidates"', b'"content"', b'"output"', b'"message"', b'"response"')
_COUNT: Final = b'ount"'  # promptTokenCount, prompt_token_count, eval_count
_BILLED: Final = b'"billed_units"'
_PAGES: Final = b'"usage_info"'
_USAGE: Final = b'"usage"'
# OpenAI's chunks say `"usage": null` all along.
_USAGE_OBJECT: Final = re.compile(rb'"usage"\s*:\s*\{')
_CODE_EXTRA_BYTES: Final = 3  # `u65e5`, as it is without its backslash, for two bytes of UTF-8


@dataclass(slots=True, eq=False)
class Place:
    """A value somewhere in an answer. The items of an array stand in the place of the array.

    Attributes:
        names: the members to read, if the value is an object.
        text: whether the model wrote it, if the value is a text.
        handed: whether it is the input of a tool call, which may be any JSON.
        whole: whether all members are read, and stand in this place too.
        silent: whether no text is in it.
        entered: whether anything in it is read, if the value is an object or an array.
    """

    names: dict[str, Place] = field(default_factory=dict["str", "Place"])
    _: KW_ONLY
    text: bool = False
    handed: bool = False
    whole: bool = False
    silent: bool = field(init=False)
    entered: bool = field(init=False)

    def __post_init__(self) -> None:
        self.silent = not self.text and all(inner.silent for inner in self.names.values())
        self.entered = bool(self.names) or self.whole or (self.text and not self.handed)

    def member(self, name: str) -> Place | None:
        """The place of a member; None where it is not looked at."""
        return self if self.whole else self.names.get(name)


def may_answer(data: bytes) -> bool:
    """Whether JSON may hold usage figures, or be an answer that lacks them."""
    figures = (_USAGE, _COUNT, _BILLED, _PAGES)
    return any(needle in data for needle in (*figures, *_ANSWERS)) or may_have_figures(data)


def may_report(data: bytes) -> bool:
    """Whether an event, or one among several, may hold usage figures, an error or the end of a stream."""
    if _USAGE in data and _USAGE_OBJECT.search(data) is not None:
        return True
    return any(needle in data for needle in (_COUNT, b'"error"', b"[DONE]", _BILLED, _PAGES))


def first_text(event: object, alternatives: Sequence[Sequence[str]]) -> str | None:
    """The first name or id that stands at one of some paths."""
    found = (text(dig(event, path)) for path in alternatives)
    return next((value for value in found if value is not None), None)


def utf8_bytes(value: str) -> int:
    """How many bytes of UTF-8 a text has."""
    return len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))


def handed_bytes(raw: bytes) -> int:
    """Bytes of JSON without its marks and blanks, escapes taken for less than they may stand for."""
    return max(0, len(raw.translate(None, _MARKS)) - raw.count(b"\\u") * _CODE_EXTRA_BYTES)


def text_bytes(value: object, place: Place) -> int:
    """UTF-8 bytes of what the model wrote in a value.

    Args:
        value: parsed JSON, of bounded depth.
        place: where it stands.
    """
    if isinstance(value, str):
        return utf8_bytes(value) if place.text else 0
    if not isinstance(value, dict | list):
        return 0
    if place.handed:
        return handed_bytes(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    found = 0
    if isinstance(value, list):
        for item in cast("list[object]", value):
            found += text_bytes(item, place)
        return found
    names = place.names
    for name, inner in cast("dict[str, Any]", value).items():
        # Most members are not looked at, or hold nothing.
        if inner and name in names and not (known := names[name]).silent:
            found += text_bytes(inner, known)
    return found


_LEAF: Final = Place()


def _members(names: str, place: Place = _LEAF) -> dict[str, Place]:
    return dict.fromkeys(names.split(), place)


_FIGURES: Final = Place(whole=True)
_TEXT: Final = Place(text=True)
# The input of a tool call is a text of JSON with some APIs, and JSON with others.
_HANDED: Final = Place(text=True, handed=True)
_CALLED: Final = Place({"arguments": _HANDED, "args": _HANDED, "input": _HANDED})
_BLOCK: Final = Place(
    {
        **_members("text refusal transcript code partial_json", _TEXT),
        **_members("arguments input", _HANDED),
        **_members("functionCall function_call toolUse", _CALLED),
        "executableCode": Place({"code": _TEXT}),
        "reasoningContent": Place({"text": _TEXT, "reasoningText": Place({"text": _TEXT})}),
        "stop_reason": _LEAF,
    },
    text=True,
)
_BLOCK.names.update(_members("parts thinking", _BLOCK))
_MESSAGE: Final = Place(
    {
        **_members("id model role stop_reason"),
        **_members("reasoning_content reasoning refusal thinking tool_plan", _BLOCK),
        "content": _BLOCK,
        "usage": _FIGURES,
        "audio": Place({"transcript": _TEXT}),
        "tool_calls": Place({"function": _CALLED, "custom": _CALLED}),
        "function_call": _CALLED,
    }
)
_CHOICE: Final = Place(
    {"delta": _MESSAGE, "message": _MESSAGE, "text": _TEXT, "usage": _FIGURES, "finish_reason": _LEAF}
)
_OUTPUT: Final = Place(
    {
        **_BLOCK.names,
        **_members("content summary", _BLOCK),
        **_members("type status model"),
        "message": _MESSAGE,
        "action": Place(_members("type")),
        "svg_usage": _FIGURES,
    }
)
_META: Final = Place({**_members("billed_units tokens", _FIGURES), "cached_tokens": _LEAF})
_RESPONSE: Final = Place(
    {
        **_members("id model object error background status service_tier provider generation_id"),
        "meta": _META,
        **_members("usage tool_usage svg_usage", _FIGURES),
        "tools": Place(_members("type model")),
        "output": _OUTPUT,
        "choices": _CHOICE,
        "x_groq": Place({"usage": _FIGURES}),
    },
    text=True,
)
_SPOKEN: Final = Place(_members("modelTurn model_turn outputTranscription output_transcription", _BLOCK))
_VECTORS: Final = Place({"statistics": _FIGURES})
_GROUNDING: Final = Place({**_members("webSearchQueries web_search_queries", _FIGURES)})
_DELTA: Final = Place({**_BLOCK.names, "message": _MESSAGE, "usage": _FIGURES}, text=True)

ROOT: Final = Place(
    {
        **_RESPONSE.names,
        **_members("type created created_at done text error data stopReason finish_reason stop_reason"),
        **_members("prompt_eval_count eval_count prompt_eval_cached_count"),
        **_members("prompt_token_count generation_token_count inputTextTokenCount totalOutputTextTokenCount"),
        **_members("completionReason embeddingsByType event_type document_annotation"),
        **_members("embeddings embedding", _VECTORS),
        "predictions": Place({"embeddings": _VECTORS}),
        **_members("modelVersion model_version responseId response_id promptFeedback prompt_feedback"),
        **_members("messageStart messageStop contentBlockStart contentBlockStop"),
        **_members("input_tokens context_management"),
        **_members("inputTokens totalBillableCharacters tokensInfo tokens token_strings"),
        **_members("totalTokens cachedContentTokenCount promptTokensDetails cacheTokensDetails"),
        **_members("usageMetadata usage_metadata amazon-bedrock-invocationMetrics", _FIGURES),
        **_members("thinking tool_plan completion generation outputText", _TEXT),
        "data": Place(_members("embedding relevance_score")),
        "results": Place({**_members("relevance_score tokenCount category_scores"), "outputText": _TEXT}),
        "result": Place({"usage": _FIGURES, "model": _LEAF, "response": _TEXT}),
        "answers": Place(_members("type")),
        **_members("item_id success document_annotation"),
        "pages": Place({"images": Place(_members("image_annotation"))}),
        "usage_info": _FIGURES,
        "trace": Place({"promptRouter": _FIGURES}),
        **_members("serviceTier performanceConfig", _FIGURES),
        "delta": _DELTA,
        "message": _MESSAGE,
        "content": _BLOCK,
        "response": _RESPONSE,
        "interaction": _RESPONSE,
        "event": Place({"type": _LEAF, "response": _RESPONSE}),
        "session": Place(_members("id model")),
        **_members("serverContent server_content", _SPOKEN),
        **_members("outputs steps", _OUTPUT),
        "agent": _LEAF,
        "candidates": Place(
            {
                "content": _BLOCK,
                **_members("finishReason finish_reason"),
                **_members("groundingMetadata grounding_metadata", _GROUNDING),
            }
        ),
        "contentBlockDelta": Place({"delta": _BLOCK}),
        "metadata": Place(
            {
                **_members("usage serviceTier performanceConfig", _FIGURES),
                "trace": Place({"promptRouter": _FIGURES}),
                **_members("billableCharacterCount billable_character_count"),
            }
        ),
    }
)
"""An event, or a whole answer, of any of the APIs."""
