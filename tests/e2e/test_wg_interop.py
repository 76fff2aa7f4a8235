"""WireGuard over UDP between `wgvsock device` and Debian's wireguard-go, in every order, set up with plain wg."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.deadline import Deadline, patiently
from lab.netns import namespaces
from tests.e2e.wg.keys import Identity, identity, preshared_key
from tests.e2e.wg.machines import WIREGUARD_GO, Implementation, Machine, machines, require, short_timers, wgvsock

PORT = "51820"
REKEY_AFTER = 2.0
PAIRS = {
    "ours-ours": (wgvsock("udp"), wgvsock("udp")),
    "ours-theirs": (wgvsock("udp"), WIREGUARD_GO),
    "theirs-ours": (WIREGUARD_GO, wgvsock("udp")),
}


class Side:
    """One end of the tunnel."""

    def __init__(self, machine: Machine, interface: str, implementation: Implementation) -> None:
        self.machine = machine
        self.interface = interface
        self.identity = identity(interface)
        self.process = implementation.start(machine, interface)
        machine.run("ip", "addr", "add", f"{machine.inner}/24", "dev", interface)
        machine.run("ip", "addr", "add", f"{machine.inner6}/64", "dev", interface, "nodad")
        machine.run("ip", "link", "set", interface, "up")
        self.set("private-key", self.key_file(self.identity.private), "listen-port", PORT)

    def key_file(self, key: str) -> Path:
        file = self.machine.directory / "key"
        file.write_text(key + "\n")
        return file

    def set(self, *settings: str | Path) -> None:
        self.machine.wg("set", self.interface, *settings)

    def set_peer(self, peer: Identity, *settings: str | Path) -> None:
        self.set("peer", peer.public, *settings)

    def add_peer(self, other: Side, *settings: str | Path) -> None:
        inner = other.machine
        self.set_peer(other.identity, "allowed-ips", f"{inner.inner}/32,{inner.inner6}/128", *settings)

    def shown(self, what: str) -> str:
        """Return what ``wg`` shows of the only peer."""
        return self.machine.wg("show", self.interface, what).rstrip("\n").partition("\t")[2]

    @property
    def received(self) -> int:
        """Bytes."""
        return int(self.shown("transfer").split("\t")[0])

    @property
    def last_handshake(self) -> int:
        """Unix time in seconds, or 0 before the first handshake."""
        return int(self.shown("latest-handshakes") or 0)


class Tunnel:
    """Both ends, not yet configured."""

    def __init__(self, left: Side, right: Side) -> None:
        self.left = left
        self.right = right

    def introduce(self, *, key: str | None = None) -> None:
        """Make each the other's peer. Only the left end knows the right one's address, so it has to begin."""
        extra = ("preshared-key", self.left.key_file(key)) if key else ()
        self.right.add_peer(self.left, *extra)
        self.left.add_peer(self.right, "endpoint", f"{self.right.machine.address}:{PORT}", *extra)

    def works(self) -> bool:
        return self.left.machine.reaches(self.right.machine.inner)


@pytest.fixture
def cable(tmp_path: Path) -> Iterator[tuple[Machine, Machine]]:
    require("wg", "wireguard-go", "ping")
    with machines(tmp_path, "left", "right") as (left, right):
        yield left, right


def tunnel(cable: tuple[Machine, Machine], left: Implementation, right: Implementation) -> Tunnel:
    return Tunnel(Side(cable[0], "wga", left), Side(cable[1], "wgb", right))


@pytest.fixture(params=PAIRS)
def any_pair(request: pytest.FixtureRequest, cable: tuple[Machine, Machine]) -> Tunnel:
    """Every order of the two implementations. The left one initiates."""
    return tunnel(cable, *PAIRS[request.param])


@pytest.fixture
def rekeying(cable: tuple[Machine, Machine]) -> Tunnel:
    """wgvsock's end begins a new handshake every two seconds."""
    return tunnel(cable, short_timers("udp", REKEY_AFTER), WIREGUARD_GO)


