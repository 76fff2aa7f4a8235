"""relay.toml: what it means, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from wgvsock import settings
from wgvsock.addresses import Cid, Port, UnixAddress, VsockAddress
from wgvsock.attestation.policy import AWS_NITRO_ROOT_G1
from wgvsock.errors import ConfigurationError
from wgvsock.relay import config as relay
from wgvsock.relay.config import NatSettings, PublishSettings, RelayConfig
from wgvsock.relay.template import TEMPLATE
from wgvsock.system.nitro_cli import EnclaveInfo

PCRS = "\n".join(f'pcr{index} = "{str(index + 1) * 96}"' for index in (0, 1, 2))
MINIMAL = f'[enclave]\naddress = "vsock:16:51820"\n[[attestation.pcr_sets]]\n{PCRS}\n'


def parse(text: str) -> RelayConfig:
    return settings.parse(RelayConfig, text, "relay.toml")


def test_the_smallest_configuration(tmp_path: Path) -> None:
    path = tmp_path / "relay.toml"
    path.write_text(MINIMAL)
    config = relay.load(str(path))
    assert config.enclave.provisioning() == VsockAddress(Cid(16), Port(51821))
    assert config.interface.capabilities() == ("framing/native", "profile/gso", "profile/plain")
    policy = config.attestation.policy()
    assert policy.accepted_roots == (AWS_NITRO_ROOT_G1,)
    assert policy.max_age == timedelta(seconds=120)
    assert policy.pcr_sets[0].values == {0: b"\x11" * 48, 1: b"\x22" * 48, 2: b"\x33" * 48}
    assert not policy.allow_debug
    assert not config.attestation.has_foreign_root
    assert not config.attestation.has_placeholder
    assert config.attestation.expectations().wireguard_key_pcr == 16


def test_what_is_written_reads_back_the_same() -> None:
    config = parse(MINIMAL)
    assert parse(settings.format_toml(config)) == config


def test_the_template_holds_the_defaults() -> None:
    config = parse(TEMPLATE)
    assert config.attestation.has_placeholder
    assert replace(config, attestation=parse(MINIMAL).attestation) == parse(MINIMAL)


def test_every_key_of_the_template_is_one() -> None:
    lines = [line.removeprefix("#") for line in TEMPLATE.splitlines() if not line.startswith("# ")]
    assert parse("\n".join(lines)).nat.publish == (PublishSettings("tcp", 443, 8443),)


def test_another_root_and_no_commitment() -> None:
    config = parse(
        MINIMAL
        + f'[attestation]\nroot_sha256 = ["{"ab" * 32}"]\nkey_pcr = -1\nmodule_id = "i-0123456789abcdef0-enc12"\n'
    )
    assert config.attestation.has_foreign_root
    assert config.attestation.expectations().wireguard_key_pcr is None
    assert config.attestation.expectations().enclave_id == "i-0123456789abcdef0-enc12"


def test_an_address_without_port_needs_both() -> None:
    text = MINIMAL.replace('"vsock:16:51820"', '"unix:/a"')
    with pytest.raises(ConfigurationError, match='"provisioning_address" is missing'):
        parse(text)
    config = parse(text.replace('"unix:/a"', '"unix:/a"\nprovisioning_address = "unix:/b"'))
    assert config.enclave.provisioning() == UnixAddress("/b")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (MINIMAL.replace("1" * 96, "1" * 95), "it is not 96 hexadecimal digits"),
        (MINIMAL.replace("1" * 96, "g" * 96), "it is not 96 hexadecimal digits"),
        (MINIMAL + '[attestation]\nroot_sha256 = ["ab"]', "it is not 64 hexadecimal digits"),
        (MINIMAL + "[attestation]\nroot_sha256 = []", "there is none, or one is not"),
        (MINIMAL + '[attestation]\nmodule_id = "x"', ""),
        ('[enclave]\naddress = "vsock:1:2"\n[attestation]\npcr_sets = []', "it names no set of PCRs"),
        (MINIMAL + '[interface]\nname = "a b"', "a name has 1 to 15"),
        (MINIMAL + "[interface]\nprofiles = []", "it is empty"),
        (MINIMAL + '[nat]\nuplink = "eth 0"', "a name has 1 to 15"),
        (MINIMAL + '[nat]\nuplink = "wg0"', "both are wg0"),
        (MINIMAL + '[[nat.publish]]\nprotocol = "tcp"\nport = 1\n' * 2, "it occurs twice"),
        (MINIMAL + '[health]\nlisten = "vsock:1:2"', "it is neither tcp: nor unix:"),
        (MINIMAL.replace("[enclave]", "[enclave]\naddresses = []"), "an enclave has one to four"),
        ('name = "a/b"\n' + MINIMAL, "it becomes a part of file names"),
        (MINIMAL + "[provisioning]\nreattest_every = 1", "it lies outside 10 to 604800"),
    ],
)
def test_what_is_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(text)
    assert why in caught.value.why
    assert caught.value.exit_code == 2


def test_what_needs_a_restart() -> None:
    config = parse(MINIMAL)
    assert config.restart_needed_for(config) is None
    changed = replace(config, nat=NatSettings(publish=(PublishSettings("udp", 5),)))
    assert config.restart_needed_for(changed) is None
    assert config.restart_needed_for(replace(config, name="other")) == "name"
    assert config.restart_needed_for(replace(config, nat=NatSettings(uplink="eth1"))) == "nat.uplink"
    assert config.restart_needed_for(replace(config, log_level="debug")) == "log_level"
    signed = replace(config, provisioning=replace(config.provisioning, signing_key_file="/etc/key"))
    assert config.restart_needed_for(signed) == "provisioning.signing_key_file"  # read once, at the start


def test_without_an_address_the_launched_enclave_says_where_it_is() -> None:
    text = MINIMAL.replace('[enclave]\naddress = "vsock:16:51820"\n', '[launch]\nimage = "/images/app.eif"\n')
    config = parse(text)
    assert config.enclave.waits_for_cid
    assert config.enclave.cid is None
    enclave = EnclaveInfo("wgvsock", "i-05f6ed443a0bcdef0-enc1", 1, Cid(21), "RUNNING", False, 2, 512)
    launched = config.launched(enclave)
    assert launched.enclave.address == VsockAddress(Cid(21), Port(51820))
    assert launched.enclave.provisioning() == VsockAddress(Cid(21), Port(51821))
    assert launched.attestation.module_id == "i-05f6ed443a0bcdef0-enc1"
    assert config.restart_needed_for(parse(text.replace("app.eif", "other.eif"))) == "launch"


def test_a_cid_that_is_written_down_is_asked_for_and_kept() -> None:
    config = parse(MINIMAL + '[launch]\nimage = "/images/app.eif"\n')
    assert config.enclave.cid == 16
    enclave = EnclaveInfo("wgvsock", "i-05f6ed443a0bcdef0-enc1", 1, Cid(16), "RUNNING", False, 2, 512)
    assert config.launched(enclave).enclave.address == VsockAddress(Cid(16), Port(51820))


def test_an_address_of_another_kind_is_kept() -> None:
    text = MINIMAL.replace("vsock:16:51820", "hybrid:/run/v:51820") + '[launch]\nimage = "/images/app.eif"\n'
    enclave = EnclaveInfo("wgvsock", "i-05f6ed443a0bcdef0-enc1", 1, Cid(16), "RUNNING", False, 2, 512)
    assert str(parse(text).launched(enclave).enclave.provisioning()) == "hybrid:/run/v:51821"
    assert parse(text).enclave.cid is None


def test_no_enclave_at_all_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="no enclave is named"):
        parse(MINIMAL.replace('[enclave]\naddress = "vsock:16:51820"\n', ""))
