"""Token estimates from the size of texts, for what no provider has reported (yet).

One reader measures requests for holds and for bills: all their texts, whatever the members are called. A
client could else hide its prompt behind a member that the app ignores. A hold takes three bytes of UTF-8 for
a token: on the safe side for prose in any script, low for dense JSON and base64. A bill takes four, and less
for media.
"""

from __future__ import annotations

import re
from codecs import getincrementaldecoder
from contextlib import suppress
from json import detect_encoding
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias
from urllib.parse import unquote_to_bytes

from llm_usage.call_usage import CallUsage
from llm_usage.form_models import is_form
from llm_usage.json_values import load, table
from llm_usage.layout import JSON_MARKS, utf8_bytes
from llm_usage.llm_request import may_be_json, read_request
from llm_usage.units import FIGURE_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llm_usage.json_values import Table
    from llm_usage.llm_request import LlmRequest

MEDIA_PART_TOKENS: Final = 1_600
"""Tokens held for an image, a piece of audio or a document, whatever its size."""
BILLED_BYTES_PER_TOKEN: Final = 4
BILLED_MEDIA_TOKENS: Final = 85
"""Tokens billed for an image: OpenAI's price of one in low detail."""
_SPOKEN_BY_TOKENS: Final = "gpt-"
# A minute of speech: $0.015 at $12 a million tokens (https://openai.com/api/pricing), and 150 words.
_SOUND_TOKENS: Final = 1_250
_SPOKEN_CHARACTERS: Final = 900
_BYTES_PER_TOKEN: Final = 3
_OWN_BYTES_MAX: Final = 32 << 10
"""A body that is no JSON or too large goes to the app's own estimator only up to this size."""
_ASKING_NAMES: Final = ("messages", "contents", "prompt", "input", "inputs")
# Within a JSON text the closing quotation mark would be escaped. No program escapes letters in names.
_ASKING: Final = re.compile(
    rb'"(?:' + "|".join(_ASKING_NAMES).encode() + rb')"\s*:|\\u00[2-7][0-9A-Fa-f][^"\\]{0,99}"\s*:'
)
# A form with a sound has no prompt, but the model's name.
_FORM_NAMES: Final = "|".join((*_ASKING_NAMES, "model")).encode()
_IN_PARTS: Final = re.compile(rb"name\*?\s*=\s*(?:[\w-]*''|[\"'])?(?:%b)(?![\w.-])" % _FORM_NAMES)
_IN_PAIRS: Final = re.compile(rb"(?:^|[&;])(?:%b)=" % _FORM_NAMES)
_PARTS_MAX: Final = 2_048
_ENCODING_BYTES: Final = 4
InputEstimator: TypeAlias = "Callable[[bytes | Table, str | None], int]"
"""Counts the input tokens of a request that is about to be made, for its body and model; must not raise."""


def held_input(
    asked: LlmRequest | None, body: bytes, size: int, estimate: InputEstimator | None = None
) -> int:
    """Input tokens to hold for a request.

    Texts count a token for three bytes of UTF-8, token arrays their length, an image, a piece of audio or
    a document :data:`MEDIA_PART_TOKENS` each.

    Args:
        asked: the request, if its body could be parsed.
        body: its first bytes.
        size: bytes of the whole of it.
        estimate: the app's own estimator, which replaces this.

    Returns:
        0 where there is no body. Never raises, if the estimator does not.
    """
    own = _estimate_by_app(estimate, asked, body, size)
    if own:
        return own
    if asked is None:
        return _unparsed_input(body, size)
    measured = asked.input_size()
    if measured is None:
        # So many values may be tokens, in arrays of them.
        return min(_unparsed_input(body, len(body)) + body.count(b","), FIGURE_MAX)
    texts, numbers, media = measured
    return min(_tokens_of_bytes(texts) + numbers + media * MEDIA_PART_TOKENS, FIGURE_MAX)


