"""Figures at paths of a response's JSON that the caller names: of APIs that no reader knows."""

from __future__ import annotations

from collections import Counter
from math import floor, isfinite
from typing import TYPE_CHECKING

from llm_usage.framing.content_codings import PIECE_BYTES, make_decoder, read_pieces
from llm_usage.framing.content_types import SniffedBody, content_of, feed_nothing, has_answer
from llm_usage.framing.incremental import drain, feed_large
from llm_usage.framing.json import JsonReader
from llm_usage.framing.large_json import LargeJsonReader
from llm_usage.framing.sse import DONE, EventCallbacks, NdjsonReader, SseReader
from llm_usage.json_values import dig, is_dense, load
from llm_usage.layout import CALL_ID, ValuePlace, find_name
from llm_usage.reported_calls import CALLS_MAX
from llm_usage.units import FIGURE_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from llm_usage.framing.content_types import Framing
    from llm_usage.framing.incremental import IncrementalReader, Work


class FieldsReader:
    """Reads figures at paths of a JSON document, or of the events of a stream; make one with :meth:`open`.

    Of the events of one call the last figure counts, and calls add up. A call has one id; ``[DONE]`` ends it.
    Kept are 64 KiB at most, however long the response is.

    Args:
        fields: meter to the dotted paths where its figure may stand; the first that has one counts.
        kind: the content type.
        coding: the content coding.

    Attributes:
        overflowed: whether the response has more calls than are distinguished.
        is_coded: whether it is in a content coding that cannot be undone.
    """

    def __init__(self, fields: Mapping[str, Sequence[str]], kind: bytes, coding: bytes) -> None:
        self._paths = {meter: [path.split(".") for path in paths] for meter, paths in fields.items()}
        paths = [path for alternatives in self._paths.values() for path in alternatives]
        self._needles = [DONE, *{path[-1].encode() for path in paths}]
        self._place = _place_of([*paths, *CALL_ID])
        self._decoding = make_decoder(coding) if coding else None
        self.is_coded = bool(coding) and self._decoding is None
        # Calls without an id are named by how many have ended before.
        self._call: str | int = 0
        self._ended = 0
        self._calls: dict[str | int, dict[str, int]] = {}
        self.overflowed = False
        self._body: SniffedBody | None = SniffedBody(kind, self._open_reader)
        self._feed_framing: Callable[[bytes], Work | None] = self._body.feed

    @classmethod
    def open(
        cls, fields: Mapping[str, Sequence[str]], *, status: int, headers: Iterable[tuple[bytes, bytes]]
    ) -> FieldsReader | None:
        """A reader for a response that begins; None where its status has no answer to read."""
        return cls(fields, *content_of(headers)) if has_answer(status) else None

    def read(self, chunk: bytes) -> Work | None:
        """Take the next bytes of the body; what takes time is left to do, before anything else is read."""
        if self.is_coded:
            return None
        if self._decoding is None and len(chunk) <= PIECE_BYTES:
            return self._feed_framing(chunk)
        return read_pieces(chunk, self._decoding, self._feed_framing)

    def finish(self) -> Work:
        """The work at the body's end, before :meth:`close`, which otherwise does it without a pause."""
        if self._body is not None:
            yield from self._body.close()

    def close(self) -> dict[str, int]:
        """Meter to its figures of all calls, rounded down each. Idempotent."""
        drain(self.finish())
        # It holds this reader: let go of, that is gone without the help of the garbage collector.
        self._body, self._feed_framing = None, feed_nothing
        total = Counter[str]()
        for figures in self._calls.values():
            total.update(figures)
        return {meter: min(quantity, FIGURE_MAX) for meter, quantity in total.items()}

    def missing(self) -> tuple[str, ...]:
        """The meters without a figure."""
        return tuple(
            meter for meter in self._paths if not any(meter in found for found in self._calls.values())
        )

    def _callbacks(self) -> EventCallbacks:
        return EventCallbacks(self._read_event, self._wants, self._open_large)

    def _open_reader(self, framing: Framing) -> IncrementalReader:
        if framing == "lines":
            return NdjsonReader(self._callbacks())
        return (
            JsonReader(self._callbacks(), unseen=True) if framing == "json" else SseReader(self._callbacks())
        )

    def _wants(self, data: bytes) -> bool:
        """Whether an event is read: most have none of the figures."""
        return any(needle in data for needle in self._needles)

    def _open_large(self) -> LargeJsonReader:
        """A reader of an event that is too large to be kept, or is not well-formed."""
        return LargeJsonReader(lambda event, _: self._add_event(event), lambda: None, self._place)

    def _read_event(self, data: bytes) -> Work | None:
        if data.strip() == DONE:
            self._ended += 1
            self._call = self._ended
            return None
        if is_dense(data):
            return feed_large(self._open_large(), data)
        try:
            event = load(data)
        except ValueError:
            return feed_large(self._open_large(), data)
        self._add_event(event)
        return None

    def _add_event(self, event: object) -> None:
        self._begin_call(find_name(event, CALL_ID))
        found: dict[str, int] = {}
        for meter, paths in self._paths.items():
            figures = [figure for path in paths if (figure := _parse_figure(dig(event, path))) is not None]
            if figures:
                found[meter] = figures[0]
        if not found:
            return
        if self._call not in self._calls and len(self._calls) == CALLS_MAX:
            self.overflowed = True
            return
        self._calls.setdefault(self._call, {}).update(found)

    def _begin_call(self, call_id: str | None) -> None:
        """Note whose events follow; a call may tell its id after its first figures."""
        if call_id is None or call_id == self._call:
            return
        unnamed = self._calls.pop(self._call, None) if isinstance(self._call, int) else None
        if unnamed is not None:
            self._calls[call_id] = {**unnamed, **self._calls.get(call_id, {})}
        self._call = call_id


def _parse_figure(value: object) -> int | None:
    """A number from 0 to 10^15 - 1, rounded down; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return floor(value) if isfinite(value) and 0 <= value <= FIGURE_MAX else None


def _place_of(paths: Iterable[Sequence[str]]) -> ValuePlace:
    """Layout of an event with nothing but the values at some paths."""
    root = ValuePlace()
    for path in paths:
        place = root
        for name in path:
            place.is_entered = True
            place = place.members.setdefault(name, ValuePlace())
    return root
