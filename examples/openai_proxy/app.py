"""A proxy with OpenAI's API: keys of its own, tokens set aside, counted and billed, budgets of users."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.requests import ClientDisconnect

from meterkit import Caller, Decision, MeterKit, MeterMiddleware, current, identify
from meterkit.fastapi import Current, billing_router
from meterkit.llm import Restore, ask_for_usage, stop_on_disconnect

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.types import Receive, Scope, Send

PROVIDER_URL: Final = os.environ.get("PROVIDER_URL", "http://127.0.0.1:8001/v1")
PROVIDER_KEY: Final = os.environ.get("PROVIDER_KEY", "sk-provider")
KIT: Final = MeterKit(Path(__file__).with_name("plans.yaml"))
# A table of yours: the hash of each key you have given out, and whose it is. Ann and Ben work for Dora.
CALLERS: Final = {
    identify.hash_key(key): caller
    for key, caller in (
        ("sk-ada", Caller("ada")),
        ("sk-bob", Caller("bob")),
        ("sk-eve", Caller("eve")),
        ("sk-dora", Caller("dora")),
        ("sk-dora-ann", Caller("dora", subjects={"user": "ann"})),
        ("sk-dora-ben", Caller("dora", subjects={"user": "ben"})),
    )
}
STATUS: Final = {
    "anonymous": (401, "invalid_request_error"),
    "feature": (403, "permission_error"),
    "suspended": (402, "insufficient_quota"),
    "credits": (402, "insufficient_quota"),
    "spend": (402, "insufficient_quota"),
    "identify": (503, "server_error"),
    "store": (503, "server_error"),
}


def in_openais_words(scope: Any, decision: Decision) -> Response:
    """A refusal as OpenAI's SDKs read it; its fields, such as Retry-After, are meterkit's."""
    del scope
    problem = decision.problem  # The request asks for more than it may, whatever is left.
    if problem is not None:
        param = problem.members.get("field")
        error = {
            "message": problem.detail,
            "type": "invalid_request_error",
            "param": param,
            "code": problem.code,
        }
        return JSONResponse({"error": error}, 400)
    status, kind = STATUS.get(decision.reason or "", (429, "rate_limit_exceeded"))
    message = f"Refused: {decision.reason} ({', '.join(decision.violated) or 'no limit'})"
    if "usd_charged-period" in decision.violated:
        message += "; POST /billing/top-up opens a page to pay on"
    error = {"message": message, "type": kind, "param": None, "code": decision.reason}
    return JSONResponse({"error": error}, status)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    headers = {"authorization": f"Bearer {PROVIDER_KEY}", "accept-encoding": "gzip, deflate"}
    async with httpx.AsyncClient(base_url=PROVIDER_URL, headers=headers, timeout=600) as provider:
        app.state.provider = provider
        yield


app = FastAPI(title="Proxy", lifespan=lifespan)


@app.get("/healthz")
async def healthz() -> dict[str, bool]:
    return {"ok": True}


def limit_output(body: dict[str, Any]) -> dict[str, Any]:
    """Add the limit that is held to a request without one: its answer could be longer otherwise."""
    if body.get("max_completion_tokens") is not None or body.get("max_tokens") is not None:
        return body
    held = current().reserved.get("output_tokens", 256)  # All answers together. Nothing is held in an outage.
    return {**body, "max_tokens": max(1, held // int(body.get("n") or 1))}


@app.post("/v1/chat/completions")
async def complete(request: Request) -> Response:
    """Ask the provider, for its usage too, and pass on what it says; stop it when the client leaves."""
    provider: httpx.AsyncClient = request.app.state.provider
    body, restore = ask_for_usage(limit_output(await request.json()))
    asked = provider.build_request("POST", "chat/completions", json=body)
    answer = await stop_on_disconnect(request.receive, provider.send(asked, stream=True))
    headers = {
        name: answer.headers[name] for name in ("content-type", "retry-after") if name in answer.headers
    }
    if headers.get("content-type", "").startswith("text/event-stream"):
        return ProviderStream(answer, restore, headers)
    try:
        whole = await stop_on_disconnect(request.receive, answer.aread())
        return Response(whole, answer.status_code, headers)
    finally:
        await answer.aclose()


class ProviderStream(StreamingResponse):
    """The provider's stream as the client asked for it; closed at the end, also if the client leaves."""

    def __init__(self, answer: httpx.Response, restore: Restore, headers: dict[str, str]) -> None:
        self.answer = answer
        super().__init__(restore(answer.aiter_bytes()), answer.status_code, headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.answer.aclose()


@app.exception_handler(ClientDisconnect)
async def client_left(request: Request, error: Exception) -> Response:
    """Answer a client that has left: the request is not billed, its tokens are."""
    del request, error
    return Response(status_code=499)


def account(caller: Current) -> str:
    """Whose balance a page adds to: a user's key opens none."""
    if caller.subjects:
        raise HTTPException(403, "Only the customer's own key opens billing pages.")
    return caller.customer


app.include_router(
    billing_router(KIT, customer=account, origins=["http://localhost:8000"]), prefix="/billing"
)
app.add_middleware(
    MeterMiddleware,
    kit=KIT,
    identify=identify.api_key(CALLERS.get, hashed=True),
    on_denied=in_openais_words,
)
