"""Endpoints of the billing routes, for any framework: body, handler, response, problems."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, RootModel

from meterkit.catalog.credit_values import find_top_ups
from meterkit.customers.billed_usage import read_priced_usage
from meterkit.decisions.periods import period_ms
from meterkit.errors import MeterkitError, NoSubscriptionError, QuantityError
from meterkit.problem_types import PROBLEM_TYPES, ProblemDocumentError, ProblemType
from meterkit.subscriptions.billing_currency import check_currency
from meterkit.subscriptions.billing_problems import invalid
from meterkit.subscriptions.change_rules import SEATS_MAX
from meterkit.subscriptions.service.results import (
    Invoice,
    NewSubscription,
    Page,
    Preview,
    Subscription,
    SubscriptionAfter,
    SubscriptionChange,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from meterkit.store.store import Store
    from meterkit.subscriptions.service.subscriptions_facade import Subscriptions
    from meterkit.subscriptions.service.top_ups import Credits
    from meterkit.subscriptions.webhooks.webhook_endpoint import Webhooks

_SEATS_DIGITS_MAX: Final = 15
_ADDONS_MAX: Final = 100
_Handler = TypeVar("_Handler", bound="Callable[[BillingKit, BillingRequest], Awaitable[object]]")


_Plan = Annotated[str, Field(min_length=1, max_length=128, description="The key of a plan.")]
_Seats = Annotated[int, Field(ge=1, le=SEATS_MAX, description="Seats in all.")]
_Addons = Annotated[
    dict[str, int], Field(max_length=_ADDONS_MAX, description="The quantity of each add-on, by key.")
]
_Currency = Annotated[
    str | None, Field(max_length=3, description="A currency of the plans file; default: the customer's.")
]
_Url = Annotated[str, Field(min_length=1, max_length=2048, description="An address of an allowed origin.")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class CreateBody(_Body):
    """A new subscription."""

    plan: _Plan
    seats: _Seats = 1
    addons: _Addons = Field(default_factory=dict[str, int])
    currency: _Currency = None


class PlanBody(_Body):
    """The new plan of a subscription."""

    plan: _Plan


class SeatsBody(_Body):
    """The new number of seats of a subscription."""

    seats: _Seats


class AddonsBody(RootModel[_Addons]):
    """The new quantity of each add-on, by key; those left out stay, 0 gives one up."""

    model_config = ConfigDict(strict=True, frozen=True, hide_input_in_errors=True)


class CancelBody(_Body):
    """The end of a subscription: now, or with its period."""

    immediately: bool = False


class CheckoutBody(CreateBody):
    """A new subscription through a Stripe page."""

    success_url: _Url
    cancel_url: _Url


class TopUpBody(_Body):
    """A top-up of a balance through a Stripe page."""

    amount_cents: Annotated[int, Field(ge=1, description="One of the amounts that are sold.")]
    success_url: _Url
    cancel_url: _Url


class PortalBody(_Body):
    """The return address of Stripe's portal."""

    return_url: _Url


class UsageAnswer(BaseModel):
    """The usage of a customer in a billing period, by meter."""

    customer: str
    plan: str
    status: str | None
    access: str
    currency: str
    addons: dict[str, int]
    period: dict[str, Any]
    features: list[str]
    balance: dict[str, int]
    rolled_over: dict[str, int]
    meters: dict[str, dict[str, Any]]


class BillingKit(Protocol):
    """The part of :class:`meterkit.MeterKit` that the routes use."""

    store: Store

    @property
    def credits(self) -> Credits:
        """Balances in money."""
        ...

    @property
    def subscriptions(self) -> Subscriptions:
        """Subscriptions of customers."""
        ...

    @property
    def webhooks(self) -> Webhooks:
        """Receiver of Stripe's events."""
        ...


class BillingRequest(NamedTuple):
    """A checked request: its customer, its body as a model, its query."""

    customer: str
    body: Any
    query: Mapping[str, str]


class AcceptedChange(NamedTuple):
    """A change that continues in the background; answered with 202."""

    change: SubscriptionChange


@dataclass(frozen=True, slots=True, kw_only=True)
class BillingEndpoint:
    """One of the billing routes.

    Attributes:
        summary: of the OpenAPI operation.
        handler: answers a request.
        response_type: the type of its response.
        body_type: the model of its body; None: it has none.
        query: its query parameters with their descriptions.
        status: of a successful response.
        problems: codes of its problem types, besides those of all routes.
        optional: members that a response has only if they are set, and not empty.
    """

    method: str
    path: str
    summary: str
    handler: Callable[[BillingKit, BillingRequest], Awaitable[object]]
    response_type: Any
    body_type: type[BaseModel] | None = None
    query: Mapping[str, str] = field(default_factory=dict[str, str])
    status: int = 200
    problems: Sequence[str] = ()
    optional: Sequence[str] = ()

    @property
    def problem_types(self) -> list[ProblemType]:
        """Types of all its problem documents, each once."""
        codes = ["customer-unknown", "customer-invalid"]
        codes += ["origin-not-allowed"] if self.changes else []
        codes += self.problems
        if self.body_type is not None:
            codes += ["request-invalid", "request-too-large", "media-type-not-supported"]
        codes += ["stripe-refused", "temporary-reduced-capacity"]
        return [PROBLEM_TYPES[code] for code in dict.fromkeys(codes)]

    @property
    def changes(self) -> bool:
        """Whether it changes something, or opens a page that can."""
        return self.method != "GET"


