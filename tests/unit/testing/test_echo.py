from ipaddress import ip_address

import pytest

from wgvsock.checksum import internet_checksum
from wgvsock.testing.echo import answer, is_request
from wgvsock.testing.pair import ipv4_packet, ipv6_packet
from wgvsock.tunnel.echo import Echo


@pytest.mark.parametrize("headroom", [0, 10])
@pytest.mark.parametrize(("ours", "theirs"), [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")])
def test_an_answer_comes_back_with_right_checksums(ours: str, theirs: str, headroom: int) -> None:
    source, destination = ip_address(ours), ip_address(theirs)
    request = Echo(source, destination, 1, headroom).request(2, bytes(range(16)))
    reply = answer(request, headroom)
    assert reply[:headroom] == bytes(headroom)
    assert is_request(request, headroom)
    assert not is_request(reply, headroom)
    assert len(reply) == len(request)
    assert reply[-20:] == request[-20:]
    packet = reply[headroom:]
    addresses = destination.packed + source.packed
    if source.version == 4:
        assert packet[12:20] == addresses
        assert packet[20] == 0
        assert internet_checksum(packet[:20]) == internet_checksum(packet[20:]) == 0
    else:
        assert packet[8:40] == addresses
        assert packet[40] == 129
        assert internet_checksum(addresses + bytes([0, 0, 0, 24, 0, 0, 0, 58]) + packet[40:]) == 0


def test_other_packets_are_no_requests() -> None:
    assert not is_request(ipv4_packet("10.0.0.1", "10.0.0.2", b"\x08"))
    assert not is_request(ipv6_packet("fd00::1", "fd00::2", b"\x80"))
