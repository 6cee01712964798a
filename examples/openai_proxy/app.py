"""A proxy that sells calls of OpenAI's and Anthropic's models from balances in dollars, with a markup."""

from __future__ import annotations

import json
import os
from asyncio import create_task, gather
from contextlib import asynccontextmanager, suppress
from inspect import isawaitable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote

import httpx
from errors import error_response, refusal, speaks_anthropic
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from meterkit import Caller, MeterKit, MeterMiddleware, current, identify
from meterkit.llm import ask_for_usage, stop_on_disconnect
from meterkit.starlette import billing_routes

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable

    from starlette.types import Receive, Scope, Send

T = TypeVar("T")

HERE: Final = Path(__file__).parent
OPENAI: Final = os.environ.get("OPENAI_BASE_URL", "https://api.openai.com/v1")
ANTHROPIC: Final = os.environ.get("ANTHROPIC_BASE_URL", "https://api.anthropic.com") + "/v1"
KIT: Final = MeterKit(HERE / "plans.yaml")
# A table of yours: the SHA-256 of each key that you gave out, and whose it is. No key itself is stored.
KEYS: Final = json.loads(Path(os.environ.get("PROXY_KEYS", HERE / "keys.json")).read_text())
SENT_ON: Final = ("accept", "anthropic-beta", "anthropic-version", "content-type", "openai-beta")
PASSED_BACK: Final = ("content-type", "request-id", "retry-after", "retry-after-ms", "x-request-id")
# The fields that limit the output of a model; Anthropic's Messages require theirs.
LIMITS: Final = {
    "/v1/chat/completions": ("max_completion_tokens", "max_tokens"),
    "/v1/responses": ("max_output_tokens",),
}
# A transcription as a text or as subtitles tells no usage.
HEARD: Final = frozenset({"json", "verbose_json", "diarized_json"})
# Only what plans.yaml sells: every other path of a provider would be free, with the proxy's own key.
SOLD: Final = (
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/responses/compact",
    "/v1/responses/{id}/cancel",
    "/v1/embeddings",
    "/v1/images/generations",
    "/v1/images/edits",
    "/v1/audio/transcriptions",
    "/v1/messages",
    "/v1/messages/count_tokens",
)


def caller_of(hashed: str) -> Caller | None:
    """Find the customer, and the user, that a key was given to."""
    found = KEYS.get(hashed)
    return None if found is None else Caller(**found)


BY_KEY: Final = (
    identify.api_key(caller_of, hashed=True),  # As both SDKs send it.
    identify.api_key(caller_of, header="x-api-key", hashed=True),  # As other clients of Anthropic's API do.
)


async def identify_caller(scope: Scope) -> str | Caller | None:
    for find in BY_KEY:
        found = find(scope)
        caller = await found if isawaitable(found) else found
        if caller is not None:
            return caller
    return None


def upstream(scope: Scope, model: object = None) -> tuple[str, dict[str, str]]:
    """Choose the provider by the API or the model: its URL for this path, and the proxy's own key for it."""
    path = quote(scope["path"].removeprefix("/v1"))
    if speaks_anthropic(scope):
        return ANTHROPIC + path, {"x-api-key": os.environ["ANTHROPIC_API_KEY"]}
    if isinstance(model, str) and model.startswith("claude"):  # It has OpenAI's Chat Completions, too.
        return ANTHROPIC + path, {"authorization": f"Bearer {os.environ['ANTHROPIC_API_KEY']}"}
    return OPENAI + path, {"authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"}


