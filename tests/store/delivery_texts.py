"""Texts of the store whose order of fields does not matter, as the models of delivery have them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def item_text(item: Mapping[str, str]) -> str:
    """An invoice item as the model has it, without the name that the script gives it."""
    return json.dumps({name: text for name, text in item.items() if name != "id"}, sort_keys=True)
