"""A configuration's dataclass as a JSON Schema (draft 2020-12), for editors: types, bounds, choices, descriptions.

A ``#:schema`` line in the TOML file points editors to it (https://taplo.tamasfe.dev/configuration/directives.html). It
describes what `wgvsock.settings.schema` accepts. Rules that involve several keys are left to ``wgvsock config check``.
The descriptions are those of the dataclass's docstring.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Union

from wgvsock.addresses import IpAddress, IpInterface, IpNetwork, StreamAddress
from wgvsock.settings.schema import Between
from wgvsock.settings.writing import to_plain

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

_TEXTS: Final[Mapping[Any, tuple[str, str]]] = {
    IpAddress: ("an IP address", "10.0.0.1"),
    IpInterface: ("an IP address with its prefix length", "10.73.0.2/24"),
    IpNetwork: ("an IP network", "10.73.0.0/24"),
    StreamAddress: ("a stream address", "vsock:16:51820"),
}
_SCALARS: Final[Mapping[Any, str]] = {bool: "boolean", int: "integer", float: "number", str: "string"}
_ATTRIBUTE: Final = re.compile(r"^    (\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)
_MARKUP: Final = re.compile(r"^``\[+[\w.]+\]+``: |`+")


def json_schema(schema: type[Any], title: str) -> dict[str, Any]:
    """The schema of a whole file.

    Args:
        schema: The dataclass of the file.
        title: What the file is.
    """
    return {"$schema": DIALECT, "title": title, **_table(schema)}


def _table(schema: type[Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(schema, include_extras=True)
    words = _words(schema)
    properties: dict[str, Any] = {}
    required = []
    for field in dataclasses.fields(schema):
        entry = _value(hints[field.name])
        if text := words.get(field.name):
            entry = {"description": text, **{key: value for key, value in entry.items() if key != "description"}}
        if _is_plain(default := _default(field)):
            entry["default"] = to_plain(default)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            required.append(field.name)
        properties[field.name] = entry
    table: dict[str, Any] = {"type": "object", "additionalProperties": False, "properties": properties}
    if summary := _plain((schema.__doc__ or "").partition("\n")[0]):
        table = {"description": summary, **table}
    return {**table, "required": required} if required else table


def _default(field: dataclasses.Field[Any]) -> object:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _is_plain(value: object) -> bool:
    """Whether to show a default. None, "" and an empty array stand for a value that is decided later.

    A table shows the defaults of its keys instead. The description of an address says more than its default.
    """
    return value is not dataclasses.MISSING and value not in {None, "", ()} and not dataclasses.is_dataclass(value)


def _value(hint: Any) -> dict[str, Any]:
    bounds: dict[str, Any] = {}
    if typing.get_origin(hint) is Annotated:
        hint, between, *_ = typing.get_args(hint)
        if isinstance(between, Between):
            bounds = {"minimum": between.low, "maximum": between.high}
    if hint in _TEXTS:
        what, example = _TEXTS[hint]
        return {"type": "string", "description": what, "examples": [example]}
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is Union:
        members = [member for member in typing.get_args(hint) if member is not type(None)]
        if len(members) == 1:
            return _value(members[0])
        # `IpAddress | None` is flattened into a union, so compare the members.
        found = next((text for kind, text in _TEXTS.items() if set(typing.get_args(kind)) == set(members)), None)
        what, example = found or _TEXTS[StreamAddress]
        return {"type": "string", "description": what, "examples": [example]}
    if typing.get_origin(hint) is tuple:
        return {"type": "array", "items": _value(typing.get_args(hint)[0])}
    if typing.get_origin(hint) is Literal:
        return {"enum": list(typing.get_args(hint))}
    if dataclasses.is_dataclass(hint):
        return _table(typing.cast("type[Any]", hint))
    return {"type": _SCALARS[hint], **bounds}


def _words(schema: type[Any]) -> dict[str, str]:
    """The description of each attribute, from the docstrings of the class and its bases."""
    found: dict[str, str] = {}
    for kind in reversed(schema.__mro__):
        # Python 3.13 already removes the indentation.
        _, _, attributes = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:")
        found |= {name: _plain(text) for name, text in _ATTRIBUTE.findall(attributes)}
    return found


def _plain(text: str) -> str:
    return _MARKUP.sub("", " ".join(text.split()))
