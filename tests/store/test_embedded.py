"""The embedded server: started by its first user, ended by its last, and open to no other user."""

# Internals: the life of an embedded server without a kit around it.

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from faults.small_disk import run_on_a_small_disk
from meterkit.errors import SettingsError, StoreError
from meterkit.redis import embedded
from meterkit.redis.embedded import EmbeddedServer
from meterkit.redis.local_files import FileLock, check_peer

SOURCE = Path(__file__).parents[2] / "src"
USER = """
import sys
from meterkit.redis.embedded import EmbeddedServer

server = EmbeddedServer(sys.argv[1])
print(server.start(), flush=True)
sys.stdin.readline()
server.stop()
"""


def ask(path: str, *words: str | int) -> Any:
    """The reply to one command over the socket at ``path``."""
    client: Any = redis.Redis(unix_socket_path=path, decode_responses=True, retry=Retry(NoBackoff(), 0))
    with client:
        return client.execute_command(*words)


def pid(path: str) -> int:
    number: int = ask(path, "INFO", "server")["process_id"]
    return number


def runs(directory: Path) -> bool:
    """Whether a server holds its lock: also true of one that hangs."""
    lock = FileLock(directory / "server.lock")
    if not lock.acquire():
        return True
    lock.close()
    return False


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A directory whose server ends with the test, however the test ends."""
    directory = tmp_path / "größe with'\"$quotes"
    directory.mkdir(mode=0o700)
    yield directory
    if runs(directory):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int((directory / "valkey.pid").read_text()), signal.SIGKILL)


@pytest.fixture
def server(directory: Path) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(directory)
    yield server
    server.stop()


@contextlib.contextmanager
def another_user(directory: Path) -> Generator[tuple[subprocess.Popen[str], str]]:
    """Another process that has started the server in a directory, and the path of its socket."""
    command = [sys.executable, "-W", "error", "-c", USER, str(directory)]
    env = os.environ | {"PYTHONPATH": str(SOURCE)}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=env, **pipes) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def test_starts_a_server_that_keeps_what_it_is_told(server: EmbeddedServer, directory: Path) -> None:
    path = server.start()
    # By a shorter way where the kernel takes no longer one.
    assert Path(path).name == "valkey.sock"
    assert Path(path).parent.samefile(directory)
    ask(path, "SET", "a", "1")
    assert ask(path, "INFO", "server")["tcp_port"] == 0  # No other user gets in.
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {entry.stat().st_mode & 0o077 for entry in directory.rglob("*")} == {0}
    client: Any = redis.Redis(unix_socket_path=path, decode_responses=True)
    with client:
        kept = client.config_get("append*")
    assert (kept["appendonly"], kept["appendfsync"]) == ("yes", "everysec")
    server.stop()
    assert not runs(directory)
    assert ask(server.start(), "GET", "a") == "1"
    # Git sees nothing of it.
    ignored = directory / ".gitignore"
    assert "*" in ignored.read_text().splitlines()
    assert stat.S_IMODE(ignored.stat().st_mode) == 0o600
    ignored.write_text("mine\n")
    server.start()
    assert ignored.read_text() == "mine\n"


def test_the_last_one_out_shuts_it_down(directory: Path) -> None:
    first, second = EmbeddedServer(directory), EmbeddedServer(directory)
    path = first.start()
    assert second.start() == path
    first.stop()
    assert ask(path, "PING") is True
    second.stop()
    assert not runs(directory)
    assert not (directory / "valkey.sock").exists()


def test_processes_share_it(server: EmbeddedServer, directory: Path) -> None:
    with another_user(directory) as (user, path):
        started = pid(path)
        assert os.getsid(started) != os.getsid(user.pid)  # A signal to its terminal does not end it.
        assert pid(server.start()) == started
        user.communicate("\n")
        assert user.returncode == 0
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


def test_one_left_behind_by_a_kill_is_adopted(server: EmbeddedServer, directory: Path) -> None:
    with another_user(directory) as (_, path):
        left = pid(path)
    assert pid(server.start()) == left
    server.stop()
    assert not runs(directory)


def test_a_crashed_server_is_started_anew_and_lost_nothing(server: EmbeddedServer) -> None:
    path = server.start()
    ask(path, "SET", "a", "1")
    crashed = pid(path)
    os.kill(crashed, signal.SIGKILL)
    assert server.start() == path
    assert pid(path) != crashed
    assert ask(path, "GET", "a") == "1"


def test_a_shared_folder_does_not_shorten_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_SOCKET_PATH_BYTES", len(str(tmp_path)) + 60)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / f"meterkit-{os.geteuid()}").mkdir(mode=0o755)
    server = EmbeddedServer(tmp_path / ("x" * 200))
    path = server.start()  # /tmp serves where TMPDIR cannot.
    assert not path.startswith(str(tmp_path))
    server.stop()

    def is_private(_: object) -> bool:
        return False

    monkeypatch.setattr(embedded, "is_private_folder", is_private)
    with pytest.raises(SettingsError, match="name a directory with a shorter path"):
        server.start()


def test_it_runs_below_a_long_temporary_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # F-8a: macOS and CI systems; the link that shortens the path must be short itself.
    long = tmp_path / ("t" * 120)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    server = EmbeddedServer(long / "data")
    assert ask(server.start(), "PING") is True
    server.stop()
    assert not runs(long / "data")


def test_a_hung_server_is_named_not_killed(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hung = pid(server.start())
    for name in ("_START_S", "_STOP_S", "_ASK_S"):
        monkeypatch.setattr(embedded, name, 0.05)
    os.kill(hung, signal.SIGSTOP)
    try:
        with pytest.raises(StoreError, match="runs, but has not answered for") as caught:
            server.start()
        assert caught.value.executed is False
        with pytest.raises(StoreError, match="has not shut down for"):
            server.stop()
    finally:
        os.kill(hung, signal.SIGKILL)


@pytest.fixture
def only_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Hide the extra, and leave one folder on PATH; a server that stands there."""
    monkeypatch.setattr("importlib.util.find_spec", dict[str, None]().get)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path / "valkey-server"


