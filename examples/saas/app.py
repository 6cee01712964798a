"""A small product with monthly subscriptions: accounts, members, questions. See README.md."""

from __future__ import annotations

from pathlib import Path
from secrets import token_urlsafe
from typing import TYPE_CHECKING

from fastapi import FastAPI, HTTPException, Response
from pydantic import BaseModel
from sessions import Sessions

from meterkit import MeterKit, MeterMiddleware, current, identify
from meterkit.fastapi import Current, billing_router, responses
from meterkit.pages import operator_pages, usage_page

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from starlette.types import Scope

PLANS = Path(__file__).with_name("plans.yaml")
ORIGIN = "http://127.0.0.1:8000"


class Named(BaseModel):
    """An account, or a member of one."""

    name: str


class Question(BaseModel):
    """What somebody wants to know."""

    text: str


def create_app(kit: MeterKit, operator_key: str | None = None) -> FastAPI:
    app = FastAPI(title="Questions", responses=responses)
    # A real product keeps both in its database.
    owners: dict[str, str] = {}
    members: dict[str, set[str]] = {}

    sessions = Sessions(lambda key: owners.get(identify.hash_key(key)), operator_key)
    by_key = identify.api_key(owners.get, hashed=True)

    def who(scope: Scope) -> str | Awaitable[str | None] | None:
        """A browser sends its session, a program its API key."""
        return sessions.customer(scope) or by_key(scope)

    app.add_middleware(MeterMiddleware, kit=kit, identify=who)
    app.router.routes.extend(sessions.routes)
    app.mount("/usage", usage_page(kit, customer=lambda _: current().customer, origins=[ORIGIN]))
    app.mount("/operator", operator_pages(kit, allowed=sessions.operator))

    def account(caller: Current) -> str:
        """Whose subscription a request is about; a real product asks for a right to pay, too."""
        return caller.customer

    app.include_router(billing_router(kit, customer=account, origins=[ORIGIN]), prefix="/billing")

    @app.post("/signup", status_code=201)
    async def sign_up(given: Named) -> dict[str, str]:
        if given.name in members:
            raise HTTPException(409)
        key = token_urlsafe()
        owners[identify.hash_key(key)] = given.name
        members[given.name] = {"founder"}
        await kit.gauges.set(given.name, "seats", 1)
        return {"key": key}

    @app.post("/members", status_code=201)
    async def invite(given: Named, caller: Current) -> list[str]:
        members[caller.customer].add(given.name)
        return await seated(caller.customer)

    @app.delete("/members/{name}")
    async def remove(name: str, caller: Current) -> list[str]:
        members[caller.customer].discard(name)
        return await seated(caller.customer)

    async def seated(name: str) -> list[str]:
        await kit.gauges.set(name, "seats", len(members[name]))
        return sorted(members[name])

    @app.post("/questions")
    async def ask(given: Question) -> dict[str, str]:
        return {"answer": f"{given.text.rstrip('?')}? It depends."}

    @app.get("/reports")
    async def reports(caller: Current) -> dict[str, object]:
        usage = await kit.usage(caller.customer)
        return {"questions": usage["meters"]["questions"]["recorded"]}

    @app.get("/healthz")
    async def healthz() -> Response:
        return Response("ok")

    return app
