"""Jobs that outlive their request: responses, interactions and batches, and the lines of a batch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from llm_usage.json_values import dig, load, short_id, table, text
from llm_usage.plain_values import body_of, table_of

if TYPE_CHECKING:
    from llm_usage.call_usage import CallUsage
    from llm_usage.json_values import Table

_PENDING: Final = frozenset({"queued", "in_progress", "validating", "finalizing", "cancelling"})
_ASYNC_PENDING: Final = ("CREATED", "IN_PROGRESS")
_ASYNC_STATES: Final = (*_ASYNC_PENDING, "COMPLETED", "FAILED")
_RUN: Final = "thread.run"
_ALWAYS: Final = ("batch", _RUN)
_INTERACTION: Final = frozenset({"outputs", "steps", "agent"})


def outliving_state(event: Table) -> Literal["pending", "ended"] | None:
    """Whether the work that an event tells of goes on; None where it does not outlive its request.

    OpenAI's background responses, https://platform.openai.com/docs/guides/background, its batches and runs of
    assistants, interactions of Google's, https://ai.google.dev/gemini-api/docs/interactions, and asynchronous
    completions of Perplexity.
    """
    inner = table(event.get("response"))
    work = event if inner is None else inner
    named = work.get("object")
    if not (named in _ALWAYS or (named == "response" and work.get("background") is True)):
        work = interaction_of(event) or {}
    state = text(work.get("status"))
    if state is None or short_id(work.get("id")) is None:
        return _async_state(event) if "response" in event else None
    goes_on = state in _PENDING or (named == _RUN and state == "requires_action")
    return "pending" if goes_on else "ended"


def _async_state(event: Table) -> Literal["pending", "ended"] | None:
    if not is_async_completion(event):
        return None
    return "pending" if event["status"] in _ASYNC_PENDING else "ended"


def is_async_completion(event: Table) -> bool:
    """Whether it is an asynchronous completion of Perplexity, which has the answer in it once it has ended.

    https://docs.perplexity.ai/api-reference/async-chat-completions-post
    """
    if event.get("status") not in _ASYNC_STATES or not {"created_at", "response"} <= event.keys():
        return False
    return text(event.get("model")) is not None and short_id(event.get("id")) is not None


def is_streamed_interaction(event: Table) -> bool:
    """Whether an event begins a model's interaction that is streamed; whether it goes on is not in it.

    That of an agent always does; that of a model only if the request says ``background``.
    """
    work = table(event.get("interaction")) or {}
    return text(work.get("model")) is not None and work.get("agent") is None


def interaction_of(event: Table) -> Table | None:
    """The interaction of Google's that an event or document is about."""
    inner = table(event.get("interaction"))
    if inner is not None:
        return inner
    if text(event.get("status")) is None:
        return None
    usage = table(event.get("usage")) or {}
    known = event.get("object") == "interaction" or "total_input_tokens" in usage
    return event if known or not _INTERACTION.isdisjoint(event) else None


def call_event_id(call: CallUsage) -> str | None:
    """The event id under which a call is counted, once; None where it ends with its request.

    Without the provider: the caller may know another one than the shape of an answer suggests.
    """
    if not call.outlives or call.response_id is None:
        return None
    return f"\0{call.response_id}"


_ANSWERS: Final = (
    ("response", "body"),  # https://platform.openai.com/docs/guides/batch, Mistral's, Groq's
    ("modelOutput",),  # https://docs.aws.amazon.com/bedrock/latest/userguide/batch-inference-results.html
    ("result", "message"),  # https://docs.anthropic.com/en/docs/build-with-claude/batch-processing
    ("response",),  # https://ai.google.dev/gemini-api/docs/batch-api
)
_ENDS: Final = ("response", "result", "modelOutput", "error")


def mark_batched(call: CallUsage) -> CallUsage:
    """A call of a batch, for which providers have prices of their own."""
    return replace(call, context=tuple(sorted({**dict(call.context), "processing": "batch"}.items())))


class BatchLine(NamedTuple):
    """A line of a batch's output.

    Attributes:
        name: the app's own name of the line: ``custom_id``, Gemini's ``key`` or Bedrock's ``recordId``.
        answer: of the model; None where the line failed.
    """

    name: str
    answer: Table | None


def read_batch_line(obj: object) -> BatchLine | None:
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
    # Responses inside a batch job of Google's have the key beside them.
    own = (event.get(name) for name in ("custom_id", "key", "recordId"))
    names = (*own, dig(event, ("metadata", "key")))
    name = next(filter(None, map(text, names)), None)
    if name is None or not any(end in event for end in _ENDS):
        return None
    found = (table(dig(event, path)) for path in _ANSWERS)
    return BatchLine(name, next((answer for answer in found if answer is not None), None))
