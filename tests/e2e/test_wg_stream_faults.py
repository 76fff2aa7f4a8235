"""What broke the paper's program does not break `wgvsock device`: one test per defect."""

from __future__ import annotations

import errno
import os
import signal
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.deadline import Deadline, patiently
from lab.netns import namespaces
from lab.process import LocalProcess
from tests.e2e.wg.keys import identity
from tests.e2e.wg.machines import DEVICE, Machine, machines, require, wgvsock

PORT = 51820
NAMES = ("left", "right", "third")
KEYS = {name: identity(name) for name in NAMES}


@pytest.fixture
def cable(tmp_path: Path) -> Iterator[list[Machine]]:
    require("wg", "ping")
    with machines(tmp_path, *NAMES) as made:
        yield made


def start(machine: Machine, *, open_files: int | None = None) -> LocalProcess:
    """A device of wgvsock on TCP, without peers."""
    if open_files is None:
        device = wgvsock("tcp").start(machine, "wga", level="info")
    else:
        command = f"ulimit -n {open_files}; exec {DEVICE} -f -n tcp wga"
        device = machine.start("sh", "-c", command, name="poor", environment={"LOG_LEVEL": "info"})
        patiently(10).poll(lambda: machine.wg("show", "wga", check=False), "wg to be answered")
    file = machine.directory / "key"
    file.write_text(KEYS[machine.name].private)
    machine.wg("set", "wga", "private-key", file, "listen-port", str(PORT))
    machine.run("ip", "addr", "add", f"{machine.inner}/24", "dev", "wga")
    machine.run("ip", "link", "set", "wga", "up")
    return device


def add_peer(machine: Machine, other: Machine, *, endpoint: str = "") -> None:
    to = ["endpoint", endpoint] if endpoint else []
    machine.wg("set", "wga", "peer", KEYS[other.name].public, "allowed-ips", f"{other.inner}/32", *to)


def listen(machine: Machine) -> socket.socket:
    return namespaces.inside(machine.namespace, lambda: socket.create_server((machine.address, PORT)))


def connect(machine: Machine, to: Machine) -> socket.socket:
    return namespaces.inside(machine.namespace, lambda: socket.create_connection((to.address, PORT), timeout=5))


