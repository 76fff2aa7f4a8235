"""What can be wrong with a configuration, and how to name a place in it."""

from __future__ import annotations

from wgvsock.errors import ConfigurationError

KeyPath = tuple[str | int, ...]
"""The place of a value: names of tables and keys, and positions in arrays."""


class UnknownKeyError(ConfigurationError):
    """A key that the schema does not have."""

    code = "WGV-E002"


class InvalidSettingError(ConfigurationError):
    """A value has the wrong type or is out of range, or a key is missing."""

    code = "WGV-E003"


class UnreadableConfigurationError(ConfigurationError):
    """The file cannot be read, or is not TOML."""

    code = "WGV-E004"


class ConflictingSettingsError(ConfigurationError):
    """Settings that are valid each by itself, but not together.

    Args:
        what: See `ConfigurationError`.
        key: The setting to look at first, relative to the dataclass that raises this.
        why: See `ConfigurationError`.
        fix: See `ConfigurationError`.
    """

    def __init__(self, what: str, *, key: KeyPath, why: str = "", fix: str = "") -> None:
        super().__init__(what, why=why, fix=fix)
        self.key = key
