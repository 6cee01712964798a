"""A shard after each script: everything that is stored, compared with the model."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final, cast

from drivers.counters import flat_of, packed_of
from meterkit.decisions.keys import Keys
from meterkit.redis.connection import pack, pack_numbers
from store.delivery_model import Shard, item_text
from store.script_model import NEVER_MS, View
from store.script_wires import Wire
from store.script_world import MismatchError, fields_of, load_script

NAMES: Final = (
    "seal",
    "move_intents",
    "amend_state",
    "lease_shard",
    "change_claim",
    "forget_customer",
    "read_usage",
    "fence_producer",
    "count_due",
    "recall_intents",
    "change_state",
    "correct_usage",
    "refuse_intent",
    "withdraw_intent",
    "mark_late_usage",
    "settle_item",
)
SKEWS: Final = (-3_600_000, 3_600_000)

_CLOCK: Final = "tonumber(caller_ms)"
_SORTED: Final = ("dirty", "unlinked", "outbox", "parked", "dead", "compare", "turns", "items")
# A script that went on for ever would take the server with it.
_GO: Final = """
local server, asked = redis, 0
local redis = setmetatable({call = function(...)
  asked = asked + 1
  if asked > 1000 then error('the script does not end') end
  return server.call(...)
end}, {__index = server})
local function script()
"""
# Time stands still within a script: so lives that were given by it are told to the millisecond.
_AND_TELL: Final = """
end
local reply, rows = script(), {}
for i, key in ipairs(redis.call('KEYS', '*')) do
  local kind = redis.call('TYPE', key).ok
  local read = {hash = {'HGETALL', key}, zset = {'ZRANGE', key, 0, -1, 'WITHSCORES'}, set = {'SMEMBERS', key},
    string = {'GET', key}, stream = {'XRANGE', key, '-', '+'}, list = {'LRANGE', key, 0, -1}}
  local found = redis.call(unpack(read[kind]))
  rows[i] = {key, kind, redis.call('PTTL', key), redis.call('PEXPIRETIME', key), found}
