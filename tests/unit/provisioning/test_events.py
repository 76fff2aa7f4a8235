from __future__ import annotations

from dataclasses import replace

from wgvsock.provisioning.events import AttestationNeeded, EnclaveProvisioned
from wgvsock.testing.provisioning import ProvisioningPair

SECRET = bytes.fromhex("5ec1e7" * 10 + "5ec1")


def test_no_secret_and_no_nonce_is_in_a_text(pair: ProvisioningPair) -> None:
    # What a log shows of an event is its repr.
    outcome = pair.provision()
    assert isinstance(outcome, EnclaveProvisioned)
    [needed] = [event for event in pair.events if isinstance(event, AttestationNeeded)]
    assert pair.in_force is not None
    for secret in (outcome.preshared_key, needed.nonce):
        assert len(secret) == 32
        for event in (*pair.events, outcome, pair.in_force):
            assert repr(secret)[2:-1] not in repr(event)
            assert secret.hex() not in repr(event)


def test_whose_assignment_it_is(pair: ProvisioningPair) -> None:
    pair.provision(incarnation=1000)
    held = pair.in_force
    assert held is not None
    assert held.is_of(replace(held, relay_public_key=bytes(32)))  # that key is new in every exchange
    assert not held.is_of(replace(held, incarnation=1001))
    assert not held.is_of(replace(held, signer=bytes(32)))


def test_assignments_compare_by_value(pair: ProvisioningPair) -> None:
    outcome = pair.provision()
    assert isinstance(outcome, EnclaveProvisioned)
    held = pair.in_force
    assert held is not None
    assert held == replace(held, preshared_key=bytes(outcome.preshared_key))
    assert held != replace(held, preshared_key=SECRET)
