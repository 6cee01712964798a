"""Values of a plans file as a JSON schema sees them."""

from __future__ import annotations

import json
import re

from meterkit.catalog.document import Fields, Items, Node, parse
from meterkit.catalog.errors import Problems


def json_of(text: str | bytes) -> object:
    """A plans file as editors see it."""
    data = text.encode() if isinstance(text, str) else text
    return to_json(parse(data, problems=Problems("plans.yaml")))


def to_json(node: Node) -> object:
    """A node as editors see it: YAML 1.2, core schema."""
    if isinstance(node, Items):
        return [to_json(item) for item in node.items]
    if isinstance(node, Fields):
        return {key: to_json(value) for key, value in node.values.items()}
    if node.is_null:
        return None
    is_literal = re.fullmatch(r"true|false|-?[0-9]+([.][0-9]+)?", node.text) and not node.quoted
    return json.loads(re.sub(r"^0+(?=[0-9])", "", node.text)) if is_literal else node.text
