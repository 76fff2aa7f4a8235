"""Reads configuration files: as a whole, or as far as possible if they may be invalid."""

from __future__ import annotations

import contextlib
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from wgvsock.settings.errors import KeyPath, UnreadableConfigurationError
from wgvsock.settings.lines import line_numbers, line_of
from wgvsock.settings.schema import Settings, parse

MAX_CONFIGURATION_BYTES: Final = 1 << 20
"""People write configurations by hand, so anything longer is the wrong file."""


def read(schema: type[Settings], path: str) -> Settings:
    """Read and check a file.

    Raises:
        ConfigurationError: As `parse`, or `UnreadableConfigurationError` if the file cannot be read.
    """
    content = _read_file(path)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise UnreadableConfigurationError(
            f"{path} is not TOML", why=f"byte {error.start} is not UTF-8", fix="save the file as UTF-8"
        ) from None
    return parse(schema, text, path)


def locate(path: str, keys: Iterable[KeyPath]) -> list[str]:
    """The places of values in a file that `read` accepted: ``FILE, line 3``, or the file alone.

    Raises:
        ConfigurationError: The file can no longer be read.
    """
    lines = line_numbers(_read_file(path).decode(errors="replace"))
    found = [line_of(key, lines) for key in keys]
    return [path if line is None else f"{path}, line {line}" for line in found]


def glance(path: str) -> dict[str, Any]:
    """As many top-level keys as can be read from a file that may be invalid.

    Commands use it to find a running service although its file has an error.

    Returns:
        The whole document if it is valid TOML, otherwise the valid one-line keys before the first table.

    Raises:
        UnreadableConfigurationError: The file does not exist, cannot be read, or is too long.
    """
    text = _read_file(path).decode(errors="replace")
    with contextlib.suppress(ValueError, RecursionError):
        return tomllib.loads(text)
    found: dict[str, Any] = {}
    for line in text.split("\n"):
        if line.lstrip().startswith("["):
            break
        with contextlib.suppress(ValueError, RecursionError):
            found |= tomllib.loads(line)
    return found


def _read_file(path: str) -> bytes:
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
            f"{path} is not a configuration",
            why=f"it is longer than {MAX_CONFIGURATION_BYTES} bytes",
            fix="check the path",
        )
    return content
