"""Stripe as a few objects: what pure decisions of delivery read and write there."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

from meterkit.errors import StripeError
from meterkit.settings import Settings
from meterkit.stripe.api import StripeApi

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.stripe.api import Objects
    from meterkit.stripe.request import Parameter

__all__ = ["ObjectsAtStripe", "Written"]


class Written(NamedTuple):
    """A call that changes something."""

    path: str
    params: Mapping[str, Any]
    key: str | None


class ObjectsAtStripe(StripeApi):
    """Shows objects, and lists of them, by path; what is posted to an object is in it from then on.

    Where a path has a number in place of an object, Stripe refuses with that status.
    """

    def __init__(self, shown: Mapping[str, Any]) -> None:
        super().__init__(Settings.load(stripe_api_key="sk_test_1", stripe_api_base="http://127.0.0.1:9"))
        self.shown: dict[str, Any] = dict(shown)
        self.asked: dict[str, Mapping[str, Parameter] | None] = {}
        self.written: list[Written] = []

    async def get(self, path: str, params: Mapping[str, Parameter] | None = None) -> dict[str, Any]:
        """An object."""
        self.asked[path] = params
        found = self.shown.get(path, HTTPStatus.NOT_FOUND)
        if isinstance(found, int):
            raise StripeError("no such object", status=found)
        return dict(found)

    async def list(self, path: str, params: Mapping[str, Parameter] | None = None) -> Objects:
        """A list of objects."""
        self.asked[path] = params
        found = self.shown.get(path, [])
        if isinstance(found, int):
            raise StripeError("no such list", status=found)
        return [dict(one) for one in found]

    async def post(
        self, path: str, params: Mapping[str, Parameter] | None = None, *, idempotency_key: str | None = None
    ) -> dict[str, Any]:
        """Change an object."""
        self.written.append(Written(path, params or {}, idempotency_key))
        return {**self.shown.get(path, {}), **(params or {})}
