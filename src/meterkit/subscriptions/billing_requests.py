"""Answer requests of the billing routes, for any framework: check, run the endpoint, serialize.

The app identifies the customer, never the request.

Bodies are read here, with a bound and by strict models, for Starlette and FastAPI alike: FastAPI's reader has
no bound. Refusals of Stripe are answered by kind and code, because its messages may name keys and ids.
"""

from __future__ import annotations

import json
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast
from urllib.parse import parse_qsl

from pydantic import TypeAdapter, ValidationError

from meterkit.allowed_origins import Origin, SendingPage, check_sender, has_allowed_origin, origins_of
from meterkit.decisions.periods import iso
from meterkit.errors import MeterkitError
from meterkit.problem_types import ProblemDocument, ProblemDocumentError
from meterkit.store.customer_usage import hide_delivery_states
from meterkit.store.input_checks import is_customer
from meterkit.subscriptions.billing_problems import invalid, problem_of
from meterkit.subscriptions.billing_routes import AcceptedChange, BillingRequest, UsageAnswer, wrong

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from pydantic import BaseModel

    from meterkit.store.customer_usage import CustomerUsage
    from meterkit.subscriptions.billing_routes import BillingEndpoint, BillingKit

BODY_BYTES_MAX: Final = 64 << 10
_URLS: Final = ("success_url", "cancel_url", "return_url")
_QUERY_FIELDS_MAX: Final = 32


class BillingAnswer(NamedTuple):
    """An HTTP response."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class BillingResponder:
    """Answers requests of the billing routes.

    Args:
        kit: the kit of the customers.
        origins: of the app; customers may be redirected to them.
        delivery_states: usage shows customers how much of it is on its way to Stripe.

    Attributes:
        kit: the same.

    Raises:
        MeterkitError: there is no origin, or one is not an origin.
    """

    def __init__(self, kit: BillingKit, origins: Iterable[str], *, delivery_states: bool) -> None:
        self.kit = kit
        self._origins = origins_of(origins)
        self._has_delivery_states = delivery_states

    async def answer(
        self,
        endpoint: BillingEndpoint,
        customer: object,
        *,
        query: str,
        content_type: str,
        sender: SendingPage,
        read: Callable[[], Awaitable[bytes | None]],
    ) -> BillingAnswer:
        """Answer one request.

        Args:
            endpoint: of its route.
            customer: the customer that the app identified; None: unknown.
            query: its query string.
            content_type: of its body.
            sender: the page that sent it.
            read: reads the body; None: it is too large.
        """
        try:
            if endpoint.changes and sender.is_page:
                check_sender(sender, self._origins)
            customer_id = customer_in(customer)
            request = BillingRequest(
                customer_id,
                await self._read_body(endpoint, content_type, read),
                _parse_query(endpoint, query),
            )
            found = await endpoint.handler(self.kit, request)
        except ProblemDocumentError as error:
            return _problem_answer(error.problem)
        except MeterkitError as error:
            return _problem_answer(problem_of(error))
        status = endpoint.status
        if isinstance(found, AcceptedChange):
            status, found = HTTPStatus.ACCEPTED, found.change
        if endpoint.response_type is UsageAnswer and not self._has_delivery_states:
            found = hide_delivery_states(cast("CustomerUsage", found))
        body = _serialize(endpoint, found)
        headers = {"content-type": "application/json", "cache-control": "no-store"}
        return BillingAnswer(status, headers, body)

    async def _read_body(
        self, endpoint: BillingEndpoint, content_type: str, read: Callable[[], Awaitable[bytes | None]]
    ) -> BaseModel | None:
        if endpoint.body_type is None:
            return None
        raw = await read()
        if raw is None:
            detail = f"The body of this request is larger than {BODY_BYTES_MAX} bytes."
            raise ProblemDocumentError(
                ProblemDocument.of("request-too-large", detail, {"limit": BODY_BYTES_MAX})
            )
        if raw and content_type.partition(";")[0].strip().lower() != "application/json":
            raise ProblemDocumentError(
                ProblemDocument.of("media-type-not-supported", "Send the body as application/json.")
            )
        try:
            body = endpoint.body_type.model_validate_json(raw or b"{}")
        except ValidationError as error:
            raise _invalid_body(error) from None
        self._check_urls(body, self._origins)
        return body

    @staticmethod
    def _check_urls(body: BaseModel, origins: frozenset[Origin]) -> None:
        for name in _URLS:
            url = getattr(body, name, None)
            if url is not None and not has_allowed_origin(url, origins):
                detail = f"{name} is not an address of an allowed origin."
                raise ProblemDocumentError(ProblemDocument.of("url-not-allowed", detail, {"field": name}))


def customer_in(customer: object) -> str:
    """Check the customer id that the app has identified.

    Raises:
        ProblemDocumentError: there is none, or it is not valid.
    """
    if customer is None or customer is False:
        detail = "This request does not say which customer it belongs to. Send valid credentials."
        raise ProblemDocumentError(ProblemDocument.of("customer-unknown", detail))
    if not is_customer(customer):
        detail = "The customer id of this request is not valid."
        raise ProblemDocumentError(ProblemDocument.of("customer-invalid", detail))
    return customer


def _invalid_body(error: ValidationError) -> ProblemDocumentError:
    errors = [
        {"field": ".".join(map(str, one["loc"]))[:128], "message": one["msg"][:200]}
        for one in error.errors(include_url=False, include_context=False, include_input=False)[:20]
    ]
    return ProblemDocumentError(invalid(errors))


def _parse_query(endpoint: BillingEndpoint, query: str) -> dict[str, str]:
    """Parse the known, non-empty fields of the query string."""
    found: dict[str, str] = {}
    try:
        given = parse_qsl(query, max_num_fields=_QUERY_FIELDS_MAX)
    except ValueError:
        raise wrong("query", "has too many fields") from None
    for name, value in given:
        if name in endpoint.query:
            if name in found:
                raise wrong(name, "is given twice")
            found[name] = value
    return found


def _problem_answer(problem: ProblemDocument) -> BillingAnswer:
    return BillingAnswer(problem.kind.status, problem.headers, problem.body)


def _serialize(endpoint: BillingEndpoint, found: object) -> bytes:
    if endpoint.response_type is UsageAnswer:  # It is a typed mapping; a model would copy it.
        return json.dumps(found, separators=(",", ":"), default=iso).encode()
    left_out = {name for name in endpoint.optional if not getattr(found, name)}
    return _adapter(endpoint.response_type).dump_json(found, exclude=left_out)


@cache
def _adapter(of: Any) -> TypeAdapter[Any]:
    return TypeAdapter(of)
