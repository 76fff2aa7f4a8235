"""The key, the commitment to it, and entropy for the kernel."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from lab.nsm.pki import LabAuthority
from lab.nsm.signer import FakeNsm, LabEnclave, utc_now
from wgvsock.attestation.binding import encode_x25519_spki, extended_pcr, wireguard_key_commitment
from wgvsock.devices.nsm import NsmClient
from wgvsock.enclave.errors import KeyCommitmentError
from wgvsock.enclave.identity import commit_to_key, make_key, seed_kernel
from wgvsock.wireguard.primitives import public_key


@pytest.fixture
def nsm() -> NsmClient:
    return NsmClient(FakeNsm(LabAuthority(utc_now), LabEnclave()))


def test_a_key_is_made_of_the_given_entropy() -> None:
    assert make_key(lambda size: b"\xff" * size) == make_key(lambda size: b"\xff" * size)
    assert make_key(lambda size: b"\xff" * size) != make_key(lambda size: b"\xfe" * size)


def test_the_pcr_holds_the_commitment_and_is_locked(nsm: NsmClient) -> None:
    key = make_key(lambda size: b"k" * size)
    commit_to_key(nsm, key, 16)
    state = nsm.describe_pcr(16)
    assert state.locked
    assert state.value == extended_pcr(wireguard_key_commitment(encode_x25519_spki(public_key(key))))


def test_a_second_agent_in_the_same_boot_is_refused(nsm: NsmClient) -> None:
    commit_to_key(nsm, b"a" * 32, 16)
    with pytest.raises(KeyCommitmentError, match="it is already locked"):
        commit_to_key(nsm, b"b" * 32, 16)


def test_a_pcr_that_somebody_extended_is_refused(nsm: NsmClient) -> None:
    nsm.extend_pcr(17, b"something else")
    with pytest.raises(KeyCommitmentError, match="it is already extended"):
        commit_to_key(nsm, b"a" * 32, 17)


def test_a_module_that_extends_to_another_value_is_not_believed(
    nsm: NsmClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nsm, "extend_pcr", lambda index, data: bytes(48))
    with pytest.raises(KeyCommitmentError, match="its new value is not the expected one"):
        commit_to_key(nsm, b"a" * 32, 16)
    assert not nsm.describe_pcr(16).locked


def test_entropy_is_credited(nsm: NsmClient, tmp_path: Path) -> None:
    device = tmp_path / "random"
    device.write_bytes(b"")
    given: list[tuple[int, bytes]] = []

    def ioctl(file: object, request: int, argument: bytes) -> int:
        given.append((request, argument))
        return 0

    seed_kernel(nsm, device, ioctl=ioctl)
    ((request, argument),) = given
    assert request == 0x40085203
    assert struct.unpack_from("=ii", argument) == (2048, 256)
    assert len(argument) == 8 + 256
    assert device.read_bytes() == b""


def test_without_the_right_to_credit_it_is_mixed_in(nsm: NsmClient, tmp_path: Path) -> None:
    device = tmp_path / "random"
    device.write_bytes(b"")  # a plain file refuses the ioctl, as the kernel does without CAP_SYS_ADMIN
    seed_kernel(nsm, device)
    assert len(device.read_bytes()) == 256
