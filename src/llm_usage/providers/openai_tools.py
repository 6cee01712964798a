"""Tools inside OpenAI's responses: calls that are billed each, and calls of other models.

https://github.com/openai/openai-python (`openai.types.responses`)
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from llm_usage.call_usage import figure
from llm_usage.json_values import dig, read_counts, rows, table, text
from llm_usage.providers.openai_figures import IMAGE_PATHS, SVG_PATHS, fill_image_figures, settle
from llm_usage.providers.reader_interface import UsageShape
from llm_usage.reported_calls import EventUsage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llm_usage.json_values import Table

_TOOL_ITEMS: Final = {
    "web_search_call": "web_searches",
    "file_search_call": "storage_searches",
    "code_interpreter_call": "code_executions",
}
"""Items of a response's output that are billed by the call."""

_BILLED_SEARCHES: Final = ("web_search", "num_requests")
TOOL_SHAPES: Final = (
    UsageShape(
        "Responses: calls of hosted tools", "output[]", {unit: [[kind]] for kind, unit in _TOOL_ITEMS.items()}
    ),
    UsageShape(
        "Responses: searches that are billed",
        "tool_usage",
        {"web_searches": [_BILLED_SEARCHES]},
    ),
)

# The documented default, gpt-image-2.6-sunburst, costs the same, and the price table does not have it yet:
# docs/design/decisions/0031. https://github.com/openai/openai-python `types/responses/tool.py`
_IMAGE_MODEL: Final = "gpt-image-2.5-sunburst"


def count_tool_calls(response: Table) -> dict[str, int]:
    """Calls of hosted tools in a response that are billed each; none where it has none.

    A search that opened a page or failed is not billed. Where the response says how many searches are, that
    counts: https://github.com/openai/openai-python `types/responses/response.py`
    """
    if "output" not in response and "tool_usage" not in response:
        return {}
    found = Counter[str]()
    for item in rows(response.get("output")):
        kind = dig(item, ("type",))
        unit = _TOOL_ITEMS.get(kind) if isinstance(kind, str) else None
        is_search = kind != "web_search_call" or dig(item, ("action", "type")) == "search"
        if unit is not None and is_search and dig(item, ("status",)) in ("completed", None):
            found[unit] += 1
    billed = figure(dig(response, ("tool_usage", *_BILLED_SEARCHES)))
    return dict(found) if billed is None else {**found, "web_searches": billed}


def read_other_calls(holder: Table, provider: str) -> Iterator[EventUsage]:
    """Yield the calls of other models inside an answer: the image tool's, and those that draw SVG."""
    shared: dict[str, Any] = {"provider": provider, "settle": settle, "final": True}
    used = table(dig(holder, ("tool_usage", "image_gen")))
    if used is not None:
        figures, refused = read_counts(used, IMAGE_PATHS)
        if refused or any(figures.values()):
            counts = fill_image_figures(figures) if figures else figures
            yield EventUsage(
                counts=counts, refused=refused, call_id="image_gen", model=_image_model(holder), **shared
            )
    for name, place in (("svg", holder), *_named_items(holder)):
        drawn = table(place.get("svg_usage"))
        if drawn is not None and (model := text(drawn.get("model"))) is not None:
            counts, refused = read_counts(drawn, SVG_PATHS)
            yield EventUsage(counts=counts, refused=refused, call_id=name, model=model, **shared)


def _named_items(holder: Table) -> Iterator[tuple[str, Table]]:
    for at, item in enumerate(rows(holder.get("output"))):
        found = table(item)
        if found is not None and "svg_usage" in found:
            yield f"svg {at}", found


def _image_model(response: Table) -> str:
    """Model of the image tool: the response repeats the requested tools."""
    named = (
        text(dig(tool, ("model",)))
        for kind, place in (("image_generation_call", "output"), ("image_generation", "tools"))
        for tool in rows(response.get(place))
        if dig(tool, ("type",)) == kind
    )
    return next((model for model in named if model is not None), _IMAGE_MODEL)
