"""Settings as text: TOML that `parse` reads back to the same value, and plain values for JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

from wgvsock.addresses import StreamAddress


def to_plain(value: object) -> Any:
    """Turn settings into values that JSON and TOML support. None stays, and addresses become text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and not isinstance(value, StreamAddress):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def reloadable(settings: object) -> dict[str, bool]:
    """Whether a running service applies a change of each key when it reloads its file, by dotted key.

    Fields with ``fixed`` in their metadata, and all below them, are read only at the start.
    """
    return dict(_reloadable(settings, ()))


def _reloadable(value: object, path: tuple[str, ...], *, fixed: bool = False) -> Iterator[tuple[str, bool]]:
    for each in value if isinstance(value, tuple) else (value,):
        if not dataclasses.is_dataclass(each) or isinstance(each, StreamAddress):
            yield ".".join(path), not fixed
            continue
        for member in dataclasses.fields(each):
            now_fixed = fixed or bool(member.metadata.get("fixed"))
            inner = getattr(each, member.name)
            yield from _reloadable(inner if inner != () else None, (*path, member.name), fixed=now_fixed)


def format_toml(settings: object, comments: Mapping[str, str] | None = None) -> str:
    """Format settings as TOML that `parse` reads back to the same value. Keys that are None are left out.

    Args:
        settings: The settings.
        comments: Comments to put after the values, by dotted key.
    """
    return "\n".join(_format_table(to_plain(settings), (), comments or {})).strip() + "\n"


def _format_table(table: Mapping[str, Any], path: tuple[str, ...], comments: Mapping[str, str]) -> Iterator[str]:
    for key, value in table.items():
        if value is not None and not _is_table(value) and not _is_array_of_tables(value):
            comment = comments.get(".".join((*path, key)))
            yield f"{key} = {_format_value(value)}" + (f"  # {comment}" if comment else "")
    for key, value in table.items():
        name = (*path, key)
        if _is_table(value):
            yield f"\n[{'.'.join(name)}]"
            yield from _format_table(value, name, comments)
        elif _is_array_of_tables(value):
            for item in value:
                yield f"\n[[{'.'.join(name)}]]"
                yield from _format_table(item, name, comments)


def _is_table(value: object) -> bool:
    return isinstance(value, dict)


def _is_array_of_tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _format_value(value: bool | float | str | list[Any]) -> str:
    # JSON's strings, numbers and booleans are valid TOML.
    if isinstance(value, list):
        return f"[{', '.join(_format_value(item) for item in value)}]"
    return json.dumps(value, ensure_ascii=False)
