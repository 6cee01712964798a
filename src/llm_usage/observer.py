"""Watching the events of one response: whose they are, what they report, and which of them repeat.

Two events whose bytes differ only in the call's id and its time have the same content, so that the second one
need not be parsed. Only events that report nothing are kept.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal

from llm_usage.batch_lines import is_streamed_interaction, outliving_state
from llm_usage.call_usage import CallUsage
from llm_usage.estimate import BILLED_BYTES_PER_TOKEN
from llm_usage.event_marks import figure_path
from llm_usage.json_values import dig, rows, table
from llm_usage.known_events import EventKey, FirstEvent, KnownEvents
from llm_usage.layout import CALL_ID, CALL_MODEL, ROOT, TEXT_EVENTS, TEXT_ROOT, find_name, text_bytes
from llm_usage.providers import AUTO
from llm_usage.reported_calls import EventUsage, ReportedCalls

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_usage.call_usage import Note
    from llm_usage.json_values import Table
    from llm_usage.providers.reader_interface import ProviderApi

# After so many foreign events others have to look like a language model's to be read.
_FOREIGN_EVENTS: Final = 8
# Answers of the endpoints that count tokens: nothing was generated, nothing is billed.
_COUNTS: Final = {
    "input_tokens": frozenset({"input_tokens", "context_management", "object"}),
    "inputTokens": frozenset({"inputTokens"}),
    "totalTokens": frozenset(
        {
            "totalTokens",
            "totalBillableCharacters",
            "cachedContentTokenCount",
            "promptTokensDetails",
            "cacheTokensDetails",
        }
    ),
    "cached_content_token_count": frozenset(
        {"total_tokens", "cached_content_token_count", "sdk_http_response"}
    ),
    "tokensInfo": frozenset({"tokensInfo"}),
    "tokens": frozenset({"tokens", "count", "max_model_len", "token_strs", "token_strings", "meta"}),
}
# The usage of a step is part of its run's.
_STEP: Final = "thread.run.step"
# Encoded sound stands where other events have text.
_SOUND: Final = "audio.delta"


class UsageObserver:
    """The facts about one response.

    Args:
        apis: the APIs it may speak, in the order in which they are asked.
        declared: whether it is certain that it speaks one of them.

    Attributes:
        is_broken: whether the provider's stream broke off with an error.
        is_strange: whether something came that is no event of a language model.
        text_bytes: UTF-8 bytes of the text deltas so far; the reader adds those of repeated events.
    """

    def __init__(self, apis: Sequence[ProviderApi], *, declared: bool) -> None:
        self._apis = apis
        self._declared = declared
        self._api: ProviderApi | None = apis[0] if declared and len(apis) == 1 else None
        self._reported = ReportedCalls()
        self._looked = 0
        # Paths of figures that no API has read, by whether the event is one of an API.
        self._figures: dict[bool, str] = {}
        self.is_broken = self.is_strange = self._only_counted = self._asks = False
        self._outlives: Literal["pending", "ended"] | None = None
        self._is_interaction = False
        self._response_id: str | None = None
        self._response_model: str | None = None
        self.text_bytes = 0
        # Those before the last figures that cover text, and the output that the last figures name.
        self._reported_bytes = 0
        self._named_output: int | None = None

    @property
    def is_known(self) -> bool:
        """Whether it is known whose response this is."""
        return self._declared or self._api is not None

    @property
    def is_foreign(self) -> bool:
        """Whether enough events came, and none of them is a language model's so far."""
        return not self.is_known and self._looked >= _FOREIGN_EVENTS

    @property
    def is_undetermined(self) -> bool:
        """Whether nothing has come yet that could say whose response this is."""
        return not (self._declared or self._looked or self.is_strange)

    @property
    def estimated_output_tokens(self) -> int:
        """Tokens of the text that no figures cover; at least one for any text of a call without figures."""
        if not self.is_known:
            return 0
        unreported = self.text_bytes - self._reported_bytes
        return unreported // BILLED_BYTES_PER_TOKEN or int(unreported > 0 and not self._reported)

    def can_recognise(self, event: Table) -> bool:
        """Whether an event is certainly a language model's, or whose response it is is known before."""
        return self.is_known or any(api.recognises(event) for api in self._apis)

    @property
    def is_new(self) -> bool:
        """Whether no event has come yet."""
        return not self._looked

    def recall(self, known: KnownEvents, key: EventKey) -> int | None:
        """Use what an event like this one had in another response.

        Args:
            known: the events.
            key: of this one.

        Returns:
            UTF-8 bytes of its text; None: it is not known, and must be observed.
        """
        if self._looked:
            is_named = self._response_model is not None or self._looked >= _FOREIGN_EVENTS
            return 0 if self._api is not None and is_named and key.rest in known.silent else None
        first = known.first.get(key.rest)
        if first is None:
            return None
        self._looked = 1
        self._api, self._response_model, self._asks, measured = first
        self._response_id = key.call_id
        self.text_bytes += measured
        return measured

    def memorize(
        self, known: KnownEvents, data: bytes, key: EventKey, measured: int, *, is_first: bool
    ) -> None:
        """Keep an event that was just observed, and reports nothing, for :meth:`recall` in other responses.

        Args:
            known: the events.
            data: this one.
            key: of it.
            measured: UTF-8 bytes of its text.
            is_first: whether no event came before it.
        """
        api = self._api
        if api is None or self._outlives or self._only_counted:
            return
        if is_first and self._response_id == key.call_id:
            known.add(data, key, FirstEvent(api, self._response_model, self._asks, measured))
        elif not is_first and not measured:
            known.add(data, key, None)

    def observe(self, event: Table, measured: int | None = None, *, reports: bool = True) -> bool:
        """Take the next event, or the whole document; whether it said something of usage or of an error.

        Args:
            event: what it says.
            measured: UTF-8 bytes of the model's text in it, where that is known.
            reports: whether there may be usage or an error in it.
        """
        if not (self._looked and self._api):
            self._recognise(event)
        elif self._response_model is None and self._looked < _FOREIGN_EVENTS:
            self._looked += 1
            self._name_call(event)
        if self.is_known:
            self._measure_event(event, measured)
        spoken = self.text_bytes > self._reported_bytes
        if not reports:
            return False
        for api in self._apis:
            event_usage = api.usage_in(event, not self._declared)
            if event_usage is not None:
                self._api = self._api or api
                self._reported.add(event_usage, spoken=spoken)
                if event_usage.final or self._has_grown(event_usage):
                    self._reported_bytes = self.text_bytes
                return True
        if event.get("type") == "error" or isinstance(event.get("error"), dict | str):
            self.is_broken = True
            return True
        self.note_figure(event)
        return False

    @property
    def unread_figure(self) -> str | None:
        """The path of a token figure that came, and that no API reads; None: there is none.

        Events of an API may tell figures before they are final: these are unread if no call was read.
        """
        if self._only_counted:
            return None
        return self._figures.get(False) or (None if len(self._reported) else self._figures.get(True))

    def note_figure(self, event: Table, name: str | None = None) -> None:
        """Note where an event that no API has read has a token figure.

        Args:
            event: what is known of it.
            name: of a figure in the rest of it.
        """
        if False in self._figures or outliving_state(event) == "pending":
            return
        path = figure_path(event) or name
        if path is not None and not str(event.get("object")).startswith(_STEP):
            self._figures.setdefault(any(api.recognises(event) for api in self._apis), path)

    def _has_grown(self, event_usage: EventUsage) -> bool:
        """Whether figures that are not the last ones count the text before them.

        Some servers name the input long before the output, or zeros in each chunk.
        """
        before, after = self._named_output, event_usage.settle(event_usage.counts).get("output_tokens")
        self._named_output = after
        return bool(after) and (event_usage.adds or after != before)

    def _measure_event(self, event: Table, measured: int | None) -> None:
        kind = event.get("type")
        if isinstance(kind, str) and kind.endswith(_SOUND):
            return
        if measured is None:
            has_text = "text" in event and (kind or event.get("event_type")) in TEXT_EVENTS
            measured = text_bytes(event, TEXT_ROOT if has_text else ROOT)
        if table(event.get("response")) is not None:
            # It says again what its deltas said.
            measured = max(0, measured - self.text_bytes + self._reported_bytes)
        self.text_bytes += measured

    def end(self) -> None:
        """The provider's stream said that it is over."""
        self._reported.end()

    def close(self, *, complete: bool, notes: Sequence[Note]) -> tuple[CallUsage, ...]:
        """Usage of the response's calls.

        Args:
            complete: whether the response was sent to its end.
            notes: what was odd about reading it.
        """
        whole = complete and not self.is_broken
        noted: set[Note] = set(notes)
        if self._reported.overflowed:
            noted.add("too_many_calls")
        # Of a call whose text its figures do not count, the last ones never came.
        has_last = whole and not self.estimated_output_tokens
        calls = self._name_models(self._reported.usages(complete=has_last))
        if self._outlives is not None and not any(call.outlives for call in calls):
            return (self._outliving(),)
        if calls:
            noted.discard("unreadable")
            if not noted:
                return calls
            return tuple(replace(call, notes=tuple(sorted({*call.notes, *noted}))) for call in calls)
        if len(self._reported) or self._only_counted or not self.is_known:
            return ()
        if not noted:
            noted.add(("not_asked" if self._asks else "no_usage") if whole else "ended_early")
        return (self.missing(noted),)

    def _name_models(self, calls: Sequence[CallUsage]) -> tuple[CallUsage, ...]:
        """The calls, with the model that the stream has named before them where they name none."""
        default = self._response_model
        return tuple(replace(call, model=default) if call.model is None else call for call in calls)

    def _outliving(self) -> CallUsage:
        """Work without figures: it goes on, or its stream was cut, or it has ended without any."""
        is_pending = self._outlives == "pending"
        return replace(
            self.missing({"ended_early"} if is_pending and self._is_interaction else set()),
            source="missing" if is_pending else "reported",
            outlives=True,
        )

    def missing(self, notes: set[Note]) -> CallUsage:
        """A call without any known figures."""
        named = self._reported.unreported or EventUsage(counts={}, provider=None)
        return CallUsage(
            model=self._response_model or named.model,
            provider=named.provider if self._api is None else self._api.provider or named.provider,
            response_id=self._response_id or named.call_id,
            source="missing",
            notes=tuple(sorted(notes)),
        )

    def _recognise(self, event: Table) -> None:
        self._looked += 1
        if self._api is None:
            self._api = next((api for api in self._apis if api.recognises(event)), None)
        if self._api is not None:
            self._name_call(event)
            self._outlives = outliving_state(event) or self._outlives
            self._is_interaction |= is_streamed_interaction(event)
        if self._looked <= _FOREIGN_EVENTS:
            self._only_counted = not _COUNTS.keys().isdisjoint(event) and any(
                name in event and event.keys() <= names for name, names in _COUNTS.items()
            )

    def _name_call(self, event: Table) -> None:
        choices = rows(event.get("choices"))
        self._asks |= bool(choices) and dig(choices[0], ("delta",)) is not None
        self._response_id = self._response_id or find_name(event, CALL_ID)
        self._response_model = self._response_model or find_name(event, CALL_MODEL)


def read_document(event: Table) -> tuple[CallUsage, ...]:
    """Usage that a complete document of any API reports."""
    observer = UsageObserver(AUTO, declared=False)
    observer.observe(event)
    return observer.close(complete=True, notes=())
