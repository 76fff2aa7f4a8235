"""A relay and an enclave with the real verifier and the laboratory's security module."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from lab.nsm.faults import Faults
from lab.nsm.pki import LabAuthority
from lab.nsm.signer import FakeNsm, LabEnclave
from wgvsock.attestation.binding import encode_x25519_spki, wireguard_key_commitment
from wgvsock.attestation.policy import Expectations, PcrSet, Policy
from wgvsock.attestation.verifier import Verifier
from wgvsock.devices.nsm import NsmClient
from wgvsock.provisioning import AttestationNeeded
from wgvsock.testing.clock import EPOCH, ManualClock
from wgvsock.testing.provisioning import ProvisioningPair

MODULE_ID = "i-0123456789abcdef0-enc0123456789abcdef"
ENCLAVE_KEY = bytes(range(100, 132))


@pytest.fixture(scope="session")
def authority() -> LabAuthority:
    start = datetime.fromtimestamp(EPOCH // 10**9, UTC)
    return LabAuthority(lambda: start)


@pytest.fixture
def lab_enclave() -> LabEnclave:
    """Assign `faults` to make the security module misbehave."""
    return LabEnclave(module_id=MODULE_ID, faults=Faults())


@pytest.fixture
def make_pair(authority: LabAuthority, lab_enclave: LabEnclave) -> Callable[..., ProvisioningPair]:
    """Makes a `ProvisioningPair`. The arguments are those of `EnclaveProvisioning`."""

    def make(**enclave_options: Any) -> ProvisioningPair:
        clock = ManualClock()
        module = NsmClient(
            FakeNsm(authority, lab_enclave, clock=lambda: datetime.fromtimestamp(clock.wall_clock() / 1e9, UTC))
        )
        module.extend_pcr(16, wireguard_key_commitment(encode_x25519_spki(ENCLAVE_KEY)))
        module.lock_pcr(16)

        def attest(needed: AttestationNeeded) -> bytes:
            return module.attest(nonce=needed.nonce, user_data=needed.user_data, public_key=needed.public_key)

        policy = Policy(
            pcr_sets=(PcrSet(lab_enclave.measurements),),
            accepted_roots=(authority.root_fingerprint,),
        )
        return ProvisioningPair(
            verifier=Verifier(policy),
            attest=attest,
            expectations=Expectations(user_data=b"", enclave_id=MODULE_ID),
            wireguard_public_key=ENCLAVE_KEY,
            clock=clock,
            **enclave_options,
        )

    return make


@pytest.fixture
def pair(make_pair: Callable[..., ProvisioningPair]) -> ProvisioningPair:
    return make_pair()
