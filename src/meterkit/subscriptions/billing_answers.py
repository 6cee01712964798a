"""How a request of the billing routes is answered, whatever serves it.

Whose subscription it is says the app, never the request.
"""

from __future__ import annotations

import json
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import parse_qsl

from pydantic import TypeAdapter, ValidationError

from meterkit.answers import ProblemDocument
from meterkit.decisions.periods import iso
from meterkit.errors import MeterkitError
from meterkit.store.arguments import is_customer
from meterkit.subscriptions.billing_requests import Origin, SendingPage, UsageAnswer, is_of, origins_of
from meterkit.subscriptions.billing_routes import Accepted, Asked, wrong
from meterkit.subscriptions.problem_documents import KINDS, ProblemDocumentError, invalid, problem_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from pydantic import BaseModel

    from meterkit.subscriptions.billing_routes import BillingKit, Endpoint


BODY_BYTES_MAX: Final = 64 << 10
_URLS: Final = ("success_url", "cancel_url", "return_url")
_QUERY_FIELDS_MAX: Final = 32


class Answer(NamedTuple):
    """An HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Billing:
    """Answers the requests of the billing routes.

    Args:
        kit: whose customers they are.
        origins: of the app: where customers may be sent to.

    Raises:
        MeterkitError: there is no origin, or one is not an origin.
    """

    def __init__(self, kit: BillingKit, origins: Iterable[str]) -> None:
        self._kit = kit
        self._origins = origins_of(origins)

    async def answer(
        self,
        endpoint: Endpoint,
        customer: object,
        *,
        query: str,
        content_type: str,
        sender: SendingPage,
        read: Callable[[], Awaitable[bytes | None]],
    ) -> Answer:
        """Do what a request asks for.

        Args:
            endpoint: which route it is of.
            customer: the customer that the app identified; None: unknown.
            query: what stands behind its path.
            content_type: of its body.
            sender: the page that has sent it.
            read: reads the body; None: it is too large.
        """
        try:
            if endpoint.changes and sender.is_page:
                check_sender(sender, self._origins)
            who = customer_in(customer)
            asked = Asked(who, await self._body(endpoint, content_type, read), _query(endpoint, query))
            found = await endpoint.does(self._kit, asked)
        except ProblemDocumentError as error:
            return _told(error.problem)
        except MeterkitError as error:
            return _told(problem_of(error))
        status = endpoint.status
        if isinstance(found, Accepted):
            status, found = HTTPStatus.ACCEPTED, found.change
        body = _json(endpoint, found)
        headers = {"content-type": "application/json", "cache-control": "no-store"}
        return Answer(status, headers, body)

    async def _body(
        self, endpoint: Endpoint, content_type: str, read: Callable[[], Awaitable[bytes | None]]
    ) -> BaseModel | None:
        if endpoint.takes is None:
            return None
        raw = await read()
        if raw is None:
            detail = f"The body of this request is larger than {BODY_BYTES_MAX} bytes."
            raise ProblemDocumentError(
                ProblemDocument(kind=KINDS["large"], detail=detail, members={"limit": BODY_BYTES_MAX})
            )
        if raw and content_type.partition(";")[0].strip().lower() != "application/json":
            raise ProblemDocumentError(
                ProblemDocument(kind=KINDS["media"], detail="Send the body as application/json.")
            )
        try:
            body = endpoint.takes.model_validate_json(raw or b"{}")
        except ValidationError as error:
            raise _invalid(error) from None
        self._check_urls(body, self._origins)
        return body

    @staticmethod
    def _check_urls(body: BaseModel, origins: frozenset[Origin]) -> None:
        for name in _URLS:
            url = getattr(body, name, None)
            if url is not None and not is_of(url, origins):
                detail = f"{name} is not an address of an allowed origin."
                raise ProblemDocumentError(
                    ProblemDocument(kind=KINDS["url"], detail=detail, members={"field": name})
                )


def check_sender(sender: SendingPage, origins: frozenset[Origin]) -> None:
    """Refuse a request that a page of a foreign origin has sent, with the cookies of this app.

    Args:
        sender: of the request.
        origins: those that the app allows besides its own.

    Raises:
        ProblemDocumentError: the page is of another origin.
    """
    if not sender.is_allowed(origins):
        detail = "This request was sent by a page that is not of an allowed origin."
        raise ProblemDocumentError(ProblemDocument(kind=KINDS["origin"], detail=detail))


def customer_in(customer: object) -> str:
    """The id of a request's customer, as the app says it.

    Raises:
        ProblemDocumentError: the app names none, or one whose id is not valid.
    """
    if customer is None or customer is False:
        detail = "This request does not say which customer it belongs to. Send valid credentials."
        raise ProblemDocumentError(ProblemDocument(kind=KINDS["customer"], detail=detail))
    if not is_customer(customer):
        detail = "The customer id of this request is not valid."
        raise ProblemDocumentError(ProblemDocument(kind=KINDS["invalid_customer"], detail=detail))
    return customer


def _invalid(error: ValidationError) -> ProblemDocumentError:
    errors = [
        {"field": ".".join(map(str, one["loc"]))[:128], "message": one["msg"][:200]}
        for one in error.errors(include_url=False, include_context=False, include_input=False)[:20]
    ]
    return ProblemDocumentError(invalid(errors))


def _query(endpoint: Endpoint, query: str) -> dict[str, str]:
    """What stands behind the path, of what is known there; what is empty is not there."""
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


def _told(problem: ProblemDocument) -> Answer:
    return Answer(problem.kind.status, problem.headers, problem.body)


def _json(endpoint: Endpoint, found: object) -> bytes:
    if endpoint.gives is UsageAnswer:  # A typed mapping already; a model would copy all of it.
        return json.dumps(found, separators=(",", ":"), default=iso).encode()
    left_out = {name for name in endpoint.optional if getattr(found, name) is None}
    return _adapter(endpoint.gives).dump_json(found, exclude=left_out)


@cache
def _adapter(of: Any) -> TypeAdapter[Any]:
    return TypeAdapter(of)
