"""Keep the credentials of a request out of the log of an error."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import parse_qsl

from meterkit.errors import MeterkitError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.types import Scope

_SECRET_NAME: Final = re.compile(r"auth|cookie|key|password|secret|session|signature|token", re.IGNORECASE)
_WORD_ENDS: Final = re.compile(r"[\s,;=]+")
# Shorter words, such as `Bearer`, stand in errors by chance.
_LENGTH_MIN: Final = 8


def hide_credentials(error: Exception, scope: Scope) -> Exception:
    """Return an error to log for one of ``identify``: another where it tells a credential of the request."""
    try:
        is_safe = not any(tells(error, secret) for secret in _find_credentials(scope))
    except Exception:  # noqa: BLE001 - what cannot be read, such as an error of the app's own, is not shown
        is_safe = False
    if is_safe:
        return error
    hidden = MeterkitError(f"identify raised {type(error).__name__}; what it says has a credential")
    hidden.__suppress_context__ = True
    return hidden.with_traceback(error.__traceback__)


def tells(error: BaseException, secret: str) -> bool:
    """Whether a log of an error would have a secret: in its words, notes, or the errors that led to it."""
    words = [str(error), repr(error), *getattr(error, "__notes__", ())]
    if any(spelled in told for spelled in (secret, repr(secret)[1:-1]) for told in words):
        return True
    led: list[BaseException | None] = [error.__cause__]
    if not error.__suppress_context__:
        led.append(error.__context__)
    if isinstance(error, BaseExceptionGroup):
        led.extend(cast("BaseExceptionGroup[BaseException]", error).exceptions)
    return any(tells(one, secret) for one in led if one is not None)


def _find_credentials(scope: Scope) -> Iterator[str]:
    """Find the words of headers and query parameters that are named like credentials."""
    given = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
    given += parse_qsl(scope["query_string"].decode("latin-1"))
    for name, value in given:
        if _SECRET_NAME.search(name):
            for word in (value, *_WORD_ENDS.split(value)):
                if len(word) >= _LENGTH_MIN:
                    yield word
