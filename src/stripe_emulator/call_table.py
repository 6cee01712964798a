"""Route tables: an API operation declares its route and its parameters where it is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from stripe_emulator.account import Account
    from stripe_emulator.call import Call
    from stripe_emulator.protocol import JsonObject
    from stripe_emulator.registry import ObjectRegistry

# An operation: (account, call) to the response.
ApiOperation: TypeAlias = "Callable[[Account, Call], JsonObject]"
# The operation checks its parameters itself.
ANY_PARAMS: Final = "*"
# The parameters of a list.
PAGING: Final = "limit starting_after ending_before"


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


class ApiCall(NamedTuple):
    """A route of the API and its operation."""

    method: str
    path: str
    operation: ApiOperation


class CallTable:
    """The API calls of a module."""

    def __init__(self) -> None:
        self._calls: list[ApiCall] = []

    def __iter__(self) -> Iterator[ApiCall]:
        return iter(self._calls)

    def __call__(
        self, route: str, *names: str, expandable: Collection[str] | None = None
    ) -> Callable[[ApiOperation], ApiOperation]:
        """Declare an operation as a call of the API.

        Args:
            route: method and path: ``GET /v1/invoices/{id}``.
            names: its parameters, separated by spaces; others are refused. :data:`ANY_PARAMS`: the operation
                checks them itself.
            expandable: the fields that ``expand`` may name; None: the expansion checks them afterwards.
        """
        method, _, path = route.partition(" ")

        def declare(operation: ApiOperation) -> ApiOperation:
            def run_checked(account: Account, call: Call) -> JsonObject:
                if expandable is None:
                    call.params.accept(*names)
                else:
                    call.params.only(*names, expandable=expandable)
                return operation(account, call)

            self._calls.append(ApiCall(method, path, operation if ANY_PARAMS in names else run_checked))
            return operation

        return declare

    def retrieve(
        self,
        path: str,
        registry: Callable[[Account], ObjectRegistry[L]],
        *,
        expandable: Collection[str] | None = None,
    ) -> None:
        """Declare the call that retrieves an object by its id."""
        self(f"GET {path}", expandable=expandable)(
            lambda account, call: registry(account).find(call.object_id).to_json()
        )


def list_newest(
    registry: ObjectRegistry[L],
    call: Call,
    *names: str,
    where: Callable[[L], bool] = lambda _: True,
    show: Callable[[L], JsonObject] = lambda each: each.to_json(),
) -> JsonObject:
    """Return the requested page of objects, newest first.

    Args:
        registry: all objects of the kind.
        call: that asks for it.
        names: parameters that narrow the list to objects whose field of that name is equal.
        where: whether an object is in the list.
        show: an object as Stripe shows it.
    """
    is_in = call.params.time_filter("created")
    wanted = {name: call.params.text(name) for name in names if name in call.params}
    found = [
        show(each)
        for each in reversed(registry)
        if is_in(each.created)
        and all(getattr(each, name) == value for name, value in wanted.items())
        and where(each)
    ]
    return call.page(found)
