"""Stock ``wg`` has the same results on a `wgvsock device` as on wireguard-go, for every carrier."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.wg.keys import identity, preshared_key
from tests.e2e.wg.machines import WIREGUARD_GO, Machine, machines, require, wgvsock

INTERFACE = "wg0"
OURS = identity("ours")
PEERS = [identity(f"peer {number}") for number in range(4)]
CARRIERS = ["vsock", "unix", "tcp", "udp"]
ENDPOINTS = {  # as given to wg, and as it shows them
    "vsock": [("0.0.0.6:51820", "0.0.0.6:51820"), ("16:51820", "0.0.0.16:51820")],
    "unix": [("127.0.0.1:51820", "127.0.0.1:51820"), ("127.1:9", "127.0.0.1:9")],
    "tcp": [("192.0.2.200:51820", "192.0.2.200:51820"), ("[2001:db8::200]:51820", "[2001:db8::200]:51820")],
    "udp": [("192.0.2.200:51820", "192.0.2.200:51820"), ("[2001:db8::200]:51820", "[2001:db8::200]:51820")],
}

CONFIGURATION = f"""\
[Interface]
PrivateKey = {OURS.private}
ListenPort = 51896
FwMark = 0x2a

[Peer]
PublicKey = {PEERS[0].public}
PresharedKey = {preshared_key("0")}
AllowedIPs = 10.1.0.0/16, fd01::/64
PersistentKeepalive = 25

[Peer]
PublicKey = {PEERS[1].public}
AllowedIPs = 10.2.0.7/32
"""

ADDED = f"""\
[Peer]
PublicKey = {PEERS[1].public}
AllowedIPs = 10.2.0.8/32

[Peer]
PublicKey = {PEERS[2].public}
AllowedIPs = 10.3.0.0/24
"""

SYNCED = f"""\
[Interface]
PrivateKey = {OURS.private}
ListenPort = 51896

[Peer]
PublicKey = {PEERS[0].public}
AllowedIPs = 10.1.0.0/16

[Peer]
PublicKey = {PEERS[3].public}
PresharedKey = {preshared_key("3")}
"""


@pytest.fixture(scope="module", params=CARRIERS)
def carrier(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def devices(carrier: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Machine, ...]]:
    """A machine with wgvsock's device, and one with wireguard-go's."""
    require("wg", "wireguard-go")
    with machines(tmp_path_factory.mktemp("wg-show"), "ours", "theirs") as (ours, theirs):
        wgvsock(carrier).start(ours, INTERFACE)
        WIREGUARD_GO.start(theirs, INTERFACE)
        yield ours, theirs


@pytest.fixture
def both(devices: tuple[Machine, ...], tmp_path: Path) -> Both:
    return Both(devices, tmp_path)


class Both:
    """Gives the two devices the same commands, and compares what stock ``wg`` prints about them."""

    def __init__(self, devices: tuple[Machine, ...], directory: Path) -> None:
        self.devices = devices
        self.directory = directory
        self.wg("set", INTERFACE, "private-key", "/dev/null", "listen-port", "51899", "fwmark", "0")
        self.configure("setconf", "[Interface]\nListenPort = 51899\n")

    def wg(self, *arguments: str | Path) -> None:
        for device in self.devices:
            device.wg(*arguments)

    def configure(self, verb: str, text: str) -> None:
        file = self.directory / "wg.conf"
        file.write_text(text)
        self.wg(verb, INTERFACE, file)

    def key_file(self, text: str) -> Path:
        file = self.directory / "key"
        file.write_text(text + "\n")
        return file

    def agree(self) -> None:
        """Every way in which ``wg`` shows a device. The order of peers may differ."""
        for arguments in (
            [INTERFACE, "dump"],
            [INTERFACE, "public-key"],
            [INTERFACE, "private-key"],
            [INTERFACE, "listen-port"],
            [INTERFACE, "fwmark"],
            [INTERFACE, "peers"],
            [INTERFACE, "preshared-keys"],
            [INTERFACE, "endpoints"],
            [INTERFACE, "allowed-ips"],
            [INTERFACE, "latest-handshakes"],
            [INTERFACE, "persistent-keepalive"],
            ["interfaces"],
        ):
            ours, theirs = (sorted(device.wg("show", *arguments).splitlines()) for device in self.devices)
            assert ours == theirs, arguments
        ours, theirs = (self.sections(device.wg("showconf", INTERFACE)) for device in self.devices)
        assert ours == theirs
        ours, theirs = (self.sections(device.wg("show", INTERFACE)) for device in self.devices)
        assert ours == theirs

    @staticmethod
    def sections(text: str) -> list[str]:
        return sorted(section.strip() for section in text.split("\n\n"))

    @property
    def peers(self) -> dict[str, list[str]]:
        """Return wgvsock's dump by public key."""
        lines = self.devices[0].wg("show", INTERFACE, "dump").splitlines()[1:]
        return {line.split("\t")[0]: line.split("\t")[1:] for line in lines}


