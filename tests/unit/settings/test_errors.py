"""Codes and exit codes of a wrong configuration."""

from __future__ import annotations

import pytest

from wgvsock.errors import ConfigurationError
from wgvsock.settings.errors import (
    ConflictingSettingsError,
    InvalidSettingError,
    UnknownKeyError,
    UnreadableConfigurationError,
)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UnknownKeyError("x"), "WGV-E002"),
        (InvalidSettingError("x"), "WGV-E003"),
        (UnreadableConfigurationError("x"), "WGV-E004"),
        (ConflictingSettingsError("x", key=("a", "b")), ConfigurationError.code),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_has_its_code_and_exit_status(error: ConfigurationError, code: str) -> None:
    assert (error.code, error.exit_code) == (code, 2)


def test_a_conflict_says_where_to_look_first() -> None:
    assert ConflictingSettingsError("x", key=("listen", "port")).key == ("listen", "port")
