"""Every configuration key is described in docs/configuration.md."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from wgvsock.egress.settings import EgressSettings, RuleSettings
from wgvsock.enclave.application.settings import ApplicationSettings
from wgvsock.enclave.clock import ClockSettings
from wgvsock.enclave.config import EnclaveConfig
from wgvsock.enclave.documents.settings import AttestationEndpointSettings
from wgvsock.relay import sections as relay
from wgvsock.relay.application_settings import ApplicationSettings as RelaysSide
from wgvsock.relay.config import EnclaveEntry, RelayConfig

ROOT = Path(__file__).resolve().parents[2]

SECTIONS = {
    "": RelayConfig,
    "enclave": relay.EnclaveSettings,
    "enclaves": EnclaveEntry,
    "launch": relay.LaunchSettings,
    "interface": relay.InterfaceSettings,
    "dns": relay.DnsSettings,
    "attestation": relay.AttestationSettings,
    "attestation.pcr_sets": relay.PcrSetSettings,
    "provisioning": relay.ProvisioningSettings,
    "egress": EgressSettings,
    "egress.allow": RuleSettings,
    "nat": relay.NatSettings,
    "nat.publish": relay.PublishSettings,
    "health": relay.HealthSettings,
    "application": RelaysSide,
    "enclave.toml": EnclaveConfig,
    "enclave.toml application": ApplicationSettings,
    "enclave.toml clock": ClockSettings,
    "enclave.toml attestation_endpoint": AttestationEndpointSettings,
}


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_is_described(section: str) -> None:
    documented = set(re.findall(r"[`.\[](\w+)[`\]]", (ROOT / "docs/configuration.md").read_text(encoding="utf-8")))
    keys = {field.name for field in dataclasses.fields(SECTIONS[section])}
    assert keys <= documented
