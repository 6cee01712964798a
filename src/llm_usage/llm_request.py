"""Request to a language model: fields of its JSON, read so that no parser could find more in it.

Parsers disagree about members that are named twice, about capitals in names, and about figures written as
text: of all readings the dearest is taken. An app may ignore each of these, so they never lower a limit: only
an integer under the exact name does.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from math import ceil, isnan
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias, TypeVar, cast

from llm_usage.json_values import rows
from llm_usage.layout import utf8_bytes
from llm_usage.units import FIGURE_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

READ_BYTES_MAX: Final = 1 << 20
"""A larger body is not read: parsing it would hold up other requests."""
MARKS_MAX: Final = 1 << 14
"""A body with more commas and brackets is not read, for the same reason."""

T = TypeVar("T")

_Pairs: TypeAlias = "tuple[tuple[str, Any], ...]"
"""An object, with members that are named twice; arrays are lists, and numbers of many digits texts."""
_Named: TypeAlias = "tuple[str, Any]"
"""A value with its name in the request; a member of another object has the dotted path."""

MeasureText: TypeAlias = "Callable[[str], tuple[int, int]]"
"""Finds the bytes of text and the media parts within a text."""

_MEMBERS_MAX: Final = 1_024
# https://openrouter.ai/docs/guides/routing/model-fallbacks, https://docs.litellm.ai/docs/proxy/reliability
_LISTS: Final = ("models", "fallback", "fallbacks")
"""Ends of the names of members that list models which a gateway may call."""
_LISTED_VALUES_MAX: Final = 2_048
_MENTIONED_MAX: Final = 32
"""So many names of one list are enough: a hold prices fewer, and takes more for an unknown model."""
_ALIKE_MAX: Final = 16
_TOOLS_MAX: Final = 128
_CONTAINERS: Final = (list, tuple)
_INPUT: Final = frozenset({"messages", "input", "contents", "prompt", "system", "tools"})
_WITHOUT_MODELS: Final = _INPUT | {
    *("model", "n", "stop", "stream", "streamoptions", "temperature", "topp", "user", "toolchoice"),
    *("maxtokens", "maxcompletiontokens", "maxoutputtokens", "responseformat", "generationconfig"),
}
"""Members, with folded names, that are not looked through for further models."""
_USUAL_NAMES: Final = ("deployment", "model")
_NAME_CHARS_MAX: Final = 64
_SHORT_CHARS_MAX: Final = 256
_VALUES_MAX: Final = 3_072
_DIGITS: Final = re.compile(r"[0-9]{1,15}")
# Every number that a program writes is shorter: a float has at most 17 digits, a sign, a dot and an exponent.
_NUMBER_CHARS_MAX: Final = 24
# And byte order marks, and the other bytes of a blank in UTF-16 and UTF-32.
_BLANK: Final = b" \t\r\n\0\xef\xbb\xbf\xfe\xff"
_NONE: Final[list[Any]] = []
_UNREADABLE: Final = True
"""Stands for an unknown value."""


def _integer(written: str) -> int | str:
    """An integer; its text if that is so long that converting it is slow."""
    return int(written) if len(written) <= _NUMBER_CHARS_MAX else written


def _fraction(written: str) -> float | str:
    """A number with a fraction or an exponent; its text likewise."""
    return float(written) if len(written) <= _NUMBER_CHARS_MAX else written


_DECODER: Final = json.JSONDecoder(object_pairs_hook=tuple, parse_float=_fraction, parse_int=_integer)

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
_MEDIA: Final = frozenset(
    {
        "image_url",
        "input_audio",
        "inlineData",
        "inline_data",
        "fileData",
        "file_data",
        "file_id",
        "image",
        "images",
        "audio",
        "video",
        "mediaChunks",
        "media_chunks",
    }
)
_MEDIA_SOURCES: Final = ("base64", "url", "file")
_MEDIA_DATA: Final = ("data", "url", "file_id")
_NO_TEXT: Final = frozenset(
    {
        "type",
        "role",
        "id",
        "tool_call_id",
        "tool_use_id",
        "call_id",
        "cache_control",
        "cachePoint",
        "model",
        "user",
    }
)


def _measure_text(value: str) -> tuple[int, int]:
    """Measure a text as nothing but text."""
    return utf8_bytes(value), 0


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

    def __init__(self, root: _Pairs = ()) -> None:
        self._root = root
        # Under all spellings of a field.
        self._values: dict[str, list[_Named]] = {}
        self._named = _group_by_name(root)
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
                _NO_MODELS
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
        found = [inner for item in tools[:_TOOLS_MAX] for _, inner in _members(("tools", item), "model")]
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
        first, *path = map(_fold_name, field.split("."))
        found = self._named.get(first, _NONE)
        for name in path:
            found = [inner for outer in found[:_ALIKE_MAX] for inner in _members(outer, name)]
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
            for value in _exact_readings(self._root, tuple(field.split(".")))
        ]
        others = [_largest(value) for _, value in self._spellings(field)]
        return min(max(*exact, *others, 1), FIGURE_MAX)

    def named_limit(self, field: str) -> NamedLimit | None:
        """The largest figure that can be read under any spelling of a field; None where there is none."""
        found = [
            NamedLimit(name, quantity)
            for name, value in self._spellings(field)
            if (quantity := _figure(value)) is not None
        ]
        return max(found, key=lambda named: named.quantity, default=None)

    def answers(self) -> int:
        """For how many answers it asks: choices of each prompt, times the prompts."""
        return self._count_answers(_largest)

    def named_answers(self) -> int:
        """For how many answers it asks by the figures that can be read."""
        return self._count_answers(_figure)

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
        return _fold_name(name) in self._named

    def is_set(self, name: str) -> bool:
        """Whether such a member is true, in any spelling."""
        return any(value is True for _, value in self._find_values(name))

    def input_size(self, measure_text: MeasureText = _measure_text) -> tuple[int, int, int] | None:
        """Bytes of text, tokens given as numbers, and media parts; None where there are too many values.

        Args:
            measure_text: finds the bytes of text and the media parts within a text.
        """
        values: list[Any] = [self._root]
        found = _measure_values(values, measure_text)
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
        if any(value is _UNREADABLE for _, value in named):
            return None
        return [(way, value.lower()) for way, value in named if isinstance(value, str)]

    def _has_object(self, field: str) -> bool:
        """Whether a field may stand in an object, in any spelling of that."""
        return any(isinstance(value, tuple) for _, value in self._named.get(_path(field)[1], _NONE))

    def _spellings(self, field: str) -> list[_Named]:
        known = self._values.get(field)
        if known is None:
            names: Iterable[str] = _LIMITS if field in _OUTPUT_LIMITS else (field,)
            there = filter(self._named.__contains__, names) if names is _LIMITS else names
            known = self._values[field] = [named for name in there for named in self._find_values(name)]
            if _MERGED_NAME in self._named:
                known += [named for name in names for named in self._merged_values(name)]
        return known

    def _merged_values(self, field: str) -> list[_Named]:
        """Values that an SDK may write over those of a field."""
        return self._find_values(f"{_MERGED}.{field}") if _MERGED_NAME in self._named else _NONE

    def _find_values(self, field: str) -> list[_Named]:
        """All that a field may be to one parser or another."""
        whole, first, path = _path(field)
        found, level = self._named.get(whole, _NONE), self._named.get(first)
        if path and level is not None:
            for name in path:
                level = [inner for outer in level[:_ALIKE_MAX] for inner in _members(outer, name)]
                if len(level) > _ALIKE_MAX:
                    return [(field, _UNREADABLE)]
            found = [*found, *level]
        return found if len(found) <= _ALIKE_MAX else [(field, _UNREADABLE)]


class GatewayModels(NamedTuple):
    """Models that a gateway may call in place of the one that a request names.

    Attributes:
        listed: in lists and maps of models and of fallbacks.
        mentioned: in members called ``model`` wherever they stand, and keys of maps of fallbacks.
        is_cut: whether the request has more values than are looked through.
    """

    listed: Sequence[str]
    mentioned: Sequence[str]
    is_cut: bool


_NO_MODELS: Final = GatewayModels((), (), False)


def find_gateway_models(members: Iterable[_Named]) -> GatewayModels:
    """Look through members of a request for models, at any depth; messages and tools name none to a gateway.

    The forms of fallbacks are ``["dear"]``, ``[{"cheap": ["dear"]}]``, ``{"cheap": "dear"}`` and
    ``[{"model": "dear", "fallbacks": […]}]``.
    """
    listed, mentioned = list[str](), list[str]()
    rest: list[tuple[object, bool]] = [(tuple(members), False)]
    for _ in range(_LISTED_VALUES_MAX):
        if not rest:
            break
        value, is_list = rest.pop()
        if isinstance(value, str):
            if is_list:
                listed.append(value)
        elif isinstance(value, list):
            items = cast("list[object]", value)
            if is_list:
                rest += [(item, True) for item in items[: _LISTED_VALUES_MAX + 1]]
            else:
                rest += [(item, False) for item in items if isinstance(item, _CONTAINERS)]
        elif isinstance(value, tuple):
            _look_at_members(cast("_Pairs", value), rest, mentioned, is_list=is_list)
    return GatewayModels(listed, mentioned, bool(rest))


def _look_at_members(
    members: _Pairs, rest: list[tuple[object, bool]], mentioned: list[str], *, is_list: bool
) -> None:
    """Sort the members of an object into names of models and values that may hold some.

    In a list of models an object is an entry, with the name under ``model``, or a map from names to names.
    """
    folded = [(_fold_name(name[:_NAME_CHARS_MAX]), name, inner) for name, inner in members]
    is_entry = any(name in _USUAL_NAMES for name, _, _ in folded)
    for name, written, inner in folded:
        if name in _INPUT:
            continue
        if is_list and not is_entry:
            mentioned.append(written)
            rest.append((inner, True))
        elif name.endswith(_LISTS) or (is_list and name in _USUAL_NAMES):
            rest.append((inner, True))
        else:
            if is_list or any(word in name for word in _USUAL_NAMES):
                texts = (inner, *rows(inner)[:_MENTIONED_MAX])
                mentioned += [text for text in texts if isinstance(text, str)]
            rest.append((inner, False))


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
        root: object = _DECODER.decode(body.decode(encoding))
    except (ValueError, RecursionError):
        return None
    if not isinstance(root, tuple):
        return None
    members = cast("_Pairs", root)
    return LlmRequest(members) if len(members) <= _MEMBERS_MAX else None


def _largest(value: object) -> int:
    """The most that a value may be to one parser or another: 10^15 - 1 where that is not known."""
    figure = _figure(value)
    if value is None:
        return 0
    is_plain = not isinstance(value, str) or _DIGITS.fullmatch(value) is not None
    return figure if figure is not None and is_plain else FIGURE_MAX


def _figure(value: object) -> int | None:
    """A figure from 1 to 10^15 - 1, rounded up; larger ones as that; None where it is none."""
    if type(value) is int:
        return min(value, FIGURE_MAX) if value >= 1 else None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        # As lenient as apps are: blanks, exponents and digits of other scripts.
        figure = float(value)
    except ValueError:
        return None
    return None if isnan(figure) or figure < 1 else ceil(min(figure, FIGURE_MAX))


def _exact_readings(value: object, path: tuple[str, ...]) -> Iterator[object]:
    """Yield each value under the exact names of a path; None where a parser finds none."""
    if not path or value is None:
        yield value
    elif not isinstance(value, tuple):
        yield _UNREADABLE
    else:
        found = [inner for name, inner in cast("_Pairs", value) if name == path[0]]
        for inner in found or [None]:
            yield from _exact_readings(inner, path[1:])


@lru_cache(maxsize=1_024)
def _fold_name(name: str) -> str:
    """A name without what parsers overlook: capitals (Go), ``maxTokens`` for ``max_tokens`` (Protobuf)."""
    return name.casefold().replace("_", "")


@lru_cache(maxsize=256)
def _path(field: str) -> tuple[str, str, tuple[str, ...]]:
    """A field that a plans file names, folded: as one name, its first name, and the path from there."""
    first, *path = map(_fold_name, field.split("."))
    return _fold_name(field), first, tuple(path)


def values_read(named: Sequence[tuple[str, T]]) -> list[T]:
    """Values of repeated names that readers take: the first and the last one of all and of a usual spelling.

    A client can write a name in so many spellings that not each can count.

    Args:
        named: each value after its name as it is spelled, in the order of the request.
    """
    if len(named) <= 1:
        return [value for _, value in named]
    usual = [[pair for pair in named if pair[0] == name] for name in _USUAL_NAMES]
    return [value for group in (named, *usual) for _, value in (*group[:1], *group[-1:])]


def _group_by_name(members: _Pairs, prefix: str = "") -> dict[str, list[_Named]]:
    found: dict[str, list[_Named]] = {}
    for name, value in members:
        if len(name) <= _NAME_CHARS_MAX:
            found.setdefault(_fold_name(name), []).append((prefix + name, value))
    return found


def _members(outer: _Named, folded: str) -> list[_Named]:
    path, value = outer
    if value is None:
        return []
    members = cast("_Pairs", value) if isinstance(value, tuple) else ()
    if not isinstance(value, tuple) or len(members) > _MEMBERS_MAX:
        return [(path, _UNREADABLE)]
    return _group_by_name(members, f"{path}.").get(folded, [])


def _measure_values(values: list[Any], measure_text: MeasureText) -> tuple[int, int, int]:
    """Bytes of text, tokens given as numbers, and media parts in values of any depth.

    Args:
        values: parsed JSON, its objects as pairs. It keeps the values beyond the bound.
        measure_text: finds the bytes of text and the media parts within a text.
    """
    size = numbers = media = 0
    for _ in range(_VALUES_MAX):
        if not values:
            break
        value = values.pop()
        if isinstance(value, str):
            text_bytes, encoded = measure_text(value)
            size += text_bytes
            media += encoded
        elif isinstance(value, list):
            items = rows(cast("object", value))
            others = [item for item in items if type(item) not in (int, float) or item % 1]
            numbers += len(items) - len(others)
            values += others
        elif isinstance(value, tuple) and len(cast("_Pairs", value)) > _MEMBERS_MAX:
            values.append(value)
            break
        elif isinstance(value, tuple):
            media += _count_media(cast("_Pairs", value), values)
    return size, numbers, media


def _count_media(members: _Pairs, values: list[Any]) -> int:
    """Count the media parts of an object; its other members are added to the values."""
    is_source = any(name == "type" and value in _MEDIA_SOURCES for name, value in members)
    media = 0
    for name, value in members:
        if name in _MEDIA or (is_source and name in _MEDIA_DATA):
            media += max(1, len(rows(value)))
        elif name not in _NO_TEXT or not isinstance(value, str) or len(value) > _SHORT_CHARS_MAX:
            values.append(value)
    return media


_LIMITS: Final = tuple(map(_fold_name, _OUTPUT_LIMITS))
_MERGED_NAME: Final = _fold_name(_MERGED)
# What must be in a request that asks for more than one answer, wherever in it the number stands.
_SEVERAL: Final = frozenset({"prompt"}.union(*(_path(name)[:2] for name in _ANSWERS)))
