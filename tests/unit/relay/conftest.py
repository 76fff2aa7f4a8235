"""A configuration for this folder, and a whole pair of services."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.nsm.signer import LabEnclave
from tests.unit.service_pair import ServicePair, relay_config
from wgvsock.relay.config import RelayConfig
from wgvsock.relay.spec import EnclaveSpec


@pytest.fixture
def config(tmp_path: Path) -> RelayConfig:
    """A relay's configuration whose runtime directory exists."""
    (tmp_path / "relay").mkdir(mode=0o700)
    return relay_config(tmp_path, LabEnclave(), bytes(32))


@pytest.fixture
def spec(config: RelayConfig) -> EnclaveSpec:
    """Its only enclave's."""
    (spec,) = config.specs()
    return spec


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServicePair:
    """Neither service is started yet."""
    return ServicePair(tmp_path)
