"""Token estimates from the size of texts, for what no provider has reported (yet).

A hold takes three bytes of UTF-8 for a token: on the safe side for prose in any script, low for dense
JSON and base64. What is billed takes four, and whatever else is in doubt for less: see :func:`billed_input`.
"""

from __future__ import annotations

import logging
import re
from codecs import getincrementaldecoder
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from meterkit.catalog.models import QUANTITY_MAX
from meterkit.tokens.json_values import load, table
from meterkit.tokens.llm_request import measure

if TYPE_CHECKING:
    from collections.abc import Callable

    from meterkit.tokens.json_values import Table

_logger = logging.getLogger("meterkit.asgi")

MEDIA_PART_TOKENS: Final = 1_600
"""Tokens assumed for an image, a piece of audio or a document, whatever its size."""

BODY_BYTES_MAX: Final = 8 << 20
BILLED_BYTES_PER_TOKEN: Final = 4
BILLED_MEDIA_TOKENS: Final = 85
"""Tokens billed for an image: OpenAI's price of one in low detail."""

_BYTES_PER_TOKEN: Final = 3
_PARSED_BYTES_MAX: Final = 32 << 10
_MARKS: Final = b'{}[]:,"\\ \t\r\n'
# Within a JSON text the closing quotation mark would be escaped.
_ASKING: Final = re.compile(rb'"(?:messages|contents|prompt|input|inputs)"\s*:')
_NODES_MAX: Final = 100_000
# Blanks, byte order marks, and what characters of more than one byte are filled up with.
_BEFORE_JSON: Final = b" \t\r\n\0\xef\xbb\xbf\xfe\xff"
_WIDE_BYTES: Final = 4
_BLOCK_BYTES: Final = 1_024
_BASE64: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=_-"

_INPUT_KEYS: Final = (
    "messages",
    "system",
    "prompt",
    "suffix",
    "input",
    "instructions",
    "contents",
    "systemInstruction",
    "system_instruction",
    "tools",
    "functions",
    "toolConfig",
    "documents",
)


InputEstimator: TypeAlias = "Callable[[bytes | Table, str | None], int]"
"""Counts the input tokens of a request that is about to be made, for its body and model; must not raise."""


