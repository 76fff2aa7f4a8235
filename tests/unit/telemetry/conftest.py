from __future__ import annotations

import pytest

from tests.unit.control_sockets import ControlSockets


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch) -> ControlSockets:
    """Nothing listens anywhere yet."""
    return ControlSockets(monkeypatch)
