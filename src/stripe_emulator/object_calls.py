"""The calls that objects of all kinds have: retrieve one by its id, list the newest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from stripe_emulator.call import PAGING_PARAMS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from stripe_emulator.account import Account, ApiOperation
    from stripe_emulator.call import Call
    from stripe_emulator.protocol import JsonObject
    from stripe_emulator.registry import ObjectRegistry


class ListedObject(Protocol):
    """An object that lists show."""

    @property
    def id(self) -> str:
        """The id of the object."""
        ...

    @property
    def created(self) -> int:
        """Creation time in Unix seconds."""
        ...

    @property
    def to_json(self) -> Callable[..., JsonObject]:
        """Returns the object as Stripe shows it."""
        ...


L = TypeVar("L", bound=ListedObject)


def retrieve_by_id(
    kept: Callable[[Account], ObjectRegistry[L]], *, expandable: Collection[str] | None = None
) -> ApiOperation:
    """Return the call that retrieves an object by its id."""

    def retrieve(account: Account, call: Call) -> JsonObject:
        refuse_parameters(call, expandable=expandable)
        return kept(account).find(call.object_id).to_json()

    return retrieve


def refuse_parameters(call: Call, *allowed: str, expandable: Collection[str] | None) -> None:
    """Refuse parameters that are not allowed; ``expandable`` None: ``expand`` is checked by the expansion."""
    if expandable is None:
        call.params.accept(*allowed)
    else:
        call.params.only(*allowed, expandable=expandable)


def list_newest(
    kept: ObjectRegistry[L],
    call: Call,
    *names: str,
    also: Collection[str] = (),
    expandable: Collection[str] | None = None,
    where: Callable[[L], bool] = lambda _: True,
    show: Callable[[L], JsonObject] = lambda each: each.to_json(),
) -> JsonObject:
    """Return the requested page of objects, newest first.

    Args:
        kept: all of them.
        call: that asks for it.
        names: parameters that narrow the list to objects whose field of that name is equal.
        also: parameters that ``where`` looks at.
        expandable: the fields that may be expanded; None: checked when they are.
        where: whether an object is in the list.
        show: an object as Stripe shows it.
    """
    refuse_parameters(call, "created", *names, *also, *PAGING_PARAMS, expandable=expandable)
    is_in = call.params.time_filter("created")
    wanted = {name: call.params.text(name) for name in names if name in call.params}
    found = [
        show(each)
        for each in reversed(kept)
        if is_in(each.created)
        and all(getattr(each, name) == value for name, value in wanted.items())
        and where(each)
    ]
    return call.page(found)
