"""What is kept of a batch: short, and it gives back what was sent, also of releases before."""

# Internals: a pure table of identifiers and the text that keeps them.

from __future__ import annotations

from random import Random
from secrets import token_hex

import pytest

from meterkit.outbox.batches import batch_text, intents_in


def identifiers(seed: int) -> list[str]:
    """Of several pages, customers and meters; those of corrections, of what was refused, of many meters."""
    random = Random(seed)  # noqa: S311 - repeatable, not secret
    pages = [f"{random.getrandbits(112):028x}" for _ in range(random.choice((1, 2, 5)))]
    nonces = [f"{random.choice(pages)}{random.randrange(300):04x}" for _ in range(9)]
    nonces += [f"{random.getrandbits(128):032x}" for _ in range(random.choice((0, 1, 5)))]
    ends = ("", "r", "-1", "-2", "-3", "-10", "-999999", "-1r", "-1rr")
    made = {random.choice(nonces) + random.choice(ends) for _ in range(random.randrange(1, 100))}
    return random.sample(sorted(made), len(made))


@pytest.mark.parametrize("seed", range(50))
def test_it_gives_back_what_was_sent(seed: int) -> None:
    sent = identifiers(seed)
    assert sorted(intents_in(batch_text(sent))) == sorted(sent)


def test_those_that_were_sealed_together_take_a_few_bytes_each() -> None:
    page = token_hex(14)
    sent = [f"{page}{customer:04x}-{meter}" for customer in range(33) for meter in (1, 2, 3)]
    assert len(batch_text(sent)) < 5.5 * len(sent)
    assert len(batch_text(sent[::3])) < 9.5 * len(sent[::3])


def test_what_releases_before_have_kept_is_read() -> None:
    sent = identifiers(0)
    assert intents_in(" ".join(sent)) == sent


def test_releases_before_find_none_of_it_rather_than_some() -> None:
    sent = identifiers(0)
    assert not set(batch_text(sent).split(" ")) & set(sent)
