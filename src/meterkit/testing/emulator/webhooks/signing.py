"""How webhooks are signed, and how a forger or a bad line would spoil them."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Final, Literal, get_args

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["FORGERIES", "Forgery", "forge", "sign"]

Forgery = Literal["wrong_secret", "changed", "truncated", "unsigned", "old_scheme", "stale", "early"]

FORGERIES: Final[tuple[str, ...]] = get_args(Forgery)
# A day: far beyond the 300 seconds that receivers allow.
APART_S: Final = 86_400


def sign(body: bytes, *, secrets: Sequence[str], at_s: int, scheme: str = "v1") -> str:
    """Return ``Stripe-Signature``: ``t=`` and a ``v1=`` for each secret that is in force.

    HMAC-SHA256 of ``{t}.{body}`` with the whole secret (https://docs.stripe.com/webhooks#verify-manually).
    """
    signed = b"%d.%s" % (at_s, body)
    signatures = (hmac.digest(secret.encode(), signed, "sha256").hex() for secret in secrets)
    return ",".join((f"t={at_s}", *(f"{scheme}={signature}" for signature in signatures)))


def forge(
    body: bytes, *, secrets: Sequence[str], at_s: int, how: Forgery | None
) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of a delivery that is to be refused; ``how`` None: of a good one.

    ``wrong_secret``: signed with another secret; ``changed``: another body than was signed; ``truncated``:
    half of it; ``unsigned``: no signature; ``old_scheme``: a ``v0`` signature only; ``stale``, ``early``:
    signed rightly, a day ago or a day from now.
    """
    if how == "unsigned":
        return body, {}
    at_s += {"stale": -APART_S, "early": APART_S}.get(how or "", 0)
    if how == "wrong_secret":
        secrets = [f"whsec_not_{secret.removeprefix('whsec_')}" for secret in secrets]
    header = sign(body, secrets=secrets, at_s=at_s, scheme="v0" if how == "old_scheme" else "v1")
    if how == "truncated":
        body = body[: len(body) // 2]
    elif how == "changed":
        body = body.replace(b"{", b'{"forged": true,', 1)
    return body, {"stripe-signature": header}
