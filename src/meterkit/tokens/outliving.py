"""Work that outlives its request: responses, interactions and batches that a provider goes on with. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from meterkit.tokens.json_values import table, text

if TYPE_CHECKING:
    from meterkit.tokens.call_usage import CallUsage
    from meterkit.tokens.json_values import Table

__all__ = ["call_name", "interaction_of", "outliving_state"]

_PENDING: Final = frozenset({"queued", "in_progress", "validating", "finalizing", "cancelling"})
_RUN: Final = "thread.run"
_ALWAYS: Final = ("batch", _RUN)
_INTERACTION: Final = frozenset({"outputs", "steps", "agent"})


def outliving_state(event: Table) -> Literal["pending", "ended"] | None:
    """Whether the work that an event tells of goes on; None where it does not outlive its request.

    OpenAI's background responses, https://platform.openai.com/docs/guides/background, its batches and runs of
    assistants, and interactions of Google's, https://ai.google.dev/gemini-api/docs/interactions.
    """
    inner = table(event.get("response"))
    work = event if inner is None else inner
    named = work.get("object")
    if not (named in _ALWAYS or (named == "response" and work.get("background") is True)):
        work = interaction_of(event) or {}
    state = text(work.get("status"))
    if state is None or text(work.get("id")) is None:
        return None
    goes_on = state in _PENDING or (named == _RUN and state == "requires_action")
    return "pending" if goes_on else "ended"


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


def call_name(call: CallUsage) -> str | None:
    """The event id under which a call is counted, once; None where it ends with its request."""
    if not call.outlives or call.response_id is None:
        return None
    return f"\0{call.provider}\0{call.response_id}"
