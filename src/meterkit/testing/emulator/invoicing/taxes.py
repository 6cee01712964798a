"""Automatic tax, which an account that has not set it up refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterkit.testing.emulator.replies import ApiError

if TYPE_CHECKING:
    from meterkit.testing.emulator.call import Params

__all__ = ["refuse_tax"]


def refuse_tax(params: Params) -> None:
    """See that no tax is to be calculated: it would change amounts, and is not emulated.

    Raises:
        ApiError: ``automatic_tax`` is turned on; in Stripe's words of an account without Stripe Tax, as
            https://github.com/wasp-lang/open-saas/issues/78 has them.
    """
    if params.boolean("automatic_tax[enabled]"):
        message = (
            "Stripe Tax has not been activated on your account. Please visit "
            "https://stripe.com/docs/tax/set-up to get started."
        )
        raise ApiError(message)
