"""Usage from the objects that provider SDKs return, without importing any of them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, cast

from meterkit.asgi.usage.anthropic import ANTHROPIC
from meterkit.asgi.usage.apis import AUTO
from meterkit.asgi.usage.bedrock import BEDROCK
from meterkit.asgi.usage.calls import Ledger
from meterkit.asgi.usage.cohere import COHERE
from meterkit.asgi.usage.gemini import GEMINI
from meterkit.asgi.usage.openai import OPENAI
from meterkit.asgi.usage.shape import dig, load, rows, table

if TYPE_CHECKING:
    from meterkit.asgi.usage.api import Api
    from meterkit.asgi.usage.calls import Sighting
    from meterkit.asgi.usage.figures import CallUsage
    from meterkit.asgi.usage.shape import Table

__all__ = ["Reports", "event_of", "usage_of"]

_DEPTH_MAX: Final = 8
_ITEMS_MAX: Final = 256
_SCALARS: Final = (str, int, float, bytes, type(None))

# A usage object on its own: the names that tell whose it is, and where its response has it.
_BARE: Final[tuple[tuple[frozenset[str], Api, str], ...]] = (
    (frozenset({"prompt_tokens", "total_tokens"}), OPENAI, "usage"),
    (frozenset({"prompt_tokens", "completion_tokens"}), OPENAI, "usage"),
    (frozenset({"input_tokens", "output_tokens", "total_tokens"}), OPENAI, "usage"),
    (frozenset({"input_tokens", "output_tokens"}), ANTHROPIC, "usage"),
    (frozenset({"inputTokens", "outputTokens"}), BEDROCK, "usage"),
    (frozenset({"prompt_token_count"}), GEMINI, "usage_metadata"),
    (frozenset({"promptTokenCount"}), GEMINI, "usageMetadata"),
    (frozenset({"tokens", "billed_units"}), COHERE, "usage"),
)


def usage_of(obj: object) -> tuple[CallUsage, ...] | None:
    """The usage in an object of a provider's SDK.

    Args:
        obj: a response, a chunk of a stream, or a usage object of the SDKs of OpenAI, Anthropic, Google,
            Mistral, Cohere, Ollama or boto3, as an object or as a dict.

    Returns:
        None where the object has no usage. A chunk's figures are ``partial`` unless they are its call's last.
    """
    event = event_of(obj)
    if event is None:
        return None
    sighting = _see(event) or _see_bare(event)
    if sighting is None:
        return None
    ledger = Ledger()
    ledger.see(sighting)
    return ledger.usages(complete=sighting.final) or None


class Reports:
    """The calls that an app reports object by object: responses, chunks and usage objects."""

    __slots__ = ("_ledger",)

    def __init__(self) -> None:
        self._ledger = Ledger()

    def take(self, event: Table) -> bool:
        """Take what an object says; see :func:`event_of`.

        Returns:
            False where usage was to be expected of it and there is none.
        """
        sighting, bare = _see(event), False
        if sighting is None:
            sighting, bare = _see_bare(event), True
        if sighting is None:
            known = event.get("type") == "ping" or any(api.knows(event) for api in AUTO)
            return known and _is_piece(event)
        # A whole response is a call of its own, whatever was reported before and will be after.
        whole = sighting.final and (bare or "candidates" in event or not _is_piece(event))
        if whole and (bare or sighting.call_id is not None):
            self._ledger.end()
        self._ledger.see(sighting)
        if whole:
            self._ledger.end()
        return True

    def usages(self) -> tuple[CallUsage, ...]:
        """What the calls used: figures of a stream that were not the last are partial."""
        return self._ledger.usages(complete=False)


def _is_piece(event: Table) -> bool:
    """Whether it is an event or chunk of a stream, where it can be told."""
    kind, named = event.get("type"), event.get("object")
    if isinstance(kind, str):
        return kind != "message"
    if isinstance(named, str):
        return named.endswith(".chunk")
    choices = event.get("choices")
    if choices is not None:
        return not rows(choices) or dig(rows(choices)[0], ("delta",)) is not None
    return "candidates" in event or event.get("done") is False or len(event) == 1


def _see(event: Table) -> Sighting | None:
    seen = (api.see(event, True) for api in AUTO)
    return next((sighting for sighting in seen if sighting is not None), None)


def _see_bare(usage: Table) -> Sighting | None:
    for names, api, place in _BARE:
        if names <= usage.keys():
            sighting = api.see({place: usage}, False)
            return None if sighting is None else replace(sighting, final=True)
    return None


def event_of(obj: object) -> Table | None:
    """What the object says, as plain values; None where it has no members."""
    event = table(_plain(obj, _DEPTH_MAX))
    if event is None:
        return None
    inner = dig(event, ("chunk", "bytes"))
    if isinstance(inner, bytes):
        # boto3's InvokeModelWithResponseStream
        with suppress(ValueError):
            event = table(load(inner))
        return event
    # Mistral's stream has each chunk under `data`.
    data = table(event.get("data"))
    return event if data is None else data


def _plain(value: object, depth: int) -> object:
    if isinstance(value, _SCALARS) or depth == 0:
        return value if isinstance(value, _SCALARS) else None
    if isinstance(value, list | tuple):
        items = cast("list[object]", value)[:_ITEMS_MAX]
        return [_plain(item, depth - 1) for item in items]
    members = _members(value)
    return None if members is None else {name: _plain(inner, depth - 1) for name, inner in members.items()}


def _members(value: object) -> Mapping[str, Any] | None:
    if isinstance(value, Mapping):
        return cast("Mapping[str, Any]", value)
    if callable(getattr(value, "model_dump", None)):
        # The fields of a pydantic model stand in its __dict__, those it does not know beside it: reading
        # them costs less than a dump of a whole response.
        extra = getattr(value, "__pydantic_extra__", None)
        return {**vars(value), **extra} if isinstance(extra, dict) else vars(value)
    dump = getattr(value, "to_dict", None)
    if callable(dump) and not isinstance(value, type):
        # Foreign code: an object that cannot be dumped has no usage.
        with suppress(Exception):
            dumped = dump()
            if isinstance(dumped, Mapping):
                return cast("Mapping[str, Any]", dumped)
    return getattr(value, "__dict__", None)
