"""Posts of a page's own forms: refused unless the browser says that this page sent them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs

from meterkit.subscriptions.router.troubles import KINDS, Trouble, TroubleError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from starlette.requests import Request

_BYTES_MAX: Final = 1 << 20
_FIELDS_MAX: Final = 12_000
_FORM: Final = "application/x-www-form-urlencoded"


def check_same_origin(request: Request) -> None:
    """Refuse a post that a page of another origin sent, with the cookies of this app.

    Browsers say so in ``Sec-Fetch-Site`` over TLS and on localhost, else in ``Origin``. A post without
    either is refused too: no browser that is in use leaves out both.

    Raises:
        TroubleError: the request is not of this origin.
    """
    site = request.headers.get("sec-fetch-site")
    if site is None:
        sent_by = request.headers.get("origin", "").partition("://")[2]
        is_own = bool(sent_by) and sent_by.lower() == request.headers.get("host", "").lower()
    else:
        is_own = site == "same-origin"
    if not is_own:
        raise TroubleError(Trouble(kind=KINDS["origin"], detail="This request was not sent by this page."))


async def form_of(request: Request) -> Mapping[str, Sequence[str]]:
    """The fields of a form, each with its values.

    Raises:
        TroubleError: the body is no form, or is too large.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != _FORM:
        raise TroubleError(Trouble(kind=KINDS["media"], detail=f"Send a form, as {_FORM}."))
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _BYTES_MAX:
            detail = f"Send at most {_BYTES_MAX} bytes."
            raise TroubleError(Trouble(kind=KINDS["large"], detail=detail, members={"limit": _BYTES_MAX}))
    try:
        return parse_qs(body.decode(), max_num_fields=_FIELDS_MAX, errors="strict")
    except ValueError:
        raise TroubleError(Trouble(kind=KINDS["request"], detail="The form cannot be read.")) from None
