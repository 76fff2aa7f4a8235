"""An `AttestedEnclave` for tests of what follows attestation: a lab document through the real verifier.

There is no other way to get one, in tests as in production.
"""

from __future__ import annotations

from typing import Final

from lab.nsm.pki import LabAuthority
from lab.nsm.signer import FakeNsm, LabEnclave, utc_now
from wgvsock.attestation.binding import encode_x25519_spki, wireguard_key_commitment
from wgvsock.attestation.policy import WIREGUARD_KEY_PCR, Expectations, PcrSet, Policy
from wgvsock.attestation.verifier import AttestedEnclave, Verifier
from wgvsock.devices.nsm import NsmClient

_NONCE: Final = bytes(range(32))
_USER_DATA: Final = bytes(64)


def attested_enclave(wireguard_public_key: bytes, enclave: LabEnclave | None = None) -> AttestedEnclave:
    """Boot an enclave, commit it to the key, attest it and verify it.

    Args:
        wireguard_public_key: 32 bytes.
        enclave: The enclave, by default one with an invented identity and measurements.
    """
    enclave = enclave or LabEnclave()
    authority = LabAuthority(utc_now)
    spki = encode_x25519_spki(wireguard_public_key)
    module = NsmClient(FakeNsm(authority, enclave))
    module.extend_pcr(WIREGUARD_KEY_PCR, wireguard_key_commitment(spki))
    module.lock_pcr(WIREGUARD_KEY_PCR)
    document = module.attest(nonce=_NONCE, user_data=_USER_DATA, public_key=spki)
    policy = Policy(pcr_sets=(PcrSet(enclave.measurements),), accepted_roots=(authority.root_fingerprint,))
    expectations = Expectations(user_data=_USER_DATA, enclave_id=enclave.module_id)
    return Verifier(policy).verify_enclave(document, nonce=_NONCE, now=utc_now(), expectations=expectations)
