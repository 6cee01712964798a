"""What an operator does by hand in Stripe's Dashboard, past the library: more than thirty kinds of acts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from drivers.world import World

_DAY_S: Final = 86_400
_CREDIT: Final = 100


class Nothing(Exception):  # noqa: N818 - not an error: there is nothing to do it to
    """There is nothing that the act could be done to."""


@dataclass(frozen=True, kw_only=True)
class Desk:
    """Where an operator sits.

    Attributes:
        customer: the Stripe customer that the acts are about.
        number: what an act depends on.
    """

    world: World
    customer: str
    number: int

    async def subscription(self) -> dict[str, Any]:
        """The newest subscription that has not ended. Raises :class:`Nothing`."""
        found = await self.world.list("/v1/subscriptions", customer=self.customer)
        if not found:
            raise Nothing
        return found[0]

    async def update(self, **params: str) -> None:
        """Change the subscription."""
        found = await self.subscription()
        await self.world.ask("POST", f"/v1/subscriptions/{found['id']}", **params)

    async def item(self, *, metered: bool) -> dict[str, Any]:
        """An item of the subscription that has a meter, or none. Raises :class:`Nothing`."""
        found = await self.subscription()
        items: list[dict[str, Any]] = [one for one in found["items"]["data"] if _is_metered(one) is metered]
        if not items:
            raise Nothing
        return items[self.number % len(items)]

    async def change_item(self, item: Mapping[str, Any], **params: str) -> None:
        """Change an item of the subscription."""
        await self.world.ask("POST", f"/v1/subscription_items/{item['id']}", **params)

    async def invoice(self, status: str) -> dict[str, Any]:
        """The newest invoice with a status. Raises :class:`Nothing`."""
        found = await self.world.list("/v1/invoices", customer=self.customer, status=status)
        if not found:
            raise Nothing
        return found[0]

    async def of_invoice(self, status: str, act: str, **params: str) -> None:
        """Do something to the newest invoice with a status."""
        found = await self.invoice(status)
        await self.world.ask("POST", f"/v1/invoices/{found['id']}{act}", **params)

    @property
    def in_days(self) -> str:
        """An instant that is some days away."""
        return str(int(self.world.clock()) + (self.number % 20 + 1) * _DAY_S)


def _is_metered(item: Mapping[str, Any]) -> bool:
    return bool(item["price"]["recurring"]["usage_type"] == "metered")


async def _percent_off(desk: Desk) -> None:
    coupon = await desk.world.ask(
        "POST", "/v1/coupons", percent_off=str(desk.number % 50 + 1), duration="forever"
    )
    await desk.update(**{"discounts[0][coupon]": coupon["id"]})


async def _amount_off_once(desk: Desk) -> None:
    coupon = await desk.world.ask("POST", "/v1/coupons", amount_off="300", currency="usd", duration="once")
    await desk.update(**{"discounts[0][coupon]": coupon["id"]})


async def _no_discount(desk: Desk) -> None:
    await desk.update(discounts="")


async def _discount_on_item(desk: Desk) -> None:
    coupon = await desk.world.ask("POST", "/v1/coupons", percent_off="10", duration="forever")
    item = await desk.item(metered=desk.number % 2 == 0)
    await desk.change_item(item, **{"discounts[0][coupon]": coupon["id"]})


async def _tax_rate(desk: Desk) -> None:
    await desk.update(**{"default_tax_rates[0]": "txr_operator"})


async def _tax_rate_on_item(desk: Desk) -> None:
    await desk.change_item(await desk.item(metered=True), **{"tax_rates[0]": "txr_operator"})


async def _metadata(desk: Desk) -> None:
    await desk.update(**{"metadata[contract]": f"c{desk.number}"})


async def _metadata_on_item(desk: Desk) -> None:
    await desk.change_item(await desk.item(metered=True), **{"metadata[line]": f"l{desk.number}"})


async def _description(desk: Desk) -> None:
    await desk.update(description=f"by hand, {desk.number}")


async def _own_price(desk: Desk) -> None:
    """Give the customer a price of its own for a meter: dearer or cheaper."""
    item = await desk.item(metered=True)
    price = item["price"]
    made = await desk.world.ask(
        "POST",
        "/v1/prices",
        **{
            "currency": price["currency"],
            "product": price["product"],
            "unit_amount": str(desk.number % 9 + 1),
            "recurring[interval]": price["recurring"]["interval"],
            "recurring[meter]": price["recurring"]["meter"],
            "recurring[usage_type]": "metered",
        },
    )
    await desk.change_item(item, price=made["id"])


async def _seats(desk: Desk) -> None:
    items = [one for one in (await desk.subscription())["items"]["data"] if not _is_metered(one)]
    if len(items) < 2:
        raise Nothing  # There is the plan's price alone, and none of seats.
    await desk.change_item(items[1], quantity=str(desk.number % 6 + 1))


async def _cycle_anew(desk: Desk) -> None:
    behavior = ("create_prorations", "always_invoice", "none")[desk.number % 3]
    await desk.update(billing_cycle_anchor="now", proration_behavior=behavior)


async def _trial(desk: Desk) -> None:
    """Give a trial, or move the end of the one that runs."""
    await desk.update(trial_end=desk.in_days, proration_behavior="none")


async def _trial_ends(desk: Desk) -> None:
    if (await desk.subscription())["status"] != "trialing":
        raise Nothing
    await desk.update(trial_end="now")


async def _collection_paused(desk: Desk) -> None:
    behavior = ("keep_as_draft", "mark_uncollectible", "void")[desk.number % 3]
    await desk.update(**{"pause_collection[behavior]": behavior})


async def _collection_goes_on(desk: Desk) -> None:
    await desk.update(pause_collection="")


async def _pause(desk: Desk) -> None:
    """Pause the subscription: its usage is charged with the next invoice, at once, or not at all."""
    found = await desk.subscription()
    params = ({}, {"invoicing_behavior": "invoice"}, {"bill_for[outstanding_usage_through][type]": "none"})[
        desk.number % 3
    ]
    await desk.world.ask("POST", f"/v1/subscriptions/{found['id']}/pause", **params)


async def _resume(desk: Desk) -> None:
    found = await desk.subscription()
    anchor = ("now", "unchanged")[desk.number % 2]
    await desk.world.ask(
        "POST", f"/v1/subscriptions/{found['id']}/resume", **{"billing_cycle_anchor[type]": anchor}
    )


async def _sent_invoices(desk: Desk) -> None:
    await desk.update(collection_method="send_invoice", days_until_due="14")


async def _charged_invoices(desk: Desk) -> None:
    await desk.update(collection_method="charge_automatically")


async def _finalize(desk: Desk) -> None:
    await desk.of_invoice("draft", "/finalize")


async def _note_on_draft(desk: Desk) -> None:
    await desk.of_invoice("draft", "", description="Thank you")


async def _line_on_draft(desk: Desk) -> None:
    draft = await desk.invoice("draft")
    product = (await desk.item(metered=False))["price"]["product"]
    await desk.world.ask(
        "POST",
        "/v1/invoiceitems",
        **{
            "customer": desk.customer,
            "invoice": draft["id"],
            "price_data[currency]": "usd",
            "price_data[product]": product,
            "price_data[unit_amount]": "500",
        },
    )


async def _void(desk: Desk) -> None:
    """Let the customer off an invoice: what it charged was charged, and is forgiven."""
    await desk.of_invoice("open", "", **{"metadata[forgiven]": "yes"})
    await desk.of_invoice("open", "/void")


async def _uncollectible(desk: Desk) -> None:
    await desk.of_invoice("open", "/mark_uncollectible")


async def _paid_elsewhere(desk: Desk) -> None:
    await desk.of_invoice("open", "/pay", paid_out_of_band="true")


async def _credit_note(desk: Desk) -> None:
    for invoice in await desk.world.list("/v1/invoices", customer=desk.customer, status="paid"):
        if invoice["amount_paid"] >= _CREDIT and not invoice["post_payment_credit_notes_amount"]:
            params = {"invoice": invoice["id"], "amount": str(_CREDIT), "credit_amount": str(_CREDIT)}
            await desk.world.ask("POST", "/v1/credit_notes", **params)
            return
    raise Nothing


async def _cancel(desk: Desk) -> None:
    found = await desk.subscription()
    invoice_now = ("true", "false")[desk.number % 2]
    await desk.world.ask("DELETE", f"/v1/subscriptions/{found['id']}", invoice_now=invoice_now)


async def _cancel_at_end(desk: Desk) -> None:
    await desk.update(cancel_at_period_end="true")


async def _keep(desk: Desk) -> None:
    await desk.update(cancel_at_period_end="false")


async def _recreate(desk: Desk) -> None:
    """End the subscription, and make one like it at once."""
    found = await desk.subscription()
    await desk.world.ask("DELETE", f"/v1/subscriptions/{found['id']}", invoice_now="true", prorate="true")
    items: dict[str, str] = {}
    for place, item in enumerate(found["items"]["data"]):
        items[f"items[{place}][price]"] = item["price"]["id"]
        if not _is_metered(item):
            items[f"items[{place}][quantity]"] = str(item["quantity"])
    await desk.world.ask("POST", "/v1/subscriptions", customer=desk.customer, **items)


async def _balance(desk: Desk) -> None:
    await desk.world.ask("POST", f"/v1/customers/{desk.customer}", balance=str(-10 * desk.number))


async def _schedule(desk: Desk) -> None:
    """Put the subscription under a schedule, as the Dashboard does for a later change."""
    found = await desk.subscription()
    await desk.world.ask("POST", "/v1/subscription_schedules", from_subscription=found["id"])


async def _schedule_terms(desk: Desk) -> None:
    """Put the subscription under a schedule with terms of its own, and a further phase of a month."""
    found = await desk.subscription()
    made = await desk.world.ask("POST", "/v1/subscription_schedules", from_subscription=found["id"])
    start_s, end_s = (made["phases"][0][f"{edge}_date"] for edge in ("start", "end"))
    params: dict[str, str] = {}
    for place, (first_s, last_s) in enumerate(((start_s, end_s), (end_s, end_s + 30 * _DAY_S))):
        phase = f"phases[{place}]"
        for number, item in enumerate(found["items"]["data"]):
            params[f"{phase}[items][{number}][price]"] = item["price"]["id"]
            if not _is_metered(item):
                params[f"{phase}[items][{number}][quantity]"] = str(item["quantity"])
        params |= {
            f"{phase}[start_date]": str(first_s),
            f"{phase}[end_date]": str(last_s),
            f"{phase}[default_tax_rates][0]": f"txr_phase_{place}",
            f"{phase}[metadata][phase]": f"p{place}",
            f"{phase}[description]": f"by hand, phase {place}",
            f"{phase}[automatic_tax][enabled]": "false",
        }
    await desk.world.ask("POST", f"/v1/subscription_schedules/{made['id']}", **params)


ACTS: Final[Mapping[str, Callable[[Desk], Coroutine[Any, Any, None]]]] = {
    "percent_off": _percent_off,
    "amount_off_once": _amount_off_once,
    "no_discount": _no_discount,
    "discount_on_item": _discount_on_item,
    "tax_rate": _tax_rate,
    "tax_rate_on_item": _tax_rate_on_item,
    "metadata": _metadata,
    "metadata_on_item": _metadata_on_item,
    "description": _description,
    "own_price": _own_price,
    "seats": _seats,
    "cycle_anew": _cycle_anew,
    "trial": _trial,
    "trial_ends": _trial_ends,
    "collection_paused": _collection_paused,
    "collection_goes_on": _collection_goes_on,
    "pause": _pause,
    "resume": _resume,
    "sent_invoices": _sent_invoices,
    "charged_invoices": _charged_invoices,
    "finalize": _finalize,
    "note_on_draft": _note_on_draft,
    "line_on_draft": _line_on_draft,
    "void": _void,
    "uncollectible": _uncollectible,
    "paid_elsewhere": _paid_elsewhere,
    "credit_note": _credit_note,
    "cancel": _cancel,
    "cancel_at_end": _cancel_at_end,
    "keep": _keep,
    "recreate": _recreate,
    "balance": _balance,
    "schedule": _schedule,
    "schedule_terms": _schedule_terms,
}
