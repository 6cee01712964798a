"""Hosted pages of checkout and portal as plain HTML."""

from __future__ import annotations

from html import escape
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import parse_qsl

from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from stripe_emulator.behaviour import Behaviour
from stripe_emulator.currency_amounts import money_text
from stripe_emulator.page_sessions import CheckoutSession, PortalSession, line_items_to_json
from stripe_emulator.page_visits import PageVisitor, PageVisits, Payment, PortalAction
from stripe_emulator.protocol import ApiError, JsonObject
from stripe_emulator.scheduled_transitions import run_due_transitions

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.requests import Request

    from stripe_emulator.account import Account

PAGE_STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:30rem;margin:3rem auto;padding:0 1rem;color:#1a1a2e}"
    "button{font:inherit;padding:.5rem 1rem;margin:.25rem 0;width:100%;cursor:pointer}"
    "input{font:inherit;padding:.5rem;width:100%;box-sizing:border-box;margin-bottom:.75rem}"
    "li{display:flex;justify-content:space-between}ul{padding:0}"
    "small{color:#666}.problem{color:#b00020}"
)


def page_html(title: str, body: Iterable[str]) -> str:
    """Return a page with a title; ``body`` is HTML."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{PAGE_STYLE}</style></head><body><h1>{escape(title)}</h1>"
        f"{''.join(body)}<p><small>This is a Stripe emulator. No money is moved.</small></p>"
        "</body></html>"
    )


def button_html(label: str, **fields: str) -> str:
    """Return a form of one button that posts ``fields``."""
    hidden = "".join(
        f'<input type="hidden" name="{escape(name)}" value="{escape(value)}">'
        for name, value in fields.items()
    )
    return f'<form method="post">{hidden}<button>{escape(label)}</button></form>'


PORTAL_CONFIRMATIONS = {
    "cancel": "Your subscription ends with its period.",
    "resume": "Your subscription goes on.",
    "mend_payment": "Your payment method has been replaced.",
    "pay": "What was open is paid.",
}


class PageControls(Behaviour):
    """Hosted pages as a person uses them; a part of ``StripeEmulator``."""

    _account: Account
    _visits: PageVisits

    def complete_checkout(
        self,
        session_id: str,
        *,
        payment: Payment = "succeeds",
        email: str | None = None,
        name: str | None = None,
        country: str | None = None,
        promotion_code: str | None = None,
    ) -> JsonObject:
        """Complete a checkout session as a person does on its page. Returns the session.

        Creates the customer if the session has none, attaches its card, creates the subscription, pays the
        first invoice and emits ``checkout.session.completed``. A payment that ``fails`` changes nothing
        and leaves the session open for another attempt.

        Args:
            session_id: ``cs_test_…``, or the URL of the page.
            payment: what becomes of it: ``succeeds`` or ``fails``.
            email: what the person gives where the session does not know it.
            name: as ``email``.
            country: two letters; None: ``US`` where the session calculates tax.
            promotion_code: what the person types in where the session allows it.

        Raises:
            ValueError: if there is no such session, none that is open, or the code cannot be redeemed.
        """
        person = PageVisitor(email=email, name=name, country=country, promotion_code=promotion_code)
        with self._account.lock:
            run_due_transitions(self._account)
            session = self._find_checkout(session_id)
            self._visits.complete(session, person, payment=payment)
            return session.to_json()

    def use_portal(self, session_id: str, action: PortalAction, *, subscription: str | None = None) -> None:
        """Perform an action as a customer does on the page of a portal session.

        Args:
            session_id: ``bps_…``, or the URL of the page.
            action: ``cancel`` (with the period's end), ``resume``, ``mend_payment`` (another card, that
                works, for the customer and its subscriptions), ``pay`` (what is open).
            subscription: which one to cancel or resume; None: that of the session's flow, or the only one.

        Raises:
            ValueError: if there is no such session, action or subscription, or Stripe would refuse it.
        """
        with self._account.lock:
            run_due_transitions(self._account)
            self._visits.use_portal(self._find_portal(session_id), action, subscription=subscription)

    def _find_checkout(self, session_id: str) -> CheckoutSession:
        try:
            return self._account.checkouts.find(_id_of_page(session_id))
        except ApiError as error:
            raise ValueError(str(error)) from error

    def _find_portal(self, session_id: str) -> PortalSession:
        session = self._account.portals.get(_id_of_page(session_id))
        if session is None:
            raise ValueError(f"there is no portal session {session_id}")
        return session

    def _page_routes(self) -> list[Route]:
        return [
            Route("/c/pay/{id}", self._serve_checkout, methods=["GET", "POST"]),
            Route("/p/session/{id}", self._serve_portal, methods=["GET", "POST"]),
        ]

    async def _serve_checkout(self, request: Request) -> Response:
        problem: str | None = None
        form = await read_form(request)
        with self._account.lock:
            run_due_transitions(self._account)
            try:
                session = self._find_checkout(request.path_params["id"])
            except ValueError as error:
                return _error_page(str(error))
            if request.method == "POST" and session.status == "open":
                payment = cast("Payment", form.get("payment", "succeeds"))
                code = form.get("promotion_code") or None
                person = PageVisitor(email=form.get("email"), promotion_code=code)
                problem = self._complete_or_explain(session, payment, person)
            if session.status == "complete" and request.method == "POST":
                there = session.success_url.replace("{CHECKOUT_SESSION_ID}", session.id)
                return RedirectResponse(there, status_code=HTTPStatus.SEE_OTHER)
            if session.status != "open":
                return _error_page(f"This page is {session.status}.")
            return HTMLResponse(self._checkout_page(session, problem))

    def _complete_or_explain(
        self, session: CheckoutSession, payment: Payment, person: PageVisitor
    ) -> str | None:
        """Complete a checkout; return the reason of a failure, or None."""
        try:
            self._visits.complete(session, person, payment=payment)
        except ValueError as error:
            return str(error)
        return "Your card was declined." if session.status == "open" else None

    def _checkout_page(self, session: CheckoutSession, problem: str | None) -> str:
        """Return the page of a session, with the problem of the last attempt."""
        offered = ""
        items = line_items_to_json(session, prices=self._account.prices, products=self._account.products)
        for item in items:
            quantity, amount = item["quantity"], cast("int", item["amount_total"])
            count = "" if quantity in {None, 1} else f", {quantity} of it"
            cost = "by usage" if quantity is None else money_text(amount, session.currency)
            what = f"{item['description']}{count}"
            offered += f"<li><span>{escape(what)}</span><span>{escape(cost)}</span></li>"
        email, total = session.customer_email or session.customer, session.totals.total
        ask = (
            f"<p>{escape(email)}</p>"
            if email
            else '<label>Email <input type="email" name="email" value="ada@example.com" required></label>'
        )
        if session.allow_promotion_codes:
            ask += '<label>Promotion code <input name="promotion_code"></label>'
        due = escape(money_text(total, session.currency))
        title, pay = ("Pay", "Pay") if session.mode == "payment" else ("Subscribe", "Pay and subscribe")
        return page_html(
            title,
            (
                f'<p class="problem" role="alert">{escape(problem)}</p>' if problem else "",
                f"<ul>{offered}</ul><p>Due today: <strong>{due}</strong></p>",
                f'<form method="post">{ask}',
                f'<button name="payment" value="succeeds">{pay}</button>',
                '<button name="payment" value="fails">Pay with a card that is declined</button></form>',
                f'<p><a href="{escape(session.cancel_url)}">Back</a></p>' if session.cancel_url else "",
            ),
        )

    async def _serve_portal(self, request: Request) -> Response:
        done: str | None = None
        form = await read_form(request)
        with self._account.lock:
            run_due_transitions(self._account)
            try:
                session = self._find_portal(request.path_params["id"])
                if request.method == "POST":
                    action = cast("PortalAction", form.get("action", ""))
                    self._visits.use_portal(session, action, subscription=form.get("subscription"))
                    done = PORTAL_CONFIRMATIONS[action]
            except ValueError as error:
                return _error_page(str(error))
            return HTMLResponse(self._portal_page(session, done))

    def _portal_page(self, session: PortalSession, done: str | None) -> str:
        """Return the page of the portal, with a confirmation of the last action."""
        shown = [
            f"<h2>{escape(text)}</h2>"
            + (
                button_html("Don't cancel", action="resume", subscription=name)
                if ends
                else button_html("Cancel subscription", action="cancel", subscription=name)
            )
            for name, text, ends in self._visits.subscriptions(session)
        ]
        return page_html(
            "Manage your subscription",
            (
                f'<p role="status">{escape(done)}</p>' if done else "",
                *(shown or ["<p>There is no subscription.</p>"]),
                button_html("Mend the payment method", action="mend_payment"),
                f'<p><a href="{escape(session.return_url)}">Return</a></p>' if session.return_url else "",
            ),
        )


def _id_of_page(page: str) -> str:
    """Return the session of a page, given by its id or its URL."""
    return page.rpartition("/")[2]


async def read_form(request: Request) -> dict[str, str]:
    """Return the fields of a posted form."""
    return dict(parse_qsl((await request.body()).decode("utf-8", "replace")))


def _error_page(text: str) -> Response:
    body = [f'<p class="problem" role="alert">{escape(text)}</p>']
    return HTMLResponse(page_html("Something went wrong", body), status_code=HTTPStatus.BAD_REQUEST)
