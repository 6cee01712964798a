"""Answers to those who script the emulator over HTTP, without a key."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, Response

from stripe_emulator.protocol import ApiError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request

    from stripe_emulator.protocol import JsonObject


def control_endpoint(
    act: Callable[[Request], Awaitable[JsonObject]],
) -> Callable[[Request], Awaitable[Response]]:
    """Return the endpoint of a function: its answer as JSON, or 400 with what is wrong with the request."""

    async def answer(request: Request) -> Response:
        try:
            return JSONResponse(await act(request))
        except (ApiError, OverflowError, TypeError, ValueError) as error:
            return JSONResponse({"error": str(error)}, status_code=HTTPStatus.BAD_REQUEST)

    return answer
