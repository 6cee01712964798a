"""What adding up entries of the audit log must come to, said once more in Python, and a driver of both."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from drivers.counters import pack_field
from meterkit.decisions.keys import Keys, meter_token
from meterkit.insights.audit.entries import CLASSES, rows_of
from meterkit.redis import scripts
from meterkit.redis.connection import pack
from store.script_world import MismatchError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random

    from store.script_wires import Wire

METERS: Final = ("requests", "tokens", "emails")  # The last one's token has a hyphen.
CUSTOMERS: Final = ("ada", "x|y", "b" * 256)
AT_ONCE: Final = 128
NOW_MS: Final = 1_938_000_000_000

PRICES: Final = (
    f"plans/0,t/1 {meter_token('requests')}:7:o40/3 {meter_token('tokens')}::c1/1 {meter_token('emails')}:90:"
)
PRICED: Final = f"\nmodel\n\n{PRICES}\na line of a later release"

Sums = Counter[tuple[str, str, int | None, str]]


class Folding:
    """A stream of the audit log and the sums beside it, anew in each step."""

    def __init__(self, wire: Wire, texts: Mapping[str, str], random: Random) -> None:
        self.wire, self.random = wire, random
        self.shas = {name: wire(pack("SCRIPT", "LOAD", text)) for name, text in texts.items()}
        for name, sha in self.shas.items():
            if not isinstance(sha, bytes | str):
                raise MismatchError(f"{name} does not compile: {sha}")
        keys = Keys("mk", 1)
        self.keys = keys.audit(0), keys.audit_sums(0)
        self.seen = Counter[str]()

    def step(self) -> None:
        """Fill a stream, have the end of it added up, and then what was added up entered."""
        self.wire(pack("FLUSHALL"))
        number = self.random.choice((0, 1, 4, 9, 140 if self.random.random() < 0.1 else 2))
        if self.random.random() < 0.3:
            self.wire(pack("HSET", self.keys[1], f"7|{meter_token('tokens')}5|ada", 5))
        for nth in range(number):
            self._enter(nth)
        before, names = self._sums(), self._names()
        most = self.random.choice((0, 1, 3, 10))
        readable = [name for name, is_read in names[::-1] if is_read]
        gone = self._ask("fold", most)
        looked = min(max(0, number - most), AT_ONCE)
        expected = [name for name, is_read in names[::-1][:looked] if is_read]
        self._compare("how many are gone", len(expected), gone)
        left = {name for name, _ in names} - set(expected)
        self._compare("what is left", left, {name for name, _ in self._names()})
        self._compare("the sums", before, self._sums())
        self.seen["added up"] += bool(expected)
        self.seen["left"] += len(readable) > len(expected)
        kept = self._hash()
        self._compare("sums entered", len(kept), self._ask("unfold"))
        self._compare("the hash", {}, self._hash())
        self._compare("the sums", before, self._sums())
        entered = [fields for name, fields in self._stream() if name not in left]
        at = {fields[b"at"] for fields in entered}
        self._compare("when", {b"%d" % NOW_MS} if kept else set[bytes](), at)
        self._compare("each kind", {b"summed"} if kept else set[bytes](), {one[b"k"] for one in entered})

    def _enter(self, nth: int) -> None:
        random = self.random
        if random.random() < 0.15:
            self.wire(pack("XADD", self.keys[0], "*", "k", "deleted", "d", "ada", "at", 5))
            return
        noted: list[int | str] = []
        for meter in random.sample(METERS, random.choice((1, 1, 2, 3))):
            units = [random.choice((0, 0, 1, 40, 10**15 - 1)) for _ in range(5)]
            noted += [
                f"{meter_token(meter)}m",
                *units,
                random.choice((0, 1, 30, sum(units))) if any(units) else 0,
            ]
        late = random.choice(("", "", "6"))
        period, told = random.choice((7, 1_935_000_000_000)), random.choice(("", "\nmodel\n", PRICED, PRICED))
        packed = pack_field("w:1", nth, random.choice(CUSTOMERS[:2]), NOW_MS, period, late, told, *noted)
        if random.random() < 0.1:
            packed = b"\xfc" + packed[1:]  # As another release may write it.
        self.wire(pack("XADD", self.keys[0], "*", "e", packed))

    def _ask(self, name: str, *argv: int) -> Any:
        return self.wire(pack("EVALSHA", self.shas[name], 2, *self.keys, *argv, NOW_MS))

    def _stream(self) -> list[tuple[bytes, dict[bytes, bytes]]]:
        found: Any = self.wire(pack("XRANGE", self.keys[0], "-", "+"))
        return [(name, dict(zip(fields[::2], fields[1::2], strict=True))) for name, fields in found]

    def _names(self) -> list[tuple[bytes, bool]]:
        """The entries of the stream, and whether each can be added up."""
        return [(name, fields.get(b"e", b"").startswith(b"\xfd")) for name, fields in self._stream()]

    def _hash(self) -> dict[bytes, bytes]:
        flat: Any = self.wire(pack("HGETALL", self.keys[1]))
        return dict(zip(flat[::2], flat[1::2], strict=True))

    def _sums(self) -> Sums:
        """The units of each class in stream and hash: by customer, meter and period."""
        found = Sums()
        kept = [
            (b"0-1", {b"k": b"summed", b"d": name, b"q": units, b"at": b"5"})
            for name, units in self._hash().items()
        ]
        for name, fields in [*self._stream(), *kept]:
            if fields.get(b"e", b"\xfd").startswith(b"\xfd"):
                for row in rows_of(0, name.decode(), fields, str):
                    for kind in CLASSES:
                        found[row.customer, row.meter, row.period_start_ms, kind] += getattr(row, kind)
                    place = row.customer, row.meter, row.period_start_ms
                    found[*place, "cost"] += row.cost_micros or 0
                    found[*place, f"at {row.price_micros}/{row.price_per}"] += row.priced or 0
        return +found

    def _compare(self, what: str, expected: object, found: object) -> None:
        if expected != found:
            raise MismatchError(f"{what}: expected {expected!r:.300}, found {found!r:.300}")


def folding_texts() -> dict[str, str]:
    """The scripts under a clock that is set."""
    return {name: scripts.load(name, clock="caller").text for name in ("fold", "unfold")}