def test_initiator_and_responder(any_pair: Tunnel) -> None:
    any_pair.introduce()
    left, right = any_pair.left, any_pair.right
    assert " 0% packet loss" in left.machine.ping(right.machine.inner)
    assert " 0% packet loss" in right.machine.ping(left.machine.inner)
    assert " 0% packet loss" in left.machine.ping(right.machine.inner6)
    assert right.shown("endpoints") == f"{left.machine.address}:{PORT}"
    assert abs(left.last_handshake - right.last_handshake) <= 1


def test_over_ipv6(any_pair: Tunnel) -> None:
    left, right = any_pair.left, any_pair.right
    right.add_peer(left)
    left.add_peer(right, "endpoint", f"[{right.machine.address6}]:{PORT}")
    assert " 0% packet loss" in left.machine.ping(right.machine.inner)
    assert right.shown("endpoints") == f"[{left.machine.address6}]:{PORT}"


def test_preshared_key(any_pair: Tunnel) -> None:
    any_pair.introduce(key=preshared_key("one"))
    assert any_pair.works()


def test_a_wrong_preshared_key_lets_nobody_in(any_pair: Tunnel) -> None:
    any_pair.introduce(key=preshared_key("one"))
    right = any_pair.right
    right.set_peer(any_pair.left.identity, "preshared-key", right.key_file(preshared_key("another")))
    assert not any_pair.works()
    assert (any_pair.left.last_handshake, right.last_handshake) == (0, 0)


def test_both_begin_at_once(any_pair: Tunnel) -> None:
    left, right = any_pair.left, any_pair.right
    for side, other in ((left, right), (right, left)):
        side.add_peer(other, "endpoint", f"{other.machine.address}:{PORT}", "persistent-keepalive", "1")
    patiently(10).poll(any_pair.works, "a ping to pass")


def test_either_end_begins_anew(any_pair: Tunnel) -> None:
    """It forgets the session and its keys' history. The other end accepts the new handshake beside the old session."""
    any_pair.introduce()
    left, right = any_pair.left, any_pair.right
    assert any_pair.works()
    for side, other in ((left, right), (right, left)):
        side.set_peer(other.identity, "remove")
        side.add_peer(other, "endpoint", f"{other.machine.address}:{PORT}")
        assert side.last_handshake == 0
        assert side.machine.reaches(other.machine.inner)
        assert side.last_handshake > 0
        assert other.machine.reaches(side.machine.inner)


def test_everything_that_a_full_size_packet_can_be(any_pair: Tunnel) -> None:
    any_pair.introduce()
    for size in ("0", "1", "1391", "1392", "1393", "3000", "20000", "65507"):  # 1392: the MTU of 1420; then fragments
        answer = any_pair.left.machine.run("ping", "-n", "-c", "1", "-W", "3", "-s", size, any_pair.right.machine.inner)
        assert "1 received" in answer, size


def test_two_rekeys_lose_no_packet(rekeying: Tunnel) -> None:
    rekeying.introduce()
    assert rekeying.works()
    handshakes = {rekeying.left.last_handshake}
    pings = rekeying.left.machine.pinging(rekeying.right.machine.inner)

    def rekeyed() -> bool:
        handshakes.add(rekeying.left.last_handshake)
        return len(handshakes) >= 4

    patiently(60).poll(rekeyed, "three more handshakes")
    assert rekeying.right.last_handshake in handshakes
    assert pings.lost() == []


def test_the_preshared_key_changes_while_packets_flow(rekeying: Tunnel) -> None:
    rekeying.introduce(key=preshared_key("old"))
    assert rekeying.works()
    new = preshared_key("new")
    rekeying.left.set_peer(rekeying.right.identity, "preshared-key", rekeying.left.key_file(new))
    rekeying.right.set_peer(rekeying.left.identity, "preshared-key", rekeying.right.key_file(new))
    before = rekeying.left.last_handshake

    def handshaken() -> bool:
        assert rekeying.works()
        return rekeying.left.last_handshake > before

    patiently(4 * REKEY_AFTER).poll(handshaken, "a handshake with the new preshared key")
    assert rekeying.right.shown("preshared-keys") == new


