"""Factors on token prices that providers publish and the price table lacks: where a call runs.

Read in November 2026:

- Anthropic: https://platform.claude.com/docs/en/manage-claude/data-residency
- Claude on Vertex AI and Bedrock, regional endpoints from Claude 4.5 on:
  https://platform.claude.com/docs/en/build-with-claude/claude-on-vertex-ai
- Gemini on Vertex AI, all locations but `global`; older models, sound and live sessions have one price:
  https://cloud.google.com/gemini-enterprise-agent-platform/generative-ai/pricing
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from fractions import Fraction
from math import prod
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Context = tuple[tuple[str, str], ...]
"""Ways in which a call was processed: ``service_tier``, ``speed``, ``processing``, …; sorted."""
REGIONAL: Final = ("inference_geo", "regional")
"""In one region, or in the regions of a jurisdiction: anywhere but at a global endpoint."""


class PublishedFactor(NamedTuple):
    """Factor on the prices of all tokens of some models.

    Attributes:
        way: how a call is processed.
        models: the table's ids of the models, without a vendor.
        since: the instant from which it counts.
        factor: on the standard price.
    """

    way: tuple[str, str]
    models: re.Pattern[str]
    since: datetime
    factor: Fraction


_TENTH_MORE: Final = Fraction(110, 100)
PUBLISHED: Final = (
    PublishedFactor(
        ("inference_geo", "us"), re.compile("claude-.*"), datetime(2026, 2, 5, tzinfo=UTC), _TENTH_MORE
    ),
    PublishedFactor(
        REGIONAL,
        re.compile(r"claude-[a-z]+-(?:4[-.][5-9]|[5-9]).*"),
        datetime(2025, 9, 29, tzinfo=UTC),
        _TENTH_MORE,
    ),
    PublishedFactor(
        REGIONAL,
        re.compile(r"gemini-(?:3\.1-flash-(?:lite|image)(?:-preview)?|3\.[5-9]-flash(?:-lite)?|4-.*)"),
        datetime(2026, 7, 1, tzinfo=UTC),
        _TENTH_MORE,
    ),
)


def factors_of(model: str) -> Sequence[PublishedFactor]:
    """The factors that a model may have, by its id in the table."""
    name = model.lower().rpartition("/")[2]
    return tuple(one for one in PUBLISHED if one.models.fullmatch(name))


def product_of(factors: Iterable[PublishedFactor], context: Context, at: datetime) -> Fraction:
    """The product of those factors that a context has at an instant."""
    return prod((one.factor for one in factors if one.way in context and at >= one.since), start=Fraction(1))