def test_nothing_set(both: Both) -> None:
    both.agree()


def test_set(both: Both) -> None:
    both.wg("set", INTERFACE, "private-key", both.key_file(OURS.private), "listen-port", "51898", "fwmark", "0x10")
    both.wg("set", INTERFACE, "peer", PEERS[0].public, "allowed-ips", "10.0.0.1/8,::/0", "persistent-keepalive", "9")
    both.agree()
    assert list(both.peers) == [PEERS[0].public]
    both.wg("set", INTERFACE, "peer", PEERS[0].public, "preshared-key", both.key_file(preshared_key("x")))
    both.wg("set", INTERFACE, "peer", PEERS[0].public, "allowed-ips", "", "persistent-keepalive", "off")
    both.agree()
    both.wg("set", INTERFACE, "peer", PEERS[0].public, "preshared-key", "/dev/null")
    both.wg("set", INTERFACE, "fwmark", "0")
    both.agree()
    both.wg("set", INTERFACE, "peer", PEERS[0].public, "remove")
    both.agree()
    assert both.peers == {}


def test_an_allowed_ip_moves_between_peers(both: Both) -> None:
    both.wg("set", INTERFACE, "peer", PEERS[0].public, "allowed-ips", "10.0.0.0/8")
    both.wg("set", INTERFACE, "peer", PEERS[1].public, "allowed-ips", "10.0.0.0/8")
    both.agree()
    assert [fields[2] for fields in both.peers.values()] == ["(none)", "10.0.0.0/8"]


def test_setconf_addconf_syncconf(both: Both) -> None:
    both.configure("setconf", CONFIGURATION)
    both.agree()
    assert set(both.peers) == {PEERS[0].public, PEERS[1].public}
    both.configure("addconf", ADDED)
    both.agree()
    assert set(both.peers) == {peer.public for peer in PEERS[:3]}
    both.configure("syncconf", SYNCED)
    both.agree()
    assert set(both.peers) == {PEERS[0].public, PEERS[3].public}


def test_showconf_is_what_setconf_takes(both: Both) -> None:
    both.configure("setconf", CONFIGURATION)
    shown = both.devices[0].wg("showconf", INTERFACE)
    both.configure("setconf", "[Interface]\nListenPort = 51899\n")
    both.configure("setconf", shown)
    assert Both.sections(both.devices[0].wg("showconf", INTERFACE)) == Both.sections(shown)
    both.agree()


@pytest.mark.parametrize("number", [0, 1])
def test_an_endpoint_is_shown_as_wg_reads_it(both: Both, carrier: str, number: int) -> None:
    given, shown = ENDPOINTS[carrier][number]
    both.wg("set", INTERFACE, "peer", PEERS[0].public, "endpoint", given)
    both.agree()
    assert both.peers[PEERS[0].public][1] == shown
