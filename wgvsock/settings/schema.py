"""Strict TOML: turns text into a frozen dataclass, or raises an error with the line and the nearest valid key.

The dataclass is the schema: field names are the keys, a default makes a key optional, and the annotation defines the
valid values. Supported annotations: ``bool``, ``int``, ``float``, ``str``, ``Literal[...]``, ``Annotated[number,
Between(low, high)]``, the `ipaddress` types and their unions, `StreamAddress`, another dataclass (a table),
``tuple[X, ...]`` (an array, or an array of tables) and ``X | None``. Checks over several fields belong in the
dataclass's ``__post_init__`` and raise `ConfigurationError`. A class attribute ``MOVED`` maps each removed key to the
advice on what to write instead.
"""

from __future__ import annotations

import dataclasses
import functools
import ipaddress
import json
import operator
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeVar, Union

from wgvsock.addresses import IpAddress, IpInterface, IpNetwork, StreamAddress, parse_stream_address
from wgvsock.errors import ConfigurationError
from wgvsock.settings.errors import (
    ConflictingSettingsError,
    InvalidSettingError,
    KeyPath,
    UnknownKeyError,
    UnreadableConfigurationError,
)
from wgvsock.settings.lines import line_numbers, line_of

Settings = TypeVar("Settings")


@dataclass(frozen=True, slots=True)
class Between:
    """Inclusive bounds of a number: ``Annotated[int, Between(1, 65535)]``."""

    low: float
    high: float


def parse(schema: type[Settings], text: str, source: str = "configuration") -> Settings:
    """Check a TOML text against a dataclass and build it.

    Args:
        schema: The dataclass.
        text: TOML 1.0.
        source: Name of the file, for messages.

    Raises:
        ConfigurationError: `UnknownKeyError`, `InvalidSettingError` or `UnreadableConfigurationError`.
    """
    try:
        values = tomllib.loads(text)
    except ValueError as error:  # tomllib's own, or int's for a number with thousands of digits
        raise UnreadableConfigurationError(f"{source} is not TOML", why=str(error), fix="correct the syntax") from None
    except RecursionError:
        raise UnreadableConfigurationError(
            f"{source} is not a configuration", why="its values are nested too deeply", fix="check the path"
        ) from None
    return _Builder(source, text).table(schema, values, ())


@functools.cache
def _describe(schema: Any) -> tuple[Mapping[str, Any], Mapping[str, dataclasses.Field[Any]]]:
    """Annotations and fields of a dataclass, cached because evaluating them takes longer than reading a table."""
    fields = {field.name: field for field in dataclasses.fields(schema)}
    return typing.get_type_hints(schema, include_extras=True), fields


