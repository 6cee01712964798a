"""Stored data of a customer that is damaged, or of another release: it must not hold up other customers."""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final, TypeVar

from meterkit.errors import MeterkitError, StoreError
from meterkit.redis.server import is_key_error

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence

_T = TypeVar("_T")


class UnreadableDataError(MeterkitError):
    """Stored data cannot be read; the message names the customer."""


class DamagedTotalsError(StoreError):
    """A customer's totals are damaged: usage cannot be moved between them."""


UNREADABLE: Final = (ValueError, TypeError, AttributeError, LookupError, UnreadableDataError)
"""Errors of reading a stored value that is damaged or of another release."""


def is_of_the_store(error: Exception) -> bool:
    """Whether the store failed, and not over the stored data of one customer."""
    cause = error.__cause__
    is_damage = isinstance(error, DamagedTotalsError) or isinstance(cause, UNREADABLE) or is_key_error(cause)
    return isinstance(error, StoreError) and not is_damage


@contextmanager
def refuse_unreadable(what: str, customer: str) -> Generator[None]:
    """Raise UnreadableDataError, which names the customer, where the block cannot read stored data."""
    try:
        yield
    except UNREADABLE as error:
        raise UnreadableDataError(f"the {what} of customer {customer!r} cannot be read: {error!r}") from error


def damage_of(error: Exception) -> BaseException:
    """The error of reading that an UnreadableDataError stands for, otherwise the error itself."""
    return (error.__cause__ if isinstance(error, UnreadableDataError) else None) or error


@asynccontextmanager
async def skip_unreadable(
    customer: str, skip: Callable[[str, Exception], Awaitable[None]]
) -> AsyncGenerator[None]:
    """Leave the block where the stored data of a customer cannot be read, and call ``skip``.

    Raises:
        StoreError: the store does not answer.
    """
    try:
        yield
    except (StoreError, *UNREADABLE) as error:
        if is_of_the_store(error):
            raise
        await skip(customer, error)


async def read_each(
    customers: Sequence[str],
    read: Callable[[Sequence[str]], Awaitable[Sequence[_T]]],
    skip: Callable[[str, Exception], Awaitable[None]],
) -> list[_T]:
    """Read something of several customers at once, without those whose stored data cannot be read.

    Args:
        customers: their ids.
        read: reads them, one entry for each.
        skip: called with each customer that is left out, and the error.

    Raises:
        StoreError: the store does not answer.
    """
    try:
        return [*await read(customers)]
    except (StoreError, *UNREADABLE) as error:
        if is_of_the_store(error):
            raise
        if len(customers) == 1:
            await skip(customers[0], error)
            return []
    return [one for customer in customers for one in await read_each([customer], read, skip)]
