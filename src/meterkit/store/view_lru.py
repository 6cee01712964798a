"""Approximate LRU cache of customer views. A hit costs one lookup and writes nothing."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_Key = TypeVar("_Key")
_View = TypeVar("_View")


class ViewLru(Generic[_Key, _View]):
    """Approximate LRU cache of views, by the customer's key. Thread-safe.

    A customer found in the older generation moves to the younger one. In a full cache, a new customer
    replaces the first one in the older generation. When half of the customers are in the younger
    generation, these join the older one at its end. So the half that was used last is always cached.

    Args:
        most: largest number of customers.

    Attributes:
        get: finds in the younger generation only; see :meth:`find`.
    """

    __slots__ = ("_leaving", "_lock", "_most", "_older", "_younger", "get")

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = Lock()
        self._older: dict[_Key, _View] = {}
        self._leaving: list[_Key] = []  # The older generation, the next to be replaced last.
        self._begin_generation()

    def __len__(self) -> int:
        return len(self._younger) + len(self._older)

    def views(self) -> list[_View]:
        """All views."""
        with self._lock:
            return [*self._older.values(), *self._younger.values()]

    def find(self, customer: _Key) -> _View | None:
        """View of a customer, moved to the younger generation; None: not cached."""
        found = self.get(customer)
        if found is None and self._older:
            with self._lock:
                found = self._younger.get(customer) or self._older.pop(customer, None)
                if found is not None:
                    self._insert_view(customer, found)
        return found

    def put(self, customer: _Key, view: _View) -> None:
        """Store a view, in place of the customer's view before."""
        with self._lock:
            is_new = customer not in self._younger and self._older.pop(customer, None) is None
            self._insert_view(customer, view, is_new=is_new)

    def _insert_view(self, customer: _Key, view: _View, *, is_new: bool = False) -> None:
        if len(self._younger) >= max(1, self._most // 2):
            self._older.update(self._younger)
            self._leaving = list(reversed(self._older))
            self._begin_generation()
        if is_new and len(self) >= self._most:
            while self._older.pop(self._leaving.pop(), None) is None:
                pass  # This customer has moved to the younger generation.
        # The newer view also replaces one that has just joined the older generation.
        self._older.pop(customer, None)
        self._younger[customer] = view

    def _begin_generation(self) -> None:
        self._younger: dict[_Key, _View] = {}
        self.get: Callable[[_Key], _View | None] = self._younger.get
