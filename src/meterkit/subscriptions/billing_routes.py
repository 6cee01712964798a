"""What each of the billing routes takes, does and answers, whatever serves it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from meterkit.answers import PROBLEM_TYPES, ProblemType
from meterkit.catalog.model_prices import sold_in
from meterkit.decisions.periods import period_ms
from meterkit.errors import MeterkitError, NoSubscriptionError, QuantityError
from meterkit.subscriptions.change_rules import SEATS_MAX
from meterkit.subscriptions.problem_documents import ProblemDocumentError, invalid
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
    from meterkit.subscriptions.service.credits import Credits
    from meterkit.subscriptions.service.service import Subscriptions
    from meterkit.subscriptions.webhooks.webhooks import Webhooks


_SEATS_DIGITS_MAX: Final = 15
_Does = TypeVar("_Does", bound="Callable[[BillingKit, BillingRequest], Awaitable[object]]")


_Plan = Annotated[str, Field(min_length=1, max_length=128, description="The key of a plan.")]
_Seats = Annotated[int, Field(ge=1, le=SEATS_MAX, description="Seats in all.")]
_Url = Annotated[str, Field(min_length=1, max_length=2048, description="An address of an allowed origin.")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class CreateBody(_Body):
    """A subscription that is to begin."""

    plan: _Plan
    seats: _Seats = 1


class PlanBody(_Body):
    """The plan that a subscription is to have."""

    plan: _Plan


class SeatsBody(_Body):
    """The seats that a subscription is to have."""

    seats: _Seats


class CancelBody(_Body):
    """When a subscription is to end: now, or with its period."""

    immediately: bool = False


class CheckoutBody(CreateBody):
    """A subscription that is to begin on a page of Stripe's."""

    success_url: _Url
    cancel_url: _Url


class TopUpBody(_Body):
    """A balance that is to be topped up on a page of Stripe's."""

    amount_cents: Annotated[int, Field(ge=1, description="One of the amounts that are sold.")]
    success_url: _Url
    cancel_url: _Url


class PortalBody(_Body):
    """Where Stripe's portal sends its visitor back to."""

    return_url: _Url


class UsageAnswer(BaseModel):
    """What a customer has used in a billing period, meter by meter."""

    customer: str
    plan: str
    status: str | None
    access: str
    period: dict[str, Any]
    features: list[str]
    balance: dict[str, int]
    meters: dict[str, dict[str, Any]]


class BillingKit(Protocol):
    """What the routes have of :class:`meterkit.MeterKit`."""

    credits: Credits
    subscriptions: Subscriptions
    store: Store
    webhooks: Webhooks


class BillingRequest(NamedTuple):
    """What a request asks for: whose it is, its body as a model, its query."""

    customer: str
    body: Any
    query: Mapping[str, str]


class AcceptedChange(NamedTuple):
    """The change goes on in the background: the answer is 202."""

    change: SubscriptionChange


@dataclass(frozen=True, slots=True, kw_only=True)
class BillingEndpoint:
    """One of the billing routes.

    Attributes:
        summary: what it does, in a line.
        does: does it.
        gives: the type of what it answers.
        takes: the model of its body; None: it has none.
        query: the names of what may stand behind its path, and what each means.
        status: of the answer where all is well.
        problems: codes of its problem types, beside those of all routes.
        optional: the members that its answer has only where there is something to say.
    """

    method: str
    path: str
    summary: str
    does: Callable[[BillingKit, BillingRequest], Awaitable[object]]
    gives: Any
    takes: type[BaseModel] | None = None
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
        if self.takes is not None:
            codes += ["request-invalid", "request-too-large", "media-type-not-supported"]
        codes += ["stripe-refused", "temporary-reduced-capacity"]
        return [PROBLEM_TYPES[code] for code in dict.fromkeys(codes)]

    @property
    def changes(self) -> bool:
        """Whether it changes anything, or makes a page where something can be changed."""
        return self.method != "GET"


_PLAN_PROBLEMS: Final = ("subscription-conflict", "currency-fixed", "plan-unknown")
_PAYMENT_PROBLEMS: Final = ("billing-payment-required", "payment-method-missing", "invoice-open")
ENDPOINTS: Final[list[BillingEndpoint]] = []
"""The billing routes, in the order in which they are documented."""


def _endpoint(method: str, path: str, summary: str, **more: Any) -> Callable[[_Does], _Does]:
    """Add a route that a function answers; for ``more`` see :class:`BillingEndpoint`."""

    def add(does: _Does) -> _Does:
        ENDPOINTS.append(BillingEndpoint(method=method, path=path, summary=summary, does=does, **more))
        return does

    return add


def wrong(name: str, message: str) -> ProblemDocumentError:
    """A field of a request has the wrong form."""
    return ProblemDocumentError(invalid([{"field": name, "message": message}]))


def _seats_in(query: Mapping[str, str]) -> int | None:
    written = query.get("seats")
    if written is None:
        return None
    if not written.isascii() or not written.isdigit() or len(written) > _SEATS_DIGITS_MAX:
        raise wrong("seats", "must be a whole number")
    return int(written)


def period_in(query: Mapping[str, str]) -> int | None:
    """The instant that a period is named by; None: it is that of now."""
    written = query.get("period")
    if written is None:
        return None
    try:
        return period_ms(written)
    except MeterkitError as error:
        raise wrong("period", "must be a day such as 2026-10-01, a month, or the id of a period") from error


