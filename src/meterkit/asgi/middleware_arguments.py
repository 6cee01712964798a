"""Checks the arguments of the middleware, before it serves."""

from __future__ import annotations

from meterkit.allowed_origins import check_cors
from meterkit.asgi.identify import api_key, client_ip, header, user
from meterkit.errors import MeterkitError


def check_arguments(kit: object, identify: object, on_denied: object, cors: object) -> None:
    """Check the arguments of a middleware.

    Raises:
        MeterkitError: with what was found and what is allowed.
    """
    if not hasattr(kit, "store") or isinstance(kit, type):
        raise MeterkitError(
            f"kit: found {_describe_type(kit)}; allowed is a MeterKit, as MeterKit('plans.yaml')"
        )
    if not callable(identify):
        # Only its type is shown: it may be a table of keys.
        raise MeterkitError(
            f"identify: found {_describe_type(identify)}; allowed is a function from an ASGI scope to a"
            " customer's id or None, such as identify.header('x-customer-id')"
        )
    if isinstance(identify, type) or identify in (api_key, client_ip, header, user):
        name = getattr(identify, "__name__", "")
        raise MeterkitError(
            f"identify: found {name} itself, which each request would call; allowed is the result of its"
            " call, such as identify.header('x-customer-id')"
        )
    if on_denied is not None and not callable(on_denied):
        raise MeterkitError(
            f"on_denied: found {_describe_type(on_denied)}; allowed is a function from a scope and a decision"
            " to a response or None"
        )
    check_cors(cors)


def _describe_type(value: object) -> str:
    if value is None:
        return "None"
    return (
        f"the class {value.__name__}"
        if isinstance(value, type)
        else f"a value of type {type(value).__name__}"
    )
