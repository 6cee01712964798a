"""Outcome of a request, and whether its usage is billed. Pure.

The work decides the outcome, not its delivery: a response that the app finishes is a success, also if the
client has left.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from meterkit.catalog import Outcome

# Numbers: looking up a member of an enumeration takes as long as the rest of a comparison.
BAD_REQUEST: Final = HTTPStatus.BAD_REQUEST.value
_SERVER_ERROR: Final = HTTPStatus.INTERNAL_SERVER_ERROR.value
_REDIRECTIONS: Final = range(HTTPStatus.MULTIPLE_CHOICES.value, BAD_REQUEST)
_BODILESS: Final = frozenset({*_REDIRECTIONS, HTTPStatus.NO_CONTENT.value, HTTPStatus.RESET_CONTENT.value})
_CLIENT_CLOSED_REQUEST: Final = 499
"""The status of nginx for a request whose client has left; no client reads it."""


def outcome_of(
    status: int,
    *,
    is_complete: bool,
    has_begun: bool,
    has_failed: bool,
    has_left: bool = False,
    has_left_early: bool = False,
) -> Outcome:
    """Determine the outcome of a request.

    Args:
        status: of the response; 0 where there was none.
        is_complete: whether the app sent its response to the end.
        has_begun: whether the app sent some of its body.
        has_failed: whether the app ended by an error of its own.
        has_left: whether the client hung up before the end.
        has_left_early: whether it did so before the first byte of the body. An app that answers nevertheless
            has finished its work. A stream that was cut may seem complete, but has no body.
    """
    if has_left_early:
        is_finished = is_complete and (has_begun or status in _BODILESS)
        has_begun = False
    else:
        is_finished = is_complete and not has_left
    if status < BAD_REQUEST and (is_finished or (has_begun and not has_failed)):
        return "success" if is_finished else "client_gone"
    is_error = (is_finished or has_begun) and BAD_REQUEST <= status < _SERVER_ERROR
    return "client_error" if is_error else "server_error"


def is_stopped(status: int, outcome: Outcome) -> bool:
    """Whether an app whose client left before the first byte has stopped.

    Frameworks answer 500 for an app that stops by an error, as for an app that fails.

    Args:
        status: of the response; 0 where there was none.
        outcome: of the request.
    """
    return outcome == "server_error" or status == _CLIENT_CLOSED_REQUEST


def is_usage_due(
    outcome: Outcome, status: int, charge_on: frozenset[Outcome], *, has_left_early: bool
) -> bool:
    """Whether reported usage is billed, also of an app that stopped because its client left early.

    Args:
        outcome: of the request.
        status: of the response; 0 where there was none.
        charge_on: outcomes that the route bills.
        has_left_early: whether the client hung up before the first byte of the body.
    """
    is_left = has_left_early and bool(charge_on) and is_stopped(status, outcome)
    return outcome in charge_on or is_left
