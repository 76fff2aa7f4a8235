"""A whole pair of services."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.service_pair import ServicePair


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServicePair:
    """Neither service is started yet."""
    return ServicePair(tmp_path)
