"""The calls about tax rates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stripe_emulator.object_calls import newest, retrieves
from stripe_emulator.protocol import missing_parameter, new_id
from stripe_emulator.selling.tax_rates import TEXTS, TaxRate

if TYPE_CHECKING:
    from stripe_emulator.account import Account, Operation
    from stripe_emulator.call import Call
    from stripe_emulator.protocol import JsonObject


def _create(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/tax_rates/create."""
    params = call.params
    params.only("active", "display_name", "inclusive", "metadata", "percentage", *TEXTS, expandable=None)
    percentage, inclusive = params.decimal("percentage"), params.boolean("inclusive")
    if percentage is None or inclusive is None:
        raise missing_parameter("percentage" if percentage is None else "inclusive")
    made = TaxRate(
        id=new_id("txr_1", length=23),
        created=account.now,
        display_name=params.required("display_name"),
        percentage=percentage,
        inclusive=inclusive,
        active=params.boolean("active", default=True),
        livemode=call.livemode,
        metadata=params.metadata(),
        texts={name: params.text(name) for name in TEXTS if name in params},
    )
    account.tax_rates.add(made)
    account.emit("tax_rate.created", made.to_json())
    return made.to_json()


def _update(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/tax_rates/update: the percentage of a rate never changes."""
    params, found = call.params, account.tax_rates.find(call.object_id)
    params.only("active", "display_name", "metadata", *TEXTS, expandable=None)
    with account.updating("tax_rate.updated", found.to_json):
        found.active = params.boolean("active", default=found.active)
        found.display_name = params.given("display_name") or found.display_name
        found.texts |= {name: params.text(name) or None for name in TEXTS if name in params}
        params.amend("metadata", found.metadata)
    return found.to_json()


def _list(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/tax_rates/list."""
    wanted = {name: call.params.boolean(name) for name in ("active", "inclusive") if name in call.params}
    return newest(
        account.tax_rates,
        call,
        also=("active", "inclusive"),
        where=lambda rate: all(getattr(rate, name) is value for name, value in wanted.items()),
    )


TAX_RATE_CALLS: Final[tuple[tuple[str, str, Operation], ...]] = (
    ("GET", "/v1/tax_rates", _list),
    ("POST", "/v1/tax_rates", _create),
    ("GET", "/v1/tax_rates/{id}", retrieves(lambda account: account.tax_rates)),
    ("POST", "/v1/tax_rates/{id}", _update),
)