def tokens_of_bytes(count: int) -> int:
    """Tokens of so many bytes of UTF-8 text, rounded up."""
    return -(-count // _BYTES_PER_TOKEN)


def estimate_input(body: bytes | Table, model: str | None = None) -> int:
    """Input tokens of a request body in the shape of any of the APIs; the default estimator.

    Texts count a token for three bytes of UTF-8, token arrays their length, an image, a piece of audio or
    a document :data:`MEDIA_PART_TOKENS` each. A body of more than 8 MiB is taken for media, a part for
    each MiB.

    Args:
        body: the JSON, or what it says.
        model: not used here; for estimators that know models.

    Returns:
        0 where the body is not JSON or of no known shape. Never raises.
    """
    del model
    if isinstance(body, bytes) and len(body) > BODY_BYTES_MAX:
        return _media_tokens(len(body))
    request = parse_request_body(body)
    size, tokens = _measure_values([request[key] for key in _INPUT_KEYS if key in request])
    return min(tokens_of_bytes(size) + tokens, QUANTITY_MAX)


def guard_estimator(estimate: InputEstimator) -> InputEstimator:
    """An estimator of the app's own that can do no harm: what it cannot say, the default one does."""
    if estimate is estimate_input:
        return estimate

    def safely(body: bytes | Table, model: str | None) -> int:
        tokens: object = None
        with suppress(Exception):
            tokens = estimate(body, model)
        if type(tokens) is int and tokens >= 0:
            return min(tokens, QUANTITY_MAX)
        _logger.error(
            "estimate_input raised, or gave no integer from 0 but a %s; the default estimate is taken",
            type(tokens).__name__,
        )
        return estimate_input(body, model)

    return safely


def estimate_request(head: bytes, *, size: int, estimate: InputEstimator = estimate_input) -> int:
    """Input tokens of a request with at least its beginning known, of any shape.

    Beyond the estimator, which knows the APIs' shapes, all texts of other JSON count. What is no text counts
    as media, a part for each MiB, as does the rest of a body that breaks off within encoded data.

    Args:
        head: the first bytes of the body.
        size: bytes of the whole of it.
        estimate: what measures a body that is known to its end.

    Returns:
        0 where there is no body. Never raises, if the estimator does not.
    """
    if size <= len(head):
        request = parse_request_body(head)
        model = request.get("model")
        found = estimate(request or head, model if isinstance(model, str) else None)
        if found or not head:
            return found
        text_bytes, tokens = _measure_values([request])
        return tokens_of_bytes(text_bytes) + tokens or unread_input(head, size)
    return unread_input(head, size)


def asks_model(head: bytes) -> bool:
    """Whether a request looks like one to a language model.

    Args:
        head: the first bytes of its body.
    """
    return _ASKING.search(head) is not None


def billed_input(head: bytes, *, size: int) -> int:
    """Input tokens to bill for a request without reported figures: rather too few than too many.

    Four bytes of text are a token, and an image, a sound or a document 85. Of a body of more than 32 KiB only
    the bytes are counted, without blanks, JSON's marks and encoded data: that takes about 2 ms for each MiB.

    Args:
        head: the first bytes of the body.
        size: bytes of the whole of it.

    Returns:
        0 where there is no body. Never raises.
    """
    if size == len(head) <= _PARSED_BYTES_MAX:
        request = parse_request_body(head)
        known = [request[key] for key in _INPUT_KEYS if key in request]
        found, media = _measure_values(known or [request])
        if found or media:
            return found // BILLED_BYTES_PER_TOKEN + media // MEDIA_PART_TOKENS * BILLED_MEDIA_TOKENS
    if b"\0" in head or not _is_text(head[:_BLOCK_BYTES]):
        return BILLED_MEDIA_TOKENS
    found, encoded, within = _texts_and_encoded(head, _MARKS)
    if head and not within:
        # The rest is taken to be like its beginning.
        found += max(0, size - len(head)) * found // len(head)
    return min(found // BILLED_BYTES_PER_TOKEN + encoded * BILLED_MEDIA_TOKENS, QUANTITY_MAX)


def unread_input(head: bytes, size: int) -> int:
    """Tokens of an unparsed text: one for three bytes, except encoded data and binary parts.

    Those count as media, a part for each run of encoded data and for each MiB of the rest. Takes about 2 ms
    for each MiB of the head.

    Args:
        head: the first bytes.
        size: bytes of the whole.
    """
    if head.lstrip(_BEFORE_JSON).startswith((b"{", b"[")):
        if b"\0" in head[:_WIDE_BYTES]:
            # UTF-16 or UTF-32: a character may be a token.
            return min(size // 2, QUANTITY_MAX)
    elif b"\0" in head or not _is_text(head):
        return _media_tokens(size)
    texts, encoded, within = _texts_and_encoded(head, b"")
    rest = max(0, size - len(head))
    more = _media_tokens(rest) if within else tokens_of_bytes(rest)
    return min(tokens_of_bytes(texts) + encoded * MEDIA_PART_TOKENS + more, QUANTITY_MAX)


def _texts_and_encoded(head: bytes, marks: bytes) -> tuple[int, int, bool]:
    """Bytes that are not encoded data, without marks; runs of such data; whether the head ends in one."""
    texts = encoded = 0
    within = False
    for at in range(0, len(head), _BLOCK_BYTES):
        block = head[at : at + _BLOCK_BYTES]
        before = within
        # The rest at the end goes with the part before it.
        is_long = before or len(block) == _BLOCK_BYTES
        within = is_long and not block.translate(None, _BASE64)
        encoded += within and not before
        if not within:
            texts += len(block.translate(None, marks))
    return texts, encoded, within


def _media_tokens(size: int) -> int:
    return MEDIA_PART_TOKENS * -(-size // (1 << 20))


def _is_text(head: bytes) -> bool:
    try:
        # A character may be cut at the end.
        getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True


def parse_request_body(body: bytes | Table) -> Table:
    """Parse a request body; empty if it is not JSON, or larger than 8 MiB."""
    if not isinstance(body, bytes):
        return body
    if len(body) <= BODY_BYTES_MAX:
        with suppress(ValueError):
            return table(load(body)) or {}
    return {}


def _measure_values(values: list[Any]) -> tuple[int, int]:
    """Bytes of text, and tokens of what is no text, in values of any depth."""
    size, numbers, media = measure(values, values_max=_NODES_MAX)
    return size, numbers + media * MEDIA_PART_TOKENS
