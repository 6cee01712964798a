"""The errors that meterkit raises. Each carries its data as attributes."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

__all__ = [
    "AddonLimitError",
    "CurrencyError",
    "CustomerError",
    "InvoiceOpenError",
    "MeterkitError",
    "NoSubscriptionError",
    "PaymentAuthenticationError",
    "PaymentMethodMissingError",
    "PlansError",
    "Problem",
    "QuantityError",
    "SeatsInUseError",
    "SettingsError",
    "StoreError",
    "StripeError",
    "StripeUnavailableError",
    "SubscriptionBusyError",
    "SubscriptionError",
    "SubscriptionExistsError",
    "UnknownAddonError",
    "UnknownFeatureError",
    "UnknownMeterError",
    "UnknownPlanError",
]


PROBLEMS_SHOWN_MAX: Final = 50


class MeterkitError(Exception):
    """Base of every error that meterkit raises."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Mistake in a plans file.

    Attributes:
        file: the path as it was given.
        line: 1-based; 0 if the file could not be read at all.
        column: 1-based; 0 if the file could not be read at all.
        path: where in the document, dotted: ``plans.pro.meters.requests.rate``; empty for the document.
        message: what was found, what is allowed, and the nearest right spelling if there is one.
    """

    file: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return f"{place} {self.path}: {self.message}" if self.path else f"{place}: {self.message}"


class PlansError(MeterkitError):
    """A plans file was refused. As text it names the first 50 of its problems, and how many more there are.

    Attributes:
        problems: everything that is wrong with it, in the order of the file.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        lines = [str(problem) for problem in self.problems[:PROBLEMS_SHOWN_MAX]]
        if len(self.problems) > PROBLEMS_SHOWN_MAX:
            lines.append(f"and {len(self.problems) - PROBLEMS_SHOWN_MAX} more problems")
        super().__init__("\n".join(lines))


class SettingsError(MeterkitError):
    """A setting has a value that meterkit cannot work with.

    Attributes:
        name: the setting's keyword, for example ``redis_url``.
    """

    def __init__(self, name: str, message: str) -> None:
        self.name = name
        super().__init__(message)


class CustomerError(MeterkitError, ValueError):
    """A customer id is not a text of 1 to 256 bytes without control characters."""


class QuantityError(MeterkitError, ValueError):
    """A quantity is not an integer from 0 to 10^15 - 1."""


class UnknownMeterError(MeterkitError, ValueError):
    """A meter is not in the plans file, or cannot be used in this way.

    Attributes:
        meter: the name that was given.
    """

    def __init__(self, meter: str, message: str) -> None:
        self.meter = meter
        super().__init__(message)

    @classmethod
    def of(
        cls, meter: object, countable: Iterable[str], *, kind: str = "meter", allowed: str = "the counters"
    ) -> UnknownMeterError:
        """Make the error for a name that is not among the meters that can be counted."""
        return cls(str(meter), _unknown_message(kind, meter, countable, allowed=allowed))


class UnknownFeatureError(MeterkitError, ValueError):
    """A feature is not in the plans file.

    Attributes:
        feature: the name that was given.
    """

    def __init__(self, feature: str, message: str) -> None:
        self.feature = feature
        super().__init__(message)

    @classmethod
    def of(cls, feature: str, features: Collection[str]) -> UnknownFeatureError:
        """Make the error for a name that is not among the features of the plans file."""
        if not features:
            return cls(feature, f"feature: found {feature!r:.80}; the plans file has no features")
        return cls(feature, _unknown_message("feature", feature, features, allowed="the features"))


class UnknownPlanError(MeterkitError, ValueError):
    """A plan is not in the plans file, or cannot be subscribed to.

    Attributes:
        plan: the key that was given.
        is_known: whether the plans file has it.
        is_unpriced: whether Stripe has no price for it.
    """

    def __init__(self, plan: str, message: str, *, is_known: bool = False, is_unpriced: bool = False) -> None:
        self.plan = plan
        self.is_known = is_known
        self.is_unpriced = is_unpriced
        super().__init__(message)

    @classmethod
    def of(cls, plan: object, plans: Iterable[str], *, name: str = "plan") -> UnknownPlanError:
        """Make the error for a key that is not among the plans; ``name`` is the argument's."""
        return cls(str(plan), _unknown_message(name, plan, plans, allowed="the plans"))


class UnknownAddonError(MeterkitError, ValueError):
    """An add-on is not in the plans file, or cannot be bought beside the plan.

    Attributes:
        addon: the key that was given.
        allowed: keys of the add-ons that can be bought beside the plan.
        is_unpriced: whether Stripe has no price for it.
    """

    def __init__(
        self, addon: str, message: str, *, allowed: Iterable[str] = (), is_unpriced: bool = False
    ) -> None:
        self.addon = addon
        self.allowed = tuple(allowed)
        self.is_unpriced = is_unpriced
        super().__init__(message)

    @classmethod
    def of(cls, addon: object, plan: str, allowed: Collection[str]) -> UnknownAddonError:
        """Make the error for a key that is not among the add-ons of a plan."""
        if not allowed:
            message = f"addons: found {addon!r:.80}; the plan {plan!r:.80} allows no add-ons"
            return cls(str(addon), message)
        words = _unknown_message("addons", addon, allowed, allowed=f"the add-ons of plan {plan!r:.80}:")
        return cls(str(addon), words, allowed=sorted(allowed))


