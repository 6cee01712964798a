"""Names of models as prices and patterns know them, however a request or a response spells them."""

from __future__ import annotations

import re
from typing import Final

WRITTEN_CHARS_MAX: Final = 2_048
"""Characters of a written name that count; the rest is cut off."""

_NAME_CHARS_MAX: Final = 256
_RESOURCE: Final = re.compile(
    r"(?:projects/[^/]+/locations/[^/]+/)?(?:publishers/[^/]+/)?models/(?P<google>[^/]+)"
    r"|arn:[^/]+:(?:foundation-model|inference-profile)/(?P<aws>.+)"
)
"""Names of resources that end in a model's name. Other resources, such as a provisioned model, stay whole."""


def plain_name(written: str) -> str | None:
    """A model's name without blanks around it, and without its resource; None: nothing is left of it."""
    name = written[:WRITTEN_CHARS_MAX]
    if not name.isprintable():
        name = "".join(letter for letter in name if letter.isprintable())
    name = name.strip()
    found = _RESOURCE.fullmatch(name) if "/" in name else None
    if found is not None:
        name = found["google"] or found["aws"]
    return name[:_NAME_CHARS_MAX].strip() or None