def processor_time(process: LocalProcess) -> float:
    """Seconds."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def descriptors(process: LocalProcess) -> int:
    return len(list(Path(f"/proc/{process.pid}/fd").iterdir()))


def test_a_listener_that_accepts_and_closes_makes_no_hot_loop(cable: list[Machine]) -> None:
    """It reset its back-off on connect, and dialled 16,492 times in 2 s."""
    left, right, _ = cable
    start(left)
    with listen(right) as server:
        server.settimeout(0.1)
        add_peer(left, right, endpoint=f"{right.address}:{PORT}")
        accepted = 0
        deadline = Deadline(4)
        while not deadline.expired:
            try:
                server.accept()[0].close()
            except TimeoutError:
                continue
            accepted += 1
    assert 2 <= accepted <= 4  # at 0, 0.5, 1.5 and 3.5 s, and later by the jitter


def test_dead_streams_are_freed(cable: list[Machine]) -> None:
    """It kept a descriptor and two goroutines of every stream that had ended."""
    left, right, _ = cable
    device = start(left)
    add_peer(left, right)
    connect(right, left).close()
    patiently(5).poll(lambda: device.output().count("closed") >= 1, "the first one to be closed")
    before = descriptors(device)
    for number in range(150):
        with connect(right, left) as stream:
            stream.sendall(b"\x94\x00" * (number % 3))  # nothing, half a header, a whole header of nothing that follows
    patiently(10).poll(lambda: descriptors(device) <= before, "the descriptors to be freed")


def test_one_stalled_peer_blocks_nobody(cable: list[Machine]) -> None:
    """It wrote to every stream under one lock."""
    left, right, third = cable
    start(left)
    start(right)
    stalled = start(third)
    for other in (right, third):
        add_peer(other, left)
        add_peer(left, other, endpoint=f"{other.address}:{PORT}")
        patiently(10).poll(lambda other=other: left.reaches(other.inner), "a ping")  # type: ignore[misc]
    os.kill(stalled.pid, signal.SIGSTOP)
    flood = namespaces.inside(left.namespace, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    pings = left.pinging(right.inner)
    with flood:
        while pings.last < 80:
            for _ in range(20):
                flood.sendto(bytes(1300), (third.inner, 9))
            time.sleep(
                0.005
            )  # 4,000 packets a second: more than the stalled stream takes, less than the interface does
    assert pings.lost() == []
    assert not left.reaches(third.inner)
    os.kill(stalled.pid, signal.SIGCONT)
    patiently(30).poll(lambda: left.reaches(third.inner), "the stalled peer to be back")


def test_an_endpoint_without_a_colon_is_an_error(cable: list[Machine]) -> None:
    """It indexed past the end of the split text."""
    left, right, _ = cable
    start(left)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(left.socket("wga")))
        key = KEYS[right.name].public_bytes.hex()
        client.sendall(f"set=1\npublic_key={key}\nendpoint=51820\n\n".encode())
        assert client.recv(100) == b"errno=-22\n\n"
    assert left.wg("show", "wga", "peers") == ""


def test_a_lack_of_descriptors_is_waited_out(cable: list[Machine]) -> None:
    """Its acceptor ended for good at the first error."""
    left, right, _ = cable
    device = start(left, open_files=24)
    add_peer(left, right)
    streams = [connect(right, left) for _ in range(30)]  # the kernel's backlog takes those that are not accepted
    device.wait_for_line(os.strerror(errno.EMFILE), patiently(10))
    before = processor_time(device)
    time.sleep(1)
    assert processor_time(device) - before < 0.5  # it looks away from the listener
    for stream in streams:
        stream.close()
    start(right)
    add_peer(right, left, endpoint=f"{left.address}:{PORT}")
    patiently(20).poll(lambda: right.reaches(left.inner), "a ping once there are descriptors again")


@pytest.mark.parametrize("length", [0, 65_531, 65_535])
def test_a_frame_of_a_wrong_length_ends_its_stream(cable: list[Machine], length: int) -> None:
    left, right, _ = cable
    device = start(left)
    add_peer(left, right)
    with connect(right, left) as stream:
        stream.sendall(struct.pack("<HI", length, zlib.crc32(b"")) + bytes(100))
        assert stream.recv(1) == b""
    before = processor_time(device)
    time.sleep(0.5)
    assert processor_time(device) - before < 0.25


def test_a_message_that_no_frame_can_carry_is_dropped(cable: list[Machine]) -> None:
    """A 65,531-byte message made it close and dial its stream again and again."""
    left, right, _ = cable
    device = start(left)
    start(right)
    add_peer(right, left)
    add_peer(left, right, endpoint=f"{right.address}:{PORT}")
    for machine in (left, right):
        machine.run("ip", "link", "set", "wga", "mtu", "65535")
    patiently(10).poll(lambda: left.reaches(right.inner), "a ping")
    fits = 65_530 // 16 * 16 - 32 - 28  # payload of the largest ping: frame less WireGuard, IP and ICMP headers
    assert "1 received" in left.run("ping", "-n", "-c", "1", "-W", "2", "-s", str(fits), right.inner)
    assert "0 received" in left.run("ping", "-n", "-c", "1", "-W", "1", "-s", str(fits + 1), right.inner, check=False)
    assert left.reaches(right.inner)
    assert device.output().count("connected") == 1
    assert "Traceback" not in device.output()


def test_a_damaged_frame_ends_its_stream_and_the_tunnel_goes_on(cable: list[Machine]) -> None:
    left, right, _ = cable
    start(left)
    add_peer(left, right)
    with connect(right, left) as stream:
        stream.sendall(struct.pack("<HI", 148, 12345) + bytes(148))
        assert stream.recv(1) == b""
    start(right)
    add_peer(right, left, endpoint=f"{left.address}:{PORT}")
    patiently(10).poll(lambda: right.reaches(left.inner), "a ping")
