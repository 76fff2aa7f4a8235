"""The schema's name is the documented one."""

from __future__ import annotations

from pathlib import Path

from wgvsock.telemetry.schema import SCHEMA

ROOT = Path(__file__).resolve().parents[3]


def test_the_documentation_has_the_same_name() -> None:
    assert f'"schema": "{SCHEMA}"' in (ROOT / "docs/operations.md").read_text(encoding="utf-8")
