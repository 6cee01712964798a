"""Usage from the objects that provider SDKs return, without importing any of them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeGuard

from llm_usage.batch_lines import outliving_state
from llm_usage.body_reader import read_body
from llm_usage.call_usage import CallUsage, figure, is_pending, sum_calls
from llm_usage.joined_reports import deduplicate_calls, join_reports
from llm_usage.json_values import dig, load, rows, short_id, table
from llm_usage.layout import CALL_ID, CALL_MODEL, find_name
from llm_usage.observer import read_document
from llm_usage.plain_values import body_of, kind_of, table_of
from llm_usage.providers import AUTO
from llm_usage.providers.anthropic import ANTHROPIC
from llm_usage.providers.bedrock import BEDROCK
from llm_usage.providers.cohere import COHERE
from llm_usage.providers.gemini import GEMINI
from llm_usage.providers.langchain import LANGCHAIN, is_model_event, langchain_parts
from llm_usage.providers.litellm import LITELLM, add_provider_asked
from llm_usage.providers.openai import OPENAI
from llm_usage.providers.openai_agents import agents_parts, members_of, responses_of_run
from llm_usage.providers.pydantic_ai import PYDANTIC_AI, responses_of_result
from llm_usage.providers.xai import XAI, xai_event
from llm_usage.reported_calls import ReportedCalls

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_usage.json_values import Table
    from llm_usage.providers.reader_interface import ProviderApi
    from llm_usage.reported_calls import EventUsage

OBJECT_APIS: Final[tuple[ProviderApi, ...]] = (LANGCHAIN, PYDANTIC_AI, LITELLM, XAI, *AUTO)

# A usage object on its own: the names that tell whose it is, and where its response has it.
_BARE: Final[tuple[tuple[frozenset[str], ProviderApi, str], ...]] = (
    (frozenset({"prompt_tokens", "total_tokens"}), OPENAI, "usage"),
    (frozenset({"prompt_tokens", "completion_tokens"}), OPENAI, "usage"),
    (frozenset({"input_tokens", "output_tokens", "input_token_details"}), LANGCHAIN, "usage_metadata"),
    (frozenset({"input_tokens", "output_tokens", "output_token_details"}), LANGCHAIN, "usage_metadata"),
    (frozenset({"input_tokens", "output_tokens", "cache_read_tokens"}), PYDANTIC_AI, "usage"),
    (frozenset({"input_tokens", "output_tokens", "total_tokens"}), OPENAI, "usage"),
    (frozenset({"input_tokens", "output_tokens"}), ANTHROPIC, "usage"),
    (frozenset({"inputTokens", "outputTokens"}), BEDROCK, "usage"),
    (frozenset({"prompt_token_count"}), GEMINI, "usage_metadata"),
    (frozenset({"promptTokenCount"}), GEMINI, "usageMetadata"),
    (frozenset({"tokens", "billed_units"}), COHERE, "usage"),
)

_REALTIME_RESPONSE: Final = "realtime.response"
_SPOKEN: Final = frozenset({"text_tokens", "audio_tokens", "cached_tokens"})
"""Details of OpenAI's usage of speech, which LangChain has other names for."""

Report: TypeAlias = "Sequence[Table | CallUsage]"
"""Usage in an object: responses, chunks or usage objects; calls that were read off a body."""


def usage_of(obj: object) -> CallUsage | None:
    """The token usage that a language model's answer reports. Nothing is counted by it.

    Args:
        obj: a response, a chunk of a stream, or a usage object of the SDKs of OpenAI, Anthropic, Google,
            Mistral, Cohere, Ollama or boto3, as an object or as a dict; a message of LangChain, a result of
            pydantic-ai or of OpenAI's agents; the body of a response, or an HTTP response that has been read.

    Returns:
        None where the object has no usage. A chunk's figures are ``partial`` unless they are its call's last.
        Where there are several calls in it: their sum, with the names that all of them share. Never raises.
    """
    calls = calls_of(obj)
    return sum_calls(calls) if calls else None


def calls_of(obj: object) -> tuple[CallUsage, ...]:
    """As :func:`usage_of`, each call for itself."""
    return tuple(call for call in _report_usages(obj) if call.source != "missing")


