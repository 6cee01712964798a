"""Reads the usage of language models along a request, and knows the models that it names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterkit.asgi.call_names import name_calls
from meterkit.asgi.client_watch import ClientWatch
from meterkit.asgi.kept_request import KeptRequest
from meterkit.asgi.llm_calls import LlmCalls
from meterkit.asgi.reading import Reading
from meterkit.catalog.routes import is_fetched

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.asgi.body import BufferedBody
    from meterkit.tokens.call_usage import CallUsage
    from meterkit.tokens.estimate import InputEstimator


class UsageWatch(ClientWatch):
    """A request whose answer may have the usage of language models.

    Slots:
        _llm: the calls of language models; None: there are none, as far as is known.
        _reading: reads the answer; None: the route says that it has no usage.
        _request: keeps the request's body; unset where neither its body nor its answer is read.
    """

    __slots__ = ("_llm", "_reading", "_request")

    _llm: LlmCalls | None
    _reading: Reading | None
    _request: KeptRequest

    def read_usage(self, body: BufferedBody | None, estimate: InputEstimator) -> None:
        """Read the response's token usage as it is sent, where the route says so.

        Args:
            body: the request's, where it was read before.
            estimate: what measures the input where the client does not wait for the usage.
        """
        if body is not None:
            self.server_receive = body.receive
            self._gone = self._early = self._within = body.gone
        usage = self._route.usage
        if usage == "none" and not self._route.keeps_request:
            return
        self._request = request = KeptRequest(self._scope, self.server_receive, body)
        self.server_receive = request.receive
        if usage != "none":
            fetched = is_fetched(usage, self._scope["method"].upper())  # h11 hands on "post".
            self._reading = Reading(
                self._route, request, complain=self.warn, estimate=estimate, is_fetched=fetched
            )
            self._llm = LlmCalls(self._reading, is_fetched=fetched)
            self._nothing_to_settle = False

    def _requested_models(self) -> Sequence[str]:
        """The models that the request may be of; none: not known."""
        request: KeptRequest | None = getattr(self, "_request", None)
        if request is None:
            request = KeptRequest(self._scope, self.server_receive)
        return self._route.models(request.models())

    def _name_calls(self, calls: Sequence[CallUsage]) -> Sequence[CallUsage]:
        return name_calls(calls, self._requested_models, self._route.provider, self._view.cache)
