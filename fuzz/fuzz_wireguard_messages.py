"""For any bytes, a device does not raise, does not answer unauthenticated messages, and keeps its session.

Below it, the parser raises only RemoteProtocolError, or returns a message whose encoding is the input. An authentic but
dishonest plaintext is delivered only as one complete IP packet from the peer's own address.

    python fuzz/fuzz_wireguard_messages.py -max_total_time=60
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

with atheris.instrument_imports(include=["wgvsock.wireguard", "wgvsock.virtio_net"]):
    from wgvsock.errors import RemoteProtocolError
    from wgvsock.testing import DevicePair
    from wgvsock.testing.pair import ALICE, drain_events, ipv4_packet, ipv6_packet
    from wgvsock.virtio_net import check_header
    from wgvsock.wireguard.messages import parse_message
    from wgvsock.wireguard.peer import Profile

SOURCES = {4: bytes([10, 0, 0, 1]), 6: bytes([0xFD, *bytes(14), 1])}
HEADROOM = 10


def make_pair(profile: Profile) -> DevicePair:
    """Return a pair with a session. The load threshold is out of reach, because time stands still."""
    pair = DevicePair(profile=profile, packet_headroom=HEADROOM, load_threshold=2**63)
    pair.handshake()
    return pair


HONEST = (ipv4_packet("10.0.0.1", "10.0.0.2", b"payload"), ipv6_packet("fd00::1", "fd00::2", b"payload"))
PAIRS = {profile: make_pair(profile) for profile in Profile}


def parse(data: bytes) -> None:
    """Check that parsing raises RemoteProtocolError or gives a message that packs to the input."""
    try:
        message = parse_message(data)
    except RemoteProtocolError:
        return
    assert message.pack() == data


def receive(pair: DevicePair, data: bytes) -> None:
    """Check that a stranger's datagram causes no answer and no delivery."""
    pair.bob.receive_datagram(data, "mallory", pair.now)
    assert pair.bob.datagrams_to_send() == []
    assert pair.bob.packets_to_deliver() == []
    assert pair.bobs_peer.endpoint == ALICE


def receive_with_mac1(pair: DevicePair, data: bytes) -> None:
    """Do the same as a stranger who knows Bob's public key."""
    receive(pair, pair.alices_peer.cookie.add_macs(data + bytes(32), pair.now))


def receive_from_peer(pair: DevicePair, plaintext: bytes) -> None:
    """Check that a hostile peer's packet is delivered only if it is honest and from the peer's own address."""
    keypair = pair.alices_peer.keypairs.current
    assert keypair is not None
    message = bytearray(len(plaintext) + 32)
    struct.pack_into("<IIQ", message, 0, 4, keypair.remote_index, keypair.sending_counter)
    nonce = struct.pack("<4xQ", keypair.sending_counter)
    keypair.sending_counter += 1
    keypair.encrypt_into(nonce, plaintext, None, memoryview(message)[16:])
    pair.bob.receive_datagram(bytes(message), ALICE, pair.now)
    for delivered in pair.bob.packets_to_deliver():
        packet = delivered[HEADROOM:]
        version = packet[0] >> 4
        if version == 4:
            length, source = int.from_bytes(packet[2:4], "big"), packet[12:16]
        else:
            length, source = int.from_bytes(packet[4:6], "big") + 40, packet[8:24]
        assert length == len(packet)
        assert source == SOURCES[version]
        assert check_header(memoryview(delivered)) is None


def altered(honest: bytes, data: bytes) -> bytes:
    """Return an honest plaintext, changed and lengthened by the input. An empty input changes nothing."""
    return bytes(a ^ b for a, b in zip(honest, data.ljust(len(honest), b"\0"), strict=False)) + data[len(honest) :]


def test_one_input(data: bytes) -> None:
    """Use the same bytes in every role."""
    parse(data)
    for kind in range(1, 5):
        parse(kind.to_bytes(4, "little") + data)
    for pair in PAIRS.values():
        receive(pair, data)
        receive(pair, b"\4\0\0\0" + struct.pack("<I", next(iter(pair.bob.keypairs_by_index))) + data)
        receive_with_mac1(pair, data)
        receive_with_mac1(pair, b"\1\0\0\0" + data[:112].ljust(112, b"\0"))
        receive_with_mac1(pair, b"\2\0\0\0" + data[:56].ljust(56, b"\0"))
        receive_from_peer(pair, data)
        for honest in HONEST:
            receive_from_peer(pair, altered(honest, data))
            receive_from_peer(pair, altered(bytes(HEADROOM) + honest, data))
        drain_events(pair.bob)
    assert len(PAIRS[Profile.PLAIN].alice_sends(data)) == 1


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
