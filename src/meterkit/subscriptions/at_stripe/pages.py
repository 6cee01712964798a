"""Stripe's pages to subscribe on, one open at a time, with the options of the plans file and a call."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, cast

from meterkit.catalog.billing import set_by_meterkit
from meterkit.errors import MeterkitError, StripeError, StripeUnavailableError
from meterkit.subscriptions.at_stripe.idempotency import MARK, key_of, mark_of, persistently

if TYPE_CHECKING:
    from collections.abc import Collection

    from meterkit.catalog.billing import CheckoutOptions
    from meterkit.stripe.api import StripeApi
    from meterkit.stripe.request import Parameter


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


_PATH: Final = "/v1/checkout/sessions"
_PORTAL: Final = "/v1/billing_portal/sessions"
_MINUTE_MS: Final = 60_000
_OPEN_S_MIN: Final = 3_600
_TRIES: Final = 4


async def open_page(
    api: StripeApi, asked: Mapping[str, Parameter], before: Collection[str], *, now_s: int
) -> Mapping[str, Any]:
    """The page that is open for the same, or a new one; all others of the customer are closed.

    Each open page is a subscription, and a trial, that its customer could still begin.

    Args:
        api: the way to Stripe.
        asked: what the page is to be, its customer among it.
        before: the subscriptions that the customer has, and had.
        now_s: this instant (Unix seconds).

    Raises:
        StripeError: Stripe refuses, or does not answer.
    """
    mark = key_of("checkout", asked, sorted(before))
    linked = str(asked["customer"])

    async def attempt(again: int) -> Mapping[str, Any]:
        opened = await _opened(api, linked)
        same = (one for one in opened if mark_of(one) == mark and one["expires_at"] - now_s >= _OPEN_S_MIN)
        page: Mapping[str, Any] | None = next(same, None)
        if page is None:
            page = await _new_page(api, {**asked, "metadata": {MARK: mark}}, opened, again)
        await close_pages(api, linked, but=page["id"])
        return page

    return await persistently(attempt)


async def open_portal(api: StripeApi, asked: Mapping[str, Parameter], *, now_ms: int) -> Mapping[str, Any]:
    """A session of the customer portal. Its address is void after some minutes: each minute gets another.

    Raises:
        StripeError: Stripe refuses, or does not answer.
    """

    async def attempt(again: int) -> dict[str, Any]:
        key = key_of("portal", asked, now_ms // _MINUTE_MS, again)
        return await api.post(_PORTAL, asked, idempotency_key=key)

    return await persistently(attempt)


async def close_pages(api: StripeApi, linked: str, *, but: str = "") -> None:
    """Close all pages of ours that are open for a Stripe customer. Raises StripeError."""
    for page in await _opened(api, linked):
        if page["id"] != but:
            try:
                await api.post(f"{_PATH}/{page['id']}/expire")
            except StripeUnavailableError:
                raise
            except StripeError as error:
                if error.status != HTTPStatus.BAD_REQUEST:  # It is not open any more.
                    raise


async def _new_page(
    api: StripeApi, asked: Mapping[str, Parameter], opened: Collection[Mapping[str, Any]], again: int
) -> Mapping[str, Any]:
    known, page = sorted(one["id"] for one in opened), dict[str, Any]()
    for _ in range(_TRIES):
        key = key_of("checkout", asked, known, again)
        page = await api.post(_PATH, asked, idempotency_key=key)
        found = await api.get(f"{_PATH}/{page['id']}")
        if found.get("status") == "open" and page["id"] not in known:
            break
        known.append(page["id"])  # An answer of earlier: that page is closed.
    return page


async def _opened(api: StripeApi, linked: str) -> list[dict[str, Any]]:
    found = await api.list(_PATH, {"customer": linked, "status": "open"})
    return [page for page in found if mark_of(page)]
