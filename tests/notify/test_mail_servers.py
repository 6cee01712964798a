"""Which server an e-mail goes to, and when a password is sent."""
# Internals: a pure table of addresses.

from __future__ import annotations

import pytest

from meterkit.notify.mail import server_of


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("smtp://mail.example", {"hostname": "mail.example", "port": 587, "use_tls": False}),
        ("smtp://mail.example:25", {"hostname": "mail.example", "port": 25, "use_tls": False}),
        (
            "smtp://ada:p%40ss@mail.example",
            {
                "hostname": "mail.example",
                "port": 587,
                "use_tls": False,
                "start_tls": True,
                "username": "ada",
                "password": "p@ss",
            },
        ),
        (
            "smtp://ada:pass@10.0.0.7",
            {"hostname": "10.0.0.7", "port": 587, "use_tls": False, "username": "ada", "password": "pass"},
        ),
        (
            "smtps://ada:pass@mail.example",
            {"hostname": "mail.example", "port": 465, "use_tls": True, "username": "ada", "password": "pass"},
        ),
    ],
)
def test_a_password_goes_to_a_public_address_over_tls_only(url: str, server: dict[str, object]) -> None:
    assert server == server_of(url)
