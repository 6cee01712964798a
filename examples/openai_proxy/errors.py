"""Errors in the shape that the SDK of the caller reads: OpenAI's, or Anthropic's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import Scope

    from meterkit import Decision

STATUS: Final = {
    "anonymous": 401,
    "invalid_customer": 400,
    "suspended": 402,
    "payment_required": 402,
    "credits": 402,
    "spend": 402,
    "feature": 403,
    "in_flight": 409,
    "identify": 503,
    "store": 503,
}
OPENAI_TYPES: Final = {402: "insufficient_quota", 403: "permission_error", 429: "rate_limit_exceeded"}
ANTHROPIC_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def speaks_anthropic(scope: Scope) -> bool:
    """Tell Anthropic's API by the path, and where both have the path by a header of its SDK."""
    path: str = scope["path"]
    is_named = any(name == b"anthropic-version" for name, _ in scope["headers"])
    return path.startswith("/v1/messages") or (path.startswith("/v1/models") and is_named)


def refusal(scope: Scope, decision: Decision) -> Response:
    """Answer a refused request; meterkit adds the header fields, such as Retry-After."""
    problem = decision.problem
    if problem is not None:  # The request itself is not allowed, whatever the balance is.
        param = problem.members.get("field", "model")
        return error_response(scope, 400, problem.detail, problem.code, param)
    if decision.reason == "credits":
        return error_response(
            scope, 402, "The balance is used up; POST /billing/top-up opens a page to pay on.", "credits"
        )
    status = STATUS.get(decision.reason or "", 429)
    message = f"Refused: {decision.reason} ({', '.join(decision.violated) or 'no limit'})."
    return error_response(scope, status, message, decision.reason)


def error_response(
    scope: Scope, status: int, message: str, code: str | None = None, param: object = None
) -> Response:
    """Write an error; both SDKs choose the exception by its status."""
    if speaks_anthropic(scope):
        kind = ANTHROPIC_TYPES.get(status, "api_error")
        return JSONResponse({"type": "error", "error": {"type": kind, "message": message}}, status)
    kind = OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    error = {"message": message, "type": kind, "param": param, "code": code}
    return JSONResponse({"error": error}, status)
