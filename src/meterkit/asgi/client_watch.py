"""Watches for the client of a request: whether it has left, and when."""

from __future__ import annotations

from asyncio import CancelledError
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect

from meterkit.asgi.admitted import Admitted
from meterkit.asgi.body import has_body

if TYPE_CHECKING:
    from starlette.types import Message


class ClientWatch(Admitted):
    """A request whose server tells by three means that the client has left.

    These are ``http.disconnect``, an OSError of ``send``, and cancellation of the app.

    Slots:
        _begun: whether the app sent a byte of the body.
        _complete: whether the app sent its response to the end.
        _failed: whether the app ended by an error of its own.
        _gone: whether the client left before the end.
        _has_request: whether the app has read the request to its end.
        _left_early: whether the client left before the first byte.
        _left_within: whether it left before its own request had ended.
    """

    __slots__ = (*("_begun", "_complete", "_failed", "_gone", "_has_request", "_left_early", "_left_within"),)

    _begun: bool
    _complete: bool
    _failed: bool
    _gone: bool
    _has_request: bool
    _left_early: bool
    _left_within: bool

    def _note_request(self, message: Message) -> None:
        self._has_request = not message.get("more_body", False)

    def _note_disconnect(self) -> None:
        self._note_left()
        self._left_within = not self._has_request and has_body(self._scope)

    def _note_left(self) -> None:
        if not self._gone:
            self._gone, self._left_early = True, not self._begun

    def _note_error(self, error: BaseException) -> None:
        if isinstance(error, CancelledError):
            self._note_left()
        is_disconnect = self._gone or isinstance(error, ClientDisconnect)
        self._failed = isinstance(error, Exception) and not is_disconnect