_CHANGE_PROBLEMS: Final = ("subscription-conflict", "currency-fixed")
_PLAN_PROBLEMS: Final = (*_CHANGE_PROBLEMS, "plan-unknown")
_ADDON_PROBLEMS: Final = ("addon-unknown", "addon-limit", "addon-in-trial")
_PAYMENT_PROBLEMS: Final = ("billing-payment-required", "payment-method-missing", "invoice-open")
ENDPOINTS: Final[list[BillingEndpoint]] = []
"""The billing routes, in the order in which they are documented."""


def _add_endpoint(method: str, path: str, summary: str, **more: Any) -> Callable[[_Handler], _Handler]:
    """Add a route with the decorated function as its handler; ``more`` as of :class:`BillingEndpoint`."""

    def add(handler: _Handler) -> _Handler:
        ENDPOINTS.append(BillingEndpoint(method=method, path=path, summary=summary, handler=handler, **more))
        return handler

    return add


def wrong(name: str, message: str) -> ProblemDocumentError:
    """Make the error of an invalid field of a request."""
    return ProblemDocumentError(invalid([{"field": name, "message": message}]))


def _currency_in(kit: BillingKit, body: CreateBody) -> str | None:
    try:
        return check_currency(body.currency, kit.store.catalog)
    except MeterkitError as error:
        raise wrong("currency", str(error).partition(": ")[2]) from error


def _seats_in(query: Mapping[str, str]) -> int | None:
    written = query.get("seats")
    if written is None:
        return None
    if not written.isascii() or not written.isdigit() or len(written) > _SEATS_DIGITS_MAX:
        raise wrong("seats", "must be a whole number")
    return int(written)


def _addons_in(query: Mapping[str, str]) -> dict[str, int] | None:
    """Read quantities of add-ons: ``NAME:N``, several by comma."""
    written = query.get("addons")
    if written is None:
        return None
    found: dict[str, int] = {}
    for one in written.split(","):
        addon, _, quantity = one.rpartition(":")
        is_number = quantity.isascii() and quantity.isdigit() and len(quantity) <= _SEATS_DIGITS_MAX
        if not addon or addon in found or not is_number:
            raise wrong("addons", "must be NAME:N, several by comma, each name once")
        found[addon] = int(quantity)
    return found


def period_in(query: Mapping[str, str]) -> int | None:
    """Read the time that names a period; None: the present one."""
    written = query.get("period")
    if written is None:
        return None
    try:
        return period_ms(written)
    except MeterkitError as error:
        raise wrong("period", "must be a day such as 2026-10-01, a month, or the id of a period") from error


@_add_endpoint(
    "GET",
    "/subscription",
    "The customer's subscription",
    response_type=Subscription,
    problems=("no-subscription",),
)
async def _get(kit: BillingKit, request: BillingRequest) -> Subscription:
    found = await kit.subscriptions.get(request.customer)
    if found is None:
        raise NoSubscriptionError(request.customer)
    return found


@_add_endpoint(
    "POST",
    "/subscription",
    "Begin a subscription",
    body_type=CreateBody,
    response_type=NewSubscription,
    status=201,
    problems=(
        "subscription-exists",
        *_PLAN_PROBLEMS,
        *_ADDON_PROBLEMS,
        "billing-payment-required",
        "invoice-open",
    ),
    optional=("missing",),
)
async def _create(kit: BillingKit, request: BillingRequest) -> NewSubscription:
    body: CreateBody = request.body
    currency = _currency_in(kit, body)
    return await kit.subscriptions.create(
        request.customer, body.plan, body.seats, addons=body.addons, currency=currency
    )


@_add_endpoint(
    "GET",
    "/subscription/preview",
    "What another plan, other seats or add-ons would cost",
    query={
        "plan": "The key of another plan.",
        "seats": "Other seats, in all.",
        "addons": "Other quantities of add-ons: NAME:N, several by comma.",
    },
    response_type=Preview,
    problems=("no-subscription", *_PLAN_PROBLEMS, *_ADDON_PROBLEMS, "request-invalid"),
    optional=("ended_addons",),
)
async def _preview(kit: BillingKit, request: BillingRequest) -> Preview:
    query = request.query
    return await kit.subscriptions.preview(
        request.customer, plan=query.get("plan"), seats=_seats_in(query), addons=_addons_in(query)
    )


