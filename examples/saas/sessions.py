"""Signing in with a browser: a form and a cookie. A real product has this already."""

from __future__ import annotations

from http.cookies import CookieError, SimpleCookie
from secrets import compare_digest, token_urlsafe
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request
    from starlette.types import Scope

FORM = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Sign in</title></head>
<body><main><h1>Sign in</h1>
<form method="post"><p><label for="key">Key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required>
<button>Sign in</button></p></form></main></body></html>
"""
COOKIE = "session"


class Sessions:
    """Who signed in: a customer with its API key, or an operator with the key of operators.

    Args:
        owner: from an API key to its customer, or None.
        operator_key: of the one operator, whose name is `ada`; None: no operator can sign in.
    """

    def __init__(self, owner: Callable[[str], str | None], operator_key: str | None) -> None:
        self._owner = owner
        self._operator_key = operator_key
        # A real product keeps both in its database, with the time when they end.
        self._customers: dict[str, str] = {}
        self._operators: dict[str, str] = {}
        self.routes = [
            Route("/signin", self._show, methods=["GET"]),
            Route("/signin", self._sign_in, methods=["POST"]),
        ]

    def customer(self, scope: Scope) -> str | None:
        return self._customers.get(cookie_of(scope))

    def operator(self, scope: Scope) -> str | None:
        return self._operators.get(cookie_of(scope))

    async def _show(self, _: Request) -> Response:
        return HTMLResponse(FORM)

    async def _sign_in(self, request: Request) -> Response:
        key = parse_qs((await request.body()).decode()).get("key", [""])[0]
        token = token_urlsafe()
        if self._operator_key and compare_digest(key.encode(), self._operator_key.encode()):
            self._operators[token] = "ada"
            answer = RedirectResponse("/operator/", 303)
        elif customer := self._owner(key):
            self._customers[token] = customer
            answer = RedirectResponse("/usage/", 303)
        else:
            return HTMLResponse(FORM, 403)
        # With TLS, say secure=True.
        answer.set_cookie(COOKIE, token, httponly=True, samesite="lax")
        return answer


def cookie_of(scope: Scope) -> str:
    sent = dict(scope["headers"]).get(b"cookie", b"").decode("latin-1")
    try:
        found = SimpleCookie(sent).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""
