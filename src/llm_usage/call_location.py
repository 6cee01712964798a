"""Location of a model call, by the path of its request: Vertex AI's locations and Bedrock's profiles.

- https://docs.cloud.google.com/gemini-enterprise-agent-platform/resources/locations
- https://docs.aws.amazon.com/bedrock/latest/userguide/cross-region-inference.html
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from llm_usage.published_factors import REGIONAL
from llm_usage.requested_model import JSON_EDGE_BYTES, json_text, member_pattern, models_of_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from llm_usage.call_usage import CallUsage
    from llm_usage.llm_request import LlmRequest

WAY: Final = REGIONAL[0]
"""The way of processing that says where a call runs."""
_MARKS: Final = re.compile("/locations/|/model/")
_GLOBAL: Final = "global"
_LOCATION: Final = re.compile(r"/projects/+[^/]+/+locations/+([^/]+)/+(?:publishers|endpoints)/")
_GLOBAL_PROFILE: Final = f"{_GLOBAL}."
_OF_BEDROCK: Final = "anthropic."
"""Within the names that Bedrock has for models with a price of their own in regions."""
_BEDROCK: Final = ("aws", "aws.bedrock")
_ANTHROPIC: Final = "anthropic"
_ITS_MODELS: Final = "claude"
_UNSEEN: Final = ("missing", "estimated")
_IN_JSON: Final = member_pattern(WAY)


class JsonLocation:
    """Finds the location that JSON asks for which is too large or too dense to be parsed.

    Attributes:
        found: by now, such as ``us``; None: none.
    """

    __slots__ = ("_edge", "found")

    def __init__(self) -> None:
        self._edge = b""
        self.found: str | None = None

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body."""
        window = self._edge + data
        self._edge = window[-JSON_EDGE_BYTES:]
        if self.found is None:
            self.found = _first_regional(json_text(written).lower() for written in _IN_JSON.findall(window))


def location_of_text(body: bytes) -> str | None:
    """The location that JSON seems to ask for; see :class:`JsonLocation`."""
    reader = JsonLocation()
    reader.feed(body)
    return reader.found


def location_of_body(asked: LlmRequest) -> str | None:
    """The location that a request's JSON asks for, such as ``us``; None: it asks for none."""
    context = asked.context
    if context is None:
        return REGIONAL[1]  # It may ask for any.
    return _first_regional(value for way, value in context if way == WAY)


def _first_regional(named: Iterable[str]) -> str | None:
    return next((value for value in named if value != _GLOBAL), None)


def location_of_path(path: str) -> tuple[str, str] | None:
    """The location of a call; None: it is global, or the path does not say it.

    Args:
        path: of the request, decoded once.
    """
    if _MARKS.search(path) is None:
        return None
    profiles = models_of_path(path) if "/model/" in path else ()
    is_regional = any(
        _OF_BEDROCK in name and not name.startswith(_GLOBAL_PROFILE) for name in profiles
    ) or any(named.lower() != _GLOBAL for named in _LOCATION.findall(path))
    return REGIONAL if is_regional else None


def locate_calls(
    calls: Sequence[CallUsage], path: str, requested: Callable[[], str | None]
) -> Sequence[CallUsage]:
    """The calls of a request, with the location that the responses do not name.

    Args:
        calls: with their models.
        path: of the request, decoded once, as it was before the app's routers saw it.
        requested: gives the location that the request's body asks for; called once, and only where the shape
            of a response has no place for it.
    """
    if _MARKS.search(path) is not None:
        location, profiles = location_of_path(path), models_of_path(path)
        calls = [_name_profile(call, profiles) for call in calls]
        return calls if location is None else [_locate(call, location) for call in calls]
    for call in calls:
        if _ITS_MODELS in (call.model or "") and _may_ask(call):
            value = requested()
            break
    else:
        return calls
    if value is None:
        return calls
    return [_locate(call, (WAY, value)) if _may_ask(call) else call for call in calls]


def _may_ask(call: CallUsage) -> bool:
    """Whether the request may have chosen the location: Anthropic's own responses name it."""
    return call.provider != _ANTHROPIC or call.source in _UNSEEN


def _locate(call: CallUsage, location: tuple[str, str]) -> CallUsage:
    context = dict([location, *call.context])
    return replace(call, context=tuple(sorted(context.items())))


def _name_profile(call: CallUsage, named: Sequence[str]) -> CallUsage:
    """Name a call of Bedrock's by its global profile: the model's own name stands for the regional price."""
    model = call.model
    if call.provider not in _BEDROCK or not model:
        return call
    profiles = (name for name in named if name.startswith(_GLOBAL_PROFILE) and model in name)
    return replace(call, model=next(profiles, model))
