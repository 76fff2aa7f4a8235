"""The UDP transport's sockets on a scripted kernel."""

from __future__ import annotations

import socket
import struct

import pytest

from tests.unit.transports.udp_kernel import Kernel
from wgvsock.addresses import Port, UdpAddress
from wgvsock.transports.errors import ListenError
from wgvsock.transports.udp_sockets import (
    SOL_UDP,
    UDP_GRO,
    UDP_SEGMENT,
    accepts,
    open_sockets,
    set_mark,
    socket_address,
)


def test_both_families_get_the_port_that_the_kernel_chose(kernel: Kernel) -> None:
    sockets = open_sockets(0, 0)
    assert list(sockets) == [socket.AF_INET, socket.AF_INET6]
    assert [sock.port for sock in kernel.sockets] == [40001, 40001]
    four, six = kernel.sockets
    assert four.options[SOL_UDP, UDP_GRO] == 1
    assert four.options[socket.IPPROTO_IP, 8] == 1, "IP_PKTINFO"
    assert six.options[socket.IPPROTO_IPV6, 49] == 1, "IPV6_RECVPKTINFO"
    assert six.options[socket.IPPROTO_IPV6, socket.IPV6_V6ONLY] == 1
    assert (socket.SOL_SOCKET, socket.SO_MARK) not in four.options


def test_a_port_that_one_family_cannot_have_is_not_chosen(kernel: Kernel) -> None:
    kernel.ports_in_use = {(socket.AF_INET6, 40001), (socket.AF_INET6, 40002)}
    open_sockets(0, 0)
    assert [(sock.port, sock.closed) for sock in kernel.sockets if not sock.closed] == [(40003, False)] * 2
    assert [sock.closed for sock in kernel.sockets] == [True] * 4 + [False] * 2


def test_ports_are_tried_so_often_and_no_more(kernel: Kernel) -> None:
    kernel.ports_in_use = {(socket.AF_INET, port) for port in range(40_000, 41_000)}
    with pytest.raises(ListenError, match="Address already in use"):
        open_sockets(0, 0)
    assert len(kernel.sockets) == 100
    assert all(sock.closed for sock in kernel.sockets)


def test_a_given_port_in_use_is_an_error(kernel: Kernel) -> None:
    kernel.ports_in_use = {(socket.AF_INET6, 51820)}
    with pytest.raises(ListenError, match="UDP port 51820: Address already in use"):
        open_sockets(51820, 0)
    assert [sock.closed for sock in kernel.sockets] == [True, True]


def test_a_kernel_without_ipv6_or_without_both(kernel: Kernel) -> None:
    kernel.families = {socket.AF_INET}
    assert list(open_sockets(1, 0)) == [socket.AF_INET]
    kernel.families = set()
    with pytest.raises(ListenError, match="Address family not supported"):
        open_sockets(1, 0)


def test_marks_are_set_before_anything_can_leave(kernel: Kernel) -> None:
    sockets = open_sockets(1, 7)
    assert kernel.marks() == {struct.pack("=I", 7)}
    set_mark(sockets[socket.AF_INET], 8)
    assert kernel.marks() == {struct.pack("=I", 7), struct.pack("=I", 8)}
    kernel.forbid_marks = True
    with pytest.raises(ListenError, match="Operation not permitted"):
        open_sockets(2, 7)


def test_an_option_that_the_kernel_lacks_is_told(kernel: Kernel) -> None:
    kernel.options = {UDP_GRO}
    sock = open_sockets(1, 0)[socket.AF_INET]
    assert accepts(sock, UDP_GRO, 1)
    assert not accepts(sock, UDP_SEGMENT, 0)


@pytest.mark.parametrize(
    ("text", "sockaddr"),
    [
        ("192.0.2.1", ("192.0.2.1", 9)),
        ("::1", ("::1", 9, 0, 0)),
        ("fe80::1%3", ("fe80::1", 9, 0, 3)),
        ("fe80::1%lo", ("fe80::1", 9, 0, 1)),
    ],
)
def test_the_kernel_s_form_of_an_address(text: str, sockaddr: tuple[object, ...]) -> None:
    assert socket_address(UdpAddress(text, Port(9))) == sockaddr


def test_an_interface_that_is_not_there_is_an_error() -> None:
    with pytest.raises(OSError, match=r"interface|device"):
        socket_address(UdpAddress("fe80::1%nowhere9", Port(9)))
