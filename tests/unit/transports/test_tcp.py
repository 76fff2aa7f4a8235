import socket

import pytest

from wgvsock.addresses import Port, TcpAddress
from wgvsock.transports.tcp import accept_both_families, set_options, tcp_address, tcp_socket


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)])
def test_a_socket_of_the_host_s_family_that_neither_blocks_nor_delays(host: str, family: int) -> None:
    with tcp_socket(host) as sock:
        assert sock.family == family
        assert not sock.getblocking()
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_ipv6_leaves_ipv4_alone() -> None:
    with tcp_socket("::") as sock:
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        accept_both_families(sock)
        assert not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


def test_an_accepted_socket_sends_at_once_and_notices_that_the_remote_is_gone() -> None:
    with socket.socket() as sock:
        set_options(sock)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        seconds = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) + sock.getsockopt(
            socket.IPPROTO_TCP, socket.TCP_KEEPINTVL
        ) * sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT)
        assert seconds <= 60


def test_names_of_peers() -> None:
    assert tcp_address(("192.0.2.1", 80)) == TcpAddress("192.0.2.1", Port(80))
    assert tcp_address(("2001:db8::1", 80, 0, 0)) == TcpAddress("2001:db8::1", Port(80))
    assert tcp_address(("::ffff:192.0.2.1", 80, 0, 0)) == TcpAddress("192.0.2.1", Port(80))
