"""Strict TOML: a text becomes a frozen dataclass, or an error that names the line and the nearest valid key.

The dataclass is the schema: field names are the keys, defaults make a key optional, the annotation says what a value
may be. Supported annotations: ``bool``, ``int``, ``float``, ``str``, ``Literal[...]``, ``Annotated[number,
Between(low, high)]``, the `ipaddress` types and their unions, `StreamAddress`, another dataclass (a table),
``tuple[X, ...]`` (an array, or an array of tables) and ``X | None``. Checks over several fields belong into the
dataclass's ``__post_init__`` and raise `ConfigurationError`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import ipaddress
import json
import operator
import re
import tomllib
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, Union

from wgvsock.addresses import (
    HybridVsockAddress,
    Port,
    StreamAddress,
    TcpAddress,
    UnixAddress,
    VsockAddress,
    parse_stream_address,
)
from wgvsock.errors import ConfigurationError

IpAddress = IPv4Address | IPv6Address
IpInterface = IPv4Interface | IPv6Interface
IpNetwork = IPv4Network | IPv6Network

KeyPath = tuple[str | int, ...]
"""Where a value stands: names of tables and keys, and positions in arrays of tables."""

Settings = TypeVar("Settings")

MAX_CONFIGURATION_BYTES: Final = 1 << 20
"""A configuration is written by hand; anything longer is the wrong file."""


_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_INTERFACE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}")  # IFNAMSIZ, and no character that nft would read


class UnknownKeyError(ConfigurationError):
    """A key that the schema does not have."""

    code = "WGV-E002"


class InvalidSettingError(ConfigurationError):
    """A value of the wrong type or out of range, or a key that is missing."""

    code = "WGV-E003"


class UnreadableConfigurationError(ConfigurationError):
    """The file cannot be read, or is no TOML."""

    code = "WGV-E004"


@dataclass(frozen=True, slots=True)
class Between:
    """Bounds, both included, of a number: ``Annotated[int, Between(1, 65535)]``."""

    low: float
    high: float


def read(schema: type[Settings], path: str) -> Settings:
    """Read and check a file.

    Raises:
        ConfigurationError: As `parse`; and `UnreadableConfigurationError` when the file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_CONFIGURATION_BYTES + 1)
    except OSError as error:
        raise UnreadableConfigurationError(
            f"cannot read the configuration {path}",
            why=error.strerror or str(error),
            fix="name a file with -c, or write one: wgvsock config init relay|enclave",
        ) from error
    if len(content) > MAX_CONFIGURATION_BYTES:
        raise UnreadableConfigurationError(
            f"{path} is no configuration",
            why=f"it is longer than {MAX_CONFIGURATION_BYTES} bytes",
            fix="check the path",
        )
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise UnreadableConfigurationError(
            f"{path} is no TOML", why=f"byte {error.start} is not UTF-8", fix="save the file as UTF-8"
        ) from None
    return parse(schema, text, path)


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
    except tomllib.TOMLDecodeError as error:
        raise UnreadableConfigurationError(f"{source} is no TOML", why=str(error), fix="correct the syntax") from None
    return _Builder(source, _line_numbers(text)).table(schema, values, ())


# What more than one configuration holds.


def next_port(address: StreamAddress, key: str) -> StreamAddress:
    """The same address one port higher (the paper: provisioning is at the WireGuard port + 1).

    Raises:
        ConfigurationError: The address has no port; `key` has to be given.
    """
    match address:
        case VsockAddress(cid, port):
            return VsockAddress(cid, Port(port + 1))
        case HybridVsockAddress(path, port):
            return HybridVsockAddress(path, Port(port + 1))
        case TcpAddress(host, port):
            return TcpAddress(host, Port(port + 1))
        case UnixAddress():
            raise ConfigurationError(
                f'"{key}" is missing', why="a unix: address has no port to count up from", fix=f'add "{key}"'
            )


def check_service_name(name: str) -> None:
    """Refuse a name that cannot be part of a file name.

    Raises:
        ConfigurationError: It is one.
    """
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            'cannot use "name"', why="it becomes a part of file names", fix="use letters, digits, dot, dash, underscore"
        )


def check_interface_name(name: str) -> None:
    """Refuse a name that the kernel or nft would not take.

    Raises:
        ConfigurationError: It is one.
    """
    if not _INTERFACE.fullmatch(name):
        raise ConfigurationError(
            f"no interface can be named {name[:32]!r}",
            why="a name has 1 to 15 letters, digits, dots, dashes or underscores",
            fix='choose another, such as "wg0"',
        )


