"""A laboratory's authority and enclave, and documents from it with any of the laboratory's faults."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from lab.nsm.faults import Faults
from lab.nsm.pki import LabAuthority
from lab.nsm.signer import FakeNsm, LabEnclave
from wgvsock.attestation.binding import encode_x25519_spki, wireguard_key_commitment
from wgvsock.attestation.policy import PcrSet, Policy
from wgvsock.devices.nsm import NsmClient


class Lab:
    """One enclave that booted and committed to its WireGuard key, with a stopped clock."""

    now = datetime(2026, 11, 23, 12, 0, 0, 250_000, tzinfo=UTC)
    nonce = bytes(range(32))
    user_data = b"wgvsock/prov/1\0\0" + bytes(48)
    wireguard_public_key = bytes(range(100, 132))

    def __init__(self) -> None:
        self.authority = LabAuthority(lambda: self.now)
        self.enclave = LabEnclave(module_id="i-0123456789abcdef0-enc0123456789abcdef")
        self.spki = encode_x25519_spki(self.wireguard_public_key)
        module = FakeNsm(self.authority, self.enclave, clock=lambda: self.now)
        self.module = NsmClient(module)
        self.module.extend_pcr(16, wireguard_key_commitment(self.spki))
        self.module.lock_pcr(16)

    def document(self, **faults: Any) -> bytes:
        """What the module signs for this exchange, with faults."""
        self.enclave.faults = Faults(**faults)
        try:
            return self.module.attest(nonce=self.nonce, user_data=self.user_data, public_key=self.spki)
        finally:
            self.enclave.faults = Faults()

    def policy(self, **changes: Any) -> Policy:
        """A policy that accepts the document without faults."""
        accepted: dict[str, Any] = {
            "pcr_sets": (PcrSet(self.enclave.measurements),),
            "accepted_roots": (self.authority.root_fingerprint,),
        }
        return Policy(**accepted | changes)


@pytest.fixture(scope="session")
def lab() -> Lab:
    return Lab()


@pytest.fixture(scope="session")
def good(lab: Lab) -> bytes:
    return lab.document()
