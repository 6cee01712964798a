"""What became of a request, which decides whether it is billed: ``charge_on`` of its route. Pure."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from meterkit.catalog import Outcome

# Numbers: to look a member of an enumeration up takes as long as the rest of a comparison.
BAD_REQUEST: Final = HTTPStatus.BAD_REQUEST.value
_SERVER_ERROR: Final = HTTPStatus.INTERNAL_SERVER_ERROR.value


def outcome_of(status: int, *, is_complete: bool, has_begun: bool, has_failed: bool) -> Outcome:
    """The outcome of a request.

    Args:
        status: of the response; 0 where there was none.
        is_complete: whether the client got all of the response.
        has_begun: whether the client got some of its body.
        has_failed: whether the app ended by an error of its own.
    """
    if status < BAD_REQUEST and (is_complete or (has_begun and not has_failed)):
        return "success" if is_complete else "client_gone"
    is_error = (is_complete or has_begun) and BAD_REQUEST <= status < _SERVER_ERROR
    return "client_error" if is_error else "server_error"
