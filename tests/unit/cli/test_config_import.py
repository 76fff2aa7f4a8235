from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wgvsock import settings
from wgvsock.addresses import VMADDR_CID_ANY, Cid, Port, TcpAddress, VsockAddress
from wgvsock.cli import config_import
from wgvsock.cli.config_import import from_wg_quick
from wgvsock.enclave.config import EnclaveConfig
from wgvsock.errors import ConfigurationError
from wgvsock.relay.config import RelayConfig

PRIVATE = "mBkAt42h4/fPfZ3XnZTMVSQw8q7tTKz8Zj/sbAn9a1Y="
PUBLIC = "xMjphMUyLIGExyJluSslD9tjaIcF9QS6ADyI8DOTzyg="

HOST = f"""\
[Interface]   # the parent instance's end, as the paper has it
Address = 203.0.113.1/24, fd73::1/64
PrivateKey = {PRIVATE}
ListenPort = 8172
MTU = 8921
DNS = 10.100.0.10, svc.cluster.local
PostUp = iptables -t nat -A POSTROUTING -o eth0 -j MASQUERADE
SaveConfig = false

[Peer]
PublicKey = {PUBLIC}
PresharedKey = {PRIVATE}
AllowedIPs = 203.0.113.2/32
AllowedIPs = fd73::2/128
Endpoint = 0.0.0.6:51820
PersistentKeepalive = 20
"""

ENCLAVE = f"""\
[interface]
address = 203.0.113.2/24
privatekey = {PRIVATE}
listenport = 51820

[peer]
publickey = {PUBLIC}
allowedips = 0.0.0.0/0
endpoint = host(2):8172
"""


def relay(text: str) -> RelayConfig:
    return settings.parse(RelayConfig, from_wg_quick(text, role="relay", interface="wg0"))


def enclave(text: str) -> EnclaveConfig:
    return settings.parse(EnclaveConfig, from_wg_quick(text, role="enclave", interface="wg0"))


def test_the_host_s_file_becomes_a_relay() -> None:
    config = relay(HOST)
    assert config.enclave.address == VsockAddress(Cid(6), Port(51820))
    assert [str(address) for address in config.enclave.addresses] == ["203.0.113.2/24", "fd73::2/64"]
    assert [str(address) for address in config.interface.addresses] == ["203.0.113.1/24", "fd73::1/64"]
    assert (config.interface.name, config.interface.mtu, config.interface.persistent_keepalive) == ("wg0", 8921, 20)
    assert [str(server) for server in config.dns.servers or ()] == ["10.100.0.10"]
    assert config.dns.search == ("svc.cluster.local",)
    assert config.attestation is not None
    assert config.attestation.has_placeholder


def test_the_enclave_s_file_becomes_an_enclave() -> None:
    config = enclave(ENCLAVE)
    assert config.listen == VsockAddress(VMADDR_CID_ANY, Port(51820))
    assert (config.interface, config.parent_cid) == ("wg0", 2)


def test_what_is_not_taken_over_is_said_and_no_key_is_shown() -> None:
    text = from_wg_quick(HOST, role="relay", interface="wg0")
    assert PRIVATE not in text
    assert PUBLIC not in text
    notes = [line.split(":")[0].removeprefix("#   ") for line in text.splitlines() if line.startswith("#   ")]
    assert notes == ["PrivateKey", "PostUp", "PublicKey", "PresharedKey"]


def test_a_file_without_anything_to_say_has_no_notes() -> None:
    text = "[Interface]\nAddress = 10.0.0.1/24\n[Peer]\nAllowedIPs = 10.0.0.2\nEndpoint = 16:9\n"
    draft = from_wg_quick(text, role="relay", interface="wg0")
    assert "Not translated" not in draft
    config = settings.parse(RelayConfig, draft)
    assert config.interface.persistent_keepalive == 0
    assert (config.interface.mtu, config.dns.servers) == (None, None)


