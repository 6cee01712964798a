"""Which addresses customers may be sent to."""

from __future__ import annotations

from typing import Any

import pytest

from meterkit import MeterkitError
from meterkit.subscriptions.billing_requests import Origin, is_of, origins_of

ORIGINS = origins_of(["https://app.example", "http://localhost:3000/"])


@pytest.mark.parametrize(
    "url",
    [
        "https://app.example",
        "https://app.example/",
        "https://APP.example/paid?plan=pro&x=%2F#done",
        "https://app.example:443/paid",
        "https://app.example/paid?session={CHECKOUT_SESSION_ID}",
        "http://localhost:3000/paid",
    ],
)
def test_an_address_of_an_origin_is_one(url: str) -> None:
    assert is_of(url, ORIGINS)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/paid",
        "//app.example/paid",
        "app.example",
        "https:app.example",
        "https:/app.example",
        "http://app.example/",  # another scheme
        "https://app.example:8443/",  # another port
        "http://localhost/",
        "https://app.example:0/",
        "https://app.example:99999/",
        "https://app.example:/",
        "https://app.example.evil.example/",
        "https://evilapp.example/",
        "https://app.example./",
        "https://app.example@evil.example/",
        "https://app.example:443@evil.example/",
        "https://user:password@app.example/",
        "https://@app.example/",
        "https://evil.example\\@app.example/",
        "https:\\\\app.example",
        "https://app.example\\.evil.example",
        "https://evil.example/#https://app.example",
        "https://evil.example?https://app.example",
        " https://app.example",
        "https://app.example\t/",
        "https://app.example\r\nLocation: https://evil.example",
        "https://app.example/\x00",
        "https://app.ex\u0430mple/",  # a Cyrillic letter
        "https://app\u3002example/",  # a full stop that browsers take for one
        "https://app.example%2eevil.example/",
        "https://[::1]/",
        "https://[app.example/",
        "javascript:alert(1)//https://app.example",
        "data:text/html,https://app.example",
        "HTTPS+x://app.example/",
        f"https://app.example/{'x' * 2048}",
    ],
)
def test_an_address_that_is_not_exactly_of_an_origin_is_none(url: str) -> None:
    assert not is_of(url, ORIGINS)


def test_origins_are_scheme_host_and_port() -> None:
    assert {Origin("https", "app.example", 443), Origin("http", "localhost", 3000)} == ORIGINS
    assert is_of("http://[::1]:3000/", origins_of(["http://[::1]:3000"]))


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ([], "origins: found none"),
        ("https://app.example", "origins: found the text 'https://app.example'"),
        (["*"], "origins: found '*'; allowed are origins such as"),
        (["null"], "origins: found 'null'"),
        (["app.example"], "origins: found 'app.example'"),
        (["https://app.example", "https://app.example/paid"], "origins: found 'https://app.example/paid'"),
        (["https://app.example?"], "origins: found 'https://app.example?'"),
        (["https://*.app.example"], "origins: found 'https://*.app.example'"),
        (["https://user@app.example"], "origins: found 'https://user@app.example'"),
        ([None], "origins: found None"),
    ],
)
def test_what_is_no_origin_is_refused(written: Any, said: str) -> None:
    with pytest.raises(MeterkitError) as raised:
        origins_of(written)
    assert str(raised.value).startswith(said)
