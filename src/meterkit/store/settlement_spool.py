"""Write-ahead spool: settlements wait on disk while the store is down, and are replayed once."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias, TypeVar

from meterkit.cancellation import complete, start_task
from meterkit.decisions.periods import DAY_MS
from meterkit.errors import MeterkitError, StoreError
from meterkit.redis.overdue_timer import OverdueTimer
from meterkit.redis.settlement_queue import resolve
from meterkit.store.spool_file import (
    SpoolError,
    SpoolFile,
    SpoolHeader,
    TornError,
    check_sendable,
    find_spools,
    frame,
)
from meterkit.store.spool_replay import (
    CountedLosses,
    RewindError,
    SpoolReplay,
    UnknownCounterError,
    estimate_size,
    write_record,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from meterkit.decisions.keys import Keys
    from meterkit.redis.lane import Lane
    from meterkit.redis.settlement_queue import SentRecord
    from meterkit.store.settlement import Settlement
    from meterkit.store.views import CustomerCache

_T = TypeVar("_T")
_log = logging.getLogger("meterkit.store")
SPOOL_BYTES_MAX: Final = 1 << 30
"""Limit of one spool: about four million settlements. Further ones are counted as lost."""
_UNWRITTEN_MAX: Final = 64 << 20
"""Bytes that wait in memory if the disk is full."""
_WRITTEN_AT_ONCE_MAX: Final = 10_000
_AGAIN_S: Final = 1.0
_LEFT_MS: Final = DAY_MS
"""For so long a process leaves a spool to others whose plans file has all its meters."""


class OrphanedSpools(NamedTuple):
    """Replay of the spools of dead processes.

    Attributes:
        sent: number of settlements sent since this event loop started.
        refused: spools that were not sent, each with the reason.
    """

    sent: int
    refused: tuple[str, ...]


NO_SPOOLS: Final = OrphanedSpools(0, ())
"""No spools."""


_Kept: TypeAlias = "tuple[Settlement, int, int, SentRecord | None]"
"""Arguments of :func:`~meterkit.store.spool_replay.write_record` for a settlement that is not on disk yet."""


class EventLoopSpool:
    """Spool of one event loop; its file is created when needed, and removed when all is sent.

    Args:
        directory: directory of all spools.
        lane: of the event loop.
        cache: customers by the current plans file.
        keys: names of keys.
        store: address of the store, without credentials.
        now_ms: this process's clock.

    Attributes:
        lost: number of settlements that found no room, or that the store can never apply.
        overdue: finds settlements to spool.
    """

    def __init__(
        self,
        directory: Path,
        *,
        lane: Lane,
        cache: Callable[[], CustomerCache],
        keys: Keys,
        store: str,
        now_ms: Callable[[], int],
    ) -> None:
        self._directory = directory
        self._lane = lane
        self._cache = cache
        self._keys = keys
        self._header = SpoolHeader.of(keys, store)
        self._now_ms = now_ms
        self._file: SpoolFile | None = None
        self._producer = token_hex(8)
        self._numbers: dict[int, int] = {}
        self._done: dict[int, int] = {}
        self._unwritten: list[_Kept] = []
        self._unwritten_bytes = 0
        self._released = 0
        self._written = asyncio.Event()
        self._is_writing = self._is_failing = self._is_wanted = False
        self._writer: asyncio.Task[None] | None = None
        self._replaying: asyncio.Task[None] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._refused: dict[Path, str] = {}
        self._logged: set[Path] = set()
        self.overdue = OverdueTimer(lane.call_later)
        self._counted_losses = CountedLosses()
        self._orphans_sent = self._answered = 0
        self.lost = 0

    @property
    def kept(self) -> int:
        """Number of waiting settlements of this event loop."""
        return sum(self._numbers.values()) - sum(self._done.values())

    # Called by the lane and its queues.

    def keep(self, shard: int, settlements: Sequence[tuple[Settlement, SentRecord | None]]) -> None:
        """Spool settlements of a shard, in order; each waiter is resolved when its settlement is on disk."""
        at_ms = self._now_ms()
        size = 0 if self._file is None else self._file.end
        for settlement, sent in settlements:
            if self._unwritten_bytes > _UNWRITTEN_MAX or size + self._unwritten_bytes > SPOOL_BYTES_MAX:
                self._drop(settlement)
                continue
            number = self._numbers.get(shard, 0) + 1
            self._unwritten.append((settlement, number, at_ms, sent))
            self._unwritten_bytes += estimate_size(settlement)
            self._numbers[shard] = number
        self._begin_writing()

    def connected(self) -> None:
        """Replay this event loop's spool, then the spools of dead processes."""
        self._is_wanted = True
        if self._replaying is None or self._replaying.done():
            self._replaying = self._lane.spawn(self._replay())

    async def flush(self) -> None:
        """Write waiting settlements to disk, as far as possible."""
        while self._unwritten and await self._write_once():
            pass

    async def close(self) -> Sequence[Settlement]:
        """Leave the file to the next start; return the settlements that could not be written and are lost."""
        lost = [settlement for settlement, _, _, _ in self._unwritten]
        self.lost += len(lost)
        file, self._file = self._file, None
        if file is not None and self.kept > len(lost):
            with suppress(OSError, MeterkitError):
                await self._in_thread(file.recreate_if_removed)
            _log.warning(
                "settlements waiting in %s: %d; the next start sends them, or meterkit flush --all",
                file.path,
                self.kept - len(lost),
            )
            await self._in_thread(file.close)
        elif file is not None:
            await self._in_thread(file.remove)
        if self._thread is not None:
            self._thread.shutdown(wait=False)
        return lost

    async def send_all(self, *, within_s: float) -> OrphanedSpools:
        """Replay all spools and wait for the end; return the result for dead processes.

        Args:
            within_s: how long the store may take nothing, as while a node of a cluster is down. In all it may
                take longer: a spool cut short would be sent from its beginning again, and cut short again.

        Raises:
            StoreError: the store is down.
        """
        sending, before = start_task(self._send_all()), -1
        try:
            while not sending.done() and before != self._answered:
                before = self._answered
                await asyncio.wait([sending], timeout=within_s)
            if sending.done():
                return sending.result()
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        why = f"no usage could be sent for {within_s:g} s; it stays here until the next attempt"
        return OrphanedSpools(self._orphans_sent, (f"{self._directory}: {why}",))

    async def _send_all(self) -> OrphanedSpools:
        if self._replaying is not None:
            await asyncio.wait([self._replaying])
        await self._replay_current_file()
        return await self._replay_orphans()

    # Writing.

    def _begin_writing(self) -> None:
        if self._unwritten and (self._writer is None or self._writer.done()):
            self._writer = self._lane.spawn(self._write())

    async def _write(self) -> None:
        while self._unwritten:
            if not await self._write_once():
                await asyncio.sleep(_AGAIN_S)

    async def _write_once(self) -> bool:
        """Write waiting settlements to disk, thousands at once; whether that succeeded."""
        if self._is_writing:
            await self._written.wait()
            return True
        batch, end = self._next_batch()
        self._is_writing = True
        self._written.clear()
        try:
            await self._in_thread(self._append, batch)
        except (OSError, MeterkitError) as error:
            self._is_failing = True
            self._lane.warn(f"usage cannot be written to {self._directory} and waits in memory: {error}")
            return False
        finally:
            self._is_writing = False
            self._written.set()
        self._is_failing = False
        self._release(end)
        if self._lane.connected:
            self.connected()  # The store was slow, or is back: no reconnection reports it.
        return True

    def _append(self, batch: Sequence[_Kept]) -> None:
        """Serialize and write records, in the thread, until they are on disk; the first create the file."""
        if self._file is None:
            header = replace(self._header, producer=self._producer, made_ms=self._now_ms())
            self._file = SpoolFile.create(self._directory, header)
        self._file.append(b"".join([frame(write_record(*kept)) for kept in batch]))

    def _next_batch(self, position: int = 0) -> tuple[Sequence[_Kept], int]:
        """Next unwritten settlements, and the position behind them.

        Args:
            position: first position; positions count all settlements ever spooled here.
        """
        first = max(0, position - self._released)
        batch = self._unwritten[first : first + _WRITTEN_AT_ONCE_MAX]
        return batch, self._released + first + len(batch)

    def _release(self, end: int) -> None:
        """Release the settlements before a position: they are on disk, or in the store."""
        gone = self._unwritten[: max(0, end - self._released)]
        self._released += len(gone)
        del self._unwritten[: len(gone)]
        self._unwritten_bytes -= sum([estimate_size(settlement) for settlement, _, _, _ in gone])
        for settlement, _, _, _ in gone:
            if settlement.waiter is not None:
                resolve(settlement, None)

    def _drop(self, settlement: Settlement) -> None:
        self.lost += 1
        self._lane.warn(
            f"the spool in {self._directory} is full, and usage is lost (settlements so far: {self.lost});"
            f" the last was of customer {settlement.customer!r}"
        )
        why = "not recorded: the store is down and the spool is full"
        resolve(settlement, StoreError(why, executed=False))

    # Sending.

    async def _replay(self) -> None:
        while self._is_wanted:
            self._is_wanted = False
            try:
                await self._replay_current_file()
                await self._replay_orphans()
            except (StoreError, OSError) as error:
                self._lane.warn(f"spooled usage is sent later: {error}")
                if self._lane.connected:
                    self._is_wanted = True
                    await asyncio.sleep(_AGAIN_S)

    async def _replay_current_file(self) -> None:
        """Replay this event loop's spool; more may be added meanwhile."""
        if not self.kept and self._file is None:
            return
        kept, replay = self.kept, self._new_replay(self._producer, is_same_loop=True)
        at = position = 0  # Sent so far: of the file, and of the unwritten settlements.
        is_damaged = False
        try:
            while True:
                await self._until_written()
                file = self._file
                at = at if file is None else max(at, file.begins)
                if file is not None and at < file.end:
                    try:
                        records, after = await self._in_thread(file.read, at)
                    except SpoolError as error:
                        self.lost += self.kept
                        _log.error("%s: %s; settlements lost: %d", file.path, error, self.kept)
                        is_damaged = True
                        break
                    at, position = (after, position) if await self._send_records(replay, records) else (0, 0)
                elif (
                    self._released + len(self._unwritten) > position
                ):  # The disk is full, but the store is up.
                    batch, end = self._next_batch(position)
                    records = [write_record(*kept) for kept in batch]
                    at, position = (at, end) if await self._send_records(replay, records) else (0, 0)
                else:
                    break
        finally:
            self.lost += replay.lost
        self._release(position)  # Only now: until all is sent, the store may lose it again.
        file, self._file = self._file, None
        self._producer, self._numbers, self._done = token_hex(8), {}, {}
        if file is not None:
            await self._in_thread(file.set_aside if is_damaged else file.remove)
        if kept:
            _log.info("settlements sent that had waited in the spool: %d", kept)

    async def _until_written(self) -> None:
        """Wait until all settlements are on disk, or the disk is full."""
        while self._is_writing or (self._unwritten and not self._is_failing):
            self._begin_writing()
            await self._written.wait()
            await asyncio.sleep(0)

    async def _send_records(self, replay: SpoolReplay, records: Sequence[bytes]) -> bool:
        """Send records; False: all must be sent again, from the beginning."""
        try:
            await replay.send(records)
            self._answered += len(records)
        except RewindError:
            return False
        finally:
            self._done.update(replay.done)
        return True

    async def _replay_orphans(self) -> OrphanedSpools:
        """Replay the spools of dead processes."""
        self._refused.clear()
        try:
            found = await self._in_thread(lambda: list(find_spools(self._directory, self._header)))
        except OSError as error:  # The start has logged it.
            self._refused[self._directory] = f"it cannot be read: {error.strerror}"
            found = []
        for path in found:
            if self._file is not None and path == self._file.path:
                continue
            try:
                file = await self._claim(path)
            except (SpoolError, OSError, MeterkitError) as error:
                self._refuse_file(path, f"it cannot be read: {error}")
                continue
            if file is not None:
                try:
                    self._orphans_sent += await self._send_file(file)
                except OSError as error:
                    self._refuse_file(path, f"it cannot be read to its end, or not be removed: {error}")
        return OrphanedSpools(
            self._orphans_sent, tuple(f"{path}: {why}" for path, why in self._refused.items())
        )

    async def _send_file(self, file: SpoolFile) -> int:
        """Replay the spool of a dead process; return the number of settlements."""
        header, sent = file.header, 0
        refusal = check_sendable(header, self._header, self._now_ms())
        if refusal is not None:
            self._refuse_file(file.path, refusal[1])
            await self._in_thread(file.close)
            return 0
        is_recent = self._now_ms() - header.made_ms < _LEFT_MS
        replay = self._new_replay(header.producer, leaves_unknown=is_recent)
        at, is_damaged = file.begins, False
        try:
            while True:
                try:
                    records, end = await self._in_thread(file.read, at)
                except SpoolError as error:
                    is_damaged = not isinstance(error, TornError)
                    _log.error("%s: %s; they are left out", file.path, error)
                    break
                if not records:
                    break
                try:
                    await replay.send(records)
                except RewindError:
                    at, sent = file.begins, 0
                except UnknownCounterError as error:
                    why = f"it has usage of {error}, and this process's plans file has no such counter"
                    cure = "start one whose file has it; after a day the rest is sent without this usage"
                    self._refuse_file(file.path, f"{why}: {cure}")
                    await self._in_thread(file.close)
                    return 0
                else:
                    at, sent = end, sent + len(records)
                    self._answered += len(records)
        except BaseException:
            file.close()
            raise
        finally:
            self.lost += replay.lost
        _log.warning("settlements sent that were left in %s: %d", file.path, sent)
        await self._in_thread(file.set_aside if is_damaged else file.remove)
        return sent

    def _refuse_file(self, path: Path, why: str) -> None:
        self._refused[path] = why
        if path not in self._logged:
            self._logged.add(path)
            _log.error("the spool %s is not sent: %s", path, why)

    def _new_replay(
        self, producer: str, *, is_same_loop: bool = False, leaves_unknown: bool = False
    ) -> SpoolReplay:
        return SpoolReplay(
            producer,
            lane_of=self._lane.lane_of,
            cache=self._cache(),
            keys=self._keys,
            is_same_loop=is_same_loop,
            leaves_unknown=leaves_unknown,
            counted_losses=self._counted_losses,
        )

    async def _claim(self, path: Path) -> SpoolFile | None:
        """Claim a file. If cancelled, a file claimed afterwards is left to the next process."""
        claiming = self._executor().submit(SpoolFile.claim, path)
        try:
            return await asyncio.wrap_future(claiming)
        except asyncio.CancelledError:
            claiming.add_done_callback(_close_claimed)
            raise

    async def _in_thread(self, work: Callable[..., _T], *arguments: Any) -> _T:
        """Work in the spool's thread; a cancellation waits for its end, or a file could stay locked."""
        loop = asyncio.get_running_loop()
        return await complete(loop.run_in_executor(self._executor(), work, *arguments))

    def _executor(self) -> ThreadPoolExecutor:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="meterkit-spool")
        return self._thread


def _close_claimed(claiming: Future[SpoolFile | None]) -> None:
    if not claiming.cancelled() and claiming.exception() is None and (file := claiming.result()) is not None:
        file.close()