def test_a_binary_that_refuses_its_options_says_why(
    server: EmbeddedServer, directory: Path, only_on_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError, match=r"pip install 'meterkit\[embedded\]'"):
        server.start()
    monkeypatch.setenv("STRIPE_API_KEY", "sk_test_hidden")
    only_on_path.write_text("#!/bin/sh\nexport -p\necho 'this is no server' >&2\nexit 1\n")
    only_on_path.chmod(0o700)
    with pytest.raises(StoreError, match=r"did not start; its log says:\n(.*\n)*  this is no server"):
        server.start()
    # It is told none of the secrets of its user.
    told = (directory / "valkey.log").read_text()
    assert str(only_on_path.parent) in told
    assert "hidden" not in told


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="cannot be made: Not a directory"):
        EmbeddedServer(tmp_path / "file" / "data").start()


FULL = """
from meterkit.errors import MeterkitError
from meterkit.redis import embedded
from meterkit.redis.embedded import EmbeddedServer

embedded._START_S = 3600.0  # Longer than this program may take: what waited for the server would not end.
fill()
for _ in range(2):  # With what the first try has left, too.
    try:
        EmbeddedServer("store").start()
    except MeterkitError as error:
        print(error)
FILLED.unlink()
server = EmbeddedServer("store")
server.start()
server.stop()
print("served")
"""


def test_a_server_that_has_no_room_to_start_is_said_to_have_none() -> None:
    # F-69: "its log says: nothing", as there was no room for a log either; or a traceback.
    # A path that is not short would be shortened through a folder that is not there.
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        told = run_on_a_small_disk(Path(folder), FULL)
    why = (
        f"the embedded server in {folder}/store cannot run: its disk is full; make room, or name a"
        " directory on another disk"
    )
    assert [why, why, "served"] == told


