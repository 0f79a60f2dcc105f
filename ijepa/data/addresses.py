"""Addresses without signatures and secrets, renewed while the bytes stay the same; the Hub's.

The Hub's own form is ``hf://datasets/USER/NAME/FILE``.
"""

import os
import re
from typing import Any

from ijepa.errors import UserError

HUB = "hf://datasets/"

WORDS = (
    "(?:[a-z]*token|(?:[a-z]*(?:access|account|api|app|auth|private|secret|sas|rl))?key(?:id)?|"
    "sig(?:nature)?|auth(?:orization)?|[a-z]*secret|hmac|jwt|[a-z]*pass(?:wor)?d?|cred(?:ential)?s?)"
)
SECRET = (
    rf"(?:[^=&?#\s'\"]*[^a-z=&?#\s'\"])?{WORDS}(?:[^a-z=&?#\s'\"][^=&?#\s'\"]*)?"
    r"(?!=[^&#\s'\"]*\.tar\b)"
)
"""Names of secrets in a query. A value that ends in ``.tar`` is none: it names a shard."""
SIGNED = re.compile(
    rf"(?<=[?&])(x-(amz|goog|oss|ms)-[\w-]+|q-[\w-]+|temp_url_\w+|hdn\w+|verify|expires|policy|"
    rf"googleaccessid|{SECRET})=((?!::)[^&#\s'\"])*&?",
    re.IGNORECASE,
)
"""Parts of a query by which Amazon, Google, Alibaba, Tencent, Akamai and others open an address."""
AZURE = re.compile(
    r"(?<=[?&])(sv|ss|srt|sp|se|st|spr|sip|sr|skoid|sktid|skt|ske|sks|skv)=((?!::)[^&#\s'\"])*&?",
    re.IGNORECASE,
)
"""Parts of Azure's signature; these short keys are others' own where no ``sig`` is beside them."""
QUERY = re.compile(r"\?((?!::)[^#\s'\"])*")
FRAGMENT = re.compile(rf"#([^\s'\"#]*&)?{SECRET}=((?!::)[^#\s'\"])*", re.IGNORECASE)
USER = re.compile(r"(?<=://)[^/?#\s'\"]*@")
OPTIONS = [
    re.compile(rf"(?P<name>(?P<quote>['\"])[\w-]*({WORDS}|cookie)[\w-]*:)((?!(?P=quote)).)*", re.I),
    re.compile(
        rf"(?P<name>\s(-H|--header)[\s=]*[\w-]*({WORDS}|cookie)[\w-]*:)(\\.|[^\s'\"\\])*", re.I
    ),
    re.compile(
        r"(?P<name>\b(curl|wget|http|https|lftp)\s([^|;&]*\s)?(-\w*u|--user|--proxy-user)[\s=]*)"
        r"('[^':]+:[^']*'|\"[^\":]+:[^\"]*\"|[^\s'\":]+:(?!//)[^\s'\"]*)"
    ),
    re.compile(
        rf"(?P<name>(?<=\s)(--[\w-]*password|--oauth2-bearer)[\s=]+|(?<=[\s:])[\w-]*{WORDS}\w*=)"
        r"('[^']*'|\"[^\"]*\"|[^\s'\"]*)",
        re.I,
    ),
]
"""Secrets in a command: headers, user and password, other options and variables."""


def unsigned(value: Any) -> Any:
    """An address, or plain data that holds addresses, without signatures and other secrets."""
    if isinstance(value, dict):
        return {unsigned(key): unsigned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [unsigned(item) for item in value]
    if not isinstance(value, str) or not ("://" in value or "pipe:" in value):
        return value
    return without_secrets(value)


def without_secrets(text: str) -> str:
    """An address, a command or an error that repeats one, without its secrets."""
    for option in OPTIONS:
        text = option.sub(r"\g<name>", text)
    text = USER.sub("", text)
    return FRAGMENT.sub("", QUERY.sub(lambda query: _unsigned_query(query[0]), text))


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
    UserError for an address of another form, and without a token: the register's data sets are
    gated.
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
