"""Why there is no engine."""

from __future__ import annotations

from wgvsock.errors import SystemSetupError
from wgvsock.uplink.errors import EngineMissingError, EngineStartError, PortError


def test_each_has_a_code_of_its_own() -> None:
    kinds = (EngineMissingError, EngineStartError, PortError)
    assert [kind.code for kind in kinds] == ["WGV-E104", "WGV-E105", "WGV-E106"]
    assert all(issubclass(kind, SystemSetupError) for kind in kinds)
