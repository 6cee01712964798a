"""Two fake providers under uvicorn, with the wire of OpenAI and of Anthropic and fixed figures of usage."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager
from itertools import count
from threading import Thread
from typing import Any, Final

import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp
from starlette.websockets import WebSocket

OPENAI_KEY: Final = "sk-upstream-of-openai"
ANTHROPIC_KEY: Final = "sk-upstream-of-anthropic"
WORDS: Final = ("the ", "sea ", "was ", "calm")

USAGE: Final[dict[str, Any]] = yaml.safe_load("""
chat:
  prompt_tokens: 1200
  completion_tokens: 340
  total_tokens: 1540
  prompt_tokens_details: {cached_tokens: 1000, audio_tokens: 0}
  completion_tokens_details: {reasoning_tokens: 64, audio_tokens: 0}
response:
  input_tokens: 2000
  input_tokens_details: {cached_tokens: 1500, cache_write_tokens: 0}
  output_tokens: 500
  output_tokens_details: {reasoning_tokens: 200}
  total_tokens: 2500
transcribed:
  type: tokens
  input_tokens: 600
  input_token_details: {audio_tokens: 580, text_tokens: 20}
  output_tokens: 150
  total_tokens: 750
realtime:
  input_tokens: 900
  input_token_details:
    {audio_tokens: 600, text_tokens: 300, image_tokens: 0, cached_tokens: 500,
     cached_tokens_details: {audio_tokens: 400, text_tokens: 100, image_tokens: 0}}
  output_tokens: 260
  output_token_details: {audio_tokens: 200, text_tokens: 60}
  total_tokens: 1160
message:
  input_tokens: 100
  cache_read_input_tokens: 5000
  cache_creation_input_tokens: 1000
  cache_creation: {ephemeral_5m_input_tokens: 400, ephemeral_1h_input_tokens: 600}
  output_tokens: 250
  service_tier: standard
""")
# What each answer of the responses API has.
RESPONSE: Final[dict[str, Any]] = yaml.safe_load("""
{object: response, created_at: 1, parallel_tool_calls: true, tool_choice: auto, tools: [], error: null,
 incomplete_details: null, background: false}
