"""What the emulated account has of one kind, by id."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from meterkit.testing.emulator.replies import missing_resource, no_such

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(Generic[T]):
    """Objects of one kind, oldest first.

    Attributes:
        what: as Stripe calls the kind where there is no such object.
    """

    what: ClassVar[str]

    def __init__(self) -> None:
        self._by_id: dict[str, T] = {}

    def __iter__(self) -> Iterator[T]:
        return iter(self._by_id.values())

    def __contains__(self, object_id: str) -> bool:
        return object_id in self._by_id

    def find(self, object_id: str, *, param: str | None = None) -> T:
        """Return an object.

        Raises:
            ApiError: there is none: 404; 400 where ``param`` named it.
        """
        found = self._by_id.get(object_id)
        if found is not None:
            return found
        if param is None:
            raise no_such(self.what, object_id)
        raise missing_resource(self.what, object_id, param=param)
