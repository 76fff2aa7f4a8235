"""relay.toml: its meaning, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from wgvsock import settings
from wgvsock.addresses import Cid, Port, UnixAddress, VsockAddress
from wgvsock.attestation.policy import AWS_NITRO_ROOT_G1
from wgvsock.egress.settings import EgressSettings
from wgvsock.errors import ConfigurationError
from wgvsock.relay import config as relay
from wgvsock.relay.config import RelayConfig
from wgvsock.relay.sections import AttestationSettings, NatSettings, PublishSettings
from wgvsock.relay.spec import EnclaveSpec
from wgvsock.relay.template import TEMPLATE
from wgvsock.settings import InvalidSettingError, UnknownKeyError
from wgvsock.system.nitro_cli import EnclaveInfo

PCRS = "\n".join(f'pcr{index} = "{str(index + 1) * 96}"' for index in (0, 1, 2))
MINIMAL = f'[enclave]\naddress = "vsock:16:51820"\n[[attestation.pcr_sets]]\n{PCRS}\n'


def policy_of(config: RelayConfig) -> AttestationSettings:
    assert config.attestation is not None
    return config.attestation


def only(config: RelayConfig) -> EnclaveSpec:
    (spec,) = config.specs()
    return spec


def parse(text: str) -> RelayConfig:
    return settings.parse(RelayConfig, text, "relay.toml")


def test_the_smallest_configuration(tmp_path: Path) -> None:
    path = tmp_path / "relay.toml"
    path.write_text(MINIMAL)
    config = relay.load(str(path))
    assert config.enclave.provisioning() == VsockAddress(Cid(16), Port(51821))
    assert config.interface.capabilities() == ("framing/native", "profile/gso", "profile/plain")
    policy = policy_of(config).policy()
    assert policy.accepted_roots == (AWS_NITRO_ROOT_G1,)
    assert policy.max_age == timedelta(seconds=120)
    assert policy.pcr_sets[0].values == {0: b"\x11" * 48, 1: b"\x22" * 48, 2: b"\x33" * 48}
    assert not policy.allow_debug
    assert not policy_of(config).has_foreign_root
    assert not policy_of(config).has_placeholder
    assert policy_of(config).expectations().wireguard_key_pcr == 16


def test_what_is_written_reads_back_the_same() -> None:
    config = parse(MINIMAL)
    assert parse(settings.format_toml(config)) == config


def test_the_template_holds_the_defaults() -> None:
    config = parse(TEMPLATE)
    assert policy_of(config).has_placeholder
    assert replace(config, attestation=parse(MINIMAL).attestation) == parse(MINIMAL)


def test_every_key_of_the_template_is_one() -> None:
    lines = [line.removeprefix("#") for line in TEMPLATE.splitlines() if not line.startswith(("# ", "#:"))]
    assert parse("\n".join(lines)).nat.publish == (PublishSettings("tcp", 443, 8443),)


def test_another_root_and_no_commitment() -> None:
    config = parse(
        MINIMAL
        + f'[attestation]\nroot_sha256 = ["{"ab" * 32}"]\nkey_pcr = -1\nmodule_id = "i-0123456789abcdef0-enc12"\n'
    )
    assert policy_of(config).has_foreign_root
    assert policy_of(config).expectations().wireguard_key_pcr is None
    assert policy_of(config).expectations().enclave_id == "i-0123456789abcdef0-enc12"


def test_digests_as_tools_print_them() -> None:
    g1 = ":".join(f"{byte:02X}" for byte in AWS_NITRO_ROOT_G1)
    config = parse(MINIMAL.replace("1" * 96, "0x" + "AB" * 48) + f'[attestation]\nroot_sha256 = ["{g1}"]\n')
    assert policy_of(config).policy().pcr_sets[0].values[0] == b"\xab" * 48
    assert policy_of(config).policy().accepted_roots == (AWS_NITRO_ROOT_G1,)
    assert not policy_of(config).has_foreign_root


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
        (MINIMAL + '[attestation]\ninstance_id = "x"', "the form i-"),
        (MINIMAL + '[attestation]\nrole_arn = "x"', "the form arn:aws:iam::"),
        ('[enclave]\naddress = "vsock:1:2"\n[attestation]\npcr_sets = []', "it names no PCR set"),
        (MINIMAL + '[interface]\nname = "a b"', "a name has 1 to 15"),
        (MINIMAL + "[interface]\nprofiles = []", "the list is empty"),
        (MINIMAL + '[nat]\nuplink = "eth 0"', "a name has 1 to 15"),
        (MINIMAL + '[nat]\nuplink = "wg0"', "both interfaces are wg0"),
        (MINIMAL + '[[nat.publish]]\nprotocol = "tcp"\nport = 1\n' * 2, "it is listed twice"),
        (MINIMAL + '[health]\nlisten = "vsock:1:2"', "it is neither tcp: nor unix:"),
        (MINIMAL + '[health]\nlisten = "tcp:0.0.0.0:0"', "port 0 is not valid"),
        (MINIMAL.replace("[enclave]", f"[enclave]\naddresses = {['10.0.0.1/8'] * 5}"), "an enclave has at most 4"),
        (MINIMAL.replace("[enclave]", '[enclave]\naddresses = ["10.0.0.1/8"]'), "only one end of the tunnel"),
        (MINIMAL.replace("vsock:16:51820", "vsock:0:51820"), "CID 0 is the hypervisor"),
        (MINIMAL.replace("vsock:16:51820", "vsock:16:4294967295"), "a port is a number from 0 to 4294967295"),
        (MINIMAL.replace("vsock:16:51820", "tcp:127.0.0.1:65535"), "a port is a number from 0 to 65535"),
        ('name = "a/b"\n' + MINIMAL, "it becomes part of file names"),
        (MINIMAL + "[provisioning]\nreattest_every = 1", "it is outside 10 to 604800"),
    ],
)
def test_what_is_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(text)
    assert why in caught.value.why
    assert caught.value.exit_code == 2


PUBLISHED = '[[nat.publish]]\nprotocol = "tcp"\nport = 80\n[[nat.publish]]\nprotocol = "{}"\nport = {}\n'


@pytest.mark.parametrize(
    ("protocol", "port", "listen", "is_refused"),
    [
        ("tcp", 9808, "tcp:0.0.0.0:9808", True),
        ("tcp", 9808, "tcp:[::]:9808", True),
        ("tcp", 9808, "tcp:10.0.0.1:9808", True),  # DNAT takes every local address of the uplink
        ("tcp", 9808, "tcp:127.0.0.1:9808", False),  # never arrives on the uplink
        ("tcp", 9808, "tcp:[::1]:9808", False),
        ("udp", 9808, "tcp:0.0.0.0:9808", False),
        ("tcp", 9809, "tcp:0.0.0.0:9808", False),
        ("tcp", 9808, "unix:/run/9808", False),
    ],
)
def test_a_published_port_does_not_swallow_the_probes(protocol: str, port: int, listen: str, is_refused: bool) -> None:
    text = MINIMAL + PUBLISHED.format(protocol, port) + f'[health]\nlisten = "{listen}"\n'
    if not is_refused:
        parse(text)
        return
    line = text.split("\n").index(f"port = {port}") + 1
    with pytest.raises(InvalidSettingError, match=f"line {line}: cannot publish tcp port 9808: probes and metrics"):
        parse(text)


def test_a_family_that_is_not_published_leaves_the_probes_alone() -> None:
    text = MINIMAL.replace("[enclave]", '[enclave]\naddresses = ["10.73.0.2/24"]')
    text += '[interface]\naddresses = ["10.73.0.1/24"]\n'
    text += PUBLISHED.format("tcp", 9808)
    parse(text + '[health]\nlisten = "tcp:[2001:db8::5]:9808"\n')
    with pytest.raises(InvalidSettingError, match="probes and metrics"):
        parse(text + '[health]\nlisten = "tcp:[::]:9808"\n')  # which answers IPv4 too


@pytest.mark.parametrize(
    ("publish", "is_refused"),
    [("port = 51821", True), ("port = 80\nenclave_port = 51820", True), ("port = 51820\nenclave_port = 80", False)],
)
def test_the_agent_s_own_port_is_not_published(publish: str, is_refused: bool) -> None:
    text = MINIMAL.replace("vsock:16:51820", "tcp:10.0.0.5:51820") + f'[[nat.publish]]\nprotocol = "tcp"\n{publish}\n'
    if is_refused:
        with pytest.raises(InvalidSettingError, match=r"line \d+: .*the agent itself listens"):
            parse(text)
    else:
        parse(text)
    parse(text.replace("tcp:10.0.0.5", "vsock:16"))  # vsock has separate ports


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ('name = "x"\nruntime_directory = "/r"\n[health]\nlisten = "unix:/r/x.sock"\n', "health.listen"),
        ('[health]\nlisten = "tcp:0.0.0.0:51820"\n[enclave]\naddress = "tcp:127.0.0.1:51820"', "health.listen"),
        ('[health]\nlisten = "tcp:10.0.0.5:51821"\n[enclave]\naddress = "tcp:10.0.0.5:51820"', "health.listen"),
        ('[enclave]\naddress = "vsock:3:1"\nprovisioning_address = "vsock:3:1"', "provisioning_address"),
    ],
)
def test_addresses_that_are_in_each_other_s_way(change: str, key: str) -> None:
    text = change + "\n" + (MINIMAL if "[enclave]" not in change else MINIMAL[MINIMAL.index("[[att") :])
    with pytest.raises(InvalidSettingError, match=rf'line \d+: cannot use "{key}"'):
        parse(text)


def test_a_remote_enclave_may_have_the_health_port_s_number() -> None:
    parse(MINIMAL.replace("vsock:16:51820", "tcp:10.0.0.5:51820") + '[health]\nlisten = "tcp:0.0.0.0:51820"\n')


def test_what_is_exposed_is_chosen_from_two() -> None:
    assert parse(MINIMAL).health.expose == ()
    assert parse(MINIMAL + '[health]\nexpose = ["status", "control"]').health.expose == ("status", "control")
    with pytest.raises(InvalidSettingError):
        parse(MINIMAL + '[health]\nexpose = ["all"]')


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
    launched = only(config).launched(enclave)
    assert launched.enclave.address == VsockAddress(Cid(21), Port(51820))
    assert launched.enclave.provisioning() == VsockAddress(Cid(21), Port(51821))
    assert launched.attestation.module_id == "i-05f6ed443a0bcdef0-enc1"
    other = only(parse(text.replace("app.eif", "other.eif")))
    assert only(config).restart_needed_for(other) == "launch"
    assert only(config).differs_in_image(other)
    assert not only(config).differs_in_image(only(parse(text.replace("app.eif", 'other.eif"\nname = "x'))))


def test_a_cid_that_is_written_down_is_asked_for_and_kept() -> None:
    config = parse(MINIMAL + '[launch]\nimage = "/images/app.eif"\n')
    assert config.enclave.cid == 16
    enclave = EnclaveInfo("wgvsock", "i-05f6ed443a0bcdef0-enc1", 1, Cid(16), "RUNNING", False, 2, 512)
    assert only(config).launched(enclave).enclave.address == VsockAddress(Cid(16), Port(51820))


def test_an_address_of_another_kind_is_kept() -> None:
    text = MINIMAL.replace("vsock:16:51820", "hybrid:/run/v:51820") + '[launch]\nimage = "/images/app.eif"\n'
    enclave = EnclaveInfo("wgvsock", "i-05f6ed443a0bcdef0-enc1", 1, Cid(16), "RUNNING", False, 2, 512)
    assert str(only(parse(text)).launched(enclave).enclave.provisioning()) == "hybrid:/run/v:51821"
    assert parse(text).enclave.cid is None


def test_no_enclave_at_all_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="no enclave is configured"):
        parse(MINIMAL.replace('[enclave]\naddress = "vsock:16:51820"\n', ""))


def test_egress_is_the_relay_s_or_the_enclave_s_own() -> None:
    config = settings.parse(
        RelayConfig,
        f"""
        [[attestation.pcr_sets]]
        {PCRS}
        [egress]
        default = "deny"
        max_flows = 5
        [[enclaves]]
        name = "wallet"
        address = "vsock:16:51820"
        [[enclaves]]
        name = "vault"
        address = "vsock:17:51820"
        [enclaves.egress]
        allow = [{{relay = true, ports = [8080]}}]
        """,
    )
    wallet, vault = config.specs()
    assert (wallet.egress.default, wallet.egress.max_flows) == ("deny", 5)
    assert (vault.egress.default, vault.egress.max_flows) == ("allow", EgressSettings().max_flows)
    assert vault.egress.policy().allow[0].relay


@pytest.mark.parametrize("key", ["allow_link_local", "allow_relay"])
def test_what_egress_took_over_is_named(key: str) -> None:
    with pytest.raises(UnknownKeyError, match=f'line 2: the key "{key}" in \\[nat\\] no longer exists') as caught:
        settings.parse(RelayConfig, f"[nat]\n{key} = 1\n")
    assert "[[egress.allow]]" in caught.value.fix
