"""Figures in the headers of Bedrock's InvokeModel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meterkit.tokens.objects import calls_of
from meterkit.tokens.response import ResponseReader
from tokens.recordings import compact
from tokens.unit_payloads import HAIKU, message

if TYPE_CHECKING:
    from meterkit.tokens.call_usage import CallUsage


HEADERS = [
    (b"Content-Type", b"application/json"),
    (b"X-Amzn-Bedrock-Input-Token-Count", b"12"),
    (b"x-amzn-bedrock-output-token-count", b"5"),
]
DEEPSEEK = {"choices": [{"text": "Four.", "stop_reason": "stop"}]}
OF_MISTRAL = {"outputs": [{"text": "Four.", "stop_reason": "stop"}]}


def read_with(headers: list[tuple[bytes, bytes]], value: object, usage: str) -> tuple[CallUsage, ...]:
    reader = ResponseReader.open(usage, status=200, headers=headers)
    assert reader is not None
    reader.feed(compact(value))
    calls = reader.close(complete=True)
    assert not any(call.source == "reported" for call in calls) or reader.estimated_output_tokens == 0
    return calls


@pytest.mark.parametrize("usage", ["bedrock", "auto"])
@pytest.mark.parametrize("value", [DEEPSEEK, OF_MISTRAL, {"embeddings": [[0.1]]}])
def test_headers_of_invoke_model_count_where_the_body_has_no_figures(value: object, usage: str) -> None:
    (call,) = read_with(HEADERS, value, usage)
    assert (call.source, call.provider) == ("reported", "aws.bedrock")
    assert call.units == {"input_tokens": 12, "output_tokens": 5}


@pytest.mark.parametrize("usage", ["bedrock", "auto"])
def test_figures_of_the_body_count_before_those_of_headers(usage: str) -> None:
    (call,) = read_with(HEADERS, message(HAIKU, {"input_tokens": 12, "output_tokens": 7}), usage)
    assert call.units == {"input_tokens": 12, "output_tokens": 7}


@pytest.mark.parametrize("bad", [b"-1", b"1.5", b"many", b"", b"1" * 16])
def test_a_header_that_is_no_figure_counts_nothing(bad: bytes) -> None:
    headers = [*HEADERS[:2], (b"x-amzn-bedrock-output-token-count", bad)]
    (call,) = read_with(headers, DEEPSEEK, "bedrock")
    assert (call.units, call.notes) == ({"input_tokens": 12}, ("refused",))


def test_the_answer_of_boto3_has_the_headers_too() -> None:
    sent = {name.decode().lower(): value.decode() for name, value in HEADERS}
    answer = {"ResponseMetadata": {"HTTPStatusCode": 200, "HTTPHeaders": sent}, "body": object()}
    (call,) = calls_of(answer)
    assert call.units == {"input_tokens": 12, "output_tokens": 5}