end
return {reply, rows}
"""


class Checks:
    """A store with the scripts in it, and the model of what it holds.

    ``slack_ms`` is how far the store's clock may go on within a script.
    """

    names: ClassVar[tuple[str, ...]] = NAMES

    def __init__(self, wire: Wire, texts: Mapping[str, str], *, slack_ms: int) -> None:
        self.wire, self.slack_ms = wire, slack_ms
        self.keys, self.seen, self.wall = Keys("mk", 1), Counter[str](), 0
        self.shas = {(name, 0): self._load(text) for name, text in texts.items()}
        for skew in SKEWS:
            for name in ("seal", "correct_usage"):
                self.shas[name, skew] = self._load(texts[name].replace(_CLOCK, f"{_CLOCK} + {skew}"))
        self.empty()

    def empty(self) -> None:
        self.wire(pack("FLUSHALL"))
        self.shard, self.log = Shard(), deque[str](maxlen=12)
        self.rows: dict[str, list[Any]] = {}

    def ask(
        self, name: str, keys: tuple[str, ...], *argv: str | int | bytes, skew: int = 0
    ) -> tuple[Any, dict[str, Any]]:
        named = [self._key(key) for key in keys]
        answer = self.wire(pack("EVALSHA", self.shas[name, skew], len(named), *named, *argv))
        if isinstance(answer, Exception) or len(answer) != 2:
            raise MismatchError(f"{name} {argv}: {answer}")
        reply, rows = answer
        self.rows = {self._short(row[0].decode()): row[1:] for row in rows}
        found = {
            key: _counters(content) if key.startswith("c:") else _READ[kind.decode()](content)
            for key, (kind, _, _, content) in self.rows.items()
        }
        for texts in ("intents", "delivered:1"):
            if texts in found:
                found[texts] = {known: json.loads(text) for known, text in found[texts].items()}
        if "items" in found:  # Whatever the order of their fields is.
            found["items"] = {item_text(json.loads(text)): due for text, due in found["items"].items()}
        if "audit" in found:
            told = map(_audited, cast("list[dict[str, Any]]", found["audit"]))
            found["audit"] = [entry for entry in told if entry is not None]
            found = {key: content for key, content in found.items() if content}
        return reply, found

    def judge(self, script: str, keys: tuple[str, ...], *argv: str | int, expected: Any) -> None:
        """Have a script do what the model says."""
        reply, found = self.ask(script, keys, *argv, self.wall)
        self.check(f"{script} {argv}", expected, reply, found)

    def check(self, what: str, expected: int | Sequence[Any], reply: Any, found: dict[str, Any]) -> None:
        self.log.append(what)
        code = expected if isinstance(expected, int) else expected[0]
        self.seen[f"{what.partition(' ')[0]} {min(code, 9)}"] += 1
        self._compare("the reply", expected, reply)
        stored = self._stored()
        self._compare("the keys", sorted(stored), sorted(found))
        for key, content in stored.items():
            self._compare(key, content, found[key])
            _, ttl_ms, expires_ms, _ = self.rows[key]
            lives_ms = self.shard.ttls.get(key)
            if key.startswith("c:"):
                lives = self.shard.customers[key[2:]].lives
                self._compare(f"expiry of {key}", -1 if lives == NEVER_MS else lives, expires_ms)
            elif lives_ms is None:
                self._compare(f"life of {key}", -1, ttl_ms)
            else:
                past_ms = self.slack_ms if key in self.shard.fresh else 500_000
                if not lives_ms - past_ms <= ttl_ms <= lives_ms:
                    self._compare(f"life of {key}", lives_ms, ttl_ms)

    def _compare(self, what: str, expected: Any, found: Any) -> None:
        if expected != found:
            before = "\n  ".join(self.log)
            raise MismatchError(f"after\n  {before}\n{what}: expected {expected!r}\n   found {found!r}")

    def _stored(self) -> dict[str, Any]:
        """Everything that the model says is stored, by key without its prefix."""
        shard = self.shard
        stored: dict[str, Any] = {
            **{name: getattr(shard, name) for name in _SORTED},
            "customers": shard.members,
            "intents": {known: intent.stored() for known, intent in shard.intents.items()},
            "delivered:1": shard.delivered,
            "batches:1": shard.batches,
            "notices": [
                {"kind": kind, "customer": name, "of": "", "numbers": "", "data": data}
                for kind, name, data in shard.notices
            ],
            "audit": shard.audit,
            **shard.strings,
            **{f"g:{name}": grants for name, grants in shard.grants.items()},
            **{f"j:{name}": ledger for name, ledger in shard.ledgers.items()},
            **{f"k:{name}": digests for name, digests in shard.corrections.items()},
            **{f"h:{name}": entries for name, entries in shard.histories.items()},
        }
        for name, customer in shard.customers.items():
            stored[f"c:{name}"] = texts_of(customer.fields())
            force = {"force": shard.forces[name]} if name in shard.forces else {}
            state = {"rev": customer.rev, "data": customer.data, **force}
            stored[f"s:{name}"] = state if customer.data else {}
            stored[f"t:{name}"] = texts_of(customer.closed)
        return {key: content for key, content in stored.items() if content}

    def store(self, *keys: str) -> None:
        """Have the store hold what the model does, in one round trip."""
        stored = self._stored()
        requests = [request for short in keys for request in self._storing(short, stored.get(short))]
        if requests:
            self.wire(*requests)

    def _storing(self, short: str, content: Any) -> Iterator[bytes]:
        """The commands that make a key hold some content, with its life."""
        key = self._key(short)
        yield pack("DEL", key)
        if content is None:
            return
        if isinstance(content, str):
            yield pack("SET", key, content)
        elif isinstance(content, list):
            for entry in cast("list[dict[str, str]]", content):
                yield pack("XADD", key, "*", *(part for field in entry.items() for part in field))
        elif isinstance(content, set):
            yield pack("SADD", key, *cast("set[str]", content))
        elif short in _SORTED:
            yield pack("ZADD", key, *(part for name, at in content.items() for part in (at, name)))
        else:
            texts = {n: t if isinstance(t, str) else json.dumps(t) for n, t in content.items()}
            fields = packed_of(texts) if short.startswith("c:") else texts
            yield pack("HSET", key, *(part for field in fields.items() for part in field))
        customer = self.shard.customers[short[2:]] if short.startswith("c:") else None
        if customer is not None and customer.lives < NEVER_MS:
            yield pack("PEXPIREAT", key, customer.lives)
        elif short in self.shard.ttls:
            yield pack("PEXPIRE", key, self.shard.ttls[short])

    def _key(self, short: str) -> str:
        return self.keys.shard(0, short)

    def _short(self, key: str) -> str:
        return key.removeprefix(self.keys.shard(0, ""))

    def _load(self, text: str) -> str:
        """Have the server compile a script that also tells what is stored after it."""
        head, _, body = text.partition("\n") if text.startswith("#!") else ("", "", text)
        return load_script(self.wire, "a script", f"{head}\n{_GO}{body}\n{_AND_TELL}").sha


def pairs(flat: list[bytes]) -> dict[str, str]:
    return {name: text.decode() for name, text in fields_of(flat).items()}


def _counters(flat: list[bytes]) -> dict[str, str]:
    fields = fields_of(flat)
    try:
        return flat_of(fields)
    except ValueError:  # It was damaged on purpose.
        return {name: repr(packed) for name, packed in fields.items()}


def own_keys(name: str, kinds: str) -> tuple[str, ...]:
    return tuple(f"{kind}:{name}" for kind in kinds)


def terms_of(view: View, outlive_ms: int = 0, live_ms: int = 0) -> bytes:
    """What a script is told of a customer's periods, and of how long its counters live."""
    until_ms = min(view.valid_until_ms, view.next_end_ms)
    return pack_numbers([until_ms, *view.period, view.next_end_ms, outlive_ms, live_ms])


def texts_of(fields: Mapping[str, int | str]) -> dict[str, str]:
    return {name: str(value) for name, value in fields.items()}


def _audited(entry: dict[str, Any]) -> dict[str, Any] | None:
    """An entry of the audit log; of a correction without meters that stay as they are, None without any."""
    if entry.get("k") != "corrected":  # Or not one of ours at all.
        return entry
    what = json.loads(entry["d"])
    what["meters"] = {token: text for token, text in what["meters"].items() if text != "0 0 0 0 0 0 0"}
    return {**entry, "d": what} if what["meters"] else None


_READ: Final[Mapping[str, Callable[[Any], Any]]] = {
    "hash": pairs,
    "zset": lambda flat: {name: int(float(score)) for name, score in pairs(flat).items()},
    "set": lambda names: {name.decode() for name in names},
    "string": bytes.decode,
    "stream": lambda found: [pairs(fields) for _, fields in found],
    "list": lambda found: list(map(json.loads, found)),
}
