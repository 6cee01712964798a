"""An intent under a new identifier: as if it were sealed now, and nothing of what became of the old one."""

from __future__ import annotations

import json

from meterkit.outbox.intents import Kept

NOW_MS = 1_900_000_000_000
OF_ITS_USAGE = {
    "v": "1",
    "state": "parked",
    "customer": "acme",
    "stripe": "cus_acme",
    "period": "1899000000000",
    "meter": "requ",
    "event": "api_requests",
    "value": "6",
    "time": "1899999960",
}
OF_ITS_TRIES = {"key": "old-1", "first": "1899900000000", "attempts": "3", "at": "1899899999999"}
# Refused by Stripe once it was taken; and rebuilt, which is compared over all minutes before its own.
OF_ITS_PAST = {"refused": "1899990000000", "since": "1899000000", "base": "4"}


def test_what_is_renamed_is_sealed_anew_under_a_key_of_its_own() -> None:
    text = json.dumps(OF_ITS_USAGE | OF_ITS_TRIES | OF_ITS_PAST)
    anew = Kept.read("old", 0, text.encode()).renamed("new", NOW_MS)
    assert anew.identifier == "new"
    assert anew.fields == OF_ITS_USAGE | {"key": "new", "first": "0", "attempts": "0", "at": f"{NOW_MS}"}
    # Nothing of it was tried; and the store compares with what it has.
    assert (anew.tried_since_ms, anew.text) == (0, text)