def limit_output(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Set the limit that is reserved where the client names none: the answer could cost more otherwise."""
    fields = LIMITS.get(path, ())
    if not fields or any(body.get(field) is not None for field in fields):
        return body
    reserved = current().reserved.get("output_tokens", 4_096)  # For all answers. Empty in an outage.
    answers = body.get("n") if isinstance(body.get("n"), int) else 1
    return {**body, fields[0]: max(1, reserved // max(1, answers))}


def field_without_usage(request: Request, body: dict[str, Any], form: dict[str, list[Any]]) -> str | None:
    """Find the field by which the usage of a response might never come; it would be free.

    A response in the background goes on when its client leaves the stream, with the text, before the end. And
    an image that is shown before its end can be left before its usage.
    """
    tools: Any = body.get("tools")
    asked: list[Any] = [body, form, *(tools if type(tools) is list else ())]
    if any(type(one) is dict and one.get("partial_images") for one in asked):
        return "partial_images"
    formats = form.get("response_format", ())
    if request.url.path == "/v1/audio/transcriptions" and not HEARD.issuperset(formats):
        return "response_format"
    is_left = "stream" in request.query_params or (body.get("background") and body.get("stream"))
    return "stream" if is_left else None


async def forward(request: Request) -> Response:
    """Ask a provider, and pass on its answer as it comes; stop it when the client leaves."""
    content, model, restore = await request.body(), None, None
    body: dict[str, Any] = {}
    fields: dict[str, list[Any]] = {}
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        async with request.form() as form:
            model, fields = form.get("model"), {name: form.getlist(name) for name in form}
    elif content:
        try:
            body = {**json.loads(content)}
        except (TypeError, ValueError, RecursionError):
            return error_response(request.scope, 400, "The body is no JSON object.")
        model, body = body.get("model"), limit_output(request.url.path, body)
        if request.url.path == "/v1/chat/completions":
            body, restore = ask_for_usage(body)  # Clients that did not ask for it do not see it.
        content = json.dumps(body).encode()
    if request.url.path in SOLD and not isinstance(model, str):  # The provider's choice might have no price.
        return error_response(request.scope, 400, "Name the model.", param="model")
    if field := field_without_usage(request, body, fields):
        return error_response(request.scope, 400, "Its usage might never come.", param=field)
    url, key = upstream(request.scope, model)
    headers = {name: request.headers[name] for name in SENT_ON if name in request.headers} | key
    provider: httpx.AsyncClient = request.app.state.provider
    asked = provider.build_request(
        request.method, url, params=request.query_params, headers=headers, content=content
    )
    answer = await wait_for(request, provider.send(asked, stream=True))
    if answer.status_code in {401, 403}:  # The proxy's own key was refused: no business of the client.
        await answer.aclose()
        return error_response(request.scope, 502, "The provider refused the proxy.")
    headers = {name: answer.headers[name] for name in PASSED_BACK if name in answer.headers}
    if headers.get("content-type", "").startswith("text/event-stream"):
        stream = restore(answer.aiter_bytes()) if restore else answer.aiter_bytes()
        return ProviderStream(stream, answer, headers)
    try:
        return Response(await wait_for(request, answer.aread()), answer.status_code, headers)
    finally:
        await answer.aclose()


async def wait_for(request: Request, call: Awaitable[T]) -> T:
    """Await a provider; give it up where the client of a call that costs money leaves."""
    return await (stop_on_disconnect(request.receive, call) if request.method == "POST" else call)


class ProviderStream(StreamingResponse):
    """A provider's stream; closed at its end, also if the client leaves before the first byte."""

    def __init__(self, stream: Any, answer: httpx.Response, headers: dict[str, str]) -> None:
        self.answer = answer
        super().__init__(stream, answer.status_code, headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.answer.aclose()


async def relay(client: WebSocket) -> None:
    """Connect a client's websocket with OpenAI's, until one of the two closes."""
    url, key = upstream(client.scope)
    url = str(httpx.URL(url.replace("http", "ws", 1), params=client.query_params))
    try:
        provider = await connect(url, additional_headers=key, max_size=16 << 20, compression=None)
    except (InvalidHandshake, OSError):
        await client.send_denial_response(error_response(client.scope, 502, "The provider is not there."))
        return
    async with provider:
        await client.accept()
        sending = create_task(send_on(client, provider))
        with suppress(ConnectionClosed, WebSocketDisconnect):
            async for message in provider:
                await (client.send_text if isinstance(message, str) else client.send_bytes)(message)
        sending.cancel()
        await gather(sending, return_exceptions=True)
        if client.client_state is WebSocketState.CONNECTED:
            code = provider.close_code
            await client.close(1011 if code in {None, 1005, 1006} else code, provider.close_reason)


async def send_on(client: WebSocket, provider: ClientConnection) -> None:
    """Send on what a client says; close the provider's websocket when the client leaves."""
    while (message := await client.receive())["type"] == "websocket.receive":
        await provider.send(message["bytes"] if message.get("text") is None else message["text"])
    await provider.close()


async def client_left(request: Request, error: Exception) -> Response:
    """Answer a client that has left: its request is not billed, the tokens that it used are."""
    return Response(status_code=499)


async def provider_down(request: Request, error: Exception) -> Response:
    return error_response(request.scope, 502, "The provider is not there.")


def account(scope: Scope) -> str:
    """Name the customer whose balance a page adds to: a user's key opens none."""
    if current().subjects:
        raise HTTPException(403, "Only the customer's own key opens billing pages.")
    return current().customer


async def healthz(request: Request) -> Response:
    return Response("ok")


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncGenerator[None]:
    # Compressed streams would come in larger pieces.
    async with httpx.AsyncClient(headers={"accept-encoding": "identity"}, timeout=600) as app.state.provider:
        yield


app = Starlette(
    lifespan=lifespan,
    routes=[
        Route("/healthz", healthz),
        Mount("/billing", routes=billing_routes(KIT, customer=account, origins=["http://localhost:8000"])),
        *(Route(path, forward, methods=["POST"]) for path in SOLD),
        *(Route(path, forward) for path in ("/v1/models", "/v1/models/{id}")),
        Route("/v1/responses/{id}", forward, methods=["GET", "DELETE"]),
        *(WebSocketRoute(path, relay) for path in ("/v1/responses", "/v1/realtime")),
    ],
    middleware=[Middleware(MeterMiddleware, kit=KIT, identify=identify_caller, on_denied=refusal)],
    exception_handlers={ClientDisconnect: client_left, httpx.HTTPError: provider_down},
)
