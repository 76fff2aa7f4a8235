"""An unwanted relay: a parent instance that provisions an enclave itself, bypassing the Relay."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from lab.ladder import Ladder
from wgvsock.addresses import PROVISIONING_PORT
from wgvsock.attestation.errors import NonceMismatchError
from wgvsock.attestation.policy import Expectations, PcrSet, Policy
from wgvsock.attestation.verifier import AttestedEnclave, Verifier
from wgvsock.provisioning import ProvisioningFailed, RelayProvisioning, TunnelConfig


def policy(lab: Ladder) -> Policy:
    """Accepts the enclave's image, and the laboratory's root."""
    pcrs = {number: bytes.fromhex(lab.backend.enclave_measurements[f"PCR{number}"]) for number in (0, 1, 2)}
    return Policy((PcrSet(pcrs),), (bytes.fromhex(lab.backend.root_sha256),))


def provision(
    lab: Ladder,
    sock: socket.socket,
    *,
    verifier: Verifier | None = None,
    random: Callable[[int], bytes] = os.urandom,
) -> ProvisioningFailed:
    """An exchange with the enclave at the other end of a stream, which fails."""
    topology = lab.topology
    stranger = RelayProvisioning(
        config=TunnelConfig(
            addresses=(ip_interface(f"{topology.enclave4}/24"),),
            gateways=(ip_address(topology.relay4),),
            mtu=1500,
            allowed_ips=(ip_network("0.0.0.0/0"),),
        ),
        relay_public_key=X25519PrivateKey.from_private_bytes(os.urandom(32)).public_key().public_bytes_raw(),
        verifier=verifier or Verifier(policy(lab)),
        expectations=Expectations(user_data=b""),
        epoch_ms=int(time.time() * 1000) + 60_000,
        random=random,
        utc_now=lambda: datetime.now(UTC),
        now=time.monotonic(),
        signing_seed=os.urandom(32),
    )
    while (event := stranger.next_event()) is None:
        sock.sendall(stranger.data_to_send())
        if data := sock.recv(65536):
            stranger.receive_data(data, time.monotonic())
        else:
            stranger.receive_eof()
    with contextlib.suppress(OSError):  # it may have gone
        sock.sendall(stranger.data_to_send())
    assert isinstance(event, ProvisioningFailed)
    return event


class _Thief(Verifier):
    """Keeps the document, and accepts no enclave."""

    document = b""

    def verify_enclave(self, document: bytes, **_: Any) -> AttestedEnclave:
        self.document = document
        raise NonceMismatchError("it is not for us")


def provisioning_document(lab: Ladder, nonce: bytes) -> bytes:
    """The document of the enclave's security module for an exchange with a foreign nonce."""
    thief, draws = _Thief(policy(lab)), [nonce]
    with lab.backend.dial_enclave(PROVISIONING_PORT) as sock:
        provision(lab, sock, verifier=thief, random=lambda size: draws.pop() if draws else os.urandom(size))
    return thief.document