def billed_input(
    body: bytes,
    *,
    size: int,
    estimate: InputEstimator | None = None,
    media_tokens: int = BILLED_MEDIA_TOKENS,
) -> int:
    """Input tokens to bill for a request without reported figures: rather too few than too many.

    Four bytes of text are a token, each number of a token array is one, and an image, a sound or a document
    is 85. Of a body that cannot be parsed, only the bytes are counted, without blanks, JSON's marks and
    encoded data: that takes about 2 ms for each MiB.

    Args:
        body: its first bytes.
        size: bytes of the whole of it.
        estimate: the app's own estimator, which replaces this.
        media_tokens: of an image, a sound or a document.

    Returns:
        0 where there is no body. Never raises, if the estimator does not.
    """
    asked = read_request(body) if size <= len(body) else None
    own = _estimate_by_app(estimate, asked, body, size)
    if own:
        return own
    measured = None if asked is None else asked.input_size(_split_text)
    if measured is None:
        head, size = _to_utf8(body, size)
        found = scan_blocks(head, JSON_MARKS, may_be_binary=not may_be_json(head))
        texts, numbers, media = found.texts, 0, found.encoded + (found.binary > 0)
        if not found.ends_in_media:
            # The rest is taken to be like its beginning.
            texts += max(0, size - len(head)) * texts // len(head) if head else size
    else:
        texts, numbers, media = measured
    return min(texts // BILLED_BYTES_PER_TOKEN + numbers + media * media_tokens, FIGURE_MAX)


def speech_units(asked: LlmRequest | None) -> dict[str, int]:
    """Units that a request for speech may use, by the price table's names; empty: it asks for none.

    Most providers bill characters. OpenAI bills tokens for its ``gpt-*`` models: those of the sound are
    estimated.
    """
    texts = [] if asked is None or not asked.has_member("voice") else asked.texts("input")
    if not texts:
        return {}
    characters = max(map(len, texts))
    return {
        "input_characters": characters,
        "input_tokens": max(1, max(map(utf8_bytes, texts)) // BILLED_BYTES_PER_TOKEN),
        "output_tokens": characters * _SOUND_TOKENS // _SPOKEN_CHARACTERS + 1,
    }


def speech_call(body: bytes, limit_models: Callable[[Sequence[str]], Sequence[str]]) -> CallUsage | None:
    """The call of a request that is answered by sound alone; None: it is not for speech.

    Args:
        body: of the request, complete.
        limit_models: gives those of the requested models that may run.
    """
    asked = read_request(body)
    units = speech_units(asked)
    if asked is None or not units:
        return None
    by_tokens = any(_SPOKEN_BY_TOKENS in model for model in limit_models(asked.models))
    return CallUsage(
        input_tokens=units["input_tokens"] if by_tokens else None,
        output_tokens=units["output_tokens"] if by_tokens else None,
        details={"input_characters": units["input_characters"]},
        provider="openai",
        source="estimated",
    )


def asks_model(body: bytes, *, size: int, content_type: bytes = b"") -> bool:
    """Whether a request looks like one to a language model.

    Args:
        body: its first bytes.
        size: bytes of the whole of it.
        content_type: tells forms from JSON.
    """
    if is_form(content_type) and _is_asking_form(body.lower()):
        return True
    asked = read_request(body) if size <= len(body) else None
    if asked is not None:
        return any(asked.has_member(name) for name in _ASKING_NAMES)
    return _ASKING.search(_to_utf8(body, size)[0]) is not None


def _is_asking_form(body: bytes) -> bool:
    """Whether a form, in lower case, has a field of a request to a model; one of too many parts has."""
    if body.count(b"name") > _PARTS_MAX or _IN_PARTS.search(body) is not None:
        return True
    return _IN_PAIRS.search(unquote_to_bytes(body[:_OWN_BYTES_MAX]).lower()) is not None


def _estimate_by_app(
    estimate: InputEstimator | None, asked: LlmRequest | None, body: bytes, size: int
) -> int:
    """Tokens by the app's own estimator; 0 where it has none, or is not asked."""
    if estimate is None or not body or not (asked is not None or size == len(body) <= _OWN_BYTES_MAX):
        return 0
    parsed: Table | None = None
    with suppress(ValueError):
        parsed = table(load(_to_utf8(body, size)[0]))
    return estimate(parsed or body, None if asked is None else asked.model)


def _unparsed_input(body: bytes, size: int) -> int:
    """Tokens to hold for a body that is not parsed: one for three bytes, except encoded and binary data.

    Those count as media, a part for each run of encoded data and for each MiB of the rest. Takes about 2 ms
    for each MiB of the head.
    """
    head, size = _to_utf8(body, size)
    found = scan_blocks(head, b"", may_be_binary=not may_be_json(head))
    rest = max(0, size - len(head))
    more = _media_tokens(rest) if found.ends_in_media else _tokens_of_bytes(rest)
    known = found.encoded * MEDIA_PART_TOKENS + _media_tokens(found.binary)
    return min(_tokens_of_bytes(found.texts) + known + more, FIGURE_MAX)


def _to_utf8(body: bytes, size: int) -> tuple[bytes, int]:
    """Decode UTF-16 and UTF-32, as parsers of JSON do; the size of the whole grows or shrinks likewise."""
    encoding = detect_encoding(body[:_ENCODING_BYTES])
    if encoding.startswith("utf-8"):
        return body, size
    try:
        # A character may be cut at the end.
        text = getincrementaldecoder(encoding)().decode(body, final=size <= len(body))
    except UnicodeDecodeError:
        return body, size
    head = text.encode()
    return head, size * len(head) // len(body)


def _split_text(value: str) -> tuple[int, int]:
    """UTF-8 bytes of a text that are not encoded data, and runs of such data."""
    if len(value) < BLOCK_BYTES:
        return utf8_bytes(value), 0
    found = scan_blocks(value.encode("utf-8", "surrogatepass"), b"", may_be_binary=False)
    return found.texts, found.encoded


def _tokens_of_bytes(count: int) -> int:
    """Tokens to hold for so many bytes of UTF-8 text, rounded up."""
    return -(-count // _BYTES_PER_TOKEN)


def _media_tokens(size: int) -> int:
    return MEDIA_PART_TOKENS * -(-size // (1 << 20))


BLOCK_BYTES: Final = 1_024
_CUT_BYTES: Final = 6
_BASE64: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=_-"
_CAPITALS: Final = _BASE64[:26]
_DIGITS: Final = b"0123456789"


class ScannedBytes(NamedTuple):
    """Bytes by their kind.

    Attributes:
        texts: bytes of text, without marks.
        encoded: runs of encoded data.
        binary: bytes that are no text.
        ends_in_media: whether the last of them were encoded or binary.
    """

    texts: int
    encoded: int
    binary: int
    ends_in_media: bool


def scan_blocks(data: bytes, marks: bytes, *, may_be_binary: bool) -> ScannedBytes:
    """Tell text, encoded and binary data apart, block by block.

    Args:
        data: is scanned.
        marks: bytes of texts that do not count.
        may_be_binary: False for JSON, which some parsers read with any bytes in its texts.
    """
    texts = encoded = binary = 0
    is_encoded = is_binary = False
    for at in range(0, len(data), BLOCK_BYTES):
        block = data[at : at + BLOCK_BYTES]
        was_encoded, is_encoded = is_encoded, False
        is_binary = may_be_binary and _is_binary(block)
        if is_binary:
            binary += len(block)
            continue
        # The rest at the end goes with the part before it.
        is_encoded = _is_encoded(block) if len(block) == BLOCK_BYTES else was_encoded and _is_base64(block)
        encoded += is_encoded and not was_encoded
        if not is_encoded:
            texts += len(block.translate(None, marks))
    return ScannedBytes(texts, encoded, binary, is_encoded or is_binary)


def _is_binary(block: bytes) -> bool:
    """Whether a block is no text; one in a single-byte encoding loses only some letters as UTF-8."""
    if b"\0" in block:
        return True
    if block.isascii():
        return False
    lost = len(block) - len(block.decode("utf-8", "ignore").encode())
    return lost > _CUT_BYTES + len(block) // 4


def _is_encoded(block: bytes) -> bool:
    """Whether a block is base64: by its characters alone, words that are joined by hyphens would be, too."""
    if not _is_base64(block):
        return False
    digits = len(block) - len(block.translate(None, _DIGITS))
    capitals = len(block) - len(block.translate(None, _CAPITALS))
    # Of random data 16 % and 41 %. Silence and empty space repeat one character.
    is_random = digits >= len(block) // 12 and capitals >= len(block) // 4
    return is_random or block.count(block[:1]) == len(block)


def _is_base64(block: bytes) -> bool:
    return not block.translate(None, _BASE64)
