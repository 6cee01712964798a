"""One pass of all that a process which delivers repeats: what cron runs in place of a worker."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from meterkit.errors import MeterkitError, StoreError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from meterkit.delivery.flush_report import FlushReport
    from meterkit.store.task_lease import RepeatedTask

_logger = logging.getLogger("meterkit.delivery")
FLUSH: Final = "flush"


async def deliver_once(
    tasks: Mapping[str, RepeatedTask], flush: Callable[[], Awaitable[FlushReport]]
) -> FlushReport:
    """Do once what each task repeats; what fails of one delays no other.

    Args:
        tasks: by name, in the order in which they follow each other.
        flush: stands for the one of that name.

    Raises:
        StoreError: the store does not answer.
    """
    reports: list[FlushReport] = []
    for name, task in tasks.items():
        if name == FLUSH:
            reports.append(await flush())
            continue
        try:
            await task.once()
        except StoreError:
            raise
        except MeterkitError as error:
            _logger.warning("%r failed in this pass of delivery; the next one does it: %s", name, error)
    return reports[0]
