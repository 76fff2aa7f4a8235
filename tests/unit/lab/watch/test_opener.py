from __future__ import annotations

import base64
import os
import struct
from ipaddress import ip_network

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from scapy.layers.inet import IP, UDP
from scapy.packet import Raw

from lab.watch.dissect import dissect
from lab.watch.opener import EntropyLog, SessionOpener
from lab.watch.tap import Chunk, Kind
from tests.vectors.reference_provisioning import exchange as provisioning_exchange
from wgvsock.wireguard import Device

NOW = 1000.0


class RecordingRandom:
    def __init__(self) -> None:
        self.draws: list[bytes] = []

    def __call__(self, size: int) -> bytes:
        self.draws.append(os.urandom(size))
        return self.draws[-1]

    def log(self) -> EntropyLog:
        log = EntropyLog()
        for draw in self.draws:
            if len(draw) == 32:
                log.add(draw)
        return log


def public(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


class Session:
    """A provisioning exchange and a WireGuard session as they would cross the vsock point, made by hand."""

    def __init__(self) -> None:
        self.relay_random, self.enclave_random = RecordingRandom(), RecordingRandom()
        self.chunks: list[Chunk] = []
        relay_key, enclave_key = self.relay_random(32), self.enclave_random(32)
        relay_ephemeral, enclave_ephemeral = self.relay_random(32), self.enclave_random(32)
        hello = cbor2.dumps({1: 1, 2: 0, 3: bytes(32), 4: public(enclave_ephemeral), 5: []})
        request = cbor2.dumps({1: 1, 2: 1, 3: bytes(32), 4: public(relay_key)})
        document = cbor2.dumps([b"", {}, cbor2.dumps({"public_key": bytes(12) + public(enclave_key)}), b""])
        values = provisioning_exchange(
            hello,
            enclave_ephemeral,
            relay_ephemeral,
            request,
            cbor2.dumps({1: 1, 2: 2, 3: document}),
            cbor2.dumps({1: 1, 2: 3, 3: 0}),
        )
        for kind, name in (
            (Kind.TO_RELAY, "m0"),
            (Kind.TO_ENCLAVE, "m1"),
            (Kind.TO_RELAY, "m2"),
            (Kind.TO_ENCLAVE, "m3"),
        ):
            self.cross(51821, kind, values[name])
        psk = self.preshared_key = values["preshared_key"]
        self.relay = Device(random=self.relay_random, wall_clock=lambda: 1_700_000_000 * 10**9)
        self.enclave = Device(random=self.enclave_random, wall_clock=lambda: 1_700_000_000 * 10**9)
        for device, own, other, endpoint in (
            (self.relay, relay_key, enclave_key, "enclave"),
            (self.enclave, enclave_key, relay_key, "relay"),
        ):
            device.set_private_key(own, NOW)
            device.add_peer(
                public(other), preshared_key=psk, allowed_ips=[ip_network("0.0.0.0/0")], endpoint=endpoint, now=NOW
            )

    def cross(self, port: int, kind: Kind, message: bytes) -> None:
        self.chunks.append(Chunk(NOW, 1, port, kind, struct.pack(">I", len(message)) + message))

    def exchange(self) -> None:
        moved = True
        while moved:
            moved = False
            for sender, receiver, kind in (
                (self.relay, self.enclave, Kind.TO_ENCLAVE),
                (self.enclave, self.relay, Kind.TO_RELAY),
            ):
                for _, datagram in sender.datagrams_to_send():
                    moved = True
                    self.cross(51820, kind, datagram)
                    receiver.receive_datagram(datagram, "there", NOW)


def packet(text: str) -> bytes:
    return bytes(IP(src="10.73.0.2", dst="10.73.0.1") / UDP(sport=1, dport=2) / Raw(text.encode()))


@pytest.mark.parametrize("whose", ["relay", "enclave"])
@pytest.mark.parametrize("initiator", ["relay", "enclave"])
def test_the_entropy_of_either_side_opens_both_directions(whose: str, initiator: str) -> None:
    session = Session()
    first, second = (session.relay, session.enclave) if initiator == "relay" else (session.enclave, session.relay)
    first.send_packet(packet("over"), NOW)
    session.exchange()
    second.send_packet(packet("and back"), NOW)
    session.exchange()
    log = (session.relay_random if whose == "relay" else session.enclave_random).log()
    opened = [plain for _, plain in SessionOpener(log).open(dissect(session.chunks)) if plain]
    assert [plain[: len(packet(text))] for plain, text in zip(opened, ("over", "and back"), strict=True)] == [
        packet("over"),
        packet("and back"),
    ]


@pytest.mark.parametrize("whose", ["relay", "enclave"])
@pytest.mark.parametrize("initiator", ["relay", "enclave"])
def test_the_keys_of_a_handshake_are_noted_for_wireshark(whose: str, initiator: str) -> None:
    session = Session()
    next(iter(getattr(session, initiator).peers.values())).initiate_handshake(NOW)
    session.exchange()
    mine, other = session.relay_random, session.enclave_random
    if whose == "enclave":
        mine, other = other, mine
    opener = SessionOpener(mine.log())
    list(opener.open(dissect(session.chunks)))
    keys = {name: base64.b64decode(value) for name, value in (line.split(" = ") for line in opener.key_log)}
    assert list(keys) == [
        "LOCAL_STATIC_PRIVATE_KEY",
        "REMOTE_STATIC_PUBLIC_KEY",
        "LOCAL_EPHEMERAL_PRIVATE_KEY",
        "PRESHARED_KEY",
    ]
    static_keys, ephemerals = (mine.draws[0], public(other.draws[0])), mine.draws[2:]
    assert (keys["LOCAL_STATIC_PRIVATE_KEY"], keys["REMOTE_STATIC_PUBLIC_KEY"]) == static_keys
    assert keys["LOCAL_EPHEMERAL_PRIVATE_KEY"] in ephemerals
    assert keys["PRESHARED_KEY"] == session.preshared_key


@pytest.mark.parametrize("whose", ["relay", "enclave"])
def test_the_provisioning_messages_are_opened(whose: str) -> None:
    session = Session()
    opener = SessionOpener((session.relay_random if whose == "relay" else session.enclave_random).log())
    assert not list(opener.open(dissect(session.chunks)))
    hello, request, response, result = opener.provisioning
    assert [frame.name for frame in opener.provisioning] == ["HELLO", "REQUEST", "RESPONSE", "RESULT"]
    assert (hello.fields[2], request.fields[2], result.fields[3]) == (0, 1, 0)
    assert b"public_key" in cbor2.loads(response.fields[3])[2]
    assert b"public_key" not in response.payload


def test_a_sealed_error_gets_its_name() -> None:
    log, draws = EntropyLog(), (b"e" * 32, b"r" * 32)
    for draw in draws:
        log.add(draw)
    hello = cbor2.dumps({1: 1, 2: 0, 3: bytes(32), 4: public(draws[0]), 5: []})
    request = cbor2.dumps({1: 1, 2: 1, 3: bytes(32), 4: bytes(32)})
    values = provisioning_exchange(hello, *draws, request, cbor2.dumps({1: 1, 2: 255, 3: 8}), b"")
    chunks = [
        Chunk(NOW, 1, 51821, kind, struct.pack(">I", len(values[name])) + values[name])
        for kind, name in ((Kind.TO_RELAY, "m0"), (Kind.TO_ENCLAVE, "m1"), (Kind.TO_RELAY, "m2"))
    ]
    opener = SessionOpener(log)
    assert not list(opener.open(dissect(chunks)))
    assert (opener.provisioning[2].name, opener.provisioning[2].fields[3]) == ("ERROR", 8)


def test_without_the_entropy_a_sealed_message_stays_closed() -> None:
    opener = SessionOpener(EntropyLog())
    assert not list(opener.open(dissect(Session().chunks)))
    assert [frame.name for frame in opener.provisioning] == ["HELLO", "REQUEST", "RESPONSE", "RESULT"]
    assert [bool(frame.fields) for frame in opener.provisioning] == [True, False, False, False]


def test_keepalives_open_to_nothing() -> None:
    session = Session()
    next(iter(session.relay.peers.values())).initiate_handshake(NOW)
    session.exchange()
    opened = list(SessionOpener(session.enclave_random.log()).open(dissect(session.chunks)))
    assert [(frame.name, plain) for frame, plain in opened] == [("keepalive", b"")]


def test_without_the_entropy_nothing_opens() -> None:
    session = Session()
    session.relay.send_packet(packet("secret"), NOW)
    session.exchange()
    assert list(SessionOpener(EntropyLog()).open(dissect(session.chunks))) == []


def test_a_log_knows_the_public_keys_of_its_draws() -> None:
    draw = os.urandom(32)
    log = EntropyLog()
    assert public(draw) not in log
    log.add(draw)
    assert public(draw) in log
    with pytest.raises(LookupError):
        log.dh(bytes(31) + b"\x09", bytes(31) + b"\x08")
