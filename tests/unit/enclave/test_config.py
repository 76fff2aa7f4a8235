"""enclave.toml: what it means, and what it refuses."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from wgvsock import settings
from wgvsock.addresses import NITRO_PARENT_CID, VMADDR_CID_ANY, Port, UnixAddress, VsockAddress
from wgvsock.enclave import config as enclave
from wgvsock.enclave.config import EnclaveConfig
from wgvsock.errors import ConfigurationError
from wgvsock.provisioning import public_key_of

PIN = base64.b64encode(public_key_of(b"s" * 32)).decode()


def parse(text: str) -> EnclaveConfig:
    return settings.parse(EnclaveConfig, text, "enclave.toml")


def test_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "enclave.toml"
    path.write_text("")
    config = enclave.load(str(path))
    assert config == EnclaveConfig()
    assert config.listen == VsockAddress(VMADDR_CID_ANY, Port(51820))
    assert config.provisioning() == VsockAddress(VMADDR_CID_ANY, Port(51821))
    assert config.allowed_cids() == {NITRO_PARENT_CID}
    assert config.capabilities() == ("framing/native", "profile/gso", "profile/plain")
    assert config.pin() is None


def test_other_values() -> None:
    config = parse(
        f'listen = "unix:/a"\nprovisioning_listen = "unix:/b"\nparent_cid = 2\nprofiles = ["plain"]\n'
        f'pin_public_key = "{PIN}"\nkey_pcr = -1\n'
    )
    assert config.provisioning() == UnixAddress("/b")
    assert config.allowed_cids() == {2}
    assert config.capabilities() == ("framing/native", "profile/plain")
    assert config.pin() == public_key_of(b"s" * 32)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('listen = "unix:/a"', "a unix: address has no port"),
        ('interface = "a b"', "a name has 1 to 15"),
        ('name = ".."', "it becomes a part of file names"),
        ("profiles = []", "it is empty"),
        ("key_pcr = 15", "PCR0 to PCR15 are locked at boot"),
        ("parent_cid = 4294967295", "it lies outside"),
        ('pin_public_key = "!"', "it is no Ed25519 public key"),
        (f'pin_public_key = "{base64.b64encode(bytes(32)).decode()}"', "it is no Ed25519 public key"),
        ("stop_timeout = -1", "it lies outside"),
    ],
)
def test_what_is_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(text)
    assert why in caught.value.why
