"""Trial settings of a subscription at Stripe: what a trial's end brings without a payment method. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meterkit.subscriptions.stripe_objects import part_of, text_in

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog import Plan
    from meterkit.stripe.request import Parameter

# https://docs.stripe.com/api/subscriptions/create#create_subscription-trial_settings
_MISSING_METHOD: Final = {"cancel": "cancel", "pause": "pause", "invoice": "create_invoice"}
_STRIPE_DEFAULT: Final = "create_invoice"


def trial_settings(plan: Plan) -> dict[str, Parameter]:
    """The parameter ``trial_settings`` that a plan with a trial wants."""
    end_behavior: dict[str, Parameter] = {
        "missing_payment_method": _MISSING_METHOD[plan.trial_without_card],
    }
    return {"trial_settings": {"end_behavior": end_behavior}}


def trial_settings_change(found: Mapping[str, Any], plan: Plan) -> dict[str, Parameter]:
    """The change that gives a running trial the settings of its plan; empty if it has them.

    A plan without ``trial`` says nothing about a trial that was given at Stripe.

    Args:
        found: the subscription as Stripe shows it.
        plan: the plan that it has, or is about to have.
    """
    if found.get("status") != "trialing" or plan.trial_ms is None:
        return {}
    is_same = missing_method_action(found) == _MISSING_METHOD[plan.trial_without_card]
    return {} if is_same else trial_settings(plan)


def missing_method_action(found: Mapping[str, Any]) -> str:
    """Stripe's action at the end of a trial without a payment method."""
    behavior = part_of(part_of(found, "trial_settings"), "end_behavior")
    return text_in(behavior, "missing_payment_method") or _STRIPE_DEFAULT
