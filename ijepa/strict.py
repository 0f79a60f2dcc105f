"""Conversion of plain data to frozen dataclasses, checked by pydantic.

This module is apart from config.py, so that a job without a network does not import timm, which
takes seconds.
"""

import dataclasses
import difflib
import types
from functools import cache
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from ijepa.errors import UserError

T = TypeVar("T")


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Reader of a class; building one takes 5 ms, and a config asks for hundreds."""
    return TypeAdapter(kind)


def strict(kind: type[T], raw: dict[str, Any], where: str, also: tuple[str, ...] = ()) -> T:
    """Dataclass ``kind`` from ``raw`` over its defaults; refuses unknown keys and bad values.

    ``also`` are keys that the caller has taken out of ``raw``, for errors that list all keys.
    """
    try:
        adapter: TypeAdapter[T] = _adapter(kind)  # type: ignore[arg-type]  # a class has a hash
        return adapter.validate_python(merged(_defaults(kind), raw), extra="forbid")
    except ValidationError as error:
        # A misspelt key is also a missing one: its own name comes first.
        errors = sorted(error.errors(), key=lambda fault: fault["type"] == "missing")
        raise UserError("; ".join(_explain(kind, raw, e, where, also) for e in errors)) from None


def as_read(item: Any, defaults: bool = True) -> dict[str, Any]:
    """Plain data of a dataclass, as ``strict`` reads it; if asked for, without its defaults."""
    adapter = _adapter(type(item))  # type: ignore[arg-type]  # as above
    plain: dict[str, Any] = adapter.dump_python(item, by_alias=True, exclude_defaults=not defaults)
    return plain


def without_defaults(item: Any) -> dict[str, Any]:
    """Plain data of a dataclass, as ``strict`` reads it, without keys that have their default."""
    return as_read(item, defaults=False)


def _defaults(kind: type) -> dict[str, Any]:
    """Defaults of ``kind`` as plain data, so that a nested key left out keeps *its* default.

    pydantic alone would take it from the nested class, whose defaults may be another method's.
    """
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        value = field.default
        if field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = dataclasses.asdict(value)
        if value is not dataclasses.MISSING:
            values[field.name] = value
    return values


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Keys and values of both, nested ones too; ``over`` wins."""
    both = {
        k: merged(base[k], over[k]) for k in base.keys() & over.keys() if _dicts(base[k], over[k])
    }
    return {**base, **over, **both}


def _dicts(*values: Any) -> bool:
    return all(isinstance(value, dict) for value in values)


def _explain(kind: type, raw: Any, error: Any, where: str, also: tuple[str, ...]) -> str:
    """Text of one pydantic error: path, given value, allowed values."""
    path = ".".join([where, *_path(raw, error["loc"])])
    if error["type"] == "missing":
        return f"{path}: is missing: add it"
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        allowed = _keys(_type_at(kind, error["loc"][:-1]))
        allowed += also if len(error["loc"]) == 1 else ()
        close = difflib.get_close_matches(error["loc"][-1], allowed, 1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        return f"{path}: unknown key{hint}; allowed are {', '.join(allowed)}"
    if error["type"] in BOUNDS:
        bound, words = BOUNDS[error["type"]]
        limit = f" {error['ctx'][bound]:g}" if bound else ""
        *parents, name = [where, *_path(raw, error["loc"])]
        value, each = error["input"], "it"
        if isinstance(error["loc"][-1], int):  # a number of several
            *parents, name = parents
            value, each = list(_value_at(raw, error["loc"][:-1])), "each"
        return f"{'.'.join(parents)}: {name} is {value}: {each} must be {words}{limit}"
    message = error["msg"].removeprefix("Value error, ")
    given = "" if error["type"] == "value_error" else f" (given: {error['input']!r})"
    return f"{path}: {message}{given}"


BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "above"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "below"),
    "finite_number": ("", "finite"),
    "falling": ("", "in rising order"),
}
"""Key of the bound in pydantic's errors, and its words."""


def _path(raw: Any, loc: tuple[Any, ...]) -> list[str]:
    """Keys that lead to a value; an item of a list is called by its ``name``, if it has one."""
    path = []
    for part in loc:
        inside = isinstance(raw, dict) and part in raw
        inside |= isinstance(raw, list) and isinstance(part, int) and part < len(raw)
        raw = raw[part] if inside else None
        named = isinstance(part, int) and isinstance(raw, dict) and "name" in raw
        if part != "[key]":  # pydantic's word for a key that is wrong itself
            path.append(str(raw["name"] if named else part))
    return path


def _keys(kind: Any) -> list[str]:
    """Keys of a dataclass in a config: names of its fields, or what stands for them there."""
    keys, hints = [], get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        marks = getattr(hints[field.name], "__metadata__", ())
        keys += [alias for mark in marks if (alias := getattr(mark, "alias", None))] or [field.name]
    return keys


def _value_at(raw: Any, loc: tuple[Any, ...]) -> Any:
    """Value at a place within plain data."""
    for part in loc:
        raw = raw[part]
    return raw


def _type_at(kind: Any, loc: tuple[Any, ...]) -> Any:
    """Dataclass at a location within ``kind``."""
    for part in loc:
        kind = get_type_hints(kind)[part] if dataclasses.is_dataclass(kind) else get_args(kind)[-1]
        if types.NoneType in get_args(kind):  # an optional part
            kind = get_args(kind)[0]
    return kind
