"""enclave.toml: its meaning, and what it refuses."""

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


def test_a_policy_of_its_own() -> None:
    assert EnclaveConfig().egress_policy() is None
    policy = parse('[egress]\ndefault = "deny"\n[[egress.allow]]\nnetwork = "10.20.0.0/16"\n').egress_policy()
    assert policy is not None
    assert (policy.allows_by_default, len(policy.allow)) == (False, 1)
    empty = parse("[egress]\n").egress_policy()
    assert empty is not None  # what is closed is closed
    assert empty.allows_by_default


def test_a_name_in_it_is_refused_by_its_line() -> None:
    text = '[egress]\ndefault = "deny"\n[[egress.allow]]\nnetwork = "10.0.0.0/8"\n[[egress.allow]]\nname = "a.test"\n'
    with pytest.raises(ConfigurationError) as caught:
        parse(text)
    assert caught.value.what == 'enclave.toml, line 6: cannot use the name "a.test" in a measured policy'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('listen = "unix:/a"', "a unix: address has no port"),
        ('listen = "vsock:3:1"\nprovisioning_listen = "vsock:4294967295:1"', 'taken: "listen" is'),
        ('listen = "unix:/a"\nprovisioning_listen = "unix:/a"', 'taken: "listen" is'),
        ('interface = "a b"', "a name has 1 to 15"),
        ('name = ".."', "it becomes part of file names"),
        ("profiles = []", "the list is empty"),
        ("key_pcr = 15", "PCR0 to PCR15 are locked at boot"),
        ("parent_cid = 4294967295", "it is outside"),
        ('pin_public_key = "!"', "it is not an Ed25519 public key"),
        (f'pin_public_key = "{base64.b64encode(bytes(32)).decode()}"', "it is not an Ed25519 public key"),
        ("stop_timeout = -1", "it is outside"),
    ],
)
def test_what_is_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(text)
    assert why in caught.value.why
