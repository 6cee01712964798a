"""What is to be delivered when: first attempts, retries, and what became of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from meterkit.testing.emulator.replies import JsonObject
    from meterkit.testing.emulator.webhooks.endpoints import WebhookEndpoint, WebhookEndpoints
    from meterkit.testing.emulator.webhooks.signing import Forgery

__all__ = ["Deliveries", "Delivery", "Due", "Told"]

# Stripe says for how long, and that it is exponential, not when: three days, in a sandbox three times "over a
# few hours" (https://docs.stripe.com/webhooks#automatic-retries). Here each pause is twice the one before.
RETRY_S: Final = 3_600
RETRIES: Final = {True: 6, False: 3}


class Told(Protocol):
    """What webhooks tell of: an event or a thin one."""

    @property
    def id(self) -> str:
        """The event's id."""
        ...

    @property
    def type(self) -> str:
        """The event's type."""
        ...

    @property
    def livemode(self) -> bool:
        """Whether it is of a live object."""
        ...

    @property
    def thin(self) -> bool:
        """Whether it is a thin event."""
        ...

    @property
    def undelivered(self) -> set[str]:
        """Ids of the endpoints that have not taken it."""
        ...

    def notification(self) -> JsonObject:
        """Return what is sent."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One attempt to deliver an event.

    Attributes:
        event: its id.
        at: Unix seconds by the emulator's clock.
        attempt: 1 for the first; 0 where it was told to deliver.
        status: of the answer; 0 where none came.
        answer: the first 500 characters of its body.
        forged: what was wrong with it on purpose.
    """

    event: str
    type: str
    url: str
    at: float
    attempt: int
    status: int
    answer: str = ""
    forged: Forgery | None = None

    @property
    def taken(self) -> bool:
        """Whether the endpoint has taken it: any 2xx is yes, a redirect no."""
        return 200 <= self.status < 300  # noqa: PLR2004


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """One delivery to come. ``at_s``: not before, in Unix seconds."""

    event: Told
    endpoint: WebhookEndpoint
    attempt: int
    at_s: float


class Deliveries:
    """What is still to be delivered, and every attempt that there was."""

    def __init__(self, endpoints: WebhookEndpoints) -> None:
        self._endpoints = endpoints
        self._waiting: list[Due] = []
        self.made: list[Delivery] = []

    def add(self, event: Told, *, now: float) -> None:
        """Have an event delivered to everybody who wants to be told of it."""
        for endpoint in self._endpoints.all:
            if endpoint.wants(event.type, thin=event.thin):
                event.undelivered.add(endpoint.id)
                self._waiting.append(Due(event=event, endpoint=endpoint, attempt=1, at_s=now))

    def take(self, *, now: float, apps: bool) -> Due | None:
        """Take what has been due for the longest; None: nothing is due.

        What falls due while its endpoint is disabled or deleted is given up; one that is enabled again
        before misses nothing (https://docs.stripe.com/webhooks#automatic-retries).

        Args:
            now: Unix seconds.
            apps: whether to take what goes to apps of this process too.
        """
        self._waiting = [due for due in self._waiting if due.at_s > now or self._is_open(due.endpoint)]
        ripe = [due for due in self._waiting if due.at_s <= now and (apps or due.endpoint.app is None)]
        if not ripe:
            return None
        due = min(ripe, key=lambda due: due.at_s)
        self._waiting.remove(due)
        return due

    def _is_open(self, endpoint: WebhookEndpoint) -> bool:
        return self._endpoints.get(endpoint.id) is not None and not endpoint.disabled

    def settle(self, due: Due, delivery: Delivery) -> None:
        """Enter what became of an attempt: done, or to be tried again."""
        self.made.append(delivery)
        if delivery.forged is not None:
            return
        event, endpoint = due.event, due.endpoint
        if delivery.taken:
            event.undelivered.discard(endpoint.id)
            self._waiting = [
                other
                for other in self._waiting
                if (other.event.id, other.endpoint.id) != (event.id, endpoint.id)
            ]
        elif 1 <= due.attempt <= RETRIES[event.livemode]:
            later_s = delivery.at + RETRY_S * 2 ** (due.attempt - 1)
            self._waiting.append(Due(event=event, endpoint=endpoint, attempt=due.attempt + 1, at_s=later_s))