class _Builder:
    """Builds dataclasses from tables and knows the line of each key."""

    def __init__(self, source: str, text: str) -> None:
        self._source = source
        self._text = text

    def table(self, schema: type[Settings], values: object, path: KeyPath) -> Settings:
        if not isinstance(values, dict):
            raise self._invalid(path, f"a table was expected, not {_toml_type(values)}", "write it as [table]")
        hints, fields = _describe(typing.cast("Any", schema))
        self._refuse_unknown(values, fields, path, getattr(schema, "MOVED", {}))
        arguments: dict[str, object] = {}
        for name, field in fields.items():
            if name in values:
                arguments[name] = self._value(hints[name], values[name], (*path, name))
            elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                raise self._invalid(path, f'the key "{name}" is missing', f'add "{name} = …"')
        try:
            return schema(**arguments)
        except ConfigurationError as error:
            if isinstance(error, InvalidSettingError):
                raise
            where = self._where((*path, *error.key) if isinstance(error, ConflictingSettingsError) else path)
            raise InvalidSettingError(f"{where}: {error.what}", why=error.why, fix=error.fix) from None

    def _refuse_unknown(
        self, values: Mapping[str, object], fields: Mapping[str, object], path: KeyPath, moved: Mapping[str, str]
    ) -> None:
        for key in values:
            if key in moved:
                raise UnknownKeyError(
                    f'{self._where((*path, key))}: the key "{key}"{_in_table(path)} no longer exists',
                    why="another key replaced it",
                    fix=moved[key],
                )
            if key not in fields:
                raise UnknownKeyError(
                    f'{self._where((*path, key))}: unknown key "{key}"{_in_table(path)}',
                    why=f"the valid keys are {', '.join(fields)}",
                    fix=f'the nearest valid key is "{_nearest(key, fields)}"',
                )

    def _value(self, hint: Any, value: object, path: KeyPath) -> object:
        bounds = None
        if typing.get_origin(hint) is Annotated:
            hint, bounds, *_ = typing.get_args(hint)
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is Union:
            members = [member for member in typing.get_args(hint) if member is not type(None)]
            hint = functools.reduce(operator.or_, members)
            if typing.get_origin(hint) is Annotated:
                return self._value(hint, value, path)
        if typing.get_origin(hint) is tuple:
            return self._array(typing.get_args(hint)[0], value, path)
        if typing.get_origin(hint) is Literal:
            return self._choice(typing.get_args(hint), value, path)
        if hint in _TEXT_FORMS:
            return self._text_form(hint, value, path)
        if dataclasses.is_dataclass(hint):
            return self.table(typing.cast("type[object]", hint), value, path)
        return self._scalar(hint, value, bounds, path)

    def _array(self, hint: Any, value: object, path: KeyPath) -> tuple[object, ...]:
        if not isinstance(value, list):
            raise self._invalid(path, f"an array was expected, not {_toml_type(value)}", "put it in square brackets")
        return tuple(self._value(hint, item, (*path, position)) for position, item in enumerate(value))

    def _choice(self, choices: tuple[object, ...], value: object, path: KeyPath) -> object:
        if value not in choices:
            names = ", ".join(json.dumps(choice) for choice in choices)
            nearest = _nearest(str(value), [str(choice) for choice in choices])
            raise self._invalid(path, f"it must be one of {names}", f'the nearest valid value is "{nearest}"')
        return value

    def _text_form(self, hint: Any, value: object, path: KeyPath) -> object:
        convert, example = _TEXT_FORMS[hint]
        if not isinstance(value, str):
            raise self._invalid(path, f"a string was expected, not {_toml_type(value)}", f'write it as "{example}"')
        try:
            return convert(value)
        except ConfigurationError as error:
            raise self._invalid(path, error.why, error.fix) from None
        except ValueError as error:
            raise self._invalid(path, str(error), f'write it as "{example}"') from None

    def _scalar(self, hint: Any, value: object, bounds: Between | None, path: KeyPath) -> object:
        # bool is a subclass of int in Python, but not in TOML.
        if hint is float and type(value) is int:
            value = float(value)
        if type(value) is not hint:
            raise self._invalid(path, f"{_NAMES[hint]} was expected, not {_toml_type(value)}", "change the value")
        if bounds is not None and not bounds.low <= typing.cast("float", value) <= bounds.high:
            raise self._invalid(path, f"it is outside {bounds.low:g} to {bounds.high:g}", "change the value")
        return value

    def _invalid(self, path: KeyPath, why: str, fix: str) -> InvalidSettingError:
        name = f' the value of "{_dotted(path)}"' if path else ""
        return InvalidSettingError(f"{self._where(path)}: cannot use{name or ' the file'}", why=why, fix=fix)

    def _where(self, path: KeyPath) -> str:
        line = line_of(path, line_numbers(self._text))  # computed here, as there is at most one error and usually none
        return self._source if line is None else f"{self._source}, line {line}"


def _ip_network(text: str) -> IpNetwork:
    return ipaddress.ip_network(text)


def _ip_interface(text: str) -> IpInterface:
    if "/" not in text:
        raise ValueError("the prefix length is missing")
    return ipaddress.ip_interface(text)


_TEXT_FORMS: Final[Mapping[Any, tuple[Callable[[str], object], str]]] = {
    IpAddress: (ipaddress.ip_address, "10.0.0.1"),
    IpInterface: (_ip_interface, "10.73.0.2/24"),
    IpNetwork: (_ip_network, "10.73.0.0/24"),
    StreamAddress: (parse_stream_address, "vsock:16:51820"),
}

_NAMES: Final[Mapping[Any, str]] = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}


def _toml_type(value: object) -> str:
    names = {bool: "a boolean", int: "a whole number", float: "a number", str: "a string", list: "an array"}
    return names.get(type(value), "a table" if isinstance(value, dict) else "a date or time")


def _in_table(path: KeyPath) -> str:
    return f" in [{_dotted(path)}]" if path else ""


def _dotted(path: KeyPath) -> str:
    return ".".join(str(part) for part in path if isinstance(part, str))


def _nearest(word: str, known: Iterable[str]) -> str:
    """The one of the known words that is least unlike this one, however unlike that is."""
    import difflib  # 5 ms, and only for a file with a mistake

    return difflib.get_close_matches(word, list(known), n=1, cutoff=0.0)[0]
