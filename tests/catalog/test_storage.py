"""``storage:`` in the plans file."""

from __future__ import annotations

from typing import Final

import pytest

from meterkit.catalog import ObjectPattern, Storage, loads
from meterkit.errors import PlansError

PLANS: Final = """
schema: 1
currency: usd
default_plan: free
meters:
  requests: {{unit: request}}
  storage: {{unit: byte, kind: gauge}}
  seats: {{unit: seat, kind: gauge}}
storage: {storage}
plans: {{free: {{price: {{amount_cents: 0, interval: month}}}}}}
"""


def test_one_pattern_or_several() -> None:
    one = '{gauge: storage, objects: {bucket: b, key: "{customer}/{type}/{path:path}"}, types: [images]}'
    pattern = ObjectPattern(bucket="b", key="{customer}/{type}/{path:path}")
    storage = Storage(gauge="storage", objects=(pattern,), types=("images",))
    assert loads(PLANS.format(storage=one)).storage == storage
    several = (
        '{gauge: storage, objects: [{bucket: b, key: "{customer}"}, {bucket: c, key: "x/{customer}/y"}]}'
    )
    found = loads(PLANS.format(storage=several)).storage
    assert found is not None
    assert [pattern.key for pattern in found.objects] == ["{customer}", "x/{customer}/y"]


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ('{gauge: storge, objects: {bucket: b, key: "{customer}"}}', "storage.gauge: .*storage"),
        ('{gauge: seats, objects: {bucket: b, key: "{customer}"}}', "must be a gauge of bytes"),
        ("{gauge: storage}", "storage.objects: storage needs this key"),
        ("{gauge: storage, objects: []}", "at least one"),
        ('{gauge: storage, objects: {bucket: b, key: "{tenant}/{path:path}"}}', "{tenant} is no field"),
        ('{gauge: storage, objects: {bucket: b, key: "a/{path:path}"}}', "{customer} must stand in it once"),
        ('{gauge: storage, objects: {bucket: b, key: "{customer}/{customer}"}}', "must stand in it once"),
        ('{gauge: storage, objects: {bucket: b, key: "{path:path}/{customer}"}}', "at the end"),
        ('{gauge: storage, objects: {bucket: b, key: "{customer}{type}"}}', "must part fields"),
        ('{gauge: storage, objects: {bucket: b, key: "{customer}"}, types: [other]}', "leave it out"),
    ],
)
def test_what_is_wrong_is_refused(storage: str, message: str) -> None:
    with pytest.raises(PlansError, match=message):
        loads(PLANS.format(storage=storage))
