"""Checks of arguments from the app: ids of customers, subjects and events, texts, overrides. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeGuard, cast

from meterkit.catalog.rates import rate_text
from meterkit.decisions.periods import aware_ms
from meterkit.decisions.subjects import SUBJECTS_PER_REQUEST_MAX
from meterkit.errors import CustomerError, MeterkitError
from meterkit.safe_text import as_text, plain_text

if TYPE_CHECKING:
    from datetime import datetime

    from meterkit.store.script_arguments import GivenSubjects

CUSTOMER_BYTES_MAX: Final = 256
ALLOWED_ID: Final = f"a text of 1 to {CUSTOMER_BYTES_MAX} bytes of UTF-8 without control characters"
_ALLOWED_SUBJECTS: Final = (
    f"a mapping of at most {SUBJECTS_PER_REQUEST_MAX} kinds to ids, such as {{'user': 'u_7'}}"
)
_MAPPINGS: Final = (dict, Mapping)  # A dict is found fastest.
SEVERAL: Final = "\x1e"
"""Record separator (ASCII) between several values where one id is allowed."""
_OBJECT: Final = re.compile(r"<.* at 0x[0-9a-fA-F]+>", re.DOTALL)
"""``str()`` of an object of a class without its own: it differs from process to process."""
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_LONE_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")


def is_customer(value: object) -> TypeGuard[str]:
    """Whether this is a customer id: text of 1 to 256 bytes of UTF-8 without control characters."""
    if not isinstance(value, str) or not value:
        return False
    if value.isascii() and value[-1] != ">":
        return len(value) <= CUSTOMER_BYTES_MAX and value.isprintable()
    return find_fault(value) is None


def check_customer(value: object) -> str:
    """Return the customer id.

    Raises:
        CustomerError: it is not a text of 1 to 256 bytes of UTF-8 without control characters.
    """
    if is_customer(value):
        return plain_text(value)
    # The id itself is left out: it comes from a client and may be anything.
    raise CustomerError(f"customer id: found {find_fault(value)}; allowed is {ALLOWED_ID}")


def check_subject_kinds(subjects: object) -> None:
    """Check the form of subjects: kind to id, three at most. The ids themselves are not checked.

    Raises:
        MeterkitError: it is no mapping of texts, or has more than three.
    """
    if not isinstance(subjects, _MAPPINGS):
        raise MeterkitError(f"subjects: found {shown(subjects)}; allowed is {_ALLOWED_SUBJECTS}")
    given = cast("Mapping[object, object]", subjects)
    for kind, subject in given.items():
        if not isinstance(kind, str) or not isinstance(subject, str):
            found = "an id" if isinstance(kind, str) else "a kind"
            value = subject if isinstance(kind, str) else kind
            kinds = type(value).__name__
            raise MeterkitError(f"subjects: found {found} of type {kinds}; allowed is {_ALLOWED_SUBJECTS}")
    if len(given) > SUBJECTS_PER_REQUEST_MAX:
        raise MeterkitError(f"subjects: found {len(given)}; allowed is {_ALLOWED_SUBJECTS}")


def check_subjects(subjects: Mapping[str, str] | None) -> GivenSubjects:
    """Kind and id of each subject; None: there are none.

    Raises:
        CustomerError: an id is not a text of 1 to 256 bytes of UTF-8 without control characters.
        MeterkitError: it is no mapping of texts, or has more than three.
    """
    if subjects is None:
        return ()
    check_subject_kinds(subjects)
    for kind, subject in subjects.items():
        if not is_customer(subject):
            raise CustomerError(
                f"subjects: found {find_fault(subject)} as the id of the {kind:.80}; allowed is {ALLOWED_ID}"
            )
    return tuple((plain_text(kind), plain_text(subject)) for kind, subject in subjects.items())


def check_event_id(value: object, name: str = "event_id") -> str:
    """Return an event id, as a plain text.

    Raises:
        MeterkitError: it is not a text of 1 to 256 bytes of UTF-8, or has a NUL, as only meterkit's own have.
    """
    fault = _size_fault(value) or ("a NUL character" if isinstance(value, str) and "\0" in value else None)
    if fault is not None:
        raise MeterkitError(
            f"{name}: found {fault}; allowed is a text of 1 to {CUSTOMER_BYTES_MAX} bytes of UTF-8"
            " without NUL, or None"
        )
    return plain_text(cast("str", value))


def find_fault(value: object) -> str | None:
    """Reason why a value is no id of a customer or subject, without the value; None: it is one."""
    if not isinstance(value, str):
        return _size_fault(value)
    if SEVERAL in value:
        return "several values"
    if _OBJECT.fullmatch(value):
        return "the text of an object; give its id, such as str(user.id)"
    control = _CONTROL.search(value)
    return _size_fault(value) or (
        f"the control character U+{ord(control[0]):04X} at position {control.start()}" if control else None
    )


def _size_fault(value: object) -> str | None:
    if not isinstance(value, str):
        return f"a value of type {type(value).__name__}"
    if not value:
        return "an empty text"
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        return f"a lone surrogate at position {error.start}"
    return f"a text of {size} bytes" if size > CUSTOMER_BYTES_MAX else None


_TEXT_MAX: Final = 500


def is_text(value: object) -> bool:
    """Whether a value is a text: callers without a type checker may pass anything."""
    return isinstance(value, str)


def shown(value: object) -> str:
    """Format a value for a message: a shortened text, or the type."""
    return f"{value!r:.80}" if isinstance(value, str) else f"a value of type {type(value).__name__}"


def check_text(what: str, value: object, *, may_be_empty: bool = False) -> None:
    """Check a text for the ledger of a customer. Raises MeterkitError."""
    is_valid = isinstance(value, str) and len(value) <= _TEXT_MAX and not _LONE_SURROGATE.search(value)
    if not is_valid or not (value or may_be_empty):
        most = f"{_TEXT_MAX} characters at most" if may_be_empty else f"1 to {_TEXT_MAX} characters"
        allowed = f"a text of {most}, for the ledger of the customer"
        raise MeterkitError(f"{what}: found {shown(value)}; allowed is {allowed}")


def check_overrides(overrides: object) -> dict[str, Mapping[str, object]]:
    """Check overrides: meter to entitlement. Raises MeterkitError."""
    if not isinstance(overrides, Mapping):
        raise MeterkitError(
            f"override: found {shown(overrides)}; allowed is a mapping of meters to entitlements, such as"
            " {'requests': {'included': 5_000}}"
        )
    found: dict[str, Mapping[str, object]] = {}
    for meter, given in cast("Mapping[object, object]", overrides).items():
        if not isinstance(meter, str):
            raise MeterkitError(f"override: found {shown(meter)} as a meter; name it by a text")
        if not isinstance(given, Mapping):
            raise MeterkitError(
                f"override of {meter:.80}: found {shown(given)}; allowed is a mapping, such as"
                " {'included': 5_000}, or {} to take it back"
            )
        found[plain_text(meter)] = cast("Mapping[str, object]", given)
    return found


def check_features(features: object) -> dict[str, bool] | None:
    """Check features: a list, or feature to whether it is given. Raises MeterkitError."""
    if features is None:
        return None
    entries: list[tuple[object, object]] | None = None
    given: Any = features
    if isinstance(given, Mapping):
        entries = list(cast("Mapping[object, object]", given).items())
    elif isinstance(given, Iterable) and not isinstance(given, str | bytes):
        entries = [(name, True) for name in cast("Iterable[object]", given)]
    wrong = [one for one in entries or () if not (isinstance(one[0], str) and isinstance(one[1], bool))]
    if entries is None or wrong:
        raise MeterkitError(
            f"features: found {shown(features)}; allowed is a list of features such as ['full_ai'], or a"
            " mapping such as {'full_ai': True, 'basic_ai': False}"
        )
    return {plain_text(name): has for name, has in cast("list[tuple[str, bool]]", entries)}


def check_end_ms(until: datetime, now_ms: int) -> int:
    """Check an end in the future; milliseconds since the epoch. Raises MeterkitError."""
    found_ms = aware_ms("until", until)
    if found_ms <= now_ms:
        raise MeterkitError(f"until: found {until.isoformat()}, which is not in the future")
    return found_ms


def to_json_value(value: object, path: str) -> Any:
    """Convert a value to JSON types. Raises MeterkitError."""
    if isinstance(value, Mapping):
        entries = cast("Mapping[object, object]", value)
        return {as_text(key): to_json_value(item, f"{path}.{key}") for key, item in entries.items()}
    if isinstance(value, list | tuple):
        items = cast("list[object] | tuple[object, ...]", value)
        return [to_json_value(item, path) for item in items]
    if value is None or isinstance(value, str | int | float):
        return value
    rate = rate_text(value)
    if rate is not None:
        return rate
    raise MeterkitError(
        f"override of {path:.80}: found {shown(value)}; allowed are texts, numbers, lists and mappings"
    )
