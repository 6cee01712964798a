"""What every test may use, and what no test may leave behind."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from hypothesis import HealthCheck, Phase, settings

from drivers.lua_runtime import compile_once
from meterkit.decisions.keys import WITHOUT_TTL
from meterkit.redis import memory
from servers.certificates import Authority
from servers.clusters import Cluster, Watched, spawn_cluster, spawn_watched
from servers.stores import Server, redis_binary, spawn_server

pytest_plugins = ["costs.plugin"]

# How long an example takes says how busy the machine is; a commit has one verdict, on any day.
_QUIET = [HealthCheck.too_slow]
settings.register_profile("same", deadline=None, suppress_health_check=_QUIET, derandomize=True)
settings.register_profile(
    "few",
    deadline=None,
    suppress_health_check=_QUIET,
    derandomize=True,
    database=None,
    max_examples=10,
    phases=[Phase.explicit, Phase.generate],  # That a test fails is enough: no smaller example is looked for.
)
settings.register_profile("soak", deadline=None, suppress_health_check=_QUIET, max_examples=2_000)
settings.load_profile(os.environ.get("METERKIT_HYPOTHESIS_PROFILE", "same"))

# A shell that starts the tests in the background has them, and what they start, ignore interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Only what hangs takes so long, on however busy a machine.
_PATIENCE_S: Final = 240.0
_running: list[Server] = []
_STORES = ("valkey", "cluster", "sentinel")
# The point of these tests is not the server: they have one with ``--store``, ``each_store`` or ``valkey``.
_IN_MEMORY = {Path(__file__).parent / name for name in ("delivery", "insights", "subscriptions")}
_KEYS_WITHOUT_TTL = """
local left = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  if redis.call('PTTL', key) == -1 then left[#left + 1] = key end
end
return left
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--loop",
        choices=["asyncio", "uvloop"],
        help="run every test on this event loop; default: asyncio, and those marked each_loop on both",
    )
    parser.addoption(
        "--store",
        choices=_STORES,
        help="run every test that takes any server on this kind of store; default: one server, and those"
        " marked each_store on all three",
    )
    parser.addoption("--whole", action="store_true", help="run what is marked whole, too")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Let the garbage collector pass over what is imported and collected: it stays, and is most of all."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        params: dict[str, object] = getattr(getattr(item, "callspec", None), "params", {})
        if params.get("any_store_url", "memory") != "memory" and not _IN_MEMORY.isdisjoint(item.path.parents):
            item.add_marker(pytest.mark.whole)
    if not config.getoption("--whole"):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("whole")])
        items[:] = [item for item in items if not item.get_closest_marker("whole")]
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        items[:] = _begin_with_dear_ones(items, workers)


