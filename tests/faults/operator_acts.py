"""What an operator does by hand in Stripe's Dashboard, past the library: more than thirty kinds of acts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from drivers.world import World

_DAY_S: Final = 86_400
_CREDIT: Final = 100


class Nothing(Exception):  # noqa: N818 - not an error: there is nothing to do it to
    """There is nothing that the act could be done to."""


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """Where an operator sits, with one Stripe customer; acts depend on the number."""

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
        await self.world.ask("POST", f"/v1/subscription_items/{item['id']}", **params)

    async def invoice(self, status: str) -> dict[str, Any]:
        """The newest invoice with a status. Raises :class:`Nothing`."""
        found = await self.world.list("/v1/invoices", customer=self.customer, status=status)
        if not found:
            raise Nothing
        return found[0]

    async def of_invoice(self, status: str, act: str, **params: str) -> None:
        found = await self.invoice(status)
        await self.world.ask("POST", f"/v1/invoices/{found['id']}{act}", **params)

    async def _coupon(self, **terms: str) -> dict[str, str]:
        coupon = await self.world.ask("POST", "/v1/coupons", **terms)
        return {"discounts[0][coupon]": coupon["id"]}

    @property
    def in_days(self) -> str:
        return str(int(self.world.clock()) + (self.number % 20 + 1) * _DAY_S)


class Desk(Dashboard):
    """The acts: each method is one."""

    async def percent_off(self) -> None:
        await self.update(**await self._coupon(percent_off=str(self.number % 50 + 1), duration="forever"))

    async def amount_off_once(self) -> None:
        currency = (await self.subscription())["currency"]
        await self.update(**await self._coupon(amount_off="300", currency=currency, duration="once"))

    async def no_discount(self) -> None:
        await self.update(discounts="")

    async def discount_on_item(self) -> None:
        discount = await self._coupon(percent_off="10", duration="forever")
        await self.change_item(await self.item(metered=self.number % 2 == 0), **discount)

    async def tax_rate(self) -> None:
        await self.update(**{"default_tax_rates[0]": "txr_operator"})

    async def tax_rate_on_item(self) -> None:
        await self.change_item(await self.item(metered=True), **{"tax_rates[0]": "txr_operator"})

    async def metadata(self) -> None:
        await self.update(**{"metadata[contract]": f"c{self.number}"})

    async def metadata_on_item(self) -> None:
        await self.change_item(await self.item(metered=True), **{"metadata[line]": f"l{self.number}"})

    async def description(self) -> None:
        await self.update(description=f"by hand, {self.number}")

    async def own_price(self) -> None:
        """Give the customer a price of its own for a meter: dearer or cheaper."""
        item = await self.item(metered=True)
        terms = {"currency": (await self.subscription())["currency"], "product": item["price"]["product"]}
        recurring = {f"recurring[{name}]": item["price"]["recurring"][name] for name in ("interval", "meter")}
        recurring["recurring[usage_type]"] = "metered"
        made = await self.world.ask(
            "POST", "/v1/prices", unit_amount=str(self.number % 9 + 1), **terms, **recurring
        )
        await self.change_item(item, price=made["id"])

    async def seats(self) -> None:
        items = [one for one in (await self.subscription())["items"]["data"] if not _is_metered(one)]
        if len(items) < 2:
            raise Nothing  # There is the plan's price alone, and none of seats.
        await self.change_item(items[1], quantity=str(self.number % 6 + 1))

    async def cycle_anew(self) -> None:
        behavior = ("create_prorations", "always_invoice", "none")[self.number % 3]
        await self.update(billing_cycle_anchor="now", proration_behavior=behavior)

    async def trial(self) -> None:
        """Give a trial, or move the end of the one that runs."""
        await self.update(trial_end=self.in_days, proration_behavior="none")

    async def trial_ends(self) -> None:
        if (await self.subscription())["status"] != "trialing":
            raise Nothing
        await self.update(trial_end="now")

    async def collection_paused(self) -> None:
        behavior = ("keep_as_draft", "mark_uncollectible", "void")[self.number % 3]
        await self.update(**{"pause_collection[behavior]": behavior})

    async def collection_goes_on(self) -> None:
        await self.update(pause_collection="")

    async def pause(self) -> None:
        """Pause the subscription: its usage is charged with the next invoice, at once, or not at all."""
        found = await self.subscription()
        params = (
            {},
            {"invoicing_behavior": "invoice"},
            {"bill_for[outstanding_usage_through][type]": "none"},
        )[self.number % 3]
        await self.world.ask("POST", f"/v1/subscriptions/{found['id']}/pause", **params)

    async def resume(self) -> None:
        found = await self.subscription()
        anchor = ("now", "unchanged")[self.number % 2]
        await self.world.ask(
            "POST", f"/v1/subscriptions/{found['id']}/resume", **{"billing_cycle_anchor[type]": anchor}
        )

    async def sent_invoices(self) -> None:
        await self.update(collection_method="send_invoice", days_until_due="14")

    async def charged_invoices(self) -> None:
        await self.update(collection_method="charge_automatically")

    async def finalize(self) -> None:
        await self.of_invoice("draft", "/finalize")

    async def note_on_draft(self) -> None:
        await self.of_invoice("draft", "", description="Thank you")

    async def line_on_draft(self) -> None:
        draft = await self.invoice("draft")
        product = (await self.item(metered=False))["price"]["product"]
        price = {"currency": draft["currency"], "product": product, "unit_amount": "500"}
        params = {f"price_data[{name}]": value for name, value in price.items()}
        await self.world.ask(
            "POST", "/v1/invoiceitems", customer=self.customer, invoice=draft["id"], **params
        )

    async def void(self) -> None:
        """Let the customer off an invoice: what it charged was charged, and is forgiven."""
        await self.of_invoice("open", "", **{"metadata[forgiven]": "yes"})
        await self.of_invoice("open", "/void")

    async def uncollectible(self) -> None:
        await self.of_invoice("open", "/mark_uncollectible")

    async def paid_elsewhere(self) -> None:
        await self.of_invoice("open", "/pay", paid_out_of_band="true")

    async def credit_note(self) -> None:
        for invoice in await self.world.list("/v1/invoices", customer=self.customer, status="paid"):
            if invoice["amount_paid"] >= _CREDIT and not invoice["post_payment_credit_notes_amount"]:
                params = {"invoice": invoice["id"], "amount": str(_CREDIT), "credit_amount": str(_CREDIT)}
                await self.world.ask("POST", "/v1/credit_notes", **params)
                return
        raise Nothing

    async def cancel(self) -> None:
        found = await self.subscription()
        invoice_now = ("true", "false")[self.number % 2]
        await self.world.ask("DELETE", f"/v1/subscriptions/{found['id']}", invoice_now=invoice_now)

    async def cancel_at_end(self) -> None:
        await self.update(cancel_at_period_end="true")

    async def keep(self) -> None:
        await self.update(cancel_at_period_end="false")

    async def recreate(self) -> None:
        found = await self.subscription()
        await self.world.ask("DELETE", f"/v1/subscriptions/{found['id']}", invoice_now="true", prorate="true")
        items: dict[str, str] = {}
        for place, item in enumerate(found["items"]["data"]):
            items[f"items[{place}][price]"] = item["price"]["id"]
            if not _is_metered(item):
                items[f"items[{place}][quantity]"] = str(item["quantity"])
        await self.world.ask("POST", "/v1/subscriptions", customer=self.customer, **items)

    async def balance(self) -> None:
        await self.world.ask("POST", f"/v1/customers/{self.customer}", balance=str(-10 * self.number))

    async def schedule(self) -> None:
        """Put the subscription under a schedule, as the Dashboard does for a later change."""
        found = await self.subscription()
        await self.world.ask("POST", "/v1/subscription_schedules", from_subscription=found["id"])

    async def schedule_terms(self) -> None:
        """Put the subscription under a schedule with terms of its own, and a further phase of a month."""
        found = await self.subscription()
        made = await self.world.ask("POST", "/v1/subscription_schedules", from_subscription=found["id"])
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
        await self.world.ask("POST", f"/v1/subscription_schedules/{made['id']}", **params)


def _is_metered(item: Mapping[str, Any]) -> bool:
    return bool(item["price"]["recurring"]["usage_type"] == "metered")


ACTS: Final = tuple(name for name in vars(Desk) if not name.startswith("_"))
