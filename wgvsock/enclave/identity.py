"""Who the enclave is: entropy from the Nitro Security Module, the WireGuard key, and a PCR that commits to it."""

from __future__ import annotations

import fcntl
import logging
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

from wgvsock.attestation.binding import encode_x25519_spki, extended_pcr, wireguard_key_commitment
from wgvsock.devices.nsm import NsmClient
from wgvsock.enclave.errors import KeyCommitmentError
from wgvsock.telemetry.logs import fields
from wgvsock.wireguard.primitives import generate_private_key, public_key

_ENTROPY_DEVICE: Final = Path("/dev/random")
_RNDADDENTROPY: Final = 0x40085203  # random(4); struct rand_pool_info {int entropy_count; int buf_size; buf}

_log = logging.getLogger(__name__)


def seed_kernel(nsm: NsmClient, device: Path = _ENTROPY_DEVICE) -> None:
    """Give the kernel's generator 256 bytes of the module's.

    An enclave boots without disk, keyboard or saved seed; AWS names the module as its source of entropy (NSM API,
    GetRandom). The application gains from it as well. Without the right to credit entropy the bytes are still mixed in.

    Raises:
        NsmError: The module gave none.
    """
    entropy = nsm.random()
    with device.open("r+b", buffering=0) as generator:
        try:
            fcntl.ioctl(generator, _RNDADDENTROPY, struct.pack("=ii", 8 * len(entropy), len(entropy)) + entropy)
        except OSError:
            generator.write(entropy)


def make_key(random: Callable[[int], bytes]) -> bytes:
    """A fresh WireGuard private key, 32 bytes: it never leaves this process and ends with it."""
    return generate_private_key(random)


def commit_to_key(nsm: NsmClient, private_key: bytes, index: int) -> None:
    """Extend a PCR with the key's commitment and lock it, so that no other key can be attested until the next boot.

    Raises:
        KeyCommitmentError: The PCR was extended or locked before: something else in this enclave uses it.
        NsmError: The module failed.
    """
    commitment = wireguard_key_commitment(encode_x25519_spki(public_key(private_key)))
    state = nsm.describe_pcr(index)
    if state.locked or any(state.value):
        raise KeyCommitmentError(
            f"cannot commit PCR{index} to the WireGuard key",
            why=f"it is {'locked' if state.locked else 'extended'} already: another agent ran in this enclave",
            fix='restart the enclave, or choose another "key_pcr" on both sides',
        )
    if nsm.extend_pcr(index, commitment) != extended_pcr(commitment):
        raise KeyCommitmentError(
            f"PCR{index} does not hold the commitment", why="its new value is another", fix="restart the enclave"
        )
    nsm.lock_pcr(index)
    _log.info("the WireGuard key is committed to", extra=fields(pcr=index))
