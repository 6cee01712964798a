"""Signatures of SNS: RSA, with the SHA-1 of version 1 or the SHA-256 of version 2. Pure."""

from __future__ import annotations

from base64 import b64decode
from typing import Final

try:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.hazmat.primitives.hashes import SHA1, SHA256
except ImportError as error:
    raise ImportError(
        "cryptography is required for messages of SNS. Install with: pip install 'meterkit[storage]'"
    ) from error

__all__ = ["is_signed"]

# Topics sign by version 1 unless their owner asks for 2.
_HASHES: Final = {"1": SHA1, "2": SHA256}


def is_signed(text: str, signature: str, *, version: str, certificate: bytes) -> bool:
    """Whether a text was signed by the owner of a certificate.

    Args:
        text: what is signed.
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
