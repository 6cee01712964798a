"""Foreign objects: read at a bounded cost, and without running code of theirs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NoReturn

import httpx
import pytest

from meterkit import CallUsage, usage_of
from meterkit.tokens.plain_values import MEMBERS_MAX, body_of, table_of
from tokens.recordings import DETAILED, DETAILED_FIGURES, DONE, chat, chat_usage, compact, figures, sse

WHOLE: dict[str, Any] = {"id": "c1", "object": "chat.completion", "choices": [], "usage": DETAILED}


class Touchy:
    """An object whose every attribute bites, but for the one that it has."""

    def __init__(self, **more: Any) -> None:
        self.__dict__.update(more)

    @property
    def text(self) -> NoReturn:
        raise AssertionError("a property was read")

    def read(self) -> NoReturn:
        raise AssertionError("a method was called")

    def __getattr__(self, name: str) -> NoReturn:
        raise AssertionError(f"{name} was asked for")


class Liar:
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


class Endless(dict[str, Any]):
    def items(self) -> Any:
        raise RuntimeError("no items")


@dataclass(slots=True)
class Slotted:
    prompt_tokens: int = 3
    completion_tokens: int = 4
    total_tokens: int = 7


def found(obj: object) -> Any:
    usage = usage_of(obj)
    return None if usage is None else figures(usage)


def test_neither_properties_nor_methods_are_run() -> None:  # F-35
    assert DETAILED_FIGURES == found(Touchy(choices=[], usage=DETAILED))
    assert found(Touchy(other=1)) is None


def test_what_cannot_be_looked_at_says_nothing() -> None:  # F-35
    objects: list[Any] = [Liar(), Endless(a=1), Touchy(usage=Liar()), type, Liar, [], (), ((),)]
    for obj in objects:
        assert usage_of(obj) is None
    assert DETAILED_FIGURES == found(Touchy(choices=[], usage=DETAILED, other=Liar(), more=Endless(a=1)))


def test_slots_and_defaults_of_classes_are_members() -> None:
    assert ("reported", 3, 4) == found(Slotted())[:3]
    assert ("reported", 3, 4) == found(SimpleNamespace(choices=[], usage=Slotted()))[:3]


def graph(size: int) -> SimpleNamespace:
    """Objects each of which knows all others."""
    nodes = [SimpleNamespace() for _ in range(size)]
    for node in nodes:
        node.__dict__.update({f"n{at}": other for at, other in enumerate(nodes)})
    return nodes[0]


def test_objects_that_know_each_other_are_each_read_once() -> None:  # F-35
    began = time.process_time()
    assert usage_of(graph(20)) is None
    # It took 20 ** 8 steps before; the bound is what a loaded machine may need.
    assert time.process_time() - began < 0.5


def test_usage_is_found_before_a_large_object_is_cut_off() -> None:  # F-35
    tokens = [{"token": "a", "logprob": -1, "top": [{"token": "b"}] * 20} for _ in range(5_000)]
    large = {
        "choices": [{"index": 0, "finish_reason": "stop", "logprobs": {"content": tokens}}] * 100,
        "more": graph(40),
        "object": "chat.completion",
        "usage": DETAILED,
    }
    assert DETAILED_FIGURES == found(large)
    wide = table_of({f"n{at}": {"a": 1, "b": 2} for at in range(MEMBERS_MAX)})
    assert wide is not None
    assert sum(map(len, wide.values())) <= MEMBERS_MAX


def test_an_http_response_that_was_read_is_read_and_one_that_was_not_is_left_alone() -> None:  # F-35
    request = httpx.Request("POST", "http://provider/v1/chat/completions")
    whole = httpx.Response(200, content=compact(WHOLE), request=request)
    assert DETAILED_FIGURES == found(whole)
    stream = b"".join([sse(chat({"content": "a"})), sse(chat(None, usage=chat_usage(3, 4))), DONE])
    assert ("reported", 3, 4) == found(httpx.Response(200, content=stream, request=request))[:3]
    unread = httpx.Response(200, stream=httpx.ByteStream(compact(WHOLE)), request=request)
    assert usage_of(unread) is None
    assert not hasattr(unread, "_content")
    assert body_of(SimpleNamespace(http_response=whole)) == compact(WHOLE)
    assert DETAILED_FIGURES == found(SimpleNamespace(http_response=whole, _options=Touchy()))


@pytest.mark.parametrize("body", [compact(WHOLE), bytearray(compact(WHOLE)), compact(WHOLE).decode()])
def test_a_body_may_be_given_itself(body: object) -> None:
    assert DETAILED_FIGURES == found(body)


def test_several_calls_are_summed_and_what_only_some_know_is_unknown() -> None:
    calls: list[dict[str, Any]] = [
        {"response_id": "r1", "output": [], "usage": {"input_tokens": 1, "output_tokens": 2}},
        {
            "response_id": "r2",
            "output": [],
            "usage": {
                "input_tokens": 10,
                "output_tokens": 20,
                "input_tokens_details": {"cached_tokens": 5},
            },
        },
    ]
    usage = usage_of(SimpleNamespace(raw_responses=calls))
    assert isinstance(usage, CallUsage)
    assert ("reported", 11, 22, None, None, None) == figures(usage)
    assert usage.response_id is None
    assert {"input_tokens": 11, "output_tokens": 22, "total_tokens": 33} == usage.quantities()