def test_one_side_s_preshared_key_alone_ends_the_handshakes(rekeying: Tunnel) -> None:
    rekeying.introduce()
    assert rekeying.works()
    rekeying.right.set_peer(rekeying.left.identity, "preshared-key", rekeying.right.key_file(preshared_key("new")))
    initiations = Initiations(rekeying.right)
    # Meanwhile the session continues, and carries pings until REJECT_AFTER_TIME.
    patiently(6 * REKEY_AFTER).poll(lambda: rekeying.works() and initiations.count() >= 2, "two vain initiations")
    handshake = rekeying.left.last_handshake
    assert rekeying.works()
    assert rekeying.left.last_handshake == handshake


class Initiations:
    """Those that wireguard-go has received since."""

    def __init__(self, side: Side) -> None:
        self._side = side
        self._before = self._total()

    def _total(self) -> int:
        return self._side.process.output().count("Received handshake initiation")

    def count(self) -> int:
        return self._total() - self._before


def test_keepalives_of_ours_reach_theirs_and_back(any_pair: Tunnel) -> None:
    any_pair.introduce()
    any_pair.left.set_peer(any_pair.right.identity, "persistent-keepalive", "1")
    patiently(5).poll(lambda: any_pair.right.last_handshake, "the handshake that a keepalive begins")
    first = any_pair.right.received
    patiently(5).poll(lambda: any_pair.right.received >= first + 2 * 32, "two keepalives of 32 bytes")
    assert (any_pair.right.received - first) % 32 == 0


def test_the_initiator_roams(any_pair: Tunnel) -> None:
    any_pair.introduce()
    left, right = any_pair.left, any_pair.right
    assert any_pair.works()
    move(left, "192.0.2.77", towards=right)
    assert any_pair.works()
    assert right.shown("endpoints") == f"192.0.2.77:{PORT}"
    left.set("listen-port", "40404")
    assert any_pair.works()
    assert right.shown("endpoints") == "192.0.2.77:40404"
    assert right.machine.reaches(left.machine.inner)


def test_the_responder_roams(any_pair: Tunnel) -> None:
    any_pair.introduce()
    left, right = any_pair.left, any_pair.right
    assert any_pair.works()
    move(right, "192.0.2.88", towards=left)
    assert right.machine.reaches(left.machine.inner)
    assert left.shown("endpoints") == f"192.0.2.88:{PORT}"
    assert any_pair.works()


def move(side: Side, address: str, *, towards: Side) -> None:
    """Give a machine another address on the cable."""
    side.machine.run("ip", "addr", "flush", "dev", "eth0", "scope", "global")
    side.machine.run("ip", "addr", "add", f"{address}/24", "dev", "eth0")
    # wireguard-go sends from the address it was last reached at, for 15 s after it is gone unless the endpoint is set.
    side.set_peer(towards.identity, "endpoint", f"{towards.machine.address}:{PORT}")


def test_a_mark_goes_on_every_packet(any_pair: Tunnel) -> None:
    left = any_pair.left
    left.set("fwmark", "0x2a")
    left.machine.run("nft", "-f", "-", stdin=COUNT_MARKS)
    any_pair.introduce()
    assert any_pair.works()
    counted = left.machine.run("nft", "list", "counter", "inet", "wgvsock-test", "marked")
    found = re.search(r"packets (\d+)", counted)
    assert found is not None
    assert int(found[1]) >= 2  # an initiation and a ping


COUNT_MARKS = f"""
table inet wgvsock-test {{
    counter marked {{ }}
    chain out {{
        type filter hook output priority 0;
        udp dport {PORT} meta mark 0x2a counter name marked
    }}
}}
"""


@pytest.mark.parametrize("reverse", [False, True], ids=["up", "down"])
def test_iperf3(any_pair: Tunnel, *, reverse: bool) -> None:
    require("iperf3")
    any_pair.introduce()
    left, right = any_pair.left, any_pair.right
    server = right.machine.start("iperf3", "-s", "-1", "-J", name="iperf3-server")
    patiently(5).poll(lambda: ":5201" in right.machine.run("ss", "-Hlnt"), "iperf3 to listen")
    options = ["-R"] if reverse else []
    report = json.loads(left.machine.run("iperf3", "-c", right.machine.inner, "-t", "2", "-J", *options))
    server.wait(patiently(10))
    assert report["end"]["sum_received"]["bytes"] > 1_000_000
    assert any_pair.works()


