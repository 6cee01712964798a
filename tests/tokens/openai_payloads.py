"""OpenAI-shaped answers with every unit that they report, and what each costs, worked out by hand.

Prices are of genai-prices, in micro-dollars a unit: each sum stands with its payload.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from tokens.corpus_rows import amount
from tokens.recordings import chat_usage, compact, sse

if TYPE_CHECKING:
    from collections.abc import Sequence
    from fractions import Fraction


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


TEXT = """
chat with sound:
  answer:
    model: gpt-audio
    prompt: 1000
    completion: 300
    prompt_tokens_details: {cached_tokens: 0, audio_tokens: 800, text_tokens: 200, image_tokens: 0}
    completion_tokens_details: {reasoning_tokens: 0, audio_tokens: 250, text_tokens: 50}
  price: 200*2.5 + 800*32 + 50*10 + 250*64
  units: [{input_text_tokens: 200, input_audio_tokens: 800, input_image_tokens: 0, output_text_tokens: 50,
           output_audio_tokens: 250}]
  asked: gpt-audio
  models: [gpt-audio]
cached beyond the prompt:  # No more is cached than went in.
  answer: {model: gpt-4o, prompt: 1000, completion: 100, prompt_tokens_details: {cached_tokens: 1300000000}}
  price: 1000*1.25 + 100*10
  models: [gpt-4o]
image as lines:  # Another model draws the lines.
  said:
    created: 1
    data: [{b64_json: AAAA}]
    usage: {input_tokens: 50, input_tokens_details: {text_tokens: 20, image_tokens: 30}, output_tokens: 1100,
            total_tokens: 1150}
    svg_usage: {input_tokens: 100, model: gpt-5, output_tokens: 400, reasoning_tokens: 300, total_tokens: 500}
  price: 20*5 + 30*10 + 1100*40 + 100*1.25 + 400*10
  units: [{input_text_tokens: 20, input_image_tokens: 30, output_image_tokens: 1100}, {}]
  asked: gpt-image-1
  models: [null, gpt-5]
transcription:
  said:
    text: hello
    usage: &heard {type: tokens, input_tokens: 140, output_tokens: 20, total_tokens: 160,
                   input_token_details: {audio_tokens: 130, text_tokens: 10}}
  price: &of_heard 130*6 + 10*2.5 + 20*10
  units: &units_heard [{input_audio_tokens: 130, input_text_tokens: 10}]
  asked: gpt-4o-transcribe
  models: [null]
transcription by duration:  # 0.36 dollars an hour, once
  said: {text: hello, usage: {type: duration, seconds: 30}}
  price: 30*100
  units: [{audio_seconds: 30, input_audio_seconds: 30}]
  asked: whisper-1
  models: [null]
chat of Mistral with sound:  # 0.24 dollars an hour; its tokens are in the total only.
  answer: {model: voxtral-small-24b-2507, prompt: 4, completion: 635, total: 3264, prompt_audio_seconds: 30}
  price: 4*0.1 + 635*0.4 + 30*200/3
  units: [{audio_seconds: 30, input_audio_seconds: 30}]
  models: [voxtral-small-24b-2507]
searches:
  response:
    output: &searched
      - &search {type: web_search_call, id: ws, status: completed, action: {type: search, query: x}}
      - *search
      - {type: web_search_call, id: ws, status: completed, action: {type: open_page, query: x}}
      - {type: web_search_call, id: ws, status: completed, action: {type: find_in_page, query: x}}
      - {type: web_search_call, id: ws, status: failed, action: {type: search, query: x}}
      - {type: web_search_call, id: ws_old, status: completed}
      - {type: file_search_call, id: fs, status: completed, queries: [x]}
      - {type: code_interpreter_call, id: ci, status: completed, code: "1"}
      - {type: message, status: completed, content: [{type: output_text, text: Hi}]}
  price: 1000*1.25 + 100*10 + 2*10000 + 2500
  units: [{web_searches: 2, storage_searches: 1, code_executions: 1}]
billed searches:  # The response says that three are billed.
  response: {output: *searched, tool_usage: {web_search: {num_requests: 3}}}
  price: 1000*1.25 + 100*10 + 3*10000 + 2500
  units: [{web_searches: 3, storage_searches: 1, code_executions: 1}]
