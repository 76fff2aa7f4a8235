from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from io import FileIO
from pathlib import Path

import pytest

from lab.guest.nested_ports import Joint


class Bench:
    """A joint between a stream pair, instead of the virtio-serial port, and a listening socket."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.path = path
        self.listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        self.listener.bind(str(path))
        self.listener.listen()
        self.host, self.port = (stack.enter_context(end) for end in socket.socketpair())
        self.file = FileIO(os.dup(self.port.fileno()), "r+")
        joint = Joint(self.file, self.listener)
        self.threads = [
            threading.Thread(target=self._until_closed, args=(carry,)) for carry in (joint.carry_out, joint.carry_in)
        ]
        for thread in self.threads:
            thread.start()

    def _until_closed(self, carry: Callable[[], None]) -> None:
        with suppress(OSError, ValueError):  # what a closed socket and a closed file say
            carry()

    def close(self) -> None:
        """End both threads before their descriptors belong to other files."""
        self.port.shutdown(socket.SHUT_RDWR)
        self.listener.shutdown(socket.SHUT_RDWR)
        self.file.close()
        for thread in self.threads:
            thread.join()

    def guest(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(10)
        sock.connect(str(self.path))
        return sock


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with ExitStack() as stack:
        bench = Bench(tmp_path / "agent.sock", stack)
        bench.host.settimeout(10)
        yield bench
        bench.close()


def test_both_directions(bench: Bench) -> None:
    with bench.guest() as guest:
        guest.sendall(b"ready\n")
        assert bench.host.recv(100) == b"ready\n"
        bench.host.sendall(b"request\n")
        assert guest.recv(100) == b"request\n"


def test_a_guest_that_boots_again_takes_the_place_of_the_one_before(bench: Bench) -> None:
    for number in range(3):
        with bench.guest() as guest:
            guest.sendall(b"%d" % number)
            assert bench.host.recv(100) == b"%d" % number
            bench.host.sendall(b"to %d" % number)
            assert guest.recv(100) == b"to %d" % number


def test_much_is_carried_whole(bench: Bench) -> None:
    data = os.urandom(1 << 20)
    with bench.guest() as guest:
        sender = threading.Thread(target=guest.sendall, args=(data,))
        sender.start()
        received = b""
        while len(received) < len(data):
            received += bench.host.recv(65536)
        sender.join()
    assert received == data
