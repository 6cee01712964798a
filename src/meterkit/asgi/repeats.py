"""Whether a request may be a repeat: what stands for its idempotency key."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import Scope

    from meterkit.catalog import Route

__all__ = ["repeat_digest"]


def repeat_digest(route: Route, scope: Scope) -> str | None:
    """A digest of what makes a request the same as another of the customer; None: it has no idempotency key.

    That is method, path and the values of the route's header, all of them where there are several: whichever
    the app looks at, it is the same. An empty one is none.
    """
    name = route.idempotency_header
    if name is None or scope["type"] != "http":
        return None
    wanted = name.lower().encode("latin-1")
    values = [value for key, value in scope["headers"] if key.lower() == wanted]
    if not any(values):
        return None
    digest = blake2b(digest_size=16)
    for part in (scope["method"].upper().encode(), scope["path"].encode("utf-8", "surrogatepass"), *values):
        digest.update(b"%d:%b" % (len(part), part))
    return digest.hexdigest()
