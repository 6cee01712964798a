"""F-67: the embedded store trusts nobody else's directory, links or sockets; and its locks on files."""

# Internals: an embedded server without a kit around it.

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from meterkit.errors import SettingsError, StoreError
from meterkit.redis.embedded import EmbeddedServer
from meterkit.redis.filelock import FileLock
from meterkit.redis.private_directory import check_peer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    directory.mkdir(mode=0o700)
    return directory


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A file of the user's that nobody but the user may change."""
    target = tmp_path / "precious"
    target.write_text("as it was\n")
    return target


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
    with pytest.raises(SettingsError, match=f"others may write .*chmod go-w {directory}"):
        EmbeddedServer(directory).start()
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("name", ["valkey.log.1", "valkey.sock", "users.lock"])
def test_nothing_is_written_through_a_link(directory: Path, elsewhere: Path, name: str) -> None:
    (directory / name).symlink_to(elsewhere)
    with pytest.raises(SettingsError, match=f"{name} is a symbolic link"):
        EmbeddedServer(directory).start()
    assert elsewhere.read_text() == "as it was\n"


def test_nor_through_one_among_the_data(directory: Path, elsewhere: Path) -> None:
    (directory / "appendonlydir").mkdir()
    (directory / "appendonlydir" / "appendonly.aof.manifest").symlink_to(elsewhere)
    with pytest.raises(SettingsError, match="manifest is a symbolic link"):
        EmbeddedServer(directory).start()
    assert elsewhere.read_text() == "as it was\n"


def test_a_lock_is_not_opened_through_a_link(directory: Path, elsewhere: Path) -> None:
    (directory / "a.lock").symlink_to(elsewhere)
    with pytest.raises(StoreError, match=r"a\.lock is a symbolic link") as caught:
        FileLock(directory / "a.lock").acquire()
    assert caught.value.executed is False
    (directory / "b.lock").symlink_to(directory / "none")
    with pytest.raises(StoreError, match="symbolic link"):
        FileLock(directory / "b.lock").acquire()
    assert not (directory / "none").exists()


@pytest.fixture
def impostor(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Another user's process that listens in the directory, and answers PING."""
    directory.chmod(0o777)
    command = [sys.executable, "-c", LISTENER, str(NOBODY), str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        directory.chmod(0o700)
        yield process
        process.kill()


@as_root
@pytest.mark.skipif(sys.platform != "linux", reason="setuid and chown as on Linux")
def test_another_users_server_in_an_own_directory_is_not_used(
    directory: Path, impostor: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert impostor.poll() is None
    with pytest.raises(SettingsError, match=f"user {NOBODY} answers on the socket"):
        EmbeddedServer(directory).start()
    monkeypatch.chdir(directory)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect("valkey.sock")
        with pytest.raises(SettingsError, match=f"user {NOBODY} answers on the socket"):
            check_peer(connection, directory / "valkey.sock")


def test_an_own_server_is_used_and_git_sees_nothing_of_it(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / ".meterkit")
    server.start()
    try:
        ignored = tmp_path / ".meterkit" / ".gitignore"
        assert "*" in ignored.read_text().splitlines()
        assert stat.S_IMODE(ignored.stat().st_mode) == 0o600
        ignored.write_text("mine\n")
        server.start()
        assert ignored.read_text() == "mine\n"
    finally:
        server.stop()


# Locks on files.


def test_a_file_system_without_locks_is_named(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_descriptor: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    lock = FileLock(directory / "a.lock")
    with pytest.raises(StoreError, match=r"a\.lock cannot be locked: No locks available"):
        lock.acquire()
    assert not lock.held


def test_a_file_of_another_user_is_named(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StoreError, match=r"a\.lock belongs to another user"):
        FileLock(directory / "a.lock").acquire()
