"""Which published ports are bound, and when."""

from __future__ import annotations

import errno
import socket
import sys
from ipaddress import ip_address

from wgvsock.uplink.orders import Port
from wgvsock.uplink.ports import AGAIN, AGAIN_AT_LATEST, BACKLOG, HURRY, MAX_PORTS, Ports, deepen

ADDRESS = ip_address("10.73.0.2")
HTTP, HTTPS = Port("tcp", 80, ADDRESS, 8080), Port("tcp", 443, ADDRESS, 8443)


class Machine:
    """Some ports are somebody else's."""

    def __init__(self) -> None:
        self.taken: dict[Port, int] = {}
        self.bound: set[Port] = set()
        self.tried = 0
        self.ports = Ports(self.forward, self.bound.remove)

    def forward(self, port: Port) -> int:
        self.tried += 1
        if error := self.taken.get(port, 0):
            return error
        self.bound.add(port)
        return 0


def test_what_is_published_is_bound_and_nothing_else() -> None:
    machine = Machine()
    assert machine.ports.publish((HTTP, HTTPS), 0.0) == {}
    assert machine.ports.publish((HTTPS,), 1.0) == {}
    assert machine.bound == {HTTPS}
    assert (len(machine.ports), machine.tried) == (1, 2)
    assert machine.ports.patience(1.0) == 1.0
    assert not machine.ports.hurry(2.0)


def test_a_port_that_another_enclave_leaves_is_bound_at_once() -> None:
    machine = Machine()
    machine.taken[HTTP] = errno.EADDRINUSE
    assert machine.ports.publish((HTTP, HTTPS), 0.0) == {str(HTTP): errno.EADDRINUSE}
    assert machine.ports.patience(1.0) == AGAIN
    assert machine.ports.patience(0.0) == 0.0
    tried = machine.tried
    assert not machine.ports.hurry(AGAIN / 2)
    assert machine.tried == tried  # not in each turn
    assert not machine.ports.hurry(AGAIN)
    machine.taken.clear()
    assert machine.ports.hurry(2 * AGAIN)
    assert machine.bound == {HTTP, HTTPS}
    assert machine.ports.patience(1.0) == 1.0


def test_the_more_ports_are_taken_the_less_often_they_are_tried() -> None:
    machine, many = Machine(), tuple(Port("tcp", number, ADDRESS, 80) for number in range(1, 501))
    machine.taken = dict.fromkeys(many, errno.EADDRINUSE)
    pauses = []
    for number in (1, 3, 500):
        machine.ports.publish(many[:number], 0.0)
        pauses.append(machine.ports.patience(1.0))
    assert pauses == [AGAIN, 3 * AGAIN, AGAIN_AT_LATEST]


def test_nobody_hurries_for_ever_or_where_it_does_not_help() -> None:
    machine = Machine()
    machine.taken[HTTP] = errno.EADDRINUSE
    machine.ports.publish((HTTP,), 10.0)
    assert machine.ports.hurry(10.0 + HURRY)
    assert not machine.ports.hurry(11.0 + HURRY)
    assert machine.ports.bind() == {str(HTTP): errno.EADDRINUSE}
    machine.taken[HTTP] = errno.EACCES
    machine.ports.publish((HTTP,), 90.0)
    assert machine.ports.patience(1.0) == 1.0


def test_there_are_so_many() -> None:
    machine = Machine()
    machine.ports.publish(tuple(Port("tcp", number, ADDRESS, 80) for number in range(1, MAX_PORTS + 9)), 0.0)
    assert len(machine.ports) == MAX_PORTS


def test_only_a_listening_socket_lets_more_clients_wait() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1) as server, socket.socket() as other:
        assert deepen(server.fileno())
        assert deepen(other.fileno())
        assert server.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)[28:32] == BACKLOG.to_bytes(4, sys.byteorder)
        assert not other.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)


def test_a_unix_socket_is_only_for_this_machine() -> None:
    with socket.socket(socket.AF_UNIX) as local:
        assert not deepen(local.fileno())
