"""Models that a gateway may call in place of the one that a request names: lists, maps and fallbacks.

https://openrouter.ai/docs/guides/routing/model-fallbacks, https://docs.litellm.ai/docs/proxy/reliability
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, cast

from llm_usage.json_readings import MODEL_NAMES, NAME_CHARS_MAX, Members, NamedValue, fold_name
from llm_usage.json_values import rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# https://openrouter.ai/docs/guides/routing/model-fallbacks, https://docs.litellm.ai/docs/proxy/reliability
_LISTS: Final = ("models", "fallback", "fallbacks")
"""Ends of the names of members that list models which a gateway may call."""
_LISTED_VALUES_MAX: Final = 2_048
_MENTIONED_MAX: Final = 32
"""So many names of one list are enough: a hold prices fewer, and takes more for an unknown model."""
_CONTAINERS: Final = (list, tuple)
INPUT_MEMBERS: Final = frozenset({"messages", "input", "contents", "prompt", "system", "tools"})


class GatewayModels(NamedTuple):
    """Models that a gateway may call in place of the one that a request names.

    Attributes:
        listed: in lists and maps of models and of fallbacks.
        mentioned: in members called ``model`` wherever they stand, and keys of maps of fallbacks.
        is_cut: whether the request has more values than are looked through.
    """

    listed: Sequence[str]
    mentioned: Sequence[str]
    is_cut: bool


NO_GATEWAY_MODELS: Final = GatewayModels((), (), False)


def find_gateway_models(members: Iterable[NamedValue]) -> GatewayModels:
    """Look through members of a request for models, at any depth; messages and tools name none to a gateway.

    The forms of fallbacks are ``["dear"]``, ``[{"cheap": ["dear"]}]``, ``{"cheap": "dear"}`` and
    ``[{"model": "dear", "fallbacks": […]}]``.
    """
    listed, mentioned = list[str](), list[str]()
    rest: list[tuple[object, bool]] = [(tuple(members), False)]
    for _ in range(_LISTED_VALUES_MAX):
        if not rest:
            break
        value, is_list = rest.pop()
        if isinstance(value, str):
            if is_list:
                listed.append(value)
        elif isinstance(value, list):
            items = cast("list[object]", value)
            if is_list:
                rest += [(item, True) for item in items[: _LISTED_VALUES_MAX + 1]]
            else:
                rest += [(item, False) for item in items if isinstance(item, _CONTAINERS)]
        elif isinstance(value, tuple):
            _sort_members(cast("Members", value), rest, mentioned, is_list=is_list)
    return GatewayModels(listed, mentioned, bool(rest))


def _sort_members(
    members: Members, rest: list[tuple[object, bool]], mentioned: list[str], *, is_list: bool
) -> None:
    """Sort the members of an object into names of models and values that may hold some.

    In a list of models an object is an entry, with the name under ``model``, or a map from names to names.
    """
    folded = [(fold_name(name[:NAME_CHARS_MAX]), name, inner) for name, inner in members]
    is_entry = any(name in MODEL_NAMES for name, _, _ in folded)
    for name, written, inner in folded:
        if name in INPUT_MEMBERS:
            continue
        if is_list and not is_entry:
            mentioned.append(written)
            rest.append((inner, True))
        elif name.endswith(_LISTS) or (is_list and name in MODEL_NAMES):
            rest.append((inner, True))
        else:
            if is_list or any(word in name for word in MODEL_NAMES):
                texts = (inner, *rows(inner)[:_MENTIONED_MAX])
                mentioned += [text for text in texts if isinstance(text, str)]
            rest.append((inner, False))
