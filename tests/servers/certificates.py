"""Throw-away authorities for tests of TLS, and what they certify."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import trustme


class Authority:
    """An authority that nobody knows but who is given its file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._authority: Any = trustme.CA()
        self.file = str(folder / "ca.pem")
        self._authority.cert_pem.write_to_path(self.file)

    def serving(self, host: str = "127.0.0.1", **certificate: Any) -> ssl.SSLContext:
        """A server's side of TLS, for a host; the rest is trustme's."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.certify(context, host, **certificate)
        return context

    def certify(self, context: ssl.SSLContext, host: str = "127.0.0.1", **certificate: Any) -> None:
        """Have a server show another certificate from its next connection on."""
        self._authority.issue_cert(host, **certificate).configure_cert(context)

    def vouch(self, context: ssl.SSLContext) -> None:
        """Have a server ask its clients for a certificate of this authority."""
        self._authority.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED

    def client(self) -> tuple[str, str]:
        certificate: Any = self._authority.issue_cert("client.test")
        cert, key = str(self._folder / "client.pem"), str(self._folder / "client.key")
        certificate.cert_chain_pems[0].write_to_path(cert)
        certificate.private_key_pem.write_to_path(key)
        return cert, key
