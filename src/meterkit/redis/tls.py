"""TLS to the store: certificate files, and plain words for a refused server."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NoReturn

from meterkit.errors import SettingsError

# Codes of OpenSSL: the issuer is not known, or the certificate is its own.
_NOT_VOUCHED_FOR: Final = frozenset({2, 18, 19, 20, 21})
_EXPIRED: Final = 10
_OTHER_HOST: Final = frozenset({62, 64})


@dataclass(frozen=True, kw_only=True)
class Tls:
    """TLS settings: PEM files, by their given paths, read once for all connections.

    Attributes:
        ca_certs: the authorities that may vouch for the server, and no others; None: the system's.
        certfile: the client's certificate; None: the server asks for none.
        keyfile: the key of that certificate; None: it is in the same file.
        is_verified: False only for a ``REDIS_URL`` that turns verification off for all who read it.
    """

    ca_certs: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    is_verified: bool = True

    @cached_property
    def context(self) -> ssl.SSLContext:
        """Context of connections: it verifies the server's certificate and name, unless told otherwise.

        Raises:
            SettingsError: a file cannot be read, or does not hold what it should.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca_certs)
        except OSError as error:
            raise _unusable(f"ssl_ca_certs={self.ca_certs}", error) from None
        if not self.is_verified:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if self.certfile is not None:
            try:
                context.load_cert_chain(self.certfile, self.keyfile, password=_no_passphrase)
            except (OSError, _EncryptedKeyError) as error:
                key = "" if self.keyfile is None else f" with ssl_keyfile={self.keyfile}"
                raise _unusable(f"ssl_certfile={self.certfile}{key}", error) from None
        return context

    def refusal(self, error: ssl.SSLError) -> str:
        """Why there is no TLS with the server, and what to do."""
        if isinstance(error, ssl.SSLCertVerificationError):
            found = f"its certificate is refused: {error.verify_message.rstrip('.')}"
            if error.verify_code in _NOT_VOUCHED_FOR:
                named = "the system's are asked" if self.ca_certs is None else f"{self.ca_certs} is read"
                return f"{found}; ssl_ca_certs names the file of the authorities that vouch for it ({named})"
            if error.verify_code == _EXPIRED:
                return f"{found}; the server needs a new one"
            if error.verify_code in _OTHER_HOST:
                return f"{found}; the URL is to name a host that the certificate names"
            return found
        reason = _reason(error)
        if reason == "WRONG_VERSION_NUMBER":
            return "it does not speak TLS; for a server without TLS the URL begins with redis://"
        return f"TLS fails: {reason}"


def _reason(error: ssl.SSLError) -> str:
    # OpenSSL's have one; what others raise by this name has not even the attribute.
    return getattr(error, "reason", None) or str(error)


class _EncryptedKeyError(Exception):
    """A key wants a passphrase."""


def _no_passphrase() -> NoReturn:
    # OpenSSL would ask the terminal.
    raise _EncryptedKeyError("the key is encrypted, and no passphrase can be given")


def _unusable(named: str, error: Exception) -> SettingsError:
    if isinstance(error, ssl.SSLError):
        why = f"it is not what it should be ({_reason(error)})"
    elif isinstance(error, OSError) and error.errno:
        why = os.strerror(error.errno)
    else:
        why = str(error)
    return SettingsError("redis_url", f"redis_url: {named} cannot be used: {why}")
