"""One line of a batch's output: which line it is, and the answer in it. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.tokens.json_values import dig, load, table, text
from meterkit.tokens.plain_values import body_of, table_of

if TYPE_CHECKING:
    from meterkit.tokens.json_values import Table

__all__ = ["BatchLine", "batch_line"]

_ANSWERS: Final = (
    ("response", "body"),  # https://platform.openai.com/docs/guides/batch, Mistral's, Groq's
    ("result", "message"),  # https://docs.anthropic.com/en/docs/build-with-claude/batch-processing
    ("response",),  # https://ai.google.dev/gemini-api/docs/batch-api
)
_ENDS: Final = ("response", "result", "error")


class BatchLine(NamedTuple):
    """A line of a batch's output.

    Attributes:
        name: the app's own name of the line, ``custom_id`` or Gemini's ``key``.
        answer: of the model; None where the line failed.
    """

    name: str
    answer: Table | None


def batch_line(obj: object) -> BatchLine | None:
    """Read a line of a batch's output: a line of the file, or what an SDK makes of it. Never raises.

    Returns:
        None where it is anything else.
    """
    body = body_of(obj)
    try:
        event = table_of(obj) if body is None else table(load(body))
    except ValueError:
        return None
    if event is None:
        return None
    name = text(event.get("custom_id")) or text(event.get("key"))
    if name is None or not any(end in event for end in _ENDS):
        return None
    found = (table(dig(event, path)) for path in _ANSWERS)
    return BatchLine(name, next((answer for answer in found if answer is not None), None))