@_add_endpoint(
    "PUT",
    "/subscription/plan",
    "Have another plan",
    body_type=PlanBody,
    response_type=SubscriptionChange,
    problems=("no-subscription", *_PLAN_PROBLEMS, *_PAYMENT_PROBLEMS),
    optional=("ended_addons",),
)
async def _change_plan(kit: BillingKit, request: BillingRequest) -> SubscriptionChange | AcceptedChange:
    change = await kit.subscriptions.change_plan(request.customer, request.body.plan)
    return change if change.confirmed else AcceptedChange(change)


@_add_endpoint(
    "PUT",
    "/subscription/seats",
    "Have other seats",
    body_type=SeatsBody,
    response_type=SubscriptionChange,
    problems=("no-subscription", "seats-in-use", *_CHANGE_PROBLEMS, *_PAYMENT_PROBLEMS),
    optional=("ended_addons",),
)
async def _set_seats(kit: BillingKit, request: BillingRequest) -> SubscriptionChange:
    return await kit.subscriptions.set_seats(request.customer, request.body.seats)


@_add_endpoint(
    "PUT",
    "/subscription/addons",
    "Have other quantities of add-ons",
    body_type=AddonsBody,
    response_type=SubscriptionChange,
    problems=("no-subscription", *_ADDON_PROBLEMS, *_CHANGE_PROBLEMS, *_PAYMENT_PROBLEMS),
    optional=("ended_addons",),
)
async def _set_addons(kit: BillingKit, request: BillingRequest) -> SubscriptionChange:
    body: AddonsBody = request.body
    return await kit.subscriptions.set_addons(request.customer, body.root)


@_add_endpoint(
    "POST",
    "/subscription/cancel",
    "End the subscription, with its period or now",
    body_type=CancelBody,
    response_type=SubscriptionAfter,
    problems=("no-subscription",),
)
async def _cancel(kit: BillingKit, request: BillingRequest) -> SubscriptionAfter:
    found = await kit.subscriptions.cancel(request.customer, immediately=request.body.immediately)
    return SubscriptionAfter(subscription=found)


@_add_endpoint(
    "POST",
    "/subscription/resume",
    "Have a subscription that is to end go on, or one whose trial has ended in a pause",
    response_type=SubscriptionAfter,
    problems=("no-subscription", "payment-method-missing"),
)
async def _resume(kit: BillingKit, request: BillingRequest) -> SubscriptionAfter:
    return SubscriptionAfter(subscription=await kit.subscriptions.resume(request.customer))


@_add_endpoint(
    "POST",
    "/checkout",
    "A page of Stripe's where a subscription begins",
    body_type=CheckoutBody,
    response_type=Page,
    problems=("subscription-exists", *_PLAN_PROBLEMS, *_ADDON_PROBLEMS, "invoice-open", "url-not-allowed"),
)
async def _checkout(kit: BillingKit, request: BillingRequest) -> Page:
    body: CheckoutBody = request.body
    made = await kit.subscriptions.checkout(
        request.customer,
        body.plan,
        seats=body.seats,
        addons=body.addons,
        success_url=body.success_url,
        cancel_url=body.cancel_url,
        currency=_currency_in(kit, body),
    )
    return Page(url=made.url)


@_add_endpoint(
    "POST",
    "/portal",
    "A page of Stripe's where payments are managed",
    body_type=PortalBody,
    response_type=Page,
    problems=("no-subscription", "url-not-allowed"),
)
async def _portal(kit: BillingKit, request: BillingRequest) -> Page:
    made = await kit.subscriptions.portal(request.customer, return_url=request.body.return_url)
    return Page(url=made.url)


@_add_endpoint(
    "POST",
    "/top-up",
    "A page of Stripe's where a balance is topped up",
    body_type=TopUpBody,
    response_type=Page,
    problems=("currency-fixed", "url-not-allowed"),
)
async def _top_up(kit: BillingKit, request: BillingRequest) -> Page:
    body: TopUpBody = request.body
    if find_top_ups(kit.store.catalog.credits) is None:
        raise wrong("amount_cents", "no top-ups are sold")
    urls = {"success_url": body.success_url, "cancel_url": body.cancel_url}
    try:
        made = await kit.credits.buy(request.customer, body.amount_cents, **urls)
    except QuantityError as error:
        raise wrong("amount_cents", str(error).partition(": ")[2]) from error
    return Page(url=made.url or "")


@_add_endpoint("GET", "/invoices", "The customer's invoices, newest first", response_type=list[Invoice])
async def _invoices(kit: BillingKit, request: BillingRequest) -> list[Invoice]:
    return await kit.subscriptions.invoices(request.customer)


@_add_endpoint(
    "GET",
    "/usage",
    "What was used in a billing period",
    query={"period": "A day in it, its month, or its id; default: the period of now."},
    response_type=UsageAnswer,
    problems=("request-invalid",),
)
async def _usage(kit: BillingKit, request: BillingRequest) -> object:
    (found,) = await read_priced_usage(kit.store, [request.customer], at_ms=period_in(request.query))
    return found