image tool:  # F-213: 30 and 7,024 of the image model
  response:
    model: gpt-5.5
    entered: 1820
    left: 210
    tools: [{type: function, name: f}, {type: image_generation, model: gpt-image-2}]
    tool_usage:
      image_gen: {input_tokens: 30, input_tokens_details: {text_tokens: 30, image_tokens: 0},
                  output_tokens: 7024, output_tokens_details: {text_tokens: 0, image_tokens: 7024},
                  total_tokens: 7054}
      web_search: {num_requests: 0}
  price: 1820*5 + 210*30 + 30*5 + 7024*30
  units: [{web_searches: 0},
          {input_text_tokens: 30, input_image_tokens: 0, output_text_tokens: 0, output_image_tokens: 7024}]
  models: [gpt-5.5, gpt-image-2]
image tool of no name:  # Of the model that is used if none is named.
  response:
    tool_usage:
      image_gen: {input_tokens: 130, input_tokens_details: {text_tokens: 30, image_tokens: 100},
                  cached_tokens: 60, cached_tokens_details: {cached_text_tokens: 10, cached_image_tokens: 50},
                  output_tokens: 100, total_tokens: 230}
  price: 1000*1.25 + 100*10 + 20*5 + 10*1.25 + 50*8 + 50*2 + 100*30
  units: [{}, {input_text_tokens: 30, input_image_tokens: 100, output_image_tokens: 100,
               cache_text_read_tokens: 10, cache_image_read_tokens: 50}]
  models: [gpt-5, gpt-image-2.5-sunburst]
image tool that was not used:
  response:
    tool_usage: {image_gen: {input_tokens: 0, output_tokens: 0, total_tokens: 0},
                 web_search: {num_requests: 0}}
  price: 1000*1.25 + 100*10
  units: [{web_searches: 0}]
compaction:  # The items are those of earlier turns.
  response: {entered: 2000, object: response.compaction, output: [*search]}
  price: 2000*1.25 + 100*10
priority:
  answer: {model: gpt-5, prompt: 1000, completion: 100}
  beside: {service_tier: priority}
  price: 2*1000*1.25 + 2*100*10
batch:  # Half of the list price.
  response: {id: batch_1, object: batch, endpoint: /v1/responses}
  price: 1000*0.625 + 100*5
gateway:
  answer: {model: x/y, prompt: 10, completion: 5, cost: 0.00123, is_byok: false}
  beside: {provider: Google}
  price: "1230"
  models: [x/y]
  provider: openrouter
gateway that charges nothing:
  answer: {model: gpt-5, prompt: 10, completion: 5, cost: 0}
  beside: {provider: Google}
  price: "0"
  provider: openrouter
transcription of a gateway:
  said: {text: hello, usage: {seconds: 9.2, cost: 0.000508}}
  price: "508"
  units: [{audio_seconds: 9, input_audio_seconds: 9}]
  models: [null]
  provider: openrouter
Cloudflare:
  said: {success: true, errors: [], result: {response: Hi, usage: {prompt_tokens: 10, completion_tokens: 5,
                                                                  total_tokens: 15}}}
  price: 10*1.25 + 5*10
  models: [null]
decision:
  said:
    answers: [{type: choice, name: q, choice: a}]
    model: gpt-5
    usage: {input_tokens: 1000, input_tokens_details: {cached_tokens: 0}, output_tokens: 100,
            output_tokens_details: {reasoning_tokens: 0}, total_tokens: 1100}
  price: 1000*1.25 + 100*10
what a user has said:  # The session names gpt-4o-transcribe.
  said:
    - {type: conversation.item.input_audio_transcription.completed, event_id: e, item_id: item_1,
       content_index: 0, transcript: hello, usage: *heard}
  price: *of_heard
  units: *units_heard
  asked: gpt-4o-transcribe
  models: [null]
live session:  # 3 dollars an hour: each event has the sum so far.
  said:
    - {type: session.usage.updated, event_id: e, usage: {seconds: 20}}
    - {type: session.usage.updated, event_id: e, usage: {seconds: 45}}
    - {type: session.closed, reason: expired, session: {id: live_1, model: gpt-live-1},
       usage: {seconds: 60.0}}
  price: 60*2500/3
  units: [{audio_seconds: 60}]
  models: [gpt-live-1]
"""


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
    **{name: _payload(**row) for name, row in yaml.safe_load(TEXT).items()},
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
