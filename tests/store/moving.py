"""Lives in which recurring grants end with a period that has moved."""

from __future__ import annotations

import json
from collections.abc import Mapping
from random import Random
from typing import Any, Final

from meterkit.decisions.keys import Keys
from meterkit.redis.connection import pack
from store.script_plans import START_MS
from store.script_wires import Wire
from store.script_world import MismatchError, load_script

Asked = tuple[str, str, str, str]

SCRIPT: Final = "move_grants"
KEYS: Final = Keys("mk", 1).customer("ada")
NAMES: Final = ("p m:calls 20-period 1", "p m:calls 20-period 2", "p c:ai start 1", "p c:ai start 2")


def move(grants: dict[str, str], ledger: dict[str, str], asked: list[Asked]) -> int:
    """What moving comes to: a grant ends elsewhere, and the name it would be given again by is used up."""
    found = 0
    for name, expires, until, again in asked:
        if name in grants:
            found += 1
            target, quantity, used, priority, effective, _, created, _ = grants[name].split()
            terms = f"{priority} {effective} {expires} {created}"
            grants[name] = f"{target} {quantity} {used} {terms} {until}"
            if again and again not in grants:
                grants[again] = f"{target} {quantity} {quantity} {terms} {until}"
                ledger.setdefault(f"grant {again}", f"0 {terms}")
    if found:
        grants.pop("balance", None)
    return found


class Moving:
    """One customer's grants, anew in each step."""

    names = (SCRIPT,)

    def __init__(self, wire: Wire, texts: Mapping[str, str], random: Random) -> None:
        self.wire, self.random, self.seen = wire, random, set[str]()
        self._sha = load_script(wire, SCRIPT, texts[SCRIPT]).sha

    def step(self) -> None:
        """Plant grants, have some moved, and compare what is stored."""
        random = self.random
        grants = {name: self._grant(name) for name in NAMES if random.random() < 0.5}
        grants |= {"balance": "as it was"} if random.random() < 0.7 else {}
        ledger = {f"grant {name}": "7 1 2 3 4" for name in NAMES if random.random() < 0.4}
        self.wire(pack("DEL", KEYS.grants, KEYS.ledger))
        for key, fields in ((KEYS.grants, grants), (KEYS.ledger, ledger)):
            if fields:
                self.wire(pack("HSET", key, *(part for pair in fields.items() for part in pair)))
        asked = [
            (name, f"{self._instant()}", f"{self._instant()}", random.choice(("", *NAMES)))
            for name in random.sample(NAMES, random.choice((1, 2, 3)))
        ]
        head = ("EVALSHA", self._sha, 2, KEYS.grants, KEYS.ledger)
        reply = self.wire(pack(*head, json.dumps(asked), START_MS))
        expected = move(grants, ledger, asked)
        self._compare(f"move {asked}", expected, reply)
        self.seen.add(f"moved {expected}")
        for key, fields in ((KEYS.grants, grants), (KEYS.ledger, ledger)):
            texts = [text.decode() for text in self.wire(pack("HGETALL", key))]
            self._compare(f"{key} after {asked}", fields, dict(zip(texts[::2], texts[1::2], strict=True)))

    def _grant(self, name: str) -> str:
        random, quantity = self.random, self.random.choice((1, 700, 9 * 10**15))
        used, priority = random.choice((0, quantity // 2, quantity)), random.choice((0, 20))
        effective, expires, created, until = (self._instant() for _ in range(4))
        times = f"{effective} {expires} {created} {until}"
        return f"{name.split()[1]} {quantity} {used} {priority} {times}"

    def _instant(self) -> int:
        return START_MS + self.random.randrange(10**9)

    def _compare(self, what: str, expected: Any, found: Any) -> None:
        if expected != found:
            raise MismatchError(f"{what}: {expected!r} is expected, and {found!r} was found")
