"""One GET of an address, as certificates of SNS are fetched: without redirects, and bounded."""
# Internals: one request for a certificate.

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import TYPE_CHECKING, ClassVar

import pytest

from meterkit.storage.sns_certificates import BYTES_MAX, fetch

if TYPE_CHECKING:
    from collections.abc import Iterator

ANSWERS = {
    "/certificate.pem": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
    "/large": b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (BYTES_MAX + 1),
    "/moved": b"HTTP/1.1 302 Found\r\nlocation: /certificate.pem\r\ncontent-length: 0\r\n\r\n",
    "/gone": b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
    "/cut": b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok",
    "/other": b"SMTP ready\r\n",
}


class Answering(BaseHTTPRequestHandler):
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.wfile.write(ANSWERS[self.path])

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    Answering.asked.clear()
    with HTTPServer(("127.0.0.1", 0), Answering) as served:
        Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


def test_an_address_is_fetched(server: str) -> None:
    assert fetch(f"{server}/certificate.pem") == b"ok"
    assert fetch(f"{server}/large") == b"x" * BYTES_MAX


@pytest.mark.parametrize("path", ["/moved", "/gone", "/cut", "/other"])
def test_any_other_answer_is_an_error_of_the_network(server: str, path: str) -> None:
    with pytest.raises(OSError, match=r".+"):
        fetch(server + path)
    assert Answering.asked == [path]
