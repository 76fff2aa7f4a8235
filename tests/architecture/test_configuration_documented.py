"""Every configuration key stands in docs/configuration.md."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from wgvsock.enclave.config import EnclaveConfig
from wgvsock.relay import config as relay
from wgvsock.relay.launcher import LaunchSettings

ROOT = Path(__file__).resolve().parents[2]

SECTIONS = {
    "": relay.RelayConfig,
    "enclave": relay.EnclaveSettings,
    "launch": LaunchSettings,
    "interface": relay.InterfaceSettings,
    "dns": relay.DnsSettings,
    "attestation": relay.AttestationSettings,
    "attestation.pcr_sets": relay.PcrSetSettings,
    "provisioning": relay.ProvisioningSettings,
    "nat": relay.NatSettings,
    "nat.publish": relay.PublishSettings,
    "health": relay.HealthSettings,
    "enclave.toml": EnclaveConfig,
}


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_is_described(section: str) -> None:
    documented = set(re.findall(r"[`.\[](\w+)[`\]]", (ROOT / "docs/configuration.md").read_text()))
    keys = {field.name for field in dataclasses.fields(SECTIONS[section])}
    assert keys <= documented
