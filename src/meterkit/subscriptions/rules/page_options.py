"""Merges the options of a page of Stripe's Checkout: of the plans file, and of a call. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from meterkit.catalog.checkout import set_by_meterkit
from meterkit.errors import MeterkitError

if TYPE_CHECKING:
    from meterkit.catalog.checkout import CheckoutOptions

__all__ = ["options_of"]


def options_of(common: CheckoutOptions, given: CheckoutOptions | None) -> dict[str, Any]:
    """What a page is made with besides what meterkit sets itself.

    Args:
        common: of the plans file.
        given: of the call; each replaces the option of its name, None takes it out.

    Raises:
        MeterkitError: meterkit sets one itself, or one cannot be sent to Stripe.
    """
    if given is None:
        return dict(common)
    if not _is_mapping(given):
        raise MeterkitError(f"options: found a value of type {type(given).__name__}; allowed is a mapping")
    own = [".".join(path) for path in set_by_meterkit(given)]
    if own:
        raise MeterkitError(f"options: found {', '.join(own)}, which meterkit sets itself; leave it out")
    try:
        _check("", given)
    except TypeError as error:
        raise MeterkitError(f"options: {error}") from error
    return {**common, **given}


def _check(name: str, value: object) -> None:
    """Refuse a value that Stripe would misread: money is whole cents, a time whole seconds."""
    if isinstance(value, Mapping):
        for key, inner in cast("Mapping[str, object]", value).items():
            _check(f"{name}[{key}]" if name else key, inner)
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(cast("list[object]", value)):
            _check(f"{name}[{place}]", inner)
    elif not isinstance(value, str | int | None):
        kind = type(value).__name__
        raise TypeError(f"{name}: found a value of type {kind}; allowed are texts, integers, lists and dicts")


def _is_mapping(given: object) -> bool:
    """Whether it is one: callers without a type checker may hand over anything."""
    return isinstance(given, Mapping)
