"""Responses with figures beyond plain tokens: each call's units and, in micro-dollars, its price by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).parents[1] / "llm_usage/payloads" / "units.yaml"
HAIKU = "claude-haiku-4-5"  # 1 input, 5 output, 0.1 read, 1.25 and 2 written, 10,000 a search
OPUS = "claude-opus-4-8"  # 5 input, 25 output, 0.5 read, 6.25 and 10 written; fast: twice that
FLASH = "gemini-2.5-flash"  # 0.3 input, 1 sound, 0.03 and 0.1 read, 2.5 output, 35,000 a prompt with searches


def message(model: str, usage: dict[str, Any]) -> dict[str, Any]:
    content = [{"type": "text", "text": "Four."}]
    return {"id": "msg_1", "type": "message", "model": model, "content": content, "usage": usage}


def written(short: int, long: int) -> dict[str, int]:
    return {"ephemeral_5m_input_tokens": short, "ephemeral_1h_input_tokens": long}


def iteration(kind: str, entered: int, left: int, **more: Any) -> dict[str, Any]:
    caches = {"cache_read_input_tokens": 0, "cache_creation_input_tokens": 0}
    return {"type": kind, "input_tokens": entered, "output_tokens": left, **caches, **more}


def generated(model: str, usage: dict[str, Any]) -> dict[str, Any]:
    content = {"parts": [{"text": "Four."}], "role": "model"}
    return {
        "candidates": [{"content": content, "finishReason": "STOP"}],
        "usageMetadata": usage,
        "modelVersion": model,
        "responseId": "r1",
    }


def split(**counts: int) -> list[dict[str, Any]]:
    return [{"modality": modality, "tokenCount": count} for modality, count in counts.items()]


# By name: `model` of a call is the one that the response names, `priced_as` the request's.
PAYLOADS: dict[str, dict[str, Any]] = yaml.safe_load(FILE.read_text("utf-8"))