def to_plain(value: object) -> Any:
    """Turn settings into values that JSON and TOML know; None stays, addresses become text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and not isinstance(value, StreamAddress):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def format_toml(settings: object) -> str:
    """Write settings as TOML that `parse` reads back to the same value; keys that are None are left out."""
    return "\n".join(_format_table(to_plain(settings), ())).strip() + "\n"


def _format_table(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    for key, value in table.items():
        if value is not None and not _is_table(value) and not _is_array_of_tables(value):
            yield f"{key} = {_format_value(value)}"
    for key, value in table.items():
        name = (*path, key)
        if _is_table(value):
            yield f"\n[{'.'.join(name)}]"
            yield from _format_table(value, name)
        elif _is_array_of_tables(value):
            for item in value:
                yield f"\n[[{'.'.join(name)}]]"
                yield from _format_table(item, name)


def _is_table(value: object) -> bool:
    return isinstance(value, dict)


def _is_array_of_tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _format_value(value: bool | float | str | list[Any]) -> str:
    # JSON's strings, numbers and booleans are TOML's as well.
    if isinstance(value, list):
        return f"[{', '.join(_format_value(item) for item in value)}]"
    return json.dumps(value, ensure_ascii=False)


class _Builder:
    """Builds dataclasses from tables and knows where each key stands."""

    def __init__(self, source: str, lines: Mapping[KeyPath, int]) -> None:
        self._source = source
        self._lines = lines

    def table(self, schema: type[Settings], values: object, path: KeyPath) -> Settings:
        if not isinstance(values, dict):
            raise self._invalid(path, f"a table was expected, not {_toml_type(values)}", "write it as [table]")
        hints = typing.get_type_hints(schema, include_extras=True)
        fields = {field.name: field for field in dataclasses.fields(schema)}  # type: ignore[arg-type]
        self._refuse_unknown(values, fields, path)
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
            raise InvalidSettingError(f"{self._where(path)}: {error.what}", why=error.why, fix=error.fix) from None

    def _refuse_unknown(self, values: Mapping[str, object], fields: Mapping[str, object], path: KeyPath) -> None:
        for key in values:
            if key not in fields:
                nearest = difflib.get_close_matches(key, fields, n=1, cutoff=0.0)
                raise UnknownKeyError(
                    f'{self._where((*path, key))}: unknown key "{key}"{_in_table(path)}',
                    why=f"the keys here are {', '.join(fields)}",
                    fix=f'the nearest valid key is "{nearest[0]}"',
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
            nearest = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1, cutoff=0.0)
            raise self._invalid(path, f"it is one of {names}", f'the nearest valid value is "{nearest[0]}"')
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
        # bool is a subclass of int in Python, not in TOML.
        if hint is float and type(value) is int:
            value = float(value)
        if type(value) is not hint:
            raise self._invalid(path, f"{_NAMES[hint]} was expected, not {_toml_type(value)}", "change the value")
        if bounds is not None and not bounds.low <= typing.cast("float", value) <= bounds.high:
            raise self._invalid(path, f"it lies outside {bounds.low:g} to {bounds.high:g}", "change the value")
        return value

    def _invalid(self, path: KeyPath, why: str, fix: str) -> InvalidSettingError:
        name = f' the value of "{_dotted(path)}"' if path else ""
        return InvalidSettingError(f"{self._where(path)}: cannot use{name or ' the file'}", why=why, fix=fix)

    def _where(self, path: KeyPath) -> str:
        # The values of an array and of an inline table stand at or after the line of their key.
        for length in range(len(path), 0, -1):
            if line := self._lines.get(path[:length]):
                return f"{self._source}, line {line}"
        return self._source


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


_HEADER: Final = re.compile(r"^\s*(\[\[?)\s*(.+?)\s*\]\]?\s*(?:#.*)?$")
_KEY: Final = re.compile(r"^\s*((?:\"[^\"]*\"|'[^']*'|[A-Za-z0-9_-]+|\s*\.\s*)+?)\s*=")
_STRING: Final = re.compile(r"\"\"\"|'''|\"(?:\\.|[^\"\\])*\"|'[^']*'|#.*")


def _line_numbers(text: str) -> dict[KeyPath, int]:
    """Line, counted from 1, of each table header and key of a valid TOML text (tomllib does not tell)."""
    lines: dict[KeyPath, int] = {}
    counts: dict[KeyPath, int] = {}
    table: KeyPath = ()
    open_brackets, open_string = 0, ""
    for number, line in enumerate(text.split("\n"), start=1):
        if not open_brackets and not open_string:
            if header := _HEADER.match(line):
                table = _resolve(_split_key(header[2]), counts)
                if header[1] == "[[":
                    position = counts[table] = counts.get(table, -1) + 1
                    table = (*table, position)
                _note(lines, table, number)
                continue
            if key := _KEY.match(line):
                _note(lines, (*table, *_split_key(key[1])), number)
        open_brackets, open_string = _continuation(line, open_brackets, open_string)
    return lines


def _note(lines: dict[KeyPath, int], path: KeyPath, number: int) -> None:
    """A dotted key is the first mention of the tables that it names as well."""
    for length in range(1, len(path) + 1):
        lines.setdefault(path[:length], number)


def _split_key(text: str) -> KeyPath:
    parts: list[str] = []
    value: object = tomllib.loads(f"{text} = 0")
    while isinstance(value, dict):
        (part,) = value
        parts.append(part)
        value = value[part]
    return tuple(parts)


def _resolve(names: KeyPath, counts: Mapping[KeyPath, int]) -> KeyPath:
    """Put the current position behind each name on the way that is an array of tables: ``[[a]]`` then ``[a.b]``."""
    path: KeyPath = ()
    for index, name in enumerate(names):
        path = (*path, name)
        if path in counts and index < len(names) - 1:
            path = (*path, counts[path])
    return path


def _continuation(line: str, brackets: int, string: str) -> tuple[int, str]:
    """Whether the value of this line goes on: depth of open brackets, and the delimiter of an open long string."""
    rest = line
    while rest:
        if string:
            _, found, rest = rest.partition(string)
            string = "" if found else string
            if string:
                break
            continue
        token = _STRING.search(rest)
        head = rest[: token.start()] if token else rest
        brackets += head.count("[") + head.count("{") - head.count("]") - head.count("}")
        if token is None:
            break
        rest = rest[token.end() :]
        if token[0] in {'"""', "'''"}:
            string = token[0]
    return brackets, string