def test_defaults_of_an_enclave() -> None:
    config = enclave("[Interface]\n[Peer]\n")
    assert config == EnclaveConfig()


@pytest.mark.parametrize(
    ("endpoint", "address"),
    [
        ("16:51820", VsockAddress(Cid(16), Port(51820))),
        ("vm(16):51820", VsockAddress(Cid(16), Port(51820))),
        ("0.0.1.0:51820", VsockAddress(Cid(256), Port(51820))),
        ("192.0.2.1:51820", TcpAddress("192.0.2.1", Port(51820))),
        ("[2001:db8::1]:51820", TcpAddress("2001:db8::1", Port(51820))),
    ],
)
def test_endpoints(endpoint: str, address: object) -> None:
    assert relay(HOST.replace("0.0.0.6:51820", endpoint)).enclave.address == address


def test_a_tcp_parent_is_no_cid() -> None:
    config = enclave(ENCLAVE.replace("host(2):8172", "192.0.2.1:8172"))
    assert config.parent_cid == EnclaveConfig().parent_cid


def test_off_is_zero() -> None:
    assert relay(HOST.replace("Keepalive = 20", "Keepalive = off")).interface.persistent_keepalive == 0


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("[Peer]", "[Per]", "line 10"),
        ("[Peer]", "Peer", "line 10"),
        ("Address =", "Addres =", "line 2"),
        ("Endpoint = 0.0.0.6:51820", "", "its peer has no Endpoint"),
        ("0.0.0.6:51820", "example.com:51820", "example.com"),
        ("203.0.113.2/32", "0.0.0.0/0", None),
        ("203.0.113.1/24", "here/24", "cannot use Address"),
        ("203.0.113.2/32", "there", "cannot use AllowedIPs"),
        ("MTU = 8921", "MTU = big", "cannot use MTU"),
        ("MTU = 8921", "MTU = 99999", "cannot use MTU"),
    ],
)
def test_errors_say_where(old: str, new: str, what: str | None) -> None:
    text = HOST.replace(old, new)
    if what is None:
        assert len(relay(text).enclave.addresses) == 1  # the IPv6 address is still told
        return
    with pytest.raises(ConfigurationError, match=what):
        relay(text)


def test_the_enclave_s_address_has_to_be_told() -> None:
    text = HOST.replace("AllowedIPs = 203.0.113.2/32\n", "").replace("fd73::2/128", "fd99::2/128")
    with pytest.raises(ConfigurationError, match="it lacks the enclave's address"):
        relay(text)


@pytest.mark.parametrize("text", ["", "[Interface]\n", HOST + "[Peer]\n", "Address = 10.0.0.1/24\n"])
def test_anything_but_one_tunnel_is_an_error(text: str) -> None:
    with pytest.raises(ConfigurationError):
        relay(text)


def test_an_interface_name_that_cannot_be() -> None:
    with pytest.raises(ConfigurationError):
        from_wg_quick(HOST, role="relay", interface="no/such")


@given(st.text(max_size=200))
def test_any_text_is_a_configuration_or_an_error(text: str) -> None:
    for role in config_import.ROLES:
        try:
            from_wg_quick(HOST + text, role=role, interface="wg0")
        except ConfigurationError:
            continue


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    config_import.add_parser(parser.add_subparsers())
    parsed = parser.parse_args(["from-wg-quick", *arguments])
    status: int = parsed.run(parsed)
    return status


def test_the_command_prints_the_draft(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "wg7.conf"
    file.write_text(HOST)
    assert run("relay", str(file)) == 0
    assert settings.parse(RelayConfig, capsys.readouterr().out).interface.name == "wg7"


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        run("relay", str(tmp_path / "absent.conf"))
    monkeypatch.setattr(config_import, "MAX_FILE", 10)
    file = tmp_path / "wg0.conf"
    file.write_text(HOST)
    with pytest.raises(ConfigurationError, match="larger than 1 MiB"):
        run("relay", str(file))
