"""Steps inside the library at which a test has it fail, in place of a process that dies there."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pkgutil import resolve_name
from typing import Any, Final, Literal

import pytest

from meterkit.errors import StoreError

Step = Literal[
    "a deletion goes on behind its script",
    "a flush lists its work",
    "a late item is noted",
    "a restart is confirmed",
    "a state is stored",
    "a webhook entry is kept",
    "a webhook entry is taken",
    "billed usage is read",
    "credits are kept",
    "pages are closed",
    "summaries are counted",
    "the store is asked whether to deliver",
]
_PLACES: Final[dict[Step, str]] = {
    "a deletion goes on behind its script": "meterkit.customers.deletion._forget_in_lists",
    "a flush lists its work": "meterkit.outbox.outbox.Outbox.work",
    "a late item is noted": "meterkit.outbox.invoice_item_queue.InvoiceItemQueue.settle",
    "a restart is confirmed": "meterkit.store.server_restarts.ServerLives.confirm",
    "a state is stored": "meterkit.customers.states.CustomerStates.change",
    "a webhook entry is kept": "meterkit.subscriptions.webhooks.sync_queue.SyncQueue.renew",
    "a webhook entry is taken": "meterkit.subscriptions.webhooks.sync_queue.SyncQueue.lease_due",
    "billed usage is read": "meterkit.delivery.correction_credits.read_billed",
    "credits are kept": "meterkit.delivery.correction_credits.CreditIssuer._keep_credits",
    "pages are closed": "meterkit.subscriptions.service.stripe_customers.close_payments",
    "summaries are counted": "meterkit.delivery.summaries.StripeSummaries.counted",
    "the store is asked whether to deliver": "meterkit.outbox.outbox.Outbox.refusal",
}


@contextmanager
def failing(step: Step, error: Exception | None = None) -> Generator[None]:
    """Have a step raise an error each time; default: that the store is away."""

    async def fail(*_: object, **__: object) -> None:
        raise error or StoreError("dead")

    with pytest.MonkeyPatch.context() as patched:
        replaced(patched, step, fail)
        yield


def replaced(patched: pytest.MonkeyPatch, step: Step, by: Callable[..., Any]) -> None:
    patched.setattr(_PLACES[step], by)


def wrapped(patched: pytest.MonkeyPatch, step: Step, around: Callable[[Any], Callable[..., Any]]) -> None:
    """Have a method stand in for a step; ``around`` makes it of the step itself."""
    patched.setattr(_PLACES[step], around(resolve_name(_PLACES[step])))
