"""Request to a language model: the fields of its JSON that bound what the call may use."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from llm_usage.gateway_models import INPUT_MEMBERS, NO_GATEWAY_MODELS, GatewayModels, find_gateway_models
from llm_usage.input_size import MeasureText, measure_plain_text, measure_values
from llm_usage.json_readings import (
    DECODER,
    MEMBERS_MAX,
    NO_VALUES,
    UNREADABLE,
    Members,
    NamedValue,
    exact_readings,
    fold_name,
    fold_path,
    group_by_name,
    largest_reading,
    members_named,
    read_figure,
    values_read,
)
from llm_usage.json_values import rows
from llm_usage.units import FIGURE_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

READ_BYTES_MAX: Final = 1 << 20
"""A larger body is not read: parsing it would hold up other requests."""
MARKS_MAX: Final = 1 << 14
"""A body with more commas and brackets is not read, for the same reason."""
_ALIKE_MAX: Final = 16
_TOOLS_MAX: Final = 128
_WITHOUT_MODELS: Final = INPUT_MEMBERS | {
    *("model", "n", "stop", "stream", "streamoptions", "temperature", "topp", "user", "toolchoice"),
    *("maxtokens", "maxcompletiontokens", "maxoutputtokens", "responseformat", "generationconfig"),
}
"""Members, with folded names, that are not looked through for further models."""
# And byte order marks, and the other bytes of a blank in UTF-16 and UTF-32.
_BLANK: Final = b" \t\r\n\0\xef\xbb\xbf\xfe\xff"
# llama.cpp's server goes by `n_predict` where both are given:
# https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
_OUTPUT_LIMITS: Final = (
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "max_tokens_to_sample",
    "max_new_tokens",
    "n_predict",
)
# SDKs and LiteLLM write its members over those of the body, for apps that call `create(**body)`.
_MERGED: Final = "extra_body"
_ANSWERS: Final = (
    "n",
    "best_of",
    "candidate_count",
    "num_generations",
    "num_return_sequences",
    "generationConfig.candidateCount",
    "parameters.candidateCount",
    "parameters.best_of",
    "parameters.num_return_sequences",
    f"{_MERGED}.n",
    f"{_MERGED}.best_of",
)
WAYS: Final = ("service_tier", "speed", "inference_geo")
"""Fields in which a request asks for a way of processing that may have a price of its own."""
# https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html
WAYS_OF_HEADERS: Final = {
    "x-amzn-bedrock-service-tier": "service_tier",
    "x-amzn-bedrock-performanceconfig-latency": "speed",
}
"""Header fields of Bedrock's InvokeModel that ask for such a way, and in a response name it."""
_WAYS_OF_BEDROCK: Final = {"service_tier": "serviceTier.type", "speed": "performanceConfig.latency"}


class NamedLimit(NamedTuple):
    """The largest quantity that a request names for a field.

    Attributes:
        field: its name in the request, which may be another spelling.
        quantity: for one answer.
    """

    field: str
    quantity: int


