"""Messages of SNS: whether AWS has signed them, and what they carry.

https://docs.aws.amazon.com/sns/latest/dg/sns-verify-signature-of-message.html
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
        *("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"),
    ),
}


class ForgedError(ValueError):
    """A post is not signed by whom it should be, or too old."""


def is_certificate_address(url: object) -> bool:
    """Whether an address is one of SNS's certificates, in AWS's own spelling; no other is ever fetched.

    https://docs.aws.amazon.com/sns/latest/dg/sns-verify-signature-of-message-verify-message-signature.html
    """
    return isinstance(url, str) and _CERTIFICATE.fullmatch(url) is not None


async def open_notice(
    body: bytes, *, topics: Collection[str], now_s: float, fetch: Callable[[str], Awaitable[bytes]]
) -> str | None:
    """The message in a post of SNS; None: it was a request to confirm a subscription, which was done.

    Args:
        body: of the post.
        topics: ARNs of the topics that are believed: anybody may have SNS sign messages of a topic of theirs.
        now_s: the time.
        fetch: gives what an address of SNS has.

    Raises:
        ForgedError: the post is not signed by SNS for one of the topics, or older than an hour.
        OSError: a certificate, or the confirmation, cannot be fetched.
    """
    message = _message(body)
    if message["TopicArn"] not in topics:
        raise ForgedError("it is of a topic of SNS that is not among `topics`")
    certificate_url = message.get("SigningCertURL")
    if not is_certificate_address(certificate_url):
        raise ForgedError(
            "its certificate is not at an address of SNS, such as"
            " https://sns.REGION.amazonaws.com/SimpleNotificationService-HEX.pem"
        )
    certificate = await fetch(cast("str", certificate_url))
    signed = "".join(
        f"{name}\n{message[name]}\n" for name in _SIGNED[message["Type"]] if message.get(name) is not None
    )
    version, signature = str(message.get("SignatureVersion")), str(message.get("Signature"))
    # The package that checks it is in an extra, and other object stores do not need it.
    signatures: Any = import_module("meterkit.storage.sns_certificates")
    if not signatures.is_signed(signed, signature, version=version, certificate=certificate):
        raise ForgedError("its signature is wrong")
    if not signatures.is_valid_at(certificate, now_s):
        raise ForgedError("its certificate has expired, or is not valid yet")
    if abs(now_s - _sent_s(message)) > _AGE_MAX_S:
        raise ForgedError("it is older than an hour, or of the future")
    if message["Type"] == "Notification":
        return cast("str", message["Message"])
    if not _CONFIRMATION.fullmatch(message["SubscribeURL"]):
        raise ForgedError("its SubscribeURL is not an address of SNS")
    await fetch(message["SubscribeURL"])
    return None


def _message(body: bytes) -> Mapping[str, Any]:
    try:
        message = json.loads(body)
        names = _SIGNED[message["Type"]]
        texts = [message[name] for name in names if name != "Subject"]
    except (ValueError, RecursionError, TypeError, KeyError):
        raise ForgedError("neither `Authorization: Bearer` with the secret, nor a message of SNS") from None
    if not all(isinstance(text, str) for text in texts):
        raise ForgedError("not a message of SNS")
    return cast("Mapping[str, Any]", message)


def _sent_s(message: Mapping[str, Any]) -> float:
    try:
        return datetime.fromisoformat(message["Timestamp"]).timestamp()
    except (ValueError, OverflowError) as error:
        raise ForgedError("its Timestamp cannot be read") from error
