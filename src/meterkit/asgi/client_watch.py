"""Watches for the client of a request: whether it has left, and when."""

from __future__ import annotations

from asyncio import CancelledError

from starlette.requests import ClientDisconnect

from meterkit.asgi.admitted import Admitted
from meterkit.asgi.body import has_body


class ClientWatch(Admitted):
    """A request whose server tells by three means that the client has left.

    These are ``http.disconnect``, an OSError of ``send``, and cancellation of the app.

    Slots:
        _begun: whether the app sent a byte of the body.
        _complete: whether the app sent its response to the end.
        _failed: whether the app ended by an error of its own.
        _gone: whether the client left before the end.
        _has_request: whether the app has read the request to its end; unset until it reads.
        _early: whether the client left before the first byte; unset until it leaves.
        _within: whether it left before its own request had ended; likewise.
    """

    __slots__ = (
        *(
            "_begun",
            "_complete",
            "_early",
            "_failed",
            "_gone",
            "_has_request",
            "_nothing_to_settle",
            "_within",
        ),
    )

    _begun: bool
    _complete: bool
    _failed: bool
    _gone: bool
    _nothing_to_settle: bool
    # Unset where nothing needs them: a request pays for each field that it sets.
    _has_request: bool
    _early: bool
    _within: bool

    @property
    def _left_early(self) -> bool:
        return self._gone and getattr(self, "_early", False)

    @property
    def _left_within(self) -> bool:
        return self._gone and getattr(self, "_within", False)

    def _note_disconnect(self) -> None:
        self._note_left()
        self._within = not getattr(self, "_has_request", False) and has_body(self._scope)

    def _note_left(self) -> None:
        if not self._gone:
            self._gone, self._early = True, not self._begun
            self._nothing_to_settle = False  # Later messages tell whether the app finished.

    def _note_error(self, error: BaseException) -> None:
        if isinstance(error, CancelledError):
            self._note_left()
        is_disconnect = self._gone or isinstance(error, ClientDisconnect)
        self._failed = isinstance(error, Exception) and not is_disconnect
