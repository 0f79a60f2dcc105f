"""Addresses without their signatures, which are renewed while the bytes stay the same; the Hub's.

The Hub's own form is ``hf://datasets/USER/NAME/FILE``.
"""

import os
import re
from typing import Any

from ijepa.errors import UserError

HUB = "hf://datasets/"

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


def bare(address: str) -> str:
    """An address without user, query and fragment, any of which may be secret."""
    scheme, mark, rest = address.partition("://")
    host, slash, path = re.split("[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{path}".rstrip("/")


def on_the_hub(address: str) -> tuple[str, dict[str, str]]:
    """HTTP address and headers for a file of a data set on the Hub.

    The token is HF_TOKEN's, the hub that of HF_ENDPOINT, by default huggingface.co. Raises
    UserError without a token: the data sets of the register are gated.
    """
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    parts = address.removeprefix(HUB).split("/", 2)
    if len(parts) < 3 or not all(parts):
        raise UserError(f"{address}: an address on the Hub is {HUB}USER/NAME/FILE: correct it")
    user, name, file = parts
    page = f"{endpoint}/datasets/{user}/{name}"
    if not (token := os.environ.get("HF_TOKEN", "").strip()):
        raise UserError(
            f"{address}: HF_TOKEN is not set: accept the data set's terms on {page}, set HF_TOKEN "
            "to a token that may read it (huggingface.co/settings/tokens), then run again"
        )
    return f"{page}/resolve/main/{file}", {"Authorization": f"Bearer {token}"}
