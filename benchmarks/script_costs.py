"""What the parts of a script cost the server: python benchmarks/script_costs.py

Each line is a script that does one thing; its cost is the server's own figure (``INFO commandstats``), the
lowest of several batches. The difference to the empty script is what the thing costs.
"""

from __future__ import annotations

import struct

import redis
from machine import Cores, socket_server

BATCHES, CALLS = 20, 500
NUMBERS = [1_000_000_000_000 + n for n in range(20)]
HASH = {f"f{n}": 1_000_000 + n for n in range(16)}
SCRIPTS: dict[str, tuple[str, list[object]]] = {
    "empty": ("return 1", []),
    "three keys": ("return 1", ["k2", "k3"]),
    "20 arguments": ("return 1", NUMBERS),
    "20 arguments, each read as a number": (
        "local x = 0 for i = 1, 20 do x = x + tonumber(ARGV[i]) end return 1",
        NUMBERS,
    ),
    "20 numbers as one JSON array": (
        "local n = cjson.decode(ARGV[1]) return 1",
        ["[" + ",".join(map(str, NUMBERS)) + "]"],
    ),
    "20 numbers as doubles": (
        "local n = struct.unpack('<dddddddddddddddddddd', ARGV[1]) return 1",
        [struct.pack("<20d", *NUMBERS)],
    ),
    "three numbers, struct.pack": ("local x = struct.pack('<ddd', 498655, 12, 5)", []),
    "three numbers, cmsgpack.pack": ("local x = cmsgpack.pack(498655, 12, 5)", []),
    "three numbers, string.format": ("local x = string.format('%.0f %.0f %.0f', 498655, 12, 5)", []),
    "three numbers, struct.unpack": (
        "local a, b, c = struct.unpack('<ddd', ARGV[1])",
        [struct.pack("<3d", 498655, 12, 5)],
    ),
    "three numbers, cmsgpack.unpack": (
        "local a, b, c = cmsgpack.unpack(ARGV[1])",
        [b"\xce\x00\x07\x9b\xdf\x0c\x05"],
    ),
    "three numbers, string.match": (
        "local a, b, c = string.match(ARGV[1], '^(%d+) (%d+) (%d+)$') a, b, c = a + 0, b + 0, c + 0",
        ["498655 12 5"],
    ),
    "reply of four numbers": ("return {0, 1795161368817, 1, 5}", []),
    "four local functions": (
        "local function a() end local function b() end local function c() end local function d() end",
        [],
    ),
    "TIME": ("local t = redis.call('TIME') return 1", []),
    "HMGET of 6 fields": ("redis.call('HMGET', KEYS[1], unpack(ARGV)) return 1", list(HASH)[:6]),
    "HMGET of 13 fields": ("redis.call('HMGET', KEYS[1], unpack(ARGV)) return 1", list(HASH)[:13]),
    "HSET of 1 field": ("redis.call('HSET', KEYS[1], 'f1', 17951613) return 1", []),
    "HSET of 4 fields": (
        "redis.call('HSET', KEYS[1], 'f1', 17951613, 'f2', 17951614, 'f3', 17951615, 'f4', 5) return 1",
        [],
    ),
    "INCR": ("redis.call('INCR', 'n') return 1", []),
    "SET with TTL, and the old value": ("redis.call('SET', 's', '12', 'PX', 691200000, 'GET') return 1", []),
}


def cost_us(client: redis.Redis, text: str, arguments: list[object]) -> float:
    sha = client.script_load(text)
    lowest = float("inf")
    for _ in range(BATCHES):
        client.config_resetstat()
        pipe = client.pipeline(transaction=False)
        for _ in range(CALLS):
            pipe.execute_command("EVALSHA", sha, 1, "h", *arguments)
        pipe.execute()
        stats = client.info("commandstats")["cmdstat_evalsha"]
        lowest = min(lowest, stats["usec"] / stats["calls"])
    return lowest


def main() -> None:
    with socket_server(Cores()) as path, redis.Redis(unix_socket_path=path) as client:
        client.hset("h", mapping=HASH)
        empty = cost_us(client, *SCRIPTS["empty"])
        print(f"microseconds of server time over an empty script ({empty:.2f})")
        for name, (text, arguments) in SCRIPTS.items():
            print(f"{name:40} {cost_us(client, text, arguments) - empty:6.2f}")


if __name__ == "__main__":
    main()
