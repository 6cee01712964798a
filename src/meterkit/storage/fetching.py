"""One GET of an address of SNS, without redirects; blocks."""

from __future__ import annotations

from http.client import HTTPException
from typing import Any, Final
from urllib.request import HTTPRedirectHandler, build_opener

__all__ = ["BYTES_MAX", "fetch"]

BYTES_MAX: Final = 1 << 16
_TIMEOUT_S: Final = 5.0


class _NoRedirects(HTTPRedirectHandler):
    """Makes a redirect an error: it could lead away from SNS."""

    def redirect_request(self, *_args: Any, **_kwargs: Any) -> None:
        """Follow no redirect."""


def fetch(url: str) -> bytes:
    """Fetch the first 64 KiB of an address.

    Raises:
        OSError: it does not answer 200 with a body.
    """
    try:
        with build_opener(_NoRedirects).open(url, timeout=_TIMEOUT_S) as response:
            found: bytes = response.read(BYTES_MAX)
            length = int(response.headers.get("content-length", 0))
    except (HTTPException, ValueError) as error:
        raise OSError(f"its answer cannot be read: {type(error).__name__}") from error
    if len(found) < min(length, BYTES_MAX):
        raise OSError("its answer is cut off")
    return found
