"""A call of the emulator: a request with its parameters in Stripe's form encoding."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast, overload
from urllib.parse import parse_qsl

from stripe_emulator.protocol import ApiError, missing_parameter, refuse_long_metadata, unknown_parameter

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from stripe_emulator.protocol import JsonObject

# Of the account, whose objects and events have its shapes.
API_VERSION: Final = "2026-10-28.endive"
METER_EVENTS: Final = "/v1/billing/meter_events"
METER_EVENT_STREAM: Final = "/v2/billing/meter_event_stream"
CUSTOMER_KEY: Final = "stripe_customer_id"
Form: TypeAlias = "dict[str, str | Form]"
KEY_PATTERN: Final = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")
PART_PATTERN: Final = re.compile(r"\[([^\[\]]*)\]")
INTEGER_PATTERN: Final = re.compile(r"-?[0-9]{1,18}")
# At most 12 decimal places (https://docs.stripe.com/api/prices/create#create_price-unit_amount_decimal).
DECIMAL_PATTERN: Final = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,12})?")
COMPARISONS: Final = {"gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le}
PAGE_MAX: Final = 100
PAGE_DEFAULT: Final = 10


@dataclass(init=False, repr=False)
class Params:
    """The parameters of one request, or a hash of them: ``payload[value]=3&items[0][price]=price_1``.

    Args:
        encoded: a query string or a form body.

    Raises:
        ApiError: from here and from every method, where a parameter is not what it must be.
    """

    _form: Form
    _inside: str

    def __init__(self, encoded: str) -> None:
        self._form = {}
        self._inside = ""
        for key, value in parse_qsl(encoded, keep_blank_values=True):
            _insert_value(self._form, key=key, value=value)

    def path(self, name: str) -> str:
        """Return a parameter's whole name: ``items[0][price]`` for ``price`` in the first of ``items``."""
        if not self._inside:
            return name
        first, bracket, rest = name.partition("[")
        return f"{self._inside}[{first}]{bracket}{rest}"

    def accept(self, *allowed: str) -> None:
        """Refuse parameters that are not named; :func:`expand_fields` checks ``expand``.

        Args:
            allowed: names of parameters, separated by spaces.
        """
        for name in sorted(self._form.keys() - {*" ".join(allowed).split(), "expand"}):
            raise unknown_parameter(self.path(name))

    def only(self, *allowed: str, expandable: Collection[str] = ()) -> None:
        """Refuse parameters that are not named, and fields in ``expand`` other than ``expandable``."""
        self.accept(*allowed)
        for wanted in self.listed("expand"):
            if wanted.removeprefix("data.") not in expandable:
                raise ApiError(f"This property cannot be expanded ({wanted}).", param="expand")

    def nonempty_text(self, name: str, *, length_max: int = 5000) -> str | None:
        """Return a text that must not be empty where it is given."""
        value = self.text(name, length_max=length_max)
        if value == "":
            raise ApiError(
                f"You passed an empty string for '{name}'. We assume empty values are an attempt to unset a "
                f"parameter; however '{name}' cannot be unset.",
                code="parameter_invalid_empty",
                param=self.path(name),
            )
        return value

    def url(self, name: str) -> str | None:
        """Return a URL, or None where it is absent."""
        url = self.nonempty_text(name)
        if url is not None and not url.startswith(("http://", "https://")):
            raise ApiError("Not a valid URL", code="url_invalid", param=self.path(name))
        return url

    def __contains__(self, name: str) -> bool:
        return name in self._form

    def __iter__(self) -> Iterator[str]:
        return iter(self._form)

    def without(self, *names: str) -> Params:
        """Return the other parameters; ``names`` are separated by spaces."""
        left_out = " ".join(names).split()
        return self.pick(*(name for name in self._form if name not in left_out))

    def pick(self, *names: str) -> Params:
        """Return these parameters alone."""
        kept = {name: value for name, value in self._form.items() if name in names}
        return self._nest_form(kept, path=self._inside)

    def text(self, name: str, *, length_max: int = 5000) -> str | None:
        """Return a text, or None where it is absent. ``a[b]`` names a parameter inside another."""
        value = self._find_value(name)
        if isinstance(value, dict):
            raise ApiError(f"Invalid string: {self.path(name)} is a hash", param=self.path(name))
        if value is not None and len(value) > length_max:
            message = f"Invalid string: {value}; must be at most {length_max} characters"
            raise ApiError(message, param=self.path(name))
        return value

    def text_or(self, name: str, known: str | None) -> str | None:
        """Return a text that an empty one unsets, or what is ``known`` where it is absent."""
        return self.text(name) or None if name in self else known

    def refuse_both(self, *names: str, param: str) -> None:
        """Refuse two parameters that exclude each other."""
        if all(name in self for name in names):
            message = f"You may only specify one of these parameters: {', '.join(names)}."
            raise ApiError(message, param=self.path(param))

    def required(self, name: str, *, length_max: int = 5000) -> str:
        """Return a text that must be given and not be empty."""
        value = self.text(name, length_max=length_max)
        if not value:
            raise missing_parameter(self.path(name))
        return value

    def integer(self, name: str) -> int | None:
        """Return an integer, or None where it is absent."""
        value = self.text(name)
        if value is None:
            return None
        if not INTEGER_PATTERN.fullmatch(value):
            message = f"Invalid integer: {value}"
            raise ApiError(message, code="parameter_invalid_integer", param=self.path(name))
        return int(value)

    def required_integer(self, name: str) -> int:
        """Return an integer that must be given."""
        value = self.integer(name)
        if value is None:
            raise missing_parameter(self.path(name))
        return value

    def at_least(self, name: str, least: int) -> int | None:
        """Return an integer that must not be less than ``least``, or None where it is absent."""
        value = self.integer(name)
        if value is not None and value < least:
            message = f"This value must be greater than or equal to {least}."
            raise ApiError(message, code="parameter_invalid_integer", param=self.path(name))
        return value

    def future_time(self, name: str, *, now: int) -> int:
        """Return an instant after ``now``, in Unix seconds."""
        at = self.integer(name) or 0
        if at <= now:
            message = "Invalid timestamp: must be an integer Unix timestamp in the future."
            raise ApiError(message, param=self.path(name))
        return at

    def period(self) -> tuple[int, int] | None:
        """Return the start and the end of ``period``; None: it is not given."""
        span = self.hash("period")
        if span is None:
            return None
        span.only("end start")
        return int(span.required("start")), int(span.required("end"))

    def decimal(self, name: str) -> Decimal | None:
        """Return a decimal of at most 12 places, or None where it is absent."""
        value = self.text(name)
        if value is None:
            return None
        if not DECIMAL_PATTERN.fullmatch(value):
            message = f"Invalid decimal: {value}; must contain at maximum 12 decimal places."
            raise ApiError(message, param=self.path(name))
        return Decimal(value)

    @overload
    def boolean(self, name: str) -> bool | None: ...
    @overload
    def boolean(self, name: str, default: bool) -> bool: ...
    def boolean(self, name: str, default: bool | None = None) -> bool | None:
        """Return true or false, or ``default`` where it is absent."""
        value = self.text(name)
        if value not in {None, "true", "false"}:
            raise ApiError(f"Invalid boolean: {value}", param=self.path(name))
        return default if value is None else value == "true"

    def time_filter(self, name: str) -> Callable[[int], bool]:
        """Return whether an instant matches the filter: ``created=1`` or ``created[gte]=1``."""
        if name not in self:
            return lambda _: True
        if not self.is_hash(name):
            at = self.integer(name)
            return lambda instant: instant == at
        for bound in self.texts(name).keys() - COMPARISONS.keys():
            raise unknown_parameter(f"{name}[{bound}]")
        bounds = {bound: self.integer(f"{name}[{bound}]") or 0 for bound in self.texts(name)}
        return lambda instant: all(COMPARISONS[bound](instant, at) for bound, at in bounds.items())

    def choice(self, name: str, allowed: Collection[str]) -> str | None:
        """Return one of ``allowed``, or None where it is absent."""
        value = self.text(name)
        if value is not None and value not in allowed:
            message = f"Invalid {self.path(name)}: must be one of {', '.join(allowed)}"
            raise ApiError(message, param=self.path(name))
        return value

    def required_choice(self, name: str, allowed: Collection[str]) -> str:
        """Return one of ``allowed``, which must be given."""
        self.required(name)
        return self.choice(name, allowed) or ""

    def is_hash(self, name: str) -> bool:
        """Return whether a parameter has parts in brackets."""
        return isinstance(self._form.get(name), dict)

    def texts(self, name: str) -> dict[str, str]:
        """Return a hash of texts, empty where it is absent."""
        value = self._form.get(name, {})
        if not isinstance(value, dict):
            raise ApiError("Invalid object", param=self.path(name))
        inner: dict[str, str] = {}
        for key, text in value.items():
            if isinstance(text, dict):
                param = self.path(f"{name}[{key}]")
                raise ApiError(f"Invalid string: {param} is a hash", param=param)
            inner[key] = text
        return inner

    def listed(self, name: str) -> list[str]:
        """Return a list of texts, empty where it is absent: ``lookup_keys[]=a&lookup_keys[]=b``."""
        return list(self.texts(name).values())

    def hash(self, name: str) -> Params | None:
        """Return the parameters inside another, or None where it is absent."""
        value = self._find_value(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise ApiError("Invalid object", param=self.path(name))
        return self._nest_form(value, path=self.path(name))

    def hashes(self, name: str) -> list[Params]:
        """Return a list of hashes, empty where it is absent: ``items[0][price]=a&items[1][price]=b``."""
        inner = self._form.get(name, {})
        if not isinstance(inner, dict):
            raise ApiError("Invalid array", param=self.path(name))
        found: list[Params] = []
        for place, value in inner.items():
            path = self.path(f"{name}[{place}]")
            if not isinstance(value, dict):
                raise ApiError("Invalid object", param=path)
            found.append(self._nest_form(value, path=path))
        return found

    def without_hashes(self, name: str, places: Collection[int]) -> Params:
        """Return the parameters without the hashes at these indexes of a list."""
        inner = self._form.get(name)
        if not isinstance(inner, dict):
            return self
        kept: Form = {key: each for place, (key, each) in enumerate(inner.items()) if place not in places}
        return self._nest_form({**self._form, name: kept}, path=self._inside)

    def flat(self) -> dict[str, str]:
        """Return all parameters as a form has them: ``metadata[app]`` to its text."""
        return dict(_flat_form(self._form))

    def update_metadata(self, name: str, known: dict[str, str]) -> None:
        """Change metadata: an empty value removes a key, an empty map all of them.

        https://docs.stripe.com/api/metadata
        """
        if self._form.get(name) == "":
            known.clear()
            return
        changed = known | self.texts(name)
        for key in [key for key, value in changed.items() if not value]:
            del changed[key]
        refuse_long_metadata(changed, param=self.path(name))
        known.clear()
        known.update(changed)

    def metadata(self) -> dict[str, str]:
        """Return the metadata that a call gives a new object."""
        given: dict[str, str] = {}
        self.update_metadata("metadata", given)
        return given

    def page(self, found: Iterable[JsonObject], *, url: str) -> JsonObject:
        """Return the requested page of a list: ``limit`` (default 10) and a cursor."""
        items = list(found)
        limit = self.integer("limit")
        limit = PAGE_DEFAULT if limit is None else limit
        if not 1 <= limit <= PAGE_MAX:
            raise ApiError(f"Invalid limit: {limit}; must be between 1 and {PAGE_MAX}", param="limit")
        shown = slice(limit)
        if "starting_after" in self and "ending_before" in self:
            # https://github.com/stripe/stripe-python/issues/585 has Stripe's words.
            raise ApiError(
                "Received both starting_after and ending_before parameters. Please pass in only one."
            )
        if "starting_after" in self:
            items = items[self._find_cursor(items, "starting_after") + 1 :]
        elif "ending_before" in self:
            items, shown = items[: self._find_cursor(items, "ending_before")], slice(-limit, None)
        return {"object": "list", "data": items[shown], "has_more": len(items) > limit, "url": url}

    def _find_cursor(self, items: Sequence[JsonObject], name: str) -> int:
        cursor, ids = self.text(name), [item["id"] for item in items]
        if cursor in ids:
            return ids.index(cursor)
        raise ApiError(f"No such object: '{cursor}'", code="resource_missing", param=name)

    def _nest_form(self, form: Form, *, path: str) -> Params:
        nested = Params("")
        nested._form, nested._inside = form, path
        return nested

    def _find_value(self, name: str) -> str | Form | None:
        found: str | Form | None = self._form
        for part in name.replace("]", "").split("["):
            found = found.get(part) if isinstance(found, dict) else None
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One authenticated request.

    Attributes:
        now: the emulator's clock in Unix seconds.
        object_id: the id in the path, or an empty text.
        inner_id: the second id in the path, of what belongs to the first.
        base_url: where the emulator is, as the caller sees it.
        lose: whether a fault wants the event answered with 200 and not counted.
        body: the JSON object that a call of API v2 sends, whose ``params`` are empty.
        version: the API version that it names, else the account's default.
    """

    method: str
    path: str
    params: Params
    now: float
    livemode: bool = False
    idempotency_key: str | None = None
    object_id: str = ""
    request_id: str = ""
    inner_id: str = ""
    base_url: str = ""
    lose: bool = False
    body: JsonObject = field(default_factory=dict[str, object])
    version: str = API_VERSION

    @property
    def metered_pairs(self) -> set[tuple[str, str]]:
        """The customer and the event name of each of its meter events."""
        if self.path == METER_EVENTS:
            payload = self.params.texts("payload")
            return {(payload.get(CUSTOMER_KEY, ""), self.params.text("event_name") or "")}
        return set(_streamed_events(self.body)) if self.path == METER_EVENT_STREAM else set()

    def page(self, items: Iterable[JsonObject]) -> JsonObject:
        """Return the requested page of the list that it asks for."""
        return self.params.page(items, url=self.path)


def _streamed_events(body: JsonObject) -> Iterator[tuple[str, str]]:
    events = body.get("events")
    for event in cast("list[object]", events) if isinstance(events, list) else []:
        fields = cast("dict[str, Any]", event) if isinstance(event, dict) else {}
        payload = fields.get("payload")
        to = cast("dict[str, object]", payload).get(CUSTOMER_KEY) if isinstance(payload, dict) else None
        yield str(to or ""), str(fields.get("event_name") or "")


def _flat_form(form: Form) -> Iterator[tuple[str, str]]:
    for name, value in form.items():
        if isinstance(value, str):
            yield name, value
        else:
            for inner, text in _flat_form(value):
                first, bracket, rest = inner.partition("[")
                yield f"{name}[{first}]{bracket}{rest}", text


def _insert_value(form: Form, *, key: str, value: str) -> None:
    match = KEY_PATTERN.fullmatch(key)
    if match is None:
        raise ApiError(f"Invalid parameter name: {key}", param=key)
    inner: list[str] = PART_PATTERN.findall(match[2])
    names = [match[1], *inner]
    last = names[-1]
    for part, following in pairwise(names):
        place = part or _list_index(form, following=following)
        below = form.setdefault(place, {})
        if not isinstance(below, dict):
            raise ApiError(f"Invalid parameter: {key} is both a string and a hash", param=key)
        form = below
    form[last or str(len(form))] = value


def _list_index(form: Form, *, following: str) -> str:
    """Return the index for ``items[][price]``: of the last hash, or of a new one if that has a price."""
    last = form.get(str(len(form) - 1))
    is_open = isinstance(last, dict) and following not in last
    return str(len(form) - 1) if is_open else str(len(form))
