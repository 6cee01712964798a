"""Redrive of undelivered work by an operator in the browser, recorded in the customer's ledger."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, get_args

from meterkit.customers.history import add_entry
from meterkit.errors import MeterkitError, StoreError
from meterkit.notify.courier import read_event_and_customer
from meterkit.pages.operator_queues import LISTED_MOST, read_owners

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.pages.usage_figures import PagesKit
    from meterkit.store.store import Store

_logger = logging.getLogger("meterkit.pages")
Queue = Literal["outbox", "webhooks", "messages"]
QUEUES: Final[Mapping[str, Queue]] = {queue: queue for queue in get_args(Queue)}


class RedriveResult(NamedTuple):
    """The result of a redrive.

    Attributes:
        redriven: the ids that are retried.
        refused: id to the reason.
    """

    redriven: Sequence[str]
    refused: Mapping[str, str]


async def redrive(
    kit: PagesKit, queue: Queue, ids: Sequence[str], *, operator: str, reason: str
) -> RedriveResult:
    """Retry entries of a queue; each is recorded in its customer's ledger first.

    Raises:
        StoreError: the store does not answer; earlier entries stay redriven.
    """
    if queue == "outbox":
        return await _redrive_intents(kit, ids, operator=operator, reason=reason)
    if queue == "webhooks":
        owners = await read_owners(kit.store, [one.stripe_customer for one in await kit.webhooks.dead()])
    else:
        found = await kit.notify.list()
        dead = [one for kept in found.values() for one in kept if one.state == "dead"]
        owners = {one.id: read_event_and_customer(one)[1] or "" for one in dead}
    chosen = [one for one in dict.fromkeys(ids) if one in owners]
    for one in chosen:
        what = f"{'webhooks of ' if queue == 'webhooks' else ''}{one}"
        # Ledger first: after a kill in between, the operator finds a line without its redrive.
        await _record_redrive(kit.store, owners[one], what, operator=operator, reason=reason)
    if chosen:
        await (kit.webhooks.redrive if queue == "webhooks" else kit.notify.redrive)(*chosen)
    return RedriveResult(chosen, {one: "it is not dead" for one in dict.fromkeys(ids) if one not in owners})


async def _redrive_intents(kit: PagesKit, ids: Sequence[str], *, operator: str, reason: str) -> RedriveResult:
    redriven, refused, outbox = list[str](), dict[str, str](), kit.outbox
    items = {item.identifier: item for item in await outbox.items.list(limit=LISTED_MOST)}
    for one in dict.fromkeys(ids):
        try:
            if one in items:
                await _record_redrive(
                    kit.store, items[one].customer, one, operator=operator, reason=reason, state="queued"
                )
                await outbox.items.redrive(one)
            else:
                await outbox.redrive(one, reason=reason, by=f"operator {operator}")
        except StoreError:
            raise
        except MeterkitError as error:
            refused[one] = str(error)
        else:
            redriven.append(one)
    return RedriveResult(redriven, refused)


async def _record_redrive(
    store: Store, customer: str, what: str, *, operator: str, reason: str, state: str = "dead"
) -> None:
    after = f"redriven: {reason}" if reason else "redriven"
    _logger.info("operator %r redrives %s of customer %r", operator, what, customer)
    if customer:
        await add_entry(
            store,
            customer,
            kind="redrive",
            before=f"{state}: {what}",
            after=after,
            cause=f"operator {operator}",
        )