# F-67: it trusts nobody else's directory, links or sockets.


NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as two users")
LISTENER = """
import contextlib, os, socket, sys
os.chdir(sys.argv[2])
os.setuid(int(sys.argv[1]))
listener = socket.socket(socket.AF_UNIX)
listener.bind("valkey.sock")
os.chmod("valkey.sock", 0o777)
listener.listen()
print("ready", flush=True)
while True:
    connection, _ = listener.accept()
    with connection, contextlib.suppress(OSError):  # Whoever connects may leave before it is answered.
        connection.recv(100)
        connection.sendall(b"+PONG\\r\\n")
"""


@as_root
def test_a_directory_of_another_user_is_refused(directory: Path) -> None:
    os.chown(directory, NOBODY, NOBODY)
    with pytest.raises(SettingsError, match=f"belongs to user {NOBODY}") as caught:
        EmbeddedServer(directory).start()
    assert str(directory / "meterkit") in str(caught.value)
    assert list(directory.iterdir()) == []
    os.chown(directory, 0, 0)
    link = directory.with_name("link")
    link.symlink_to(directory)
    os.chown(link, NOBODY, NOBODY, follow_symlinks=False)
    with pytest.raises(SettingsError, match=f"belongs to user {NOBODY}"):
        EmbeddedServer(link).start()


@pytest.mark.parametrize("mode", [0o720, 0o702])
def test_a_directory_that_others_may_write_in_is_refused(directory: Path, mode: int) -> None:
    directory.chmod(mode)
    with pytest.raises(SettingsError, match=r"others may write .*chmod go-w .*größe"):
        EmbeddedServer(directory).start()
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["valkey.log.1", "valkey.sock", "users.lock", "appendonlydir/appendonly.aof.manifest"]
)
def test_nothing_is_written_through_a_link(directory: Path, name: str) -> None:
    elsewhere, link = directory.with_name("precious"), directory / name
    elsewhere.write_text("as it was\n")
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(elsewhere)
    with pytest.raises(SettingsError, match=f"{link.name} is a symbolic link"):
        EmbeddedServer(directory).start()
    assert elsewhere.read_text() == "as it was\n"


def test_a_lock_is_not_opened_through_a_link(directory: Path) -> None:
    there, none = directory.with_name("there"), directory / "none"
    there.touch()
    for name, target in (("a.lock", there), ("b.lock", none)):
        (directory / name).symlink_to(target)
        with pytest.raises(StoreError, match=f"{name} is a symbolic link") as caught:
            FileLock(directory / name).acquire()
        assert caught.value.executed is False
    assert not none.exists()


@pytest.fixture
def impostor(directory: Path) -> Iterator[None]:
    """Another user's process that listens in the directory, and answers PING."""
    directory.chmod(0o777)
    command = [sys.executable, "-c", LISTENER, str(NOBODY), str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        directory.chmod(0o700)
        yield
        process.kill()


@as_root
@pytest.mark.skipif(sys.platform != "linux", reason="setuid and chown as on Linux")
@pytest.mark.usefixtures("impostor")
def test_another_users_server_is_not_used(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=f"user {NOBODY} answers on the socket"):
        EmbeddedServer(directory).start()
    monkeypatch.chdir(directory)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect("valkey.sock")
        with pytest.raises(SettingsError, match=f"user {NOBODY} answers on the socket"):
            check_peer(connection, directory / "valkey.sock")


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        ("fcntl.flock", OSError(errno.ENOLCK, "No locks"), "cannot be locked: No locks"),
        ("os.open", PermissionError(), "belongs to another user"),
    ],
)
def test_a_lock_that_cannot_be_had_is_named(
    directory: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: OSError, said: str
) -> None:
    def refuse(*_: object) -> int:
        raise error

    monkeypatch.setattr(call, refuse)
    lock = FileLock(directory / "a.lock")
    with pytest.raises(StoreError, match=rf"a\.lock {said}"):
        lock.acquire()
    assert not lock.held