def flood(machine: Machine, target: tuple[str, int], public_key: bytes, going_on: Callable[[], bool]) -> None:
    """Handshake initiations of strangers: the mac1 is right, the rest is noise."""
    message = bytes([1, 0, 0, 0]) + bytes(112)
    mac1_key = hashlib.blake2s(b"mac1----" + public_key).digest()
    mac1 = hashlib.blake2s(message, key=mac1_key, digest_size=16).digest()
    sock = namespaces.inside(machine.namespace, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with sock:
        while going_on():
            for _ in range(200):
                with contextlib.suppress(OSError):
                    sock.sendto(message + mac1 + bytes(16), target)


@pytest.mark.parametrize("pair", ["ours-theirs", "theirs-ours"])
def test_cookies_under_load(cable: tuple[Machine, Machine], pair: str) -> None:
    """The right end is flooded, demands a cookie from the left one, and admits it when it has sent the cookie."""
    both = tunnel(cable, *PAIRS[pair])
    left, right = both.left, both.right
    theirs = left if pair == "theirs-ours" else right
    said = "Receiving cookie response" if theirs is left else "Sending cookie response"
    both.introduce()
    ping = left.machine.start("ping", "-n", "-i", "0.2", "-W", "1", right.machine.inner, name="ping")
    deadline = Deadline(40)

    def let_in_with_a_cookie() -> bool:
        return said in theirs.process.output() and right.last_handshake > 0 and " ttl=" in ping.output()

    flood(
        left.machine,
        (right.machine.address, int(PORT)),
        right.identity.public_bytes,
        lambda: not let_in_with_a_cookie() and not deadline.expired,
    )
    assert said in theirs.process.output()
    assert right.last_handshake > 0
    assert " ttl=" in ping.output()


def test_24_peers(tmp_path: Path) -> None:
    """One device of wgvsock, 24 of wireguard-go on another machine: each pings through its own session."""
    require("wg", "wireguard-go", "ping")
    with machines(tmp_path, "left", "right") as cable:
        left = Side(cable[0], "wga", wgvsock("udp"))
        right = cable[1]
        for number in range(1, 25):
            add_device(left, right, number)
        for number in range(1, 25):
            answer = right.run("ping", "-n", "-c", "1", "-W", "2", "-I", f"10.10.{number}.1", left.machine.inner)
            assert "1 received" in answer, number
        shown = left.machine.wg("show", "wga", "latest-handshakes").splitlines()
        assert len(shown) == 24
        assert all(int(line.split("\t")[1]) > 0 for line in shown)
        for number in range(1, 25):
            assert left.machine.reaches(f"10.10.{number}.1"), number


def add_device(left: Side, right: Machine, number: int) -> None:
    """A wireguard-go with its own address and routing table, and its peer on the left."""
    interface, port, inner = f"wgb{number}", 52000 + number, f"10.10.{number}.1"
    keys = identity(interface)
    WIREGUARD_GO.start(right, interface)
    file = right.directory / interface
    file.write_text(keys.private)
    right.wg(
        "set",
        interface,
        "private-key",
        file,
        "listen-port",
        str(port),
        "peer",
        left.identity.public,
        "allowed-ips",
        f"{left.machine.inner}/32",
        "endpoint",
        f"{left.machine.address}:{PORT}",
    )
    right.run("ip", "addr", "add", f"{inner}/32", "dev", interface)
    right.run("ip", "link", "set", interface, "up")
    right.run("ip", "route", "add", left.machine.inner, "dev", interface, "src", inner, "table", str(number))
    right.run("ip", "rule", "add", "from", inner, "lookup", str(number))
    right.run("ip", "rule", "add", "oif", interface, "lookup", str(number))
    left.set_peer(keys, "allowed-ips", f"{inner}/32")
    left.machine.run("ip", "route", "add", inner, "dev", left.interface)