def pending_jobs(obj: object) -> tuple[str, ...]:
    """The provider's ids of the jobs that an object tells of and that go on: their usage comes later."""
    calls = (call for call in _report_usages(obj) if is_pending(call))
    return tuple(call.response_id for call in calls if call.response_id is not None)


def _report_usages(obj: object) -> tuple[CallUsage, ...]:
    reports = UsageReports()
    reports.take(read_report(obj))
    return reports.usages()


def read_report(obj: object) -> Report:
    """Look at an object once; see :func:`usage_of`. Never raises."""
    if _is_call(obj):
        return (obj,)
    body = body_of(obj)
    return events_of(obj) if body is None else read_body(body)


def _is_call(obj: object) -> TypeGuard[CallUsage]:
    return issubclass(kind_of(obj), CallUsage)  # Asks the object itself nothing.


def events_of(obj: object) -> tuple[Table, ...]:
    """The events that an object of an SDK or a framework stands for; none where it has no members.

    Never raises.
    """
    run = _responses_of(obj)
    if run is not None:
        return tuple(part for event in run for part in _parts_of(event))
    chunk, metadata = _unwrap_chunk(obj)
    event = xai_event(chunk)
    if event is not None:
        return (event,)
    event = table_of(chunk)
    if event is None:
        return ()
    event = add_provider_asked(chunk, event)
    if metadata is not None:
        event = {**event, "run_metadata": table_of(metadata)}
    inner = dig(event, ("chunk", "bytes"))
    if isinstance(inner, bytes):
        # boto3's InvokeModelWithResponseStream
        with suppress(ValueError):
            event = table(load(inner))
        return () if event is None else (event,)
    # Mistral's stream has each chunk under `data`, and the agents of OpenAI theirs.
    data = None if is_model_event(event) else table(event.get("data"))
    return tuple(_parts_of(event if data is None else data))


def _responses_of(obj: object) -> Sequence[Table] | None:
    """Model responses of the result of a run; None: the object is anything else. Never raises.

    They are tables as :func:`llm_usage.plain_values.table_of` makes them of one response.
    """
    module = str(kind_of(obj).__module__)
    with suppress(Exception):  # Foreign code.
        if module.startswith("pydantic_ai."):
            return responses_of_result(obj)
        members = members_of(obj)
        if isinstance(members.get("raw_responses"), list):
            return responses_of_run(members)
    return None


def _parts_of(event: Table) -> Sequence[Table]:
    """The calls or chunks that an object of a framework, or of a helper around a stream, stands for.

    Returns:
        The object itself where it stands for nothing else; nothing where it repeats what another one says.
    """
    for read in (langchain_parts, agents_parts):
        found = read(event)
        if found is not None:
            return found
    if event.get("object") == _REALTIME_RESPONSE:
        return [{"type": "response.done", "response": event}]
    if "snapshot" in event:
        # The helpers of OpenAI and Anthropic put events of their own beside those of the API.
        chunk = table(event.get("chunk"))
        return [] if chunk is None else [chunk]
    return [event]


def _unwrap_chunk(obj: Any) -> tuple[Any, Any]:
    """The chunk in the tuples of a stream, and what LangGraph knows of it, after its mode and namespace.

    Streams of xAI's SDK have the response so far before the chunk.
    """
    chunk, metadata = obj, None
    while issubclass(kind_of(chunk), tuple) and chunk:
        first, last = chunk[0], chunk[-1]
        if issubclass(kind_of(first), str | tuple) or xai_event(last) is not None:
            chunk = last
        else:
            chunk, metadata = first, last if issubclass(kind_of(last), dict) else None
    return chunk, metadata


_REPORTED_MAX: Final = 10_000
"""Calls that an app can report in one request; those after its end are forgotten once they are counted."""


