"""The pages that a person sees: checkout and portal, as plain as can be."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["button", "checkout_page", "page", "portal_page"]

STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:30rem;margin:3rem auto;padding:0 1rem;color:#1a1a2e}"
    "button{font:inherit;padding:.5rem 1rem;margin:.25rem 0;width:100%;cursor:pointer}"
    "input{font:inherit;padding:.5rem;width:100%;box-sizing:border-box;margin-bottom:.75rem}"
    "li{display:flex;justify-content:space-between}ul{padding:0}"
    "small{color:#666}.problem{color:#b00020}"
)


def page(title: str, body: Iterable[str]) -> str:
    """Return a page with a title; ``body`` is HTML."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><h1>{escape(title)}</h1>"
        f"{''.join(body)}<p><small>The Stripe emulator of meterkit. No money is moved.</small></p>"
        "</body></html>"
    )


def button(label: str, **fields: str) -> str:
    """Return a form of one button that posts ``fields``."""
    hidden = "".join(
        f'<input type="hidden" name="{escape(name)}" value="{escape(value)}">'
        for name, value in fields.items()
    )
    return f'<form method="post">{hidden}<button>{escape(label)}</button></form>'


def checkout_page(
    lines: Sequence[tuple[str, str]],
    *,
    total: str,
    email: str | None,
    cancel_url: str | None,
    problem: str | None,
    takes_codes: bool = False,
) -> str:
    """Return the page of a checkout session.

    Args:
        lines: what is offered, and for how much.
        total: to be paid now.
        email: that is known already; None: the page asks for it.
        cancel_url: where a person goes who does not want to.
        problem: what went wrong with the attempt before.
        takes_codes: whether the page asks for a promotion code.
    """
    offered = "".join(
        f"<li><span>{escape(what)}</span><span>{escape(cost)}</span></li>" for what, cost in lines
    )
    ask = (
        f"<p>{escape(email)}</p>"
        if email
        else '<label>Email <input type="email" name="email" value="ada@example.com" required></label>'
    )
    if takes_codes:
        ask += '<label>Promotion code <input name="promotion_code"></label>'
    return page(
        "Subscribe",
        (
            f'<p class="problem" role="alert">{escape(problem)}</p>' if problem else "",
            f"<ul>{offered}</ul><p>Due today: <strong>{escape(total)}</strong></p>",
            f'<form method="post">{ask}',
            '<button name="payment" value="succeeds">Pay and subscribe</button>',
            '<button name="payment" value="fails">Pay with a card that is declined</button></form>',
            f'<p><a href="{escape(cancel_url)}">Back</a></p>' if cancel_url else "",
        ),
    )


def portal_page(
    subscriptions: Sequence[tuple[str, str, bool]],
    *,
    return_url: str | None,
    done: str | None,
) -> str:
    """Return the page of the portal.

    Args:
        subscriptions: id, what is shown of it, and whether it ends with its period.
        return_url: where the way back leads.
        done: what was done just now.
    """
    shown = [
        f"<h2>{escape(text)}</h2>"
        + (
            button("Don't cancel", action="resume", subscription=name)
            if ends
            else button("Cancel subscription", action="cancel", subscription=name)
        )
        for name, text, ends in subscriptions
    ]
    return page(
        "Manage your subscription",
        (
            f'<p role="status">{escape(done)}</p>' if done else "",
            *(shown or ["<p>There is no subscription.</p>"]),
            button("Mend the payment method", action="mend_payment"),
            f'<p><a href="{escape(return_url)}">Return</a></p>' if return_url else "",
        ),
    )
