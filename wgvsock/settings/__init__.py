"""Strict TOML: turns text into a frozen dataclass, or raises an error with the line and the nearest valid key.

`schema` builds the dataclass and uses `lines` for its messages. `files` reads configurations and `writing` writes them.
`checks` holds the rules that several configurations share. `advice` is about valid settings that may be a mistake.
"""

from wgvsock.settings.advice import Advice
from wgvsock.settings.checks import check_apart, check_interface_name, check_service_name, next_port
from wgvsock.settings.errors import (
    ConflictingSettingsError,
    InvalidSettingError,
    KeyPath,
    UnknownKeyError,
    UnreadableConfigurationError,
)
from wgvsock.settings.files import MAX_CONFIGURATION_BYTES, glance, locate, read
from wgvsock.settings.json_schema import json_schema
from wgvsock.settings.schema import Between, Settings, parse
from wgvsock.settings.writing import format_toml, reloadable, to_plain

__all__ = [
    "MAX_CONFIGURATION_BYTES",
    "Advice",
    "Between",
    "ConflictingSettingsError",
    "InvalidSettingError",
    "KeyPath",
    "Settings",
    "UnknownKeyError",
    "UnreadableConfigurationError",
    "check_apart",
    "check_interface_name",
    "check_service_name",
    "format_toml",
    "glance",
    "json_schema",
    "locate",
    "next_port",
    "parse",
    "read",
    "reloadable",
    "to_plain",
]
