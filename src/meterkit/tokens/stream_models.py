"""Models that pieces of a stream name, for the piece with the figures, which may name none. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from meterkit.tokens.json_values import dig, text
from meterkit.tokens.layout import CALL_ID, CALL_MODEL, first_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.tokens.call_usage import CallUsage
    from meterkit.tokens.json_values import Table

_STREAMS_MAX: Final = 1_000


class StreamModels:
    """The models of one or several streams, by the ids of their pieces."""

    __slots__ = ("_by_id", "_names")

    def __init__(self) -> None:
        self._by_id: dict[str, str] = {}
        self._names: dict[str, None] = {}

    def note(self, piece: Table) -> None:
        """Take a piece of a stream, which may name its model."""
        model = first_text(piece, CALL_MODEL)
        if model is None or len(self._by_id) >= _STREAMS_MAX:
            return
        self._names[model] = None
        for path in CALL_ID:
            if (name := text(dig(piece, path))) is not None:
                self._by_id[name] = model

    def name(self, calls: Sequence[CallUsage]) -> tuple[CallUsage, ...]:
        """The calls, each with the model that a piece of the same id names, or else that all pieces name."""
        only = next(iter(self._names)) if len(self._names) == 1 else None
        return tuple(
            call
            if call.model is not None
            else replace(call, model=self._by_id.get(call.response_id or "") or only)
            for call in calls
        )
