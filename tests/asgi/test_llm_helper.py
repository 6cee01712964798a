"""Asking the provider for usage that the client did not ask for, and hiding the answer to that."""

from __future__ import annotations

import asyncio
from copy import deepcopy
from time import thread_time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from drivers.llm_apps import metered, stream_of, tokens
from meterkit import MeterkitError
from meterkit.llm import ask_for_usage
from tokens.recordings import LIE, chat, chat_usage, sse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from starlette.requests import Request

pytestmark = pytest.mark.anyio

# What is counted is asked, not how soon.
PATIENT = {"store_timeout": 10.0}

ASKED: dict[str, Any] = {"model": "m", "messages": [], "stream": True}
SAID = [chat({"content": "Hi"}, usage=None), chat({"content": LIE}, usage=None), chat({}, finish="stop")]
EXTRA = chat(None, usage=chat_usage(3, 4))
FIRST = chat(None, prompt_filter_results=[], usage=None)  # As Azure begins its streams.
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("more", "options", "hides"),
    [
        ({"stream_options": None}, {"include_usage": True}, True),
        ({"stream_options": {"include_usage": False, "x": 1}}, {"include_usage": True, "x": 1}, True),
        ({"stream_options": {"include_usage": True}}, {"include_usage": True}, False),
        ({"stream_options": "odd"}, "odd", False),
        ({"stream": False}, None, False),
    ],
)
def test_the_provider_is_asked_whatever_the_client_asked(
    more: dict[str, Any], options: object, *, hides: bool
) -> None:
    given = {**ASKED, **more}
    before = deepcopy(given)
    body, restore = ask_for_usage(given)
    assert (options, hides) == (body.get("stream_options"), restore.hides)
    assert before == given
    assert {**body, "stream_options": 0} == {**given, "stream_options": 0}
    assert ask_for_usage(given, supported=False).body == given


def pieces(body: bytes, size: int) -> list[Any]:
    return [body[at : at + size] for at in range(0, len(body), size)]


def lines(body: bytes, _: int) -> list[Any]:
    return [*body.decode().splitlines()]


def texts(body: bytes, size: int) -> list[Any]:
    text = body.decode()
    return [text[at : at + size] for at in range(0, len(text), size)]


async def through(
    chunks: Sequence[Any],
    store_url: str,
    *,
    asked: dict[str, Any] = ASKED,
    sync: bool = False,
    path: str = "/none",
) -> tuple[list[Any], tuple[int, ...]]:
    """What is left of a stream, and what it counts."""
    left: list[Any] = []

    async def endpoint(request: Request) -> Response:
        del request
        _, restore = ask_for_usage(asked)
        if sync:
            left.extend(await asyncio.to_thread(lambda: list(restore(chunks))))
        else:
            left.extend([chunk async for chunk in restore(stream_of(chunks))])
        return PlainTextResponse("done")

    async with metered(
        Starlette(routes=[Route("/{path:path}", endpoint)]), store_url, settings=PATIENT
    ) as at:
        assert 200 == (await at.client.get(path)).status_code
        return left, await tokens(at.kit)


def as_given(chunk: dict[str, Any]) -> Any:
    return chunk


def as_object(chunk: dict[str, Any]) -> Any:
    return SimpleNamespace(**chunk)


@pytest.mark.parametrize(("kind", "sync"), [(as_given, False), (as_object, True)])
async def test_of_objects_the_extra_one_is_counted_and_hidden(
    kind: Callable[[Any], Any], store_url: str, *, sync: bool
) -> None:
    chunks = [kind(chunk) for chunk in (FIRST, *SAID, EXTRA)]
    left, counted = await through(chunks, store_url, sync=sync)
    assert chunks[:-1] == left
    assert all(given is kept for given, kept in zip(chunks, left, strict=False))
    assert (3, 4) == counted
    asked = {**ASKED, "stream_options": {"include_usage": True}}
    assert chunks == (await through(chunks, store_url, asked=asked, sync=sync))[0]


@pytest.mark.parametrize(("cut", "end"), [(pieces, b"\r\n"), (pieces, b"\r"), (texts, b"\n"), (lines, b"\n")])
async def test_of_bytes_texts_and_lines_too(
    cut: Callable[[bytes, int], list[Any]], end: bytes, store_url: str
) -> None:
    def stream(*chunks: Any) -> bytes:
        return b": hello" + end + end + b"".join(sse(chunk, end=end) for chunk in chunks) + DONE

    whole, expected = stream(FIRST, *SAID, EXTRA), stream(FIRST, *SAID)
    sizes = {"pieces": (1, 64, 10_000), "texts": (64,), "lines": (0,)}
    for size in sizes[cut.__name__]:
        left, counted = await through(cut(whole, size), store_url)
        assert (3, 4) == counted
        if cut is lines:
            assert [line for line in lines(expected, 0) if line] == [line for line in left if line]
        else:
            assert expected == b"".join(part if cut is pieces else part.encode() for part in left)


async def test_an_event_byte_by_byte_takes_linear_time(store_url: str) -> None:
    """Each byte is searched once; looking from the event's start each time takes ten seconds and more."""
    event = sse({**SAID[0], "padding": "x" * 60_000})
    chunks = [event[at : at + 1] for at in range(len(event))]
    begun = thread_time()
    left, _ = await through([*chunks, sse(EXTRA), DONE], store_url)
    assert thread_time() - begun < 8
    assert event + DONE == b"".join(left)


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n"])
async def test_the_end_of_a_large_event_is_found_however_cut(end: bytes, store_url: str) -> None:
    long = b"data: " + b"b" * 70_000
    for size in (1, 3):
        cut = [end[at : at + size] for at in range(0, len(end), size)]
        left, counted = await through([long, *cut, sse(EXTRA, end=b"\r\n")[:-1], b"\n", DONE], store_url)
        assert long + end + DONE == b"".join(left)
        assert (3, 4) == counted


async def test_a_stream_whose_end_is_torn_off_passes_to_the_last_byte(store_url: str) -> None:
    torn = sse(SAID[0]) + b'data: {"choices": [], "usage": {"prom'
    left, _ = await through([torn[:50], torn[50:]], store_url)
    assert torn == b"".join(left)
    left, counted = await through([sse(SAID[0]), sse(EXTRA).rstrip()], store_url)
    assert [sse(SAID[0])] == left
    assert (3, 4) == counted


async def test_closing_closes_the_stream_and_counts_what_has_come(store_url: str) -> None:
    closed: list[bool] = []

    class Stream:
        def __aiter__(self) -> AsyncIterator[Any]:
            return stream_of([SAID[0], EXTRA])

        async def aclose(self) -> None:
            closed.append(True)

    async def endpoint(request: Request) -> Response:
        del request
        stream = ask_for_usage(ASKED).restore(Stream())
        assert SAID[0] == await anext(stream)
        await stream.aclose()
        return PlainTextResponse("done")

    async with metered(Starlette(routes=[Route("/attempt", endpoint)]), store_url, settings=PATIENT) as at:
        assert 200 == (await at.client.get("/attempt")).status_code
        assert (await tokens(at.kit))[1] > 0
    assert [True] == closed


async def test_outside_of_a_request_it_says_so() -> None:
    with pytest.raises(MeterkitError, match="outside of a request"):
        ask_for_usage(ASKED).restore([])
