import socket

import pytest

from wgvsock.addresses import Port, TcpAddress
from wgvsock.transports.tcp import no_delay, tcp_address, tcp_socket


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)])
def test_a_socket_of_the_host_s_family_that_neither_blocks_nor_delays(host: str, family: int) -> None:
    with tcp_socket(host) as sock:
        assert sock.family == family
        assert not sock.getblocking()
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_delay_is_switched_off() -> None:
    with socket.socket() as sock:
        no_delay(sock)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_names_of_peers() -> None:
    assert tcp_address(("192.0.2.1", 80)) == TcpAddress("192.0.2.1", Port(80))
    assert tcp_address(("2001:db8::1", 80, 0, 0)) == TcpAddress("2001:db8::1", Port(80))
