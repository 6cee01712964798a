"""OpenAI-shaped answers with every unit that they report, and what each costs, worked out by hand.

Prices are of genai-prices, in micro-dollars a unit: each sum stands with its payload.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import yaml

from llm_payloads.corpus_rows import amount
from llm_payloads.recordings import chat_usage, compact, sse

FILE = Path(__file__).parents[1] / "llm_usage/payloads" / "openai.yaml"


@dataclass(frozen=True, kw_only=True)
class Payload:
    """An answer.

    Attributes:
        said: one document, or the events of a stream.
        units: the further counters of its calls, in their order.
        asked: the model that the request names.
        models: that the calls name.
    """

    said: Any
    micros: Fraction
    units: list[dict[str, int]] = field(default_factory=lambda: [dict[str, int]()])
    asked: str = "gpt-5"
    models: tuple[str | None, ...] = ("gpt-5",)
    provider: str = "openai"

    @property
    def is_stream(self) -> bool:
        return isinstance(self.said, list)

    @property
    def body(self) -> bytes:
        return b"".join(map(sse, self.said)) if self.is_stream else compact(self.said)


def answer(
    model: str, prompt: int, completion: int, *, total: int | None = None, **more: Any
) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}
    usage = chat_usage(prompt, completion, total, **more)
    return {"id": "c1", "object": "chat.completion", "model": model, "choices": [choice], "usage": usage}


def response(model: str = "gpt-5", entered: int = 1000, left: int = 100, **more: Any) -> dict[str, Any]:
    said: dict[str, Any] = {"id": "resp_1", "object": "response", "status": "completed", "model": model}
    usage = {
        "input_tokens": entered,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": left,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": entered + left,
    }
    return {**said, "output": [], **more, "usage": usage}


def _payload(*, price: str | int, models: Sequence[str | None] = ("gpt-5",), **row: Any) -> Payload:
    said: Any = row.pop("said", None)
    if "response" in row:
        said = response(**row.pop("response"))
    elif "answer" in row:
        said = {**answer(**row.pop("answer")), **row.pop("beside", {})}
    return Payload(said=said, micros=amount(str(price)), models=tuple(models), **row)


FLEX = response(service_tier="flex")
DELTA = {"type": "response.output_text.delta", "item_id": "m", "delta": "Hi"}
PAYLOADS = {
    **{name: _payload(**row) for name, row in yaml.safe_load(FILE.read_text("utf-8")).items()},
    "flex in a stream": _payload(
        said=[
            {"type": "response.created", "response": {**FLEX, "status": "in_progress", "usage": None}},
            DELTA,
            {"type": "response.completed", "response": FLEX},
        ],
        price="1000*0.625 + 100*5",
    ),
    # Of a model that a live session has asked.
    "response in a live session": _payload(
        said=[
            {"type": "response.event", "event": DELTA},
            {"type": "response.event", "event": {"type": "response.completed", "response": response()}},
        ],
        price="1000*1.25 + 100*10",
    ),
}
PAINTED: Any = PAYLOADS["image tool"].said
TRANSCRIBED: Any = PAYLOADS["what a user has said"].said[0]
