"""Invoice drafts: the lines that a subscription is charged, one-time items, tax and discounts."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from stripe_emulator.coupons import Discount, active_discounts
from stripe_emulator.invoice_lines import usage_lines
from stripe_emulator.invoice_totals import compute_totals
from stripe_emulator.invoices import ChargedUsage, Invoice, InvoiceLine
from stripe_emulator.price_calls import resolve_price
from stripe_emulator.prices import Price, price_quantity, to_cents
from stripe_emulator.protocol import ApiError, JsonObject, missing_parameter, new_id
from stripe_emulator.redemption import emit_ended_discounts

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from stripe_emulator.account import Account
    from stripe_emulator.call import Params
    from stripe_emulator.subscriptions import Subscription


def read_automatic_tax(account: Account, params: Params, *, customer: str | None = None) -> bool | None:
    """Return whether a call turns automatic tax on or off; None where it says nothing.

    Args:
        account: what it is of.
        params: the call's.
        customer: who is taxed; None where that is not known yet.

    Raises:
        ApiError: it is turned on, and the account has no rate; in Stripe's words of an account without
            Stripe Tax, as https://github.com/wasp-lang/open-saas/issues/78 has them. Or the customer has no
            address (https://docs.stripe.com/error-codes#customer-tax-location-invalid).
    """
    wanted = params.boolean("automatic_tax[enabled]")
    if not wanted:
        return wanted
    if account.behaviour.tax_percent is None:
        message = (
            "Stripe Tax has not been activated on your account. Please visit "
            "https://stripe.com/docs/tax/set-up to get started."
        )
        raise ApiError(message)
    if customer is not None and not account.customers.find(customer).country:
        message = (
            "The customer's location isn't recognized. Set a valid customer address in order to "
            "automatically calculate tax."
        )
        raise ApiError(message, code="customer_tax_location_invalid", param=params.path("automatic_tax"))
    return True


def tax_percent_of(account: Account, subscription: Subscription) -> Decimal | None:
    """Return the rate that a subscription is taxed at; None: it is not."""
    return account.behaviour.tax_percent if subscription.automatic_tax else None


ADDED_MAX: Final = 20
LINE_LENGTH: Final = 23
# Accepted and without effect.
ADDED_IGNORED: Final = "discounts metadata"


def read_added_lines(account: Account, subscription: Subscription, params: Params) -> list[InvoiceLine]:
    """Return the lines of ``add_invoice_items`` for the next invoice of a subscription.

    "A list of prices and quantities that will generate invoice items appended to the next invoice for this
    subscription. You may pass up to 20 items"
    (https://docs.stripe.com/api/subscriptions/create#create_subscription-add_invoice_items).

    Raises:
        ApiError: Stripe would refuse it: a price that recurs, or of another currency.
    """
    given = params.hashes("add_invoice_items")
    if len(given) > ADDED_MAX:
        message = f"You may add at most {ADDED_MAX} invoice items."
        raise ApiError(message, param=params.path("add_invoice_items"))
    return [_read_added_line(account, subscription, each) for each in given]


def _read_added_line(account: Account, subscription: Subscription, params: Params) -> InvoiceLine:
    params.only("price price_data quantity tax_rates", ADDED_IGNORED)
    if "price" not in params and "price_data" not in params:
        raise missing_parameter(params.path("price"))
    price = resolve_price(account, params, currency=subscription.currency, recurs=False)
    quantity = Decimal(1 if (asked := params.at_least("quantity", 0)) is None else asked)
    line = one_time_line(account, price, quantity, subscription=subscription.id)
    line.rate_ids = params.listed("tax_rates") if "tax_rates" in params else ()
    return line


def one_time_line(
    account: Account, price: Price, quantity: Decimal, *, subscription: str | None = None
) -> InvoiceLine:
    """Return the line of a one-time charge, as an invoice item."""
    return InvoiceLine(
        id=new_id("il_1", length=LINE_LENGTH),
        amount=to_cents(price_quantity(price.pricing, quantity)),
        description=account.products.find(price.product).name,
        start=account.now,
        end=account.now,
        price=price,
        quantity=quantity,
        unit_amount=price.pricing.unit_amount or Decimal(0),
        subscription=subscription,
        item=None,
        invoice_item=new_id("ii_1", length=LINE_LENGTH),
    )


HOUR_S: Final = 3_600


def create_invoice(
    account: Account,
    subscription: Subscription,
    lines: Sequence[InvoiceLine],
    *,
    reason: str,
    usages: Sequence[ChargedUsage] = (),
    since: int | None = None,
    draft: bool = True,
    auto_advance: bool = True,
) -> Invoice:
    """Create an invoice of pending lines and these; see :func:`new_draft`.

    ``draft`` says whether it stays one for an hour (https://docs.stripe.com/billing/invoices/subscription),
    ``auto_advance`` whether it is finalized and collected by itself.
    """
    drop_ended_discounts(account, subscription)
    waiting = account.invoices.take_pending_lines(subscription)
    invoice = new_draft(account, subscription, [*waiting, *lines], reason=reason, usages=usages, since=since)
    invoice.auto_advance = auto_advance
    invoice.schedule(invoice.finalizes_at if draft else None)
    account.invoices.add(invoice)
    subscription.latest_invoice = invoice.id
    _note_invoiced_debits(subscription, invoice)
    spend_discounts(account, subscription, invoice)
    return invoice


def charge_change(
    account: Account, subscription: Subscription, lines: Sequence[InvoiceLine], *, at_once: bool
) -> None:
    """Charge the lines of a change on the next invoice, or on a draft of its own.

    https://docs.stripe.com/billing/subscriptions/subscription-schedules
    """
    if at_once and lines:
        invoice = create_invoice(account, subscription, lines, reason="subscription_update")
        account.emit("invoice.created", invoice.to_json())
    else:
        account.invoices.pending.setdefault(subscription.id, []).extend(lines)


def new_draft(
    account: Account,
    subscription: Subscription,
    lines: Sequence[InvoiceLine],
    *,
    reason: str,
    usages: Sequence[ChargedUsage] = (),
    since: int | None = None,
) -> Invoice:
    """Return an invoice without events yet: it advances by itself, after an hour as a draft.

    Args:
        account: what it is of.
        subscription: whose it is.
        lines: what is charged.
        reason: ``billing_reason``.
        usages: what is counted until it is finalized.
        since: where the period begins that it closes; None: it closes none.
    """
    now = account.now
    invoice = replace(
        new_one_time_draft(
            account, subscription.customer, currency=subscription.currency, livemode=subscription.livemode
        ),
        billing_reason=reason,
        period_start=now if since is None else since,
        subscription=subscription.id,
        subscription_metadata=dict(subscription.metadata),
        lines=apply_tax_rates(account, subscription, lines),
        usages=list(usages),
        auto_advance=True,
        collection_method=subscription.collection_method,
        days_until_due=subscription.days_until_due,
        discounts=active_discounts(subscription.discounts, now=now),
        tax_percent=tax_percent_of(account, subscription),
        rate_ids=subscription.rate_ids,
    )
    invoice.schedule(now + HOUR_S)
    refresh_usage(account, subscription, invoice)
    return invoice


def new_one_time_draft(account: Account, customer: str, *, currency: str, livemode: bool = False) -> Invoice:
    """Return an empty invoice of no subscription."""
    payer = account.customers.find(customer)
    return Invoice(
        id=new_id("in_1", length=23),
        customer=customer,
        subscription=None,
        created=account.now,
        currency=currency,
        billing_reason="manual",
        period_start=account.now,
        period_end=account.now,
        livemode=livemode,
        customer_email=payer.texts["email"],
        customer_name=payer.texts["name"],
        starting_balance=payer.balance,
        test_clock=payer.test_clock,
    )


def total_of_lines(account: Account, subscription: Subscription, lines: Sequence[InvoiceLine]) -> int:
    """Return the total of lines on an invoice of now, in minor units of the currency."""
    discounts = active_discounts(subscription.discounts, now=account.now)
    taxed = apply_tax_rates(account, subscription, lines)
    return compute_totals(taxed, discounts, tax_percent_of(account, subscription), now=account.now).total


def apply_tax_rates(
    account: Account, owner: Subscription | Invoice, lines: Iterable[InvoiceLine]
) -> list[InvoiceLine]:
    """Return lines with their own tax rates, or the default ones of their owner.

    A rate that the account lacks taxes nothing.
    """
    return [
        replace(
            line,
            tax_rates=[
                rate.rate
                for each in line.rate_ids or owner.rate_ids
                if (rate := account.tax_rates.get(each)) is not None
            ],
        )
        for line in lines
    ]


def drop_ended_discounts(account: Account, subscription: Subscription) -> None:
    """Drop the discounts of a subscription that have ended."""
    left = active_discounts(subscription.discounts, now=account.now)
    emit_ended_discounts(account, subscription.discounts, left)
    subscription.discounts = left
    for item in subscription.items:
        item.discounts = active_discounts(item.discounts, now=account.now)


def spend_discounts(account: Account, subscription: Subscription, invoice: Invoice) -> None:
    """Drop the ``once`` discounts that an invoice has used.

    ``once``: "applies to the first charge from a subscription with this coupon applied"
    (https://docs.stripe.com/api/coupons/object#coupon_object-duration).
    """
    used = {discount for line in invoice.totals.lines for discount, off in line.off.items() if off}

    def left_of(discounts: Iterable[Discount]) -> list[Discount]:
        left = [each for each in discounts if each.coupon.duration != "once" or each.id not in used]
        emit_ended_discounts(account, discounts, left)
        return left

    subscription.discounts = left_of(subscription.discounts)
    for item in subscription.items:
        item.discounts = left_of(item.discounts)


def _note_invoiced_debits(subscription: Subscription, invoice: Invoice) -> None:
    """Name the invoice of its items' debits, and subtract discounts, so that credits return what was paid.

    https://docs.stripe.com/billing/subscriptions/prorations#credit-prorations: "the original debited amount".
    """
    debits = {debit.line: debit for item in subscription.items for debit in item.debits}
    for line, total in zip(invoice.lines, invoice.totals.lines, strict=False):
        if (debit := debits.get(line.id)) is not None:
            debit.amount -= total.discount
            debit.invoice = invoice.id


def subscription_of_invoice(account: Account, invoice: Invoice) -> Subscription | None:
    """Return the subscription that an invoice is of; None: of none."""
    return None if invoice.subscription is None else account.subscriptions.find(invoice.subscription)


def refresh_usage(account: Account, subscription: Subscription | None, invoice: Invoice) -> None:
    """Refresh the usage lines of a draft, which includes late events until it is finalized."""
    if invoice.status == "draft" and subscription is not None:
        lines = (line for usage in invoice.usages for line in usage_lines(account, subscription, usage))
        invoice.usage_lines = apply_tax_rates(account, subscription, lines)


def refreshed_invoice_json(account: Account, invoice: Invoice) -> JsonObject:
    """Return an invoice as Stripe shows it, a draft with its current usage."""
    refresh_usage(account, subscription_of_invoice(account, invoice), invoice)
    return invoice.to_json()
