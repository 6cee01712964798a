"""SNS certificates and signatures; imported only for SNS messages, because it needs ``cryptography``."""

from __future__ import annotations

from base64 import b64decode
from datetime import UTC, datetime
from http.client import HTTPException
from typing import Any, Final
from urllib.request import HTTPRedirectHandler, build_opener

BYTES_MAX: Final = 1 << 16
_TIMEOUT_S: Final = 5.0


class _NoRedirects(HTTPRedirectHandler):
    """Makes a redirect an error: it could leave SNS."""

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
        raise OSError(f"its reply cannot be read: {type(error).__name__}") from error
    if len(found) < min(length, BYTES_MAX):
        raise OSError("its reply is incomplete")
    return found


try:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.hazmat.primitives.hashes import SHA1, SHA256
except ImportError as error:
    raise ImportError(
        "cryptography is required for SNS messages. Install with: pip install 'meterkit[storage]'"
    ) from error

# Topics sign by version 1 unless their owner asks for 2.
_HASHES: Final = {"1": SHA1, "2": SHA256}


def is_signed(text: str, signature: str, *, version: str, certificate: bytes) -> bool:
    """Whether a text was signed by the owner of a certificate.

    Args:
        text: the signed text.
        signature: in base64.
        version: of the signature, ``1`` or ``2``; no other is known.
        certificate: in PEM.
    """
    if version not in _HASHES:
        return False
    try:
        key = x509.load_pem_x509_certificate(certificate).public_key()
        if not isinstance(key, RSAPublicKey):
            return False
        key.verify(b64decode(signature, validate=True), text.encode(), PKCS1v15(), _HASHES[version]())
    except (ValueError, InvalidSignature):
        return False
    return True


def is_valid_at(certificate: bytes, now_s: float) -> bool:
    """Whether a certificate, in PEM, is valid at a time."""
    read = x509.load_pem_x509_certificate(certificate)
    return read.not_valid_before_utc <= datetime.fromtimestamp(now_s, UTC) <= read.not_valid_after_utc
