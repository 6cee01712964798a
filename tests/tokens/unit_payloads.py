"""Responses with figures beyond plain tokens: each call's units and, in micro-dollars, its price by hand."""

from __future__ import annotations

from typing import Any

import yaml

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
PAYLOADS: dict[str, dict[str, Any]] = yaml.safe_load("""
cache writes that only their parts name:
  usage: anthropic
  provider: anthropic
  value:
    id: msg_1
    type: message
    model: claude-haiku-4-5
    content: &four [{type: text, text: Four.}]
    usage: {input_tokens: 10, cache_creation_input_tokens: 0, output_tokens: 1,
            cache_creation: {ephemeral_5m_input_tokens: 0, ephemeral_1h_input_tokens: 400}}
  calls:
    - model: claude-haiku-4-5
      units: {input_tokens: 410, output_tokens: 1, cache_write_tokens: 400, cache_write_5m_tokens: 0,
              cache_write_1h_tokens: 400}
      price: 10 + 400*2 + 5
fast, in one region, with priority:
  usage: anthropic
  provider: anthropic
  value:
    id: msg_1
    type: message
    model: claude-opus-4-8
    content: *four
    usage: {input_tokens: 1000, output_tokens: 100, service_tier: priority, speed: fast, inference_geo: us}
  calls:
    - model: claude-opus-4-8
      units: {input_tokens: 1000, output_tokens: 100}
      context: {service_tier: priority, speed: fast, inference_geo: us}
      price: 1.1*1000*10 + 1.1*100*50
a fallback after a model that declined, with output and without:
  usage: anthropic
  provider: anthropic
  value:
    id: msg_1
    type: message
    model: claude-haiku-4-5-20251001
    content: *four
    usage:
      input_tokens: 2
      output_tokens: 100
      cache_read_input_tokens: 50000
      cache_creation_input_tokens: 0
      iterations:
        - {type: message, input_tokens: 2, output_tokens: 60, cache_read_input_tokens: 100,
           cache_creation_input_tokens: 10000, model: claude-opus-4-8}
        - {type: message, input_tokens: 2, output_tokens: 0, cache_read_input_tokens: 50,
           cache_creation_input_tokens: 0, model: claude-opus-5}
        - {type: fallback_message, input_tokens: 2, output_tokens: 100, cache_read_input_tokens: 50000,
           cache_creation_input_tokens: 0, model: claude-haiku-4-5}
  calls:
    - model: claude-haiku-4-5
      units: {input_tokens: 50002, output_tokens: 100, cache_read_tokens: 50000, cache_write_tokens: 0}
      price: 2 + 100*5 + 50000*0.1
    - model: claude-opus-4-8
      units: {input_tokens: 10102, output_tokens: 60, cache_read_tokens: 100, cache_write_tokens: 10000}
      price: 2*5 + 60*25 + 100*0.5 + 10000*6.25
Converse with cache writes by time to live, a tier and a router:
  usage: bedrock
  provider: aws.bedrock
  value:
    output: {message: {role: assistant, content: [{text: Four.}]}}
    stopReason: end_turn
    usage:
      inputTokens: 100
      outputTokens: 10
      totalTokens: 410
      cacheReadInputTokens: 0
      cacheWriteInputTokens: 300
      cacheDetails: [{ttl: 5m, inputTokens: 100}, {ttl: 1h, inputTokens: 150}, {ttl: 1h, inputTokens: 50}]
    metrics: {latencyMs: 1}
    performanceConfig: {latency: optimized}
    serviceTier: {type: priority}
    trace:
      promptRouter:
        invokedModelId: &routed "arn:aws:bedrock:us-east-1:123456789012:inference-profile/\\
          global.anthropic.claude-haiku-4-5-20251001-v1:0"
  calls:
    - model: *routed
      units: {input_tokens: 400, output_tokens: 10, cache_read_tokens: 0, cache_write_tokens: 300,
              cache_write_5m_tokens: 100, cache_write_1h_tokens: 200}
      context: {service_tier: priority, speed: optimized}
      price: 100 + 100*1.25 + 200*2 + 10*5
a tier of Vertex AI:
  usage: gemini
  provider: gcp.gemini
  value:
    candidates: [{content: {parts: [{text: Four.}], role: model}, finishReason: STOP}]
    usageMetadata: {promptTokenCount: 100, candidatesTokenCount: 200, totalTokenCount: 300,
                    trafficType: ON_DEMAND_FLEX}
    modelVersion: gemini-3.8-flash-tts
    responseId: r1
  calls:
    - model: gemini-3.8-flash-tts
      units: {input_tokens: 100, output_tokens: 200}
      context: {service_tier: flex}
      price: 100*0.25 + 200*4.5
an interaction that searched:
  usage: gemini
  provider: gcp.gemini
  value:
    id: int_1
    status: completed
    model: gemini-2.5-flash
    outputs: *four
    service_tier: standard
    usage:
      total_input_tokens: 100
      total_output_tokens: 10
      total_tokens: 110
      input_tokens_by_modality: [{modality: text, tokens: 40}, {modality: audio, tokens: 60}]
      grounding_tool_count: [{type: google_search, count: 3}]
  calls:
    - model: gemini-2.5-flash
      units: {input_tokens: 100, input_text_tokens: 40, input_audio_tokens: 60, output_tokens: 10,
              web_searches: 1}
      price: 40*0.3 + 60*1 + 10*2.5 + 35000
embeddings of images and texts:
  usage: cohere
  provider: cohere
  value: {id: e1, embeddings: {float: [[0.1]]},
          meta: {billed_units: {image_tokens: 900.0, text_tokens: 100.0}}}
  calls:
    - priced_as: embed-v4.0
      units: {input_tokens: 1000, input_image_tokens: 900, input_text_tokens: 100, output_tokens: 0}
      price: 1000*0.12
classifications:
  usage: cohere
  provider: cohere
  value: {id: c1, classifications: [{id: "1", prediction: spam}], meta: {billed_units: {classifications: 1}}}
  calls: []
""")