class LlmRequest:
    """Fields of a request whose body was read to its end.

    Args:
        root: the body's members.
    """

    __slots__ = ("_gateway_models", "_named", "_root", "_values")

    def __init__(self, root: Members = ()) -> None:
        self._root = root
        # Under all spellings of a field.
        self._values: dict[str, list[NamedValue]] = {}
        self._named = group_by_name(root)
        self._gateway_models: GatewayModels | None = None

    @property
    def models(self) -> tuple[str, ...]:
        """The models named: several where `model` stands twice, in two spellings, or with fallbacks."""
        # https://docs.perplexity.ai/api-reference/async-chat-completions-post
        named = self._named_models or self.texts("request.model")
        merged = [(name, value) for name, value in self._merged_values("model") if isinstance(value, str)]
        return tuple(dict.fromkeys((*named, *self._gateways().listed, *values_read(merged))))

    @property
    def mentioned_models(self) -> Sequence[str]:
        """Further names beside the models: an app or a gateway may read one of them."""
        return self._gateways().mentioned

    @property
    def has_unread_models(self) -> bool:
        """Whether it has so many values that some may name further models."""
        return self._gateways().is_cut

    def _gateways(self) -> GatewayModels:
        found = self._gateway_models
        if found is None:
            further = self._named.keys() - _WITHOUT_MODELS
            found = (
                NO_GATEWAY_MODELS
                if not further
                else find_gateway_models([named for name in further for named in self._named[name]])
            )
            self._gateway_models = found
        return found

    @property
    def tool_models(self) -> tuple[str, ...]:
        """The models that hosted tools may call: those that draw, and advisors."""
        if "tools" not in self._named:
            return ()
        tools = [item for _, value in self._named["tools"][:_ALIKE_MAX] for item in rows(value)]
        found = [inner for item in tools[:_TOOLS_MAX] for _, inner in members_named(("tools", item), "model")]
        return tuple(dict.fromkeys(name for name in found if isinstance(name, str) and name))

    @property
    def model(self) -> str | None:
        """The model that is named; the last one of several, as most readers of JSON take it."""
        return self._named_models[-1] if self._named_models else None

    @property
    def _named_models(self) -> list[str]:
        named = self._named.get("model", ())
        found = [(name, value) for name, value in named if isinstance(value, str) and value]
        return list(dict.fromkeys(values_read(found)))

    def texts(self, field: str) -> list[str]:
        """All texts that a field may be to one parser or another.

        Args:
            field: a member's name, or a dotted path.
        """
        first, *path = map(fold_name, field.split("."))
        found = self._named.get(first, NO_VALUES)
        for name in path:
            found = [inner for outer in found[:_ALIKE_MAX] for inner in members_named(outer, name)]
        return [value for _, value in found if isinstance(value, str) and value]

    def limit(self, field: str, *, default: int) -> int:
        """The most that an app may take a field for; never less than the default, unless it says so itself.

        Only a positive integer under the field's exact name can be less. An app that expects that field may
        ignore other spellings, texts and fractions, and then goes by its own default.

        Args:
            field: a member's name, or a dotted path such as ``generationConfig.maxOutputTokens``. OpenAI's
                names for the limit of output tokens are spellings of each other.
            default: the quantity where the field is absent or null.

        Returns:
            10^15 - 1 where some reading is not known: a text or an object that is no figure, and a figure
            below 1, which some apps take for no limit.
        """
        exact = [
            value if type(value) is int and value > 0 else default
            for value in exact_readings(self._root, tuple(field.split(".")))
        ]
        others = [largest_reading(value) for _, value in self._spellings(field)]
        return min(max(*exact, *others, 1), FIGURE_MAX)

    def named_limit(self, field: str) -> NamedLimit | None:
        """The largest figure that can be read under any spelling of a field; None where there is none."""
        found = [
            NamedLimit(name, quantity)
            for name, value in self._spellings(field)
            if (quantity := read_figure(value)) is not None
        ]
        return max(found, key=lambda named: named.quantity, default=None)

    def answers(self) -> int:
        """For how many answers it asks: choices of each prompt, times the prompts."""
        return self._count_answers(largest_reading)

    def named_answers(self) -> int:
        """For how many answers it asks by the figures that can be read."""
        return self._count_answers(read_figure)

    def _count_answers(self, read: Callable[[object], int | None]) -> int:
        if self._named.keys().isdisjoint(_SEVERAL):
            return 1
        # Texts and arrays of tokens are a prompt each, and so is one array of tokens.
        prompts = [
            sum(type(item) not in (int, float) for item in rows(value))
            for _, value in self._find_values("prompt")
        ]
        choices = [read(value) or 1 for name in _ANSWERS for _, value in self._find_values(name)]
        return min(max(1, 1, *choices) * max(1, 1, *prompts), FIGURE_MAX)

    def has_member(self, name: str) -> bool:
        """Whether there is such a member, in any spelling."""
        return fold_name(name) in self._named

    def is_set(self, name: str) -> bool:
        """Whether such a member is true, in any spelling."""
        return any(value is True for _, value in self._find_values(name))

    def input_size(self, measure_text: MeasureText = measure_plain_text) -> tuple[int, int, int] | None:
        """Bytes of text, tokens given as numbers, and media parts; None where there are too many values.

        Args:
            measure_text: finds the bytes of text and the media parts within a text.
        """
        values: list[Any] = [self._root]
        found = measure_values(values, measure_text)
        return None if values else found

    @property
    def has_media(self) -> bool:
        """Whether sound, images or video are among what goes in, or may be."""
        size = self.input_size()
        return size is None or size[2] > 0

    @property
    def context(self) -> list[tuple[str, str]] | None:
        """The ways of processing that it asks for, such as ``("service_tier", "priority")``.

        Returns:
            None where one has too many spellings: it may ask for any.
        """
        places = [(way, way) for way in WAYS]
        places += [(way, place) for way, place in _WAYS_OF_BEDROCK.items() if self._has_object(place)]
        named = [(way, value) for way, place in places for _, value in self._find_values(place)]
        if any(value is UNREADABLE for _, value in named):
            return None
        return [(way, value.lower()) for way, value in named if isinstance(value, str)]

    def _has_object(self, field: str) -> bool:
        """Whether a field may stand in an object, in any spelling of that."""
        return any(isinstance(value, tuple) for _, value in self._named.get(fold_path(field)[1], NO_VALUES))

    def _spellings(self, field: str) -> list[NamedValue]:
        known = self._values.get(field)
        if known is None:
            names: Iterable[str] = _LIMITS if field in _OUTPUT_LIMITS else (field,)
            there = filter(self._named.__contains__, names) if names is _LIMITS else names
            known = self._values[field] = [named for name in there for named in self._find_values(name)]
            if _MERGED_NAME in self._named:
                known += [named for name in names for named in self._merged_values(name)]
        return known

    def _merged_values(self, field: str) -> list[NamedValue]:
        """Values that an SDK may write over those of a field."""
        return self._find_values(f"{_MERGED}.{field}") if _MERGED_NAME in self._named else NO_VALUES

    def _find_values(self, field: str) -> list[NamedValue]:
        """All that a field may be to one parser or another."""
        whole, first, path = fold_path(field)
        found, level = self._named.get(whole, NO_VALUES), self._named.get(first)
        if path and level is not None:
            for name in path:
                level = [inner for outer in level[:_ALIKE_MAX] for inner in members_named(outer, name)]
                if len(level) > _ALIKE_MAX:
                    return [(field, UNREADABLE)]
            found = [*found, *level]
        return found if len(found) <= _ALIKE_MAX else [(field, UNREADABLE)]


