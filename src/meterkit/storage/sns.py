"""SNS messages: verify the signature of AWS and unwrap the message.

https://docs.aws.amazon.com/sns/latest/dg/sns-verify-signature-of-message.html

The signature does not say whose topic it is, so only messages of the topics that the app names count.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping

_AGE_MAX_S: Final = 3600.0
# A region, and nothing else: `sns.s3-us-west-2.amazonaws.com` is the bucket `sns` of another AWS account.
_HOST: Final = r"sns\.[a-z]{2,4}(-[a-z]+)+-[0-9]{1,2}\.amazonaws\.com(\.cn)?"
_CERTIFICATE: Final = re.compile(rf"https://{_HOST}/SimpleNotificationService-[0-9a-fA-F]{{1,64}}\.pem")
_CONFIRMATION: Final = re.compile(rf"https://{_HOST}/\?[!-~]{{1,4096}}")
_SIGNED: Final = {
    "Notification": ("Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"),
    "SubscriptionConfirmation": (
        "Message",
        "MessageId",
        "SubscribeURL",
        "Timestamp",
        "Token",
        "TopicArn",
        "Type",
    ),
}


class ForgedMessageError(ValueError):
    """A post has no valid signature, or is too old."""


def is_certificate_url(url: object) -> bool:
    """Whether a URL is of an SNS certificate, in the spelling of AWS; no other is fetched.

    https://docs.aws.amazon.com/sns/latest/dg/sns-verify-signature-of-message-verify-message-signature.html
    """
    return isinstance(url, str) and _CERTIFICATE.fullmatch(url) is not None


async def open_message(
    body: bytes, *, topics: Collection[str], now_s: float, fetch: Callable[[str], Awaitable[bytes]]
) -> str | None:
    """Verify an SNS post and return its message; None: it asked to confirm a subscription, which was done.

    Args:
        body: the post's body.
        topics: trusted topic ARNs: SNS also signs messages of topics that strangers own.
        now_s: the time.
        fetch: fetches a URL of SNS.

    Raises:
        ForgedMessageError: the post is not signed by SNS for one of the topics, or is older than an hour.
        OSError: a certificate, or the confirmation, cannot be fetched.
    """
    message = _parse_message(body)
    if message["TopicArn"] not in topics:
        raise ForgedMessageError("its SNS topic is not among `topics`")
    certificate_url = message.get("SigningCertURL")
    if not is_certificate_url(certificate_url):
        raise ForgedMessageError(
            "its certificate URL is not one of SNS, such as"
            " https://sns.REGION.amazonaws.com/SimpleNotificationService-HEX.pem"
        )
    certificate = await fetch(cast("str", certificate_url))
    signed = "".join(
        f"{name}\n{message[name]}\n" for name in _SIGNED[message["Type"]] if message.get(name) is not None
    )
    version, signature = str(message.get("SignatureVersion")), str(message.get("Signature"))
    # The package is in an extra; other object stores do not need it.
    signatures: Any = import_module("meterkit.storage.sns_signatures")
    if not signatures.is_signed(signed, signature, version=version, certificate=certificate):
        raise ForgedMessageError("its signature is invalid")
    if not signatures.is_valid_at(certificate, now_s):
        raise ForgedMessageError("its certificate has expired, or is not valid yet")
    if abs(now_s - _parse_timestamp(message)) > _AGE_MAX_S:
        raise ForgedMessageError("its timestamp is more than an hour from now")
    if message["Type"] == "Notification":
        return cast("str", message["Message"])
    if not _CONFIRMATION.fullmatch(message["SubscribeURL"]):
        raise ForgedMessageError("its SubscribeURL is not a URL of SNS")
    await fetch(message["SubscribeURL"])
    return None


def _parse_message(body: bytes) -> Mapping[str, Any]:
    try:
        message = json.loads(body)
        names = _SIGNED[message["Type"]]
        texts = [message[name] for name in names if name != "Subject"]
    except (ValueError, RecursionError, TypeError, KeyError):
        raise ForgedMessageError(
            "neither `Authorization: Bearer` with the secret, nor an SNS message"
        ) from None
    if not all(isinstance(text, str) for text in texts):
        raise ForgedMessageError("not an SNS message")
    return cast("Mapping[str, Any]", message)


def _parse_timestamp(message: Mapping[str, Any]) -> float:
    try:
        return datetime.fromisoformat(message["Timestamp"]).timestamp()
    except (ValueError, OverflowError) as error:
        raise ForgedMessageError("its Timestamp cannot be read") from error