""")


def sse(event: dict[str, Any], *, named: bool = False) -> str:
    name = f"event: {event['type']}\n" if named else ""
    return f"{name}data: {json.dumps(event)}\n\n"


class FakeProviders:
    """Both providers, in a thread of their own.

    A word in the last message steers them: ``wait`` holds a stream after its first word until `proceed`,
    ``hang`` for ever, ``ponder`` before its first word; ``think`` gives no answer at all; ``cut`` breaks off;
    ``fail 429`` fails with a status. ``stopped`` counts answers that were given up because the client left.
    """

    def __init__(self) -> None:
        self.openai = self.anthropic = ""
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.bodies: list[dict[str, Any]] = []
        self.begun: Counter[str] = Counter()
        self.stopped: Counter[str] = Counter()
        self._ids = count(1)
        self._loop = asyncio.new_event_loop()
        self._gate = asyncio.Event()

    @contextmanager
    def running(self) -> Generator[FakeProviders]:
        apps = (self._openai_app(), self._anthropic_app())
        # httpx drops idle connections after 5 s: a server that closes them then races with requests.
        config: dict[str, Any] = {"log_config": None, "lifespan": "off", "timeout_keep_alive": 600}
        servers = [uvicorn.Server(uvicorn.Config(app, ws="websockets-sansio", **config)) for app in apps]
        with ExitStack() as stack:
            sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in apps]

            async def serve() -> None:
                served = zip(servers, sockets, strict=True)
                await asyncio.gather(*(server.serve([listener]) for server, listener in served))

            thread = Thread(target=self._loop.run_until_complete, args=(serve(),))
            thread.start()
            self.openai, self.anthropic = (f"http://127.0.0.1:{one.getsockname()[1]}" for one in sockets)
            try:
                yield self
            finally:
                for server in servers:
                    server.should_exit = server.force_exit = True
                thread.join()
                self._loop.close()

    def proceed(self) -> None:
        self._loop.call_soon_threadsafe(self._gate.set)

    def _openai_app(self) -> ASGIApp:
        post: dict[str, Callable[[Request], Any]] = {
            "/v1/chat/completions": self._chat,
            "/v1/responses": self._respond,
            "/v1/responses/{id}/cancel": self._retrieve,
            "/v1/audio/transcriptions": self._transcribe,
        }
        return self._guarded(
            f"Bearer {OPENAI_KEY}",
            "authorization",
            [
                *(Route(path, endpoint, methods=["POST"]) for path, endpoint in post.items()),
                Route("/v1/responses/{id}", self._retrieve),
                Route("/v1/models", self._list_models),
                WebSocketRoute("/v1/responses", self._respond_live),
                WebSocketRoute("/v1/realtime", self._talk),
            ],
        )

    def _anthropic_app(self) -> ASGIApp:
        return self._guarded(
            ANTHROPIC_KEY,
            "x-api-key",
            [
                Route("/v1/messages", self._message, methods=["POST"]),
                Route("/v1/models", self._list_models),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
            ],
        )

    def _guarded(self, key: str, field: str, routes: Iterable[Any]) -> ASGIApp:
        """Refuse a request without the provider's key, as a provider does, and note the others."""
        app = Starlette(routes=list(routes))

        async def guard(scope: Any, receive: Any, send: Any) -> None:
            headers = {name.decode(): value.decode() for name, value in scope["headers"]}
            given = headers.get(field)
            if given is None and field == "x-api-key":  # Anthropic's Chat Completions have OpenAI's header.
                given = headers.get("authorization", "").removeprefix("Bearer ")
            if given != key:
                refused = JSONResponse({"error": {"message": f"Incorrect API key: {given}"}}, 401)
                await refused(scope, receive, send)
                return
            self.asked.append((scope.get("method", "WS"), scope["path"], headers))
            await app(scope, receive, send)

        return guard

    async def _read(self, request: Request) -> dict[str, Any]:
        self.bodies.append(json.loads(await request.body()))
        return self.bodies[-1]

    async def _steered(self, request: Request, text: str) -> Response | None:
        """Begin, and fail or never answer where the text says so."""
        self.begun[text] += 1
        if "think" in text:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            self.stopped[text] += 1
            return Response(status_code=499)
        if "cut" in text:
            return StreamingResponse(self._cut(), media_type="application/json")
        if "fail" in text:
            status = int(text.split()[1])
            error = {"message": f"failed with {status}", "type": "error", "param": None, "code": None}
            return JSONResponse(
                {"type": "error", "error": error}, status, {"retry-after": "7", "x-request-id": "req_7"}
            )
        return None

    async def _cut(self) -> AsyncGenerator[str]:
        yield '{"id": '
        raise ConnectionResetError  # Uvicorn then closes the connection.

    async def _words(self, text: str) -> AsyncGenerator[str]:
        try:
            for place, word in enumerate(WORDS):
                if place == 1 and "wait" in text:
                    await self._gate.wait()
                if (place == 0 and "ponder" in text) or (place == 1 and "hang" in text):
                    await asyncio.Event().wait()
                yield word
        except asyncio.CancelledError:
            self.stopped[text] += 1
            raise

    def _id(self, kind: str) -> str:
        return f"{kind}_{next(self._ids)}"

    async def _chat(self, request: Request) -> Response:
        asked = await self._read(request)
        text = str(asked["messages"][-1]["content"])
        if asked["model"].startswith("claude") != request.headers["authorization"].endswith(ANTHROPIC_KEY):
            return JSONResponse({"error": {"message": "no such model here"}}, 404)
        if (steered := await self._steered(request, text)) is not None:
            return steered
        head = {"id": self._id("chatcmpl"), "created": 1, "model": asked["model"], "system_fingerprint": None}
        answers = range(asked.get("n") or 1)
        if not asked.get("stream"):
            message = {"role": "assistant", "content": "".join(WORDS), "refusal": None}
            choices = [
                {"index": index, "message": message, "finish_reason": "stop", "logprobs": None}
                for index in answers
            ]
            return JSONResponse(
                head | {"object": "chat.completion", "choices": choices, "usage": USAGE["chat"]}
            )
        reports = bool(asked.get("stream_options", {}).get("include_usage"))
        head |= {"object": "chat.completion.chunk"} | ({"usage": None} if reports else {})

        async def stream() -> AsyncGenerator[str]:
            async for word in self._words(text):
                for index in answers:
                    choice = {"index": index, "delta": {"content": word}, "finish_reason": None}
                    yield sse(head | {"choices": [choice]})
            for index in answers:
                yield sse(head | {"choices": [{"index": index, "delta": {}, "finish_reason": "stop"}]})
            if reports:
                yield sse(head | {"choices": [], "usage": USAGE["chat"]})
            yield "data: [DONE]\n\n"

        return StreamingResponse(stream(), media_type="text/event-stream")

    def _response(
        self, model: str, *, response_id: str, status: str = "completed", **more: Any
    ) -> dict[str, Any]:
        part: dict[str, Any] = {"type": "output_text", "text": "".join(WORDS), "annotations": []}
        message: dict[str, Any] = {"id": "msg_1", "type": "message", "role": "assistant", "status": status}
        message["content"] = [part]
        is_done = status == "completed"
        output: dict[str, Any] = {
            "output": [message] if is_done else [],
            "usage": USAGE["response"] if is_done else None,
        }
        return {**RESPONSE, "id": response_id, "status": status, "model": model, **output, **more}

    async def _respond(self, request: Request) -> Response:
        asked = await self._read(request)
        text = str(asked["input"])
        if (steered := await self._steered(request, text)) is not None:
            return steered
        name = self._id("resp")
        if asked.get("background"):
            self._model_of_job = asked["model"]
            return JSONResponse(
                self._response(asked["model"], response_id=name, status="queued", background=True)
            )
        if not asked.get("stream"):
            return JSONResponse(self._response(asked["model"], response_id=name))

        async def stream() -> AsyncGenerator[str]:
            async for event in self._response_events(asked["model"], name, text):
                yield sse(event, named=True)

        return StreamingResponse(stream(), media_type="text/event-stream")

    async def _response_events(self, model: str, name: str, text: str) -> AsyncGenerator[dict[str, Any]]:
        begun = self._response(model, response_id=name, status="in_progress")
        yield {"type": "response.created", "sequence_number": 0, "response": begun}
        place: dict[str, Any] = {"item_id": "msg_1", "output_index": 0, "content_index": 0, "logprobs": []}
        number = 1
        async for word in self._words(text):
            yield {"type": "response.output_text.delta", "sequence_number": number, "delta": word, **place}
            number += 1
        done = self._response(model, response_id=name)
        yield {"type": "response.completed", "sequence_number": number, "response": done}

    async def _retrieve(self, request: Request) -> Response:
        name = request.path_params["id"]
        return JSONResponse(self._response(self._model_of_job, response_id=name, background=True))

    async def _transcribe(self, request: Request) -> Response:
        """An answer of the audio API names no model."""
        async with request.form() as form:
            assert form["file"]
        return JSONResponse({"text": "".join(WORDS), "usage": USAGE["transcribed"]})

    async def _list_models(self, request: Request) -> Response:
        if "anthropic-version" in request.headers:
            claude = {"type": "model", "id": "claude-sonnet-5", "created_at": "2026-01-01T00:00:00Z"}
            page = {"has_more": False, "first_id": None, "last_id": None}
            return JSONResponse({"data": [claude], **page})
        gpt: dict[str, Any] = {"id": "gpt-4o-mini", "object": "model", "created": 1, "owned_by": "openai"}
        return JSONResponse({"object": "list", "data": [gpt]})

    async def _respond_live(self, live: WebSocket) -> None:
        await live.accept()
        async for asked in live.iter_json():
            name = self._id("resp")
            async for event in self._response_events(asked["model"], name, str(asked["input"])):
                await live.send_json(event)

    async def _talk(self, live: WebSocket) -> None:
        await live.accept()
        model = live.query_params.get("model")
        session = {"type": "realtime", "model": model, "object": "realtime.session", "id": "sess_1"}
        await live.send_json({"type": "session.created", "event_id": "event_1", "session": session})
        async for event in live.iter_json():
            if event["type"] == "response.cancel":
                await live.close(4000, "cancelled")
                return
            name = self._id("resp")
            delta = {"response_id": name, "item_id": "item_1", "output_index": 0, "content_index": 0}
            for word in WORDS:
                await live.send_json(
                    {"type": "response.output_text.delta", "event_id": "event_2", "delta": word, **delta}
                )
            done: Any = {"id": name, "object": "realtime.response", "status": "completed", "output": []}
            done["usage"] = USAGE["realtime"]
            await live.send_json({"type": "response.done", "event_id": "event_3", "response": done})
        self.stopped["talk"] += 1

    async def _message(self, request: Request) -> Response:
        asked = await self._read(request)
        text = str(asked["messages"][-1]["content"])
        if (steered := await self._steered(request, text)) is not None:
            return steered
        message: dict[str, Any] = {
            "id": self._id("msg"),
            "type": "message",
            "role": "assistant",
            "model": asked["model"],
            "content": [{"type": "text", "text": "".join(WORDS)}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": USAGE["message"],
        }
        if not asked.get("stream"):
            return JSONResponse(message)

        async def stream() -> AsyncGenerator[str]:
            usage = USAGE["message"] | {"output_tokens": 1}
            begun: dict[str, Any] = message | {"content": [], "stop_reason": None, "usage": usage}
            block: Any = {"type": "text", "text": ""}
            yield sse({"type": "message_start", "message": begun}, named=True)
            yield sse({"type": "content_block_start", "index": 0, "content_block": block}, named=True)
            async for word in self._words(text):
                delta = {"type": "text_delta", "text": word}
                yield sse({"type": "content_block_delta", "index": 0, "delta": delta}, named=True)
            yield sse({"type": "content_block_stop", "index": 0}, named=True)
            end = {"stop_reason": "end_turn", "stop_sequence": None}
            usage = {"output_tokens": USAGE["message"]["output_tokens"]}
            yield sse({"type": "message_delta", "delta": end, "usage": usage}, named=True)
            yield sse({"type": "message_stop"}, named=True)

        return StreamingResponse(stream(), media_type="text/event-stream")
