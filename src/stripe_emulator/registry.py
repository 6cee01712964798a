"""Objects of one kind, by id."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from stripe_emulator.protocol import missing_resource, not_found

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stripe_emulator.protocol import JsonObject


class IdentifiedObject(Protocol):
    """An object with an id."""

    @property
    def id(self) -> str:
        """The id of the object."""
        ...


class ShownObject(IdentifiedObject, Protocol):
    """An object with an id that Stripe shows."""

    @property
    def to_json(self) -> Callable[[], JsonObject]:
        """Returns the object as Stripe shows it."""
        ...


T = TypeVar("T", bound=IdentifiedObject)


class ObjectRegistry(Generic[T]):
    """Objects of one kind by id, oldest first.

    Args:
        what: the name that Stripe has for the kind, where it says that there is no such object.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._by_id: dict[str, T] = {}

    def __iter__(self) -> Iterator[T]:
        return iter(self._by_id.values())

    def __reversed__(self) -> Iterator[T]:
        return reversed(self._by_id.values())

    def __contains__(self, object_id: str) -> bool:
        return object_id in self._by_id

    def add(self, added: T) -> None:
        """Add an object, or replace the one with its id."""
        self._by_id[added.id] = added

    def delete(self, deleted: T) -> None:
        """Delete an object."""
        del self._by_id[deleted.id]

    def get(self, object_id: str) -> T | None:
        """Return an object, or None where there is none."""
        return self._by_id.get(object_id)

    def find(self, object_id: str, *, param: str | None = None) -> T:
        """Return an object.

        Raises:
            ApiError: there is none: 404; 400 where ``param`` named it.
        """
        found = self._by_id.get(object_id)
        if found is not None:
            return found
        if param is None:
            raise not_found(self._what, object_id)
        raise missing_resource(self._what, object_id, param=param)
