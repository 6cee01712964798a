"""``REDIS_URL`` as redis-py, Celery and Heroku write it, with parameters of other clients. Pure."""

from __future__ import annotations

from typing import Final, NamedTuple
from urllib.parse import parse_qsl, urlencode

_SCHEMES: Final = frozenset({"redis", "rediss", "unix"})
_TLS_PARAMETERS: Final = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs"})
_UNVERIFIED: Final = frozenset({"none", "optional"})


class SharedUrl(NamedTuple):
    """A URL with the parameters that meterkit knows.

    Attributes:
        url: for :func:`meterkit.redis.url.parse_redis_url`.
        is_verified: False if the URL turns the verification of the server's certificate off.
    """

    url: str
    is_verified: bool


def without_foreign_parameters(redis_url: str) -> SharedUrl:
    """Leave out what only other clients know: timeouts, pools and encodings of their own connections.

    ``ssl_cert_reqs`` has redis-py's names (``none``) or, as in Celery, those of Python (``CERT_NONE``).
    """
    head, _, query = redis_url.partition("?")
    scheme = head.partition("://")[0].lower()
    if scheme not in _SCHEMES:
        return SharedUrl(redis_url, is_verified=True)
    known = _TLS_PARAMETERS | {"db"} if scheme == "rediss" else {"db"}
    kept = {name: value for name, value in parse_qsl(query) if name in known}
    verification = kept.get("ssl_cert_reqs", "").lower().removeprefix("cert_")
    if verification in {"required", *_UNVERIFIED}:
        del kept["ssl_cert_reqs"]
    url = f"{head}?{urlencode(kept)}" if kept else head
    return SharedUrl(url, is_verified=verification not in _UNVERIFIED)
