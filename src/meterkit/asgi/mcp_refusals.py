"""Refusals in the form of MCP: results of tool calls, with offers in the form of x402, and JSON-RPC errors.

https://github.com/coinbase/x402/blob/main/specs/transports-v2/mcp.md
"""

from __future__ import annotations

import json
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from meterkit.asgi.offers import compact, payment_required

if TYPE_CHECKING:
    from meterkit.asgi.mcp_messages import McpMessage
    from meterkit.asgi.problems import Denial

ERROR_CODE: Final = -32000
"""Of refusals: the first code that servers of JSON-RPC may use as they like."""
_REPLACED: Final = frozenset({b"content-type", b"content-length"})
_JSON: Final = (b"content-type", b"application/json")


def mcp_denial(denial: Denial, message: McpMessage) -> Denial:
    """A refusal as an answer to a message of MCP; one that wants no answer gets the problem document.

    A tool call that is refused with 402, or with an offer, gets a *result* with ``isError``, which reaches
    the model. The result has the problem document as ``problem``, and the members of x402 only if there is
    an offer: their ``accepts`` must not be empty. All other messages get a JSON-RPC error with the status of
    the refusal, and the problem document as its ``data``.
    """
    if not message.is_request:
        return denial
    problem: dict[str, Any] = json.loads(denial.body)
    head = tuple(pair for pair in denial.headers if pair[0] not in _REPLACED)
    answered: dict[str, Any] = {"jsonrpc": "2.0", "id": message.id}
    offer: dict[str, Any] | None = problem.get("offer")
    is_payable = denial.status == HTTPStatus.PAYMENT_REQUIRED or offer is not None
    if is_payable and message.method == "tools/call":
        told: dict[str, Any] = {"problem": problem}
        if offer is not None:
            told = payment_required(problem["detail"], f"mcp://tool/{message.name}", offer) | told
        text = compact(told).decode()
        content = [{"type": "text", "text": text}]
        # Results of the current revision say what kind they are: this one is complete.
        answered["result"] = {
            "resultType": "complete",
            "isError": True,
            "structuredContent": told,
            "content": content,
        }
        return _answer(denial, HTTPStatus.OK, head, answered)
    answered["error"] = {"code": ERROR_CODE, "message": problem["detail"], "data": problem}
    return _answer(denial, denial.status, head, answered)


def _answer(
    denial: Denial, status: int, head: tuple[tuple[bytes, bytes], ...], answered: dict[str, Any]
) -> Denial:
    body = compact(answered)
    length = (b"content-length", b"%d" % len(body))
    return replace(denial, status=int(status), headers=(_JSON, length, *head), body=body)
