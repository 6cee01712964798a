"""Problem types and problem documents (RFC 9457)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Self
from uuid import uuid4

if TYPE_CHECKING:
    from collections.abc import Mapping

PROBLEM_JSON: Final = "application/problem+json"
CHALLENGE: Final = 'Bearer realm="api"'
"""The value of ``WWW-Authenticate``, unless the app has another one."""


@dataclass(frozen=True, slots=True)
class ProblemType:
    """Type of problem documents: status, URI, title, and schemas of further members.

    Attributes:
        members: the further members of this type, each with its schema.
    """

    status: int
    uri: str
    title: str
    members: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def document(self, detail: str, members: Mapping[str, object], *, instance: str) -> bytes:
        """Serialize a problem of this type for one request, with a unique ``instance``."""
        document = {
            "type": self.uri,
            "title": self.title,
            "status": self.status,
            "detail": detail,
            "instance": instance,
            **members,
        }
        return json.dumps(document, separators=(",", ":")).encode()

    def schema(self) -> dict[str, Any]:
        """Describe the documents of this type as a JSON schema."""
        properties: dict[str, Any] = {
            "type": {"const": self.uri},
            "title": {"const": self.title},
            "status": {"const": self.status},
            "detail": _TEXT,
            "instance": _URI,
            **self.members,
        }
        required = [name for name in properties if name not in _OPTIONAL]
        return {"title": self.title, "type": "object", "properties": properties, "required": required}


_TEXT: Final = {"type": "string"}
_URI: Final = {"type": "string", "format": "uri"}
_TEXTS: Final = {"type": "array", "items": _TEXT}
_INTEGER: Final = {"type": "integer"}
_COUNT: Final = {"type": "integer", "minimum": 0}
_OFFER: Final = {
    "type": "object",
    "properties": {
        "credit": _TEXT,
        "top_up_url": _URI,
        "amounts_cents": {"type": "array", "items": _COUNT},
        "currency": _TEXT,
    },
    "required": ["credit", "top_up_url", "amounts_cents", "currency"],
}
_NO_MEMBERS: Final[Mapping[str, object]] = {}
_FIELD_ERRORS: Final = {"type": "array", "items": {"type": "object", "additionalProperties": _TEXT}}
_OPTIONAL: Final = frozenset(
    {
        "code",
        "left",
        "model",
        "needed",
        "offer",
        "portal_url",
        "requested_currency",
        "reset_after_s",
        "top_up_url",
        "url",
    }
)
"""Members that a document has only where they apply."""


def _iana_type(status: int, code: str, title: str, /, **members: Any) -> tuple[str, ProblemType]:
    uri = f"https://iana.org/assignments/http-problem-types#{code}"
    return code, ProblemType(status, uri, title, members)


def _urn_type(status: int, code: str, title: str, /, **members: Any) -> tuple[str, ProblemType]:
    return code, ProblemType(status, f"urn:meterkit:problem:{code}", title, members)


_AMOUNTS: Final = {"needed": _TEXT, "left": _TEXT}
_SPEND_MEMBERS: Final = {
    "limit_cents": _COUNT,
    "spent_cents": _COUNT,
    "currency": _TEXT,
    "reset_after_s": _COUNT,
    **_AMOUNTS,
}
_STORAGE_MEMBERS: Final = dict.fromkeys(("limit", "used", "requested"), _COUNT)
_FEATURE_MEMBERS: Final = {"feature": _TEXT, "plan": _TEXT, "available_in": _TEXTS}
_CEILING_MEMBERS: Final = {"field": _TEXT, "asked": _INTEGER, "ceiling": _INTEGER}
_PAYMENT_REQUIRED: Final = (402, "payment-required", "Payment Required")
PROBLEM_TYPES: Final[Mapping[str, ProblemType]] = dict(
    (
        # Refusals of the middleware.
        _iana_type(
            429,
            "quota-exceeded",
            "Quota Exceeded",
            **{"violated-policies": _TEXTS},
        ),
        _iana_type(503, "temporary-reduced-capacity", "Temporary Reduced Capacity"),
        _urn_type(
            *_PAYMENT_REQUIRED, reason=_TEXT, portal_url=_URI, top_up_url=_URI, offer=_OFFER, **_AMOUNTS
        ),
        _urn_type(402, "spend-limit-reached", "Spend Limit Reached", **_SPEND_MEMBERS),
        _urn_type(403, "feature-not-in-plan", "Feature Not In Plan", **_FEATURE_MEMBERS),
        _urn_type(403, "seats-limit-exceeded", "Seats Limit Exceeded", limit=_COUNT, used=_COUNT),
        _urn_type(413, "storage-limit-exceeded", "Storage Limit Exceeded", **_STORAGE_MEMBERS),
        _urn_type(401, "customer-unknown", "Customer Unknown"),
        _urn_type(400, "customer-invalid", "Customer Invalid"),
        _urn_type(409, "request-in-flight", "Request In Flight"),
        _urn_type(400, "request-above-ceiling", "Request Above Ceiling", **_CEILING_MEMBERS),
        _urn_type(400, "model-not-priced", "Model Not Priced", model=_TEXT),
        _urn_type(400, "path-ambiguous", "Path Ambiguous"),
        # Problems of the billing routes.
        _urn_type(404, "no-subscription", "No Subscription"),
        _urn_type(409, "subscription-exists", "Subscription Exists"),
        _urn_type(409, "seats-in-use", "Seats In Use", seats=_COUNT, used=_COUNT),
        _urn_type(409, "subscription-conflict", "Subscription Conflict"),
        _urn_type(403, "origin-not-allowed", "Origin Not Allowed"),
        _urn_type(400, "url-not-allowed", "URL Not Allowed", field=_TEXT),
        _urn_type(422, "plan-unknown", "Plan Unknown", plan=_TEXT),
        _urn_type(422, "addon-unknown", "Add-on Unknown", addon=_TEXT, allowed=_TEXTS),
        _urn_type(422, "addon-limit", "Add-on Limit", addon=_TEXT, limit=_COUNT),
        ("addon-in-trial", _urn_type(409, "addon-limit", "Add-on Limit", addon=_TEXT, limit=_COUNT)[1]),
        _urn_type(422, "request-invalid", "Request Invalid", errors=_FIELD_ERRORS),
        _urn_type(409, "currency-fixed", "Currency Fixed", currency=_TEXT, requested_currency=_TEXT),
        _urn_type(413, "request-too-large", "Request Too Large", limit=_COUNT),
        _urn_type(415, "media-type-not-supported", "Media Type Not Supported"),
        ("billing-payment-required", _urn_type(*_PAYMENT_REQUIRED, reason=_TEXT, code=_TEXT, url=_TEXT)[1]),
        _urn_type(402, "payment-method-missing", "Payment Method Missing", url=_TEXT),
        _urn_type(402, "invoice-open", "Invoice Open", url=_TEXT),
        _urn_type(502, "stripe-refused", "Stripe Refused", code=_TEXT),
    )
)
"""Problem types by the last part of their URI, each with the schemas of its further members."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemDocument:
    """Problem document, ready to send.

    Attributes:
        kind: its type.
        detail: the reason of the refusal, and the cure.
        members: the further members of its type.
        wait_s: after how many seconds a retry may succeed; None: waiting does not help.
    """

    kind: ProblemType
    detail: str
    members: Mapping[str, object] = field(default_factory=dict[str, object])
    wait_s: int | None = None

    @classmethod
    def of(
        cls, code: str, detail: str, members: Mapping[str, object] = _NO_MEMBERS, *, wait_s: int | None = None
    ) -> Self:
        """Make a document of a type of ``PROBLEM_TYPES``."""
        return cls(kind=PROBLEM_TYPES[code], detail=detail, members=members, wait_s=wait_s)

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the response."""
        headers = {"content-type": PROBLEM_JSON, "cache-control": "no-store"}
        if self.wait_s is not None:
            headers["retry-after"] = str(self.wait_s)
        if self.kind.status == HTTPStatus.UNAUTHORIZED:
            headers["www-authenticate"] = CHALLENGE
        return headers

    @property
    def body(self) -> bytes:
        """Serialized document, with a new ``instance``."""
        return self.kind.document(self.detail, self.members, instance=uuid4().urn)


class ProblemDocumentError(Exception):
    """A request that cannot be answered as it was asked."""

    def __init__(self, problem: ProblemDocument) -> None:
        self.problem = problem
        super().__init__(problem.detail)