def _begin_with_dear_ones(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """Order tests so that each worker, whose share is a part in a row, begins with as many dear ones.

    The tests that are left at the end of a run are short: no worker waits long for another.
    """
    dear = [item for item in items if item.get_closest_marker("dear")]
    others = [item for item in items if not item.get_closest_marker("dear")]
    share = -(-len(others) // workers)
    parts = ((*dear[nth::workers], *others[nth * share : (nth + 1) * share]) for nth in range(workers))
    return [item for part in parts for item in part]


def pytest_configure(config: pytest.Config) -> None:
    for line in (
        "whole: one of the many alike that `make field` runs all of.",
        "leaves_keys(reason): the test writes keys of its own without a TTL; they are not checked.",
        "each_loop: what the test shows may depend on the event loop: it runs on asyncio and uvloop.",
        "each_store(sampled=False): also runs on a cluster and behind sentinels; if sampled, with --whole.",
    ):
        config.addinivalue_line("markers", line)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    is_for_each = metafunc.definition.get_closest_marker("each_loop") is not None
    if is_for_each and "anyio_backend" in metafunc.fixturenames and not metafunc.config.getoption("--loop"):
        metafunc.parametrize("anyio_backend", ["asyncio", "uvloop"], indirect=True, scope="session")
    stores = _stores_of(metafunc)
    if "any_store_url" in metafunc.fixturenames:
        metafunc.parametrize("any_store_url", [*stores, "memory"], indirect=True)
    elif "store_url" in metafunc.fixturenames and len(stores) > 1:
        metafunc.parametrize("store_url", stores, indirect=True)


def _stores_of(metafunc: pytest.Metafunc) -> list[object]:
    first, *others = _STORES
    mark = metafunc.definition.get_closest_marker("each_store")
    if mark is None or metafunc.config.getoption("--store"):
        return [first]
    marks = [pytest.mark.whole] if mark.kwargs.get("sampled") else []
    return [first, *(pytest.param(store, marks=marks) for store in others)]


@pytest.fixture(scope="session")
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """The event loop that the test runs on; see the marker each_loop."""
    loop: str = getattr(request, "param", None) or request.config.getoption("--loop") or "asyncio"
    return "asyncio", {"use_uvloop": loop == "uvloop"}


@pytest.fixture(scope="session", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests spool stays with them; a store that is slow on a busy machine is not away.

    Nor is any other server that a test asks: limits of a test that expects none to be met are patient.
    """
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patched.setenv("METERKIT_STORE_TIMEOUT", "60")
        # One object is the default of all clients and functions of httpx: five seconds.
        default = inspect.signature(httpx.Client).parameters["timeout"].default
        for name in ("connect", "read", "write", "pool"):
            patched.setattr(default, name, _PATIENCE_S)
        yield


@pytest.fixture(scope="session", autouse=True)
def _compiled_scripts() -> None:
    """``memory://`` compiles each script once for a whole run."""
    compile_once(vars(memory)["_server"])


@pytest.fixture(scope="session")
def valkey() -> Iterator[Server]:
    """The server most tests use; emptied before each of them."""
    with spawn_server() as server:
        _running.append(server)
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Server]:
    """A second make of server: the distribution's Redis; emptied before each test."""
    binary = redis_binary()
    if binary is None:
        pytest.skip("no redis-server on PATH")
    with spawn_server(binary=binary) as server:
        _running.append(server)
        yield server


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Three nodes, each with a third of the slots; emptied before each test. No test moves a slot of it."""
    with spawn_cluster() as cluster:
        _running.extend(cluster.masters)
        yield cluster


@pytest.fixture(scope="session")
def watched() -> Iterator[Watched]:
    """A master and its replica under three sentinels; emptied before each test. No test ends one of them."""
    with spawn_watched() as watched:
        _running.append(watched.master)
        yield watched


@pytest.fixture
def store_url(request: pytest.FixtureRequest) -> str:
    kind = getattr(request, "param", None) or request.config.getoption("--store")
    if (
        kind is None
        and "valkey" not in request.fixturenames
        and not _IN_MEMORY.isdisjoint(request.path.parents)
    ):
        kind = "memory"
    return _url_of(kind or "valkey", request)


@pytest.fixture
def any_store_url(request: pytest.FixtureRequest) -> str:
    return _url_of(request.param, request)


def _url_of(store: str, request: pytest.FixtureRequest) -> str:
    if store == "memory":
        return "memory://"
    if store == "valkey":
        store = request.config.getoption("--store") or "valkey"
    servers: Server | Cluster | Watched = request.getfixturevalue("watched" if store == "sentinel" else store)
    return servers.url


@pytest.fixture
def redis_url(redis_server: Server) -> str:
    return redis_server.url


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves an asyncio task, or in a store a key that never goes away."""
    if "anyio_backend" in request.fixturenames:
        request.getfixturevalue("tasks_end_with_the_test")
    _empty_stores()
    # What a test before has spooled for this store would be sent to it.
    shutil.rmtree(Path(os.environ["XDG_STATE_HOME"]) / "meterkit", ignore_errors=True)
    yield
    marked = request.node.get_closest_marker("leaves_keys")
    found = [] if marked else [_in_memory_without_ttl(), *map(_keys_without_ttl, _running)]
    # Fixtures of the next module are set up before those of its first test: workers expect an empty store.
    _empty_stores()
    for left in found:
        if left:
            pytest.fail(
                f"keys without a TTL that are not in meterkit.decisions.keys.WITHOUT_TTL: {left[:20]}. Give"
                " them a TTL, or mark a test that writes keys of its own with"
                ' @pytest.mark.leaves_keys("why").'
            )


def _empty_stores() -> None:
    """Empty each store that runs, also those that a test asks for by name while it runs."""
    for server in _running:
        server.ask("FLUSHALL")
    memory.empty()


@pytest.fixture(autouse=True)
def logging_stays_as_it_was() -> Iterator[None]:
    """The command line sets levels and filters, also where a test runs it in this process."""
    before = {logger: list(logger.filters) for logger in _own_loggers()}
    for logger in before:
        _set_level(logger, logging.NOTSET)  # What is run for all tests of a module may have set it, too.
    yield
    for logger in _own_loggers():
        _set_level(logger, logging.NOTSET)
        logger.filters[:] = before.get(logger, ())


def _own_loggers() -> list[logging.Logger]:
    """All of meterkit's that there are: a page of the docs may set any of them."""
    known = logging.Logger.manager.loggerDict
    named = (logger for name, logger in known.items() if name.partition(".")[0] == "meterkit")
    return [logger for logger in named if isinstance(logger, logging.Logger)]


def _set_level(logger: logging.Logger, level: int) -> None:
    if logger.level != level:  # To set it makes every logger of the process think anew.
        logger.setLevel(level)


@pytest.fixture
async def tasks_end_with_the_test() -> AsyncIterator[None]:
    """Asked for by :func:`nothing_left_behind`, in tests that run in a loop."""
    before = asyncio.all_tasks()
    yield
    # A task that was just cancelled or set free needs one turn of the loop to end.
    await asyncio.sleep(0)
    names = {task: getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks() - before}
    # Anyio's plugin runs tests and fixtures in a task of its own.
    left = [task for task, name in names.items() if not name.startswith("TestRunner.")]
    if left:
        pytest.fail(f"tasks left behind: {sorted(map(str, left))}")


def _keys_without_ttl(server: Server) -> list[str]:
    return _not_allowed(server.ask("EVAL", _KEYS_WITHOUT_TTL, 0))


def _in_memory_without_ttl() -> list[str]:
    databases: Iterable[Any] = vars(memory)["_server"].dbs.values()
    items = (item for database in databases for item in database._dict.items())
    return _not_allowed(key.decode() for key, item in items if item.expireat is None)


def _not_allowed(keys: Iterable[str]) -> list[str]:
    return sorted(key for key in keys if not any(re.match(pattern, key) for pattern in WITHOUT_TTL))
