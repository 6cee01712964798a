"""What the middleware is given is checked where it is made."""

from __future__ import annotations

from typing import Any

import pytest

from drivers.app import PLANS, hello
from meterkit import MeterKit, MeterkitError, MeterMiddleware, identify
from meterkit.catalog import loads

ORIGIN = "allowed is an origin as browsers send it, in small letters and without a path"
KIT = MeterKit(loads(PLANS), redis_url="memory://", flush=False)
BY_HEADER = identify.header("x-customer-id")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kit": None}, "kit: found None; allowed is a MeterKit"),
        ({"kit": "plans.yaml"}, "kit: found a value of type str; allowed is a MeterKit"),
        ({"kit": MeterKit}, "kit: found the class MeterKit; allowed is a MeterKit"),
        ({"identify": "x"}, "identify: found a value of type str; allowed is a function from an ASGI scope"),
        ({"identify": None}, "identify: found None; allowed is a function"),
        ({"identify": identify}, "identify: found a value of type module; allowed is a function"),
        ({"identify": {"sk_live_1": "acme"}}, "identify: found a value of type dict; allowed is a function"),
        ({"on_denied": "no"}, "on_denied: found a value of type str; allowed is a function"),
        ({"cors": "https://*.x"}, "cors: found 'https://*.x'; allowed is a list of origins"),
        ({"cors": "*"}, "cors: found '*'; allowed is a list of origins"),
        ({"cors": None}, "cors: found None; allowed is a list of origins"),
        ({"cors": ["https://*.x"]}, f"cors: found 'https://*.x'; {ORIGIN}"),
        ({"cors": ["https://app.example/"]}, f"cors: found 'https://app.example/'; {ORIGIN}"),
        ({"cors": ["https://App.example"]}, f"cors: found 'https://App.example'; {ORIGIN}"),
        ({"cors": ["app.example"]}, f"cors: found 'app.example'; {ORIGIN}"),
        ({"cors": [b"https://app.example"]}, f"cors: found b'https://app.example'; {ORIGIN}"),
    ],
)
def test_what_it_cannot_work_with_is_refused_with_words(given: dict[str, Any], said: str) -> None:
    """F-69: it was taken, and failed at the first request or never."""
    arguments: dict[str, Any] = {"kit": KIT, "identify": BY_HEADER} | given
    with pytest.raises(MeterkitError) as refused:
        MeterMiddleware(hello, **arguments)
    assert str(refused.value).startswith(said)
    assert "sk_live" not in str(refused.value)


@pytest.mark.parametrize(
    "cors", [(), ["*"], {"https://app.example", "http://localhost:3000"}, ["null", "http://[::1]:8000"]]
)
def test_origins_as_browsers_send_them_are_taken(cors: Any) -> None:
    MeterMiddleware(hello, kit=KIT, identify=BY_HEADER, cors=cors)
