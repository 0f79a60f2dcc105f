"""Addresses without their signatures, which are renewed while the bytes stay the same."""

import re
from typing import Any

SIGNED = re.compile(
    r"(?<=[?&])(x-(amz|goog|oss|ms)-[\w-]+|sig(nature)?|expires|policy|key-pair-id|"
    r"awsaccesskeyid|googleaccessid|ossaccesskeyid|(access_?)?token)=((?!::)[^&#\s'\"])*&?",
    re.IGNORECASE,
)
"""Parts of a query by which Amazon, Google, CloudFront and Alibaba sign an address."""
AZURE = re.compile(
    r"(?<=[?&])(sv|ss|srt|sp|se|st|spr|sip|sr|skoid|sktid|skt|ske|sks|skv)=((?!::)[^&#\s'\"])*&?",
    re.IGNORECASE,
)
"""Parts of Azure's signature; these short keys are others' own where no ``sig`` is beside them."""
QUERY = re.compile(r"\?((?!::)[^#\s'\"])*")


def unsigned(value: Any) -> Any:
    """An address, or plain data that holds addresses, without signatures."""
    if isinstance(value, dict):
        return {unsigned(key): unsigned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [unsigned(item) for item in value]
    if not isinstance(value, str) or "://" not in value:
        return value
    return QUERY.sub(lambda query: _unsigned_query(query[0]), value)


def _unsigned_query(query: str) -> str:
    """A query, from its question mark on, without signatures; empty if nothing else is in it."""
    if re.search(r"[?&]sig=", query, re.IGNORECASE):
        query = AZURE.sub("", query)
    return SIGNED.sub("", query).rstrip("?&")
