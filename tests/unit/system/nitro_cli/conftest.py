"""The scripted tool."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.system.nitro_cli.scripted_tool import Tool


@pytest.fixture
def tool(tmp_path: Path) -> Tool:
    return Tool(tmp_path)