class AddonLimitError(MeterkitError, ValueError):
    """A quantity of an add-on is below 0, or above its ``max``; in a trial it must have one to be sold.

    Attributes:
        addon: its key.
        quantity: the requested one.
        limit: the highest allowed one.
        is_of_trial: whether a trial sells no more of it.
    """

    def __init__(self, addon: str, *, quantity: int, limit: int, is_of_trial: bool = False) -> None:
        self.addon = addon
        self.quantity = quantity
        self.limit = limit
        self.is_of_trial = is_of_trial
        why = ": in a trial only add-ons with a `max` are sold" if is_of_trial else ""
        super().__init__(
            f"addons: found {quantity!r:.40} of {addon!r:.80}; allowed is an integer from 0 to {limit}{why}"
        )


def _unknown_message(name: str, found: object, known: Iterable[str], *, allowed: str) -> str:
    """Word the found value, the allowed values, and the nearest right spelling if there is one."""
    names = sorted(known)
    if not isinstance(found, str):
        return (
            f"{name}: found a value of type {type(found).__name__}; allowed are {allowed} {', '.join(names)}"
        )
    near = get_close_matches(found, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{name}: found {found!r:.80}; allowed are {allowed} {', '.join(names)}{hint}"


class StoreError(MeterkitError):
    """The store did not respond, or responded that it cannot serve.

    Attributes:
        executed: False if the call certainly changed nothing, None if that is unknown.
    """

    def __init__(self, message: str, *, executed: bool | None = None) -> None:
        self.executed = executed
        super().__init__(message)


class StripeError(MeterkitError):
    """Stripe refused a request. The text holds no key.

    Attributes:
        status: the HTTP status; None without a response.
        type: Stripe's kind of error, such as ``card_error``; None where it named none.
        code: Stripe's code, such as ``resource_missing``; None where it named none.
        param: the parameter that it is about; None where it named none.
        request_id: Stripe's name of the request, for its support; None where it gave none.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        type: str | None = None,  # noqa: A002 - Stripe's own word
        code: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
    ) -> None:
        self.status = status
        self.type = type
        self.code = code
        self.param = param
        self.request_id = request_id
        super().__init__(message)


class StripeUnavailableError(StripeError):
    """Stripe did not respond, or responded that it cannot serve now, even after retries.

    Stripe may have carried out the request. A repeat of the call does nothing twice.
    """


class CurrencyError(StripeError):
    """A customer is billed in a currency other than the requested one. Nothing has changed.

    A Stripe customer with a subscription, discount, quote or invoice item in a currency keeps that currency;
    so does a customer whose subscription has ended. The text names both currencies.

    Attributes:
        currency: the customer's, in lower case.
        requested: the other one, in lower case; empty: Stripe refused a change and did not name it.
    """

    def __init__(self, message: str, *, currency: str, requested: str = "", **details: Any) -> None:
        self.currency = currency
        self.requested = requested
        super().__init__(message, **details)


class SubscriptionError(MeterkitError):
    """The state of a subscription does not allow the call; the text names the state and the cure.

    Attributes:
        advice: the same in words for the customer; empty: only an operator can help.
    """

    def __init__(self, message: str, *, advice: str = "") -> None:
        self.advice = advice
        super().__init__(message)


class NoSubscriptionError(SubscriptionError):
    """The customer has no active subscription.

    Attributes:
        customer: whose.
    """

    def __init__(self, customer: str, message: str | None = None) -> None:
        self.customer = customer
        super().__init__(message or f"customer {customer!r} has no active subscription; create one")


class SubscriptionExistsError(SubscriptionError):
    """The customer already has a subscription that has not ended.

    Attributes:
        customer: whose.
        subscription: its id at Stripe.
    """

    def __init__(self, customer: str, *, subscription: str, status: str) -> None:
        self.customer = customer
        self.subscription = subscription
        cure = "resume" if status == "paused" else "change"
        is_so = f"which is {status.replace('_', ' ')}"
        super().__init__(
            f"customer {customer!r} already has a subscription, {subscription}, {is_so}; {cure} that one",
            advice=f"There is already a subscription, {is_so}. {cure.title()} that one.",
        )


class PaymentMethodMissingError(SubscriptionError):
    """A change must be paid at once, and the customer has no payment method. Nothing has changed.

    Attributes:
        url: of a page where the customer adds one; None: there is no such page.
    """

    def __init__(self, message: str, *, url: str | None) -> None:
        self.url = url
        super().__init__(message)


class PaymentAuthenticationError(SubscriptionError):
    """The card asks its customer for each payment (3-D Secure), so it cannot pay. Nothing has changed.

    Attributes:
        url: of a page where the customer adds another payment method; None: there is no such page.
    """

    def __init__(self, message: str, *, url: str | None) -> None:
        self.url = url
        super().__init__(message)


class InvoiceOpenError(SubscriptionError):
    """An invoice of this subscription, or of an earlier one, must be paid first. Nothing has changed.

    Attributes:
        invoice: its id at Stripe.
        url: of the page where it is paid; None: Stripe has none.
    """

    def __init__(self, message: str, *, invoice: str, url: str | None) -> None:
        self.invoice = invoice
        self.url = url
        super().__init__(message)


class SubscriptionBusyError(SubscriptionError):
    """Another call for the same customer has not finished in time. Nothing has changed.

    Attributes:
        retry_after_s: after how many seconds to try again.
    """

    def __init__(self, customer: str, *, retry_after_s: int) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(
            f"another call is changing the subscription of customer {customer!r}, or was killed meanwhile;"
            f" try again in {retry_after_s} s"
        )


class SeatsInUseError(SubscriptionError):
    """More seats are in use than were requested.

    Attributes:
        customer: whose.
        seats: the requested number.
        used: the number in use.
    """

    def __init__(self, customer: str, *, seats: int, used: int) -> None:
        self.customer = customer
        self.seats = seats
        self.used = used
        super().__init__(f"seats: found {seats}; customer {customer!r} uses {used}: free some first")