@_endpoint(
    "GET", "/subscription", "The customer's subscription", gives=Subscription, problems=("no-subscription",)
)
async def _get(kit: BillingKit, asked: BillingRequest) -> Subscription:
    found = await kit.subscriptions.get(asked.customer)
    if found is None:
        raise NoSubscriptionError(asked.customer)
    return found


@_endpoint(
    "POST",
    "/subscription",
    "Begin a subscription",
    takes=CreateBody,
    gives=NewSubscription,
    status=201,
    problems=("subscription-exists", *_PLAN_PROBLEMS, "billing-payment-required", "invoice-open"),
    optional=("missing",),
)
async def _create(kit: BillingKit, asked: BillingRequest) -> NewSubscription:
    return await kit.subscriptions.create(asked.customer, asked.body.plan, asked.body.seats)


@_endpoint(
    "GET",
    "/subscription/preview",
    "What another plan, or other seats, would cost",
    query={"plan": "The key of another plan.", "seats": "Other seats, in all."},
    gives=Preview,
    problems=("no-subscription", *_PLAN_PROBLEMS, "request-invalid"),
)
async def _preview(kit: BillingKit, asked: BillingRequest) -> Preview:
    plan, seats = asked.query.get("plan"), _seats_in(asked.query)
    return await kit.subscriptions.preview(asked.customer, plan=plan, seats=seats)


@_endpoint(
    "PUT",
    "/subscription/plan",
    "Have another plan",
    takes=PlanBody,
    gives=SubscriptionChange,
    problems=("no-subscription", *_PLAN_PROBLEMS, *_PAYMENT_PROBLEMS),
)
async def _change_plan(kit: BillingKit, asked: BillingRequest) -> SubscriptionChange | AcceptedChange:
    change = await kit.subscriptions.change_plan(asked.customer, asked.body.plan)
    return change if change.confirmed else AcceptedChange(change)


@_endpoint(
    "PUT",
    "/subscription/seats",
    "Have other seats",
    takes=SeatsBody,
    gives=SubscriptionChange,
    problems=(
        "no-subscription",
        "seats-in-use",
        "subscription-conflict",
        "currency-fixed",
        *_PAYMENT_PROBLEMS,
    ),
)
async def _set_seats(kit: BillingKit, asked: BillingRequest) -> SubscriptionChange:
    return await kit.subscriptions.set_seats(asked.customer, asked.body.seats)


@_endpoint(
    "POST",
    "/subscription/cancel",
    "End the subscription, with its period or now",
    takes=CancelBody,
    gives=SubscriptionAfter,
    problems=("no-subscription",),
)
async def _cancel(kit: BillingKit, asked: BillingRequest) -> SubscriptionAfter:
    found = await kit.subscriptions.cancel(asked.customer, immediately=asked.body.immediately)
    return SubscriptionAfter(subscription=found)


@_endpoint(
    "POST",
    "/subscription/resume",
    "Have a subscription that is to end go on",
    gives=SubscriptionAfter,
    problems=("no-subscription",),
)
async def _resume(kit: BillingKit, asked: BillingRequest) -> SubscriptionAfter:
    return SubscriptionAfter(subscription=await kit.subscriptions.resume(asked.customer))


@_endpoint(
    "POST",
    "/checkout",
    "A page of Stripe's where a subscription begins",
    takes=CheckoutBody,
    gives=Page,
    problems=("subscription-exists", *_PLAN_PROBLEMS, "invoice-open", "url-not-allowed"),
)
async def _checkout(kit: BillingKit, asked: BillingRequest) -> Page:
    body: CheckoutBody = asked.body
    made = await kit.subscriptions.checkout(
        asked.customer,
        body.plan,
        seats=body.seats,
        success_url=body.success_url,
        cancel_url=body.cancel_url,
    )
    return Page(url=made.url)


@_endpoint(
    "POST",
    "/portal",
    "A page of Stripe's where payments are managed",
    takes=PortalBody,
    gives=Page,
    problems=("no-subscription", "url-not-allowed"),
)
async def _portal(kit: BillingKit, asked: BillingRequest) -> Page:
    made = await kit.subscriptions.portal(asked.customer, return_url=asked.body.return_url)
    return Page(url=made.url)


@_endpoint(
    "POST",
    "/top-up",
    "A page of Stripe's where a balance is topped up",
    takes=TopUpBody,
    gives=Page,
    problems=("currency-fixed", "url-not-allowed"),
)
async def _top_up(kit: BillingKit, asked: BillingRequest) -> Page:
    body: TopUpBody = asked.body
    if sold_in(kit.store.catalog.credits) is None:
        raise wrong("amount_cents", "no top-ups are sold")
    urls = {"success_url": body.success_url, "cancel_url": body.cancel_url}
    try:
        made = await kit.credits.buy(asked.customer, body.amount_cents, **urls)
    except QuantityError as error:
        raise wrong("amount_cents", str(error).partition(": ")[2]) from error
    return Page(url=made.url or "")


@_endpoint("GET", "/invoices", "The customer's invoices, the youngest first", gives=list[Invoice])
async def _invoices(kit: BillingKit, asked: BillingRequest) -> list[Invoice]:
    return await kit.subscriptions.invoices(asked.customer)


@_endpoint(
    "GET",
    "/usage",
    "What was used in a billing period",
    query={"period": "A day in it, its month, or its id; default: the period of now."},
    gives=UsageAnswer,
    problems=("request-invalid",),
)
async def _usage(kit: BillingKit, asked: BillingRequest) -> object:
    (found,) = await kit.store.usage_of_many([asked.customer], at_ms=period_in(asked.query))
    return found
