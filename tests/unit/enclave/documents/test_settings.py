"""[attestation_endpoint] of enclave.toml."""

from __future__ import annotations

import pytest

from wgvsock import settings
from wgvsock.enclave.config import EnclaveConfig
from wgvsock.enclave.documents.settings import AttestationEndpointSettings
from wgvsock.errors import ConfigurationError


def test_by_default_there_is_none() -> None:
    assert EnclaveConfig().attestation_endpoint == AttestationEndpointSettings()
    assert not AttestationEndpointSettings().port
    assert not AttestationEndpointSettings().local


def test_its_port_is_not_that_of_the_reports() -> None:
    for port in (0, 8444):
        settings.parse(EnclaveConfig, f"attestation_endpoint.port = {port}")
    with pytest.raises(ConfigurationError) as caught:
        settings.parse(EnclaveConfig, "attestation_endpoint.port = 51822")
    assert '"application.report_port" is 51822' in caught.value.why