def may_be_json(body: bytes) -> bool:
    """Whether a body begins as an object or an array."""
    return body.lstrip(_BLANK).startswith((b"{", b"["))


def read_request(body: bytes) -> LlmRequest | None:
    """Parse a complete body; None where it is no JSON object, or larger or denser than is read.

    Takes the time of other requests: some milliseconds at most, whatever the body.
    """
    if len(body) > READ_BYTES_MAX or not body.lstrip(_BLANK).startswith(b"{"):
        return None
    if sum(map(body.count, (b",", b"{", b"["))) > MARKS_MAX:
        return None
    try:
        encoding = "utf-8" if body.startswith(b'{"') else json.detect_encoding(body)
        root: object = DECODER.decode(body.decode(encoding))
    except (ValueError, RecursionError):
        return None
    if not isinstance(root, tuple):
        return None
    members = cast("Members", root)
    return LlmRequest(members) if len(members) <= MEMBERS_MAX else None


_LIMITS: Final = tuple(map(fold_name, _OUTPUT_LIMITS))
_MERGED_NAME: Final = fold_name(_MERGED)
# What must be in a request that asks for more than one answer, wherever in it the number stands.
_SEVERAL: Final = frozenset({"prompt"}.union(*(fold_path(name)[:2] for name in _ANSWERS)))
