"""Configurations in files: readable ones, and partly readable ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from wgvsock import settings
from wgvsock.settings import UnreadableConfigurationError


@dataclass(frozen=True, slots=True)
class Named:
    name: str


def test_read(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text("name = 'x'")
    assert settings.read(Named, str(path)) == Named("x")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "No such file or directory"),
        (b"name = '\xff'", "byte 8 is not UTF-8"),
        (b"#" * (settings.MAX_CONFIGURATION_BYTES + 1), "it is longer than"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None, why: str) -> None:
    path = tmp_path / "x.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UnreadableConfigurationError) as caught:
        settings.read(Named, str(path))
    assert why in caught.value.why
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('name = "x"\nunknown = 1', {"name": "x", "unknown": 1}),
        ('name = "x"\n= broken\n[table]\nname = "y"', {"name": "x"}),
        ("broken", {}),
        ("x = " + "[" * 100_000 + '\nname = "x"', {"name": "x"}),
        ("x = " + "9" * 5000 + '\nname = "x"', {"name": "x"}),
    ],
)
def test_a_glance(tmp_path: Path, text: str, found: dict[str, object]) -> None:
    path = tmp_path / "x.toml"
    path.write_text(text)
    assert settings.glance(str(path)) == found


def test_a_glance_at_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnreadableConfigurationError):
        settings.glance(str(tmp_path))


def test_where_values_stand(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text("name = 'x'\n[t]\na = 1\n")
    assert settings.locate(str(path), [("t", "a"), ("t", "b"), ("u",)]) == [
        f"{path}, line 3",
        f"{path}, line 2",
        str(path),
    ]
    assert settings.locate(str(path), []) == []
    path.unlink()
    with pytest.raises(UnreadableConfigurationError):
        settings.locate(str(path), [("t",)])
