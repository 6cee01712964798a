"""The kit for code without an event loop has what the kit has, with the same arguments."""

# Internals: signatures of both kits, compared.

from __future__ import annotations

import ast
import inspect

import pytest

from drivers.sync_stub import STUB, stub
from meterkit import Gauges, MeterKit, ObjectStorage, Reservation, Revenue, Subscriptions
from meterkit.catalog import loads
from meterkit.customers.customers import Customers
from meterkit.customers.grants import Grants
from meterkit.notify.messages import Messages

PLANS = """\
schema: 1
currency: usd
default_plan: free
meters: {requests: {unit: request}}
plans: {free: {price: {amount_cents: 0, interval: month}}}
"""
PARTS = (Customers, Gauges, Grants, Messages, ObjectStorage, Revenue, Subscriptions)
# Handlers are registered with the kit itself, and tasks that run for long have an event loop anyway.
LEFT_OUT = {
    "MeterKit": {
        "begin",
        "contact",
        "delivery_tasks",
        "estimate_input",
        "flusher",
        "on",
        "store",
        "subscriptions",
        "sync",
        "webhooks",
    },
    "notify": {"check", "events", "senders", "tasks", "wants"},
    "storage": {"count_signed", "fetch", "recalculate_due", "warn", "worker_tasks"},
    "revenue": {"look", "run"},
    "subscriptions": {"store_override", "tasks"},
}


@pytest.fixture
def kit() -> MeterKit:
    return MeterKit(loads(PLANS), redis_url="memory://", flush=False)


def test_a_kit_names_its_blocking_twin_where_it_is_misused(kit: MeterKit) -> None:
    cure = r"`async with kit:`.* `with MeterKit\(…\)\.sync\(\) as kit:`"
    with pytest.raises(TypeError, match=cure):
        kit.__enter__()


def pairs(kit: MeterKit) -> dict[str, tuple[object, object]]:
    """Each part of a kit, and its twin."""
    twin = kit.sync()
    found: dict[str, tuple[object, object]] = {
        "MeterKit": (kit, twin),
        "Reservation": (kit.reserve("a", {"requests": 1}), twin.reserve("a", {"requests": 1})),
    }
    parts = [name for name in public(kit) if isinstance(getattr(kit, name), PARTS)]
    assert {"customers", "gauges", "grants", "subscriptions"} <= set(parts)
    return found | {name: (getattr(kit, name), getattr(twin, name)) for name in parts}


def public(thing: object) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


def test_it_has_all_that_the_kit_has(kit: MeterKit) -> None:
    hidden = public(Reservation) - {"capture", "release", "decision"}  # What holds are renewed by.
    for name, (whole, twin) in pairs(kit).items():
        missing = {found for found in public(type(whole)) | set(vars(whole)) if not found.startswith("_")}
        missing -= public(twin) | LEFT_OUT.get(name, set()) | (hidden if name == "Reservation" else set())
        assert set() == missing, f"meterkit/sync.py: the twin of {name} has no {missing}"


def test_arguments_and_docs_are_those_of_the_kit(kit: MeterKit) -> None:
    compared = 0
    for whole, twin in pairs(kit).values():
        for name in public(twin) & public(whole):
            theirs = inspect.getattr_static(type(whole), name, None)
            if inspect.iscoroutinefunction(theirs) and name not in {"start", "stop"}:
                ours = getattr(twin, name)
                assert inspect.signature(getattr(whole, name)) == inspect.signature(ours)
                assert theirs.__doc__ == ours.__doc__
                assert not inspect.iscoroutinefunction(ours)
                compared += 1
    assert compared > 15


def shape(text: str) -> tuple[set[tuple[str | None, str]], list[str]]:
    """The imported names of a stub, and its classes."""
    nodes = ast.parse(text).body
    imports = {
        (node.module, name.name) for node in nodes if isinstance(node, ast.ImportFrom) for name in node.names
    }
    return imports, [ast.dump(node) for node in nodes if isinstance(node, ast.ClassDef)]


def test_the_stub_has_the_signatures_of_the_kit() -> None:
    assert shape(stub()) == shape(STUB.read_text()), "write it anew: python tests/drivers/sync_stub.py"