class UsageReports:
    """The calls that an app reports object by object: responses, chunks and usage objects."""

    __slots__ = ("_calls", "_models", "_reported")

    def __init__(self) -> None:
        self._reported = ReportedCalls(most=_REPORTED_MAX)
        self._models = StreamModels()
        self._calls: list[CallUsage] = []

    @property
    def overflowed(self) -> bool:
        """Whether there were more calls than are distinguished: the further ones are not counted."""
        return self._reported.overflowed

    def __len__(self) -> int:
        return len(self._calls) + len(self._reported)

    def keep_newest(self, most: int) -> None:
        """Forget all calls but the newest ones."""
        self._calls = self._calls[-most:]
        self._reported.keep_newest(most)

    def take(self, report: Report) -> bool:
        """Take what an object says; see :func:`read_report`.

        Returns:
            False where usage was to be expected of it and there is none.
        """
        calls = [item for item in report if isinstance(item, CallUsage)]
        if calls:
            self._calls = deduplicate_calls((*self._calls, *calls))
        taken = [self._add_event(item) for item in report if not isinstance(item, CallUsage)]
        return any(taken) or any(call.source != "missing" for call in calls)

    def usages(self) -> tuple[CallUsage, ...]:
        """Usage of the calls: figures of a stream that were not the last are partial."""
        if not (self._calls or len(self._reported)):
            return ()  # As with most requests, whose usage is read off the response.
        calls = (*self._calls, *self._models.name(self._reported.usages(complete=False)))
        # An app may hand in a response, and the usage object of it as well; or a run, and its counter.
        named = [call for call in calls if call.response_id]
        nameless = [call for call in calls if not call.response_id]
        sums = [call for call in nameless if "summed" in call.notes]
        single = [call for call in nameless if "summed" not in call.notes]
        return tuple(join_reports(join_reports(named, single), sums))

    def _add_event(self, event: Table) -> bool:
        event_usage, bare = _usage_in(event), False
        if event_usage is None:
            event_usage, bare = _bare_usage_in(event), True
        if event_usage is None and outliving_state(event) is not None:
            self._calls += read_document(event)
            return True
        if event_usage is None:
            if _is_piece(event):
                self._models.note(event)
            known = event.get("type") == "ping" or any(api.recognises(event) for api in OBJECT_APIS)
            return known and _is_piece(event)
        # A whole response is a call of its own, whatever was reported before and will be after.
        whole = event_usage.final and (bare or "candidates" in event or not _is_piece(event))
        if whole and (bare or event_usage.call_id is not None):
            self._reported.end()
        self._reported.add(event_usage)
        if whole:
            self._reported.end()
        return True


def _is_piece(event: Table) -> bool:
    """Whether it is an event or chunk of a stream, if that is known."""
    kind, named = event.get("type"), event.get("object")
    if isinstance(kind, str):
        return kind not in ("message", "ai")
    if isinstance(named, str):
        return named.endswith(".chunk")
    choices = event.get("choices")
    if choices is not None:
        return not rows(choices) or dig(rows(choices)[0], ("delta",)) is not None
    return "candidates" in event or event.get("done") is False or len(event) == 1


def _usage_in(event: Table) -> EventUsage | None:
    seen = (api.usage_in(event, True) for api in OBJECT_APIS)
    return next((event_usage for event_usage in seen if event_usage is not None), None)


def _bare_usage_in(usage: Table) -> EventUsage | None:
    spoken = not _SPOKEN.isdisjoint(table(usage.get("input_token_details")) or {})
    for names, api, place in _BARE:
        if names <= usage.keys() and not (spoken and api is LANGCHAIN):
            event_usage = api.usage_in({place: usage}, False)
            several = (figure(usage.get("requests")) or 0) > 1  # Counters of agents have them.
            return (
                None
                if event_usage is None
                else replace(event_usage, final=True, sums=event_usage.sums or several)
            )
    return None


_STREAMS_MAX: Final = 1_000


class StreamModels:
    """The models of one or several streams, by the ids of their pieces."""

    __slots__ = ("_by_id", "_names")

    def __init__(self) -> None:
        self._by_id: dict[str, str] = {}
        self._names: dict[str, None] = {}

    def note(self, piece: Table) -> None:
        """Take a piece of a stream, which may name its model."""
        model = find_name(piece, CALL_MODEL)
        if model is None or len(self._by_id) >= _STREAMS_MAX:
            return
        self._names[model] = None
        for path in CALL_ID:
            if (name := short_id(dig(piece, path))) is not None:
                self._by_id[name] = model

    def name(self, calls: Sequence[CallUsage]) -> tuple[CallUsage, ...]:
        """The calls, each with the model that a piece of its id names, otherwise that all pieces name."""
        only = next(iter(self._names)) if len(self._names) == 1 else None
        return tuple(
            call
            if call.model is not None
            else replace(call, model=self._by_id.get(call.response_id or "") or only)
            for call in calls
        )
