"""One log line for each request that is refused, or in shadow would be."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from meterkit.asgi.sampler import Sampler

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import Scope

    from meterkit.catalog import Route
    from meterkit.decisions.decision import Decision

__all__ = ["RefusalLog"]

_logger = logging.getLogger("meterkit.refusals")

_LINES_A_SECOND: Final = 10
# What browsers and people ask for by themselves, without credentials.
_USUALLY_OPEN: Final = frozenset({"/docs", "/redoc", "/openapi.json", "/favicon.ico", "/robots.txt"})


class RefusalLog:
    """Writes to the logger ``meterkit.refusals``, at most ten lines a second.

    The record of each has the attributes ``customer``, ``plan``, ``reason``, ``limit``, ``route``,
    ``status``, ``instance`` and ``shadow``; the line that tells how many were not written has ``suppressed``.
    """

    def __init__(self) -> None:
        self._sampler = Sampler(_LINES_A_SECOND, 1.0, _suppressed)

    def refused(self, decision: Decision, route: Route, scope: Scope, *, status: int, instance: str) -> None:
        """A request was answered with a refusal."""
        if self._sampler.admits():
            said = _said(decision, route) | {"status": status, "instance": instance}
            words = _words(said) + _hint(decision, scope)
            _logger.warning("refused: %s", words, extra=said | {"shadow": False})

    def shadowed(self, decision: Decision, route: Route) -> None:
        """A request was served that would have been refused."""
        if self._sampler.admits():
            said = _said(decision, route)
            extra = said | {"status": None, "instance": None, "shadow": True}
            _logger.warning("would be refused, but enforcement is shadow: %s", _words(said), extra=extra)


def _said(decision: Decision, route: Route) -> dict[str, str | int | bool | None]:
    return {
        "customer": decision.customer,
        "plan": decision.plan,
        "reason": decision.reason,
        "limit": decision.limit,
        "route": route.match,
    }


def _words(said: Mapping[str, object]) -> str:
    # As ASCII literals: whatever stands in a customer's id, it neither ends the line nor looks like a field.
    return " ".join(
        f"{name}={ascii(value) if isinstance(value, str) else value}"
        for name, value in said.items()
        if value is not None
    )


def _hint(decision: Decision, scope: Scope) -> str:
    path = scope["path"]
    if decision.reason != "anonymous" or path not in _USUALLY_OPEN:
        return ""
    return f'; if everybody may ask for it, put {{match: "GET {path}", exempt: true}} above this line'


def _suppressed(number: int) -> None:
    _logger.warning(
        "%d more requests were refused, or would be in shadow, within a second", number,
        extra={"suppressed": number},
    )  # fmt: skip
