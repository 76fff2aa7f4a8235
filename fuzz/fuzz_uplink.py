"""For any packets of an enclave, the engine of the user-space uplink survives, and the relay reads only valid reports.

Packets take the same path as in a relay: through the gate, with any virtio-net header that the tunnel lets pass, into
the engine and the real libslirp. All of it runs in a network namespace with only a loopback interface.

    python fuzz/fuzz_uplink.py -max_total_time=60
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import sys
from ipaddress import ip_address
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

with atheris.instrument_imports(include=["wgvsock.uplink", "wgvsock.egress"]):
    from wgvsock.egress.gate import Gate
    from wgvsock.egress.policy import Policy
    from wgvsock.errors import RemoteProtocolError
    from wgvsock.uplink import engine as engines
    from wgvsock.uplink.engine import Engine
    from wgvsock.uplink.orders import Begin, Report, decode_report
    from wgvsock.virtio_net import HEADER_LENGTH, ZERO_HEADER, check_header

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
ENCLAVE = ("198.18.73.3", "fddc:7f99:d74c::3")
GATEWAY = ("198.18.73.2", "fddc:7f99:d74c::2")
HOSTS = [ip_address(host).packed for host in (*GATEWAY, "127.0.0.1", "203.0.113.7", "2001:db8::7", "ff02::1", "::1")]
PORTS = [b"\x00\x35", b"\x00\x50", b"\x00\x00", b"\xff\xff"]


def enter_empty_network() -> None:
    """Enter a network namespace in which packets reach nothing."""
    unshare = ctypes.CDLL(None, use_errno=True).unshare
    flags = _CLONE_NEWNET if os.geteuid() == 0 else _CLONE_NEWNET | _CLONE_NEWUSER
    if unshare(flags):
        sys.exit("this target needs a network namespace: run it as root, or allow user namespaces")


class Bench:
    """One engine. It is replaced now and then, because filled tables would hide the behaviour of empty ones."""

    def __init__(self) -> None:
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.orders, orders = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sockets = (self.ours, theirs, self.orders, orders)
        for sock in self.sockets:
            sock.setblocking(False)
        self.engine = Engine(theirs, orders)
        addresses, gateways = (tuple(map(ip_address, ends)) for ends in (ENCLAVE, GATEWAY))
        self.engine.begin(Begin(addresses, gateways, max_connections=16, dns_port=5353))
        self.engine.listen_to_relay()
        self.gate = Gate(Policy(), lambda _: None, HEADER_LENGTH)
        self.used = 0

    def close(self) -> None:
        """Close the engine and its sockets."""
        self.engine.close()
        for sock in self.sockets:
            sock.close()


def make_packet(data: atheris.FuzzedDataProvider) -> bytes:
    """Return a packet with some well-formed headers in front of arbitrary bytes."""
    host = data.PickValueInList(HOSTS)
    protocol = data.PickValueInList([6, 6, 17, 17, 1, 58, 44, 0, 60])
    ports = data.PickValueInList(PORTS) + data.PickValueInList(PORTS)
    payload = (ports if data.ConsumeBool() else b"") + data.ConsumeBytes(data.ConsumeIntInRange(0, 80))
    length = len(payload) + data.PickValueInList([0, 0, 0, 0, 1, -1])
    if len(host) == 4:
        fragment = data.PickValueInList([0, 0, 0, 0x4000, 0x2000, 1, 0x2001])
        header = bytes([0x45, 0]) + max(0, 20 + length).to_bytes(2, "big") + bytes(2) + fragment.to_bytes(2, "big")
        header += bytes([data.ConsumeIntInRange(0, 64), protocol, 0, 0]) + ip_address(ENCLAVE[0]).packed + host
        total = sum(int.from_bytes(header[at : at + 2], "big") for at in range(0, 20, 2))
        total = (total & 0xFFFF) + (total >> 16)
        return header[:10] + (~total & 0xFFFF).to_bytes(2, "big") + header[12:] + payload
    ends = ip_address(ENCLAVE[1]).packed + host
    return b"\x60\0\0\0" + max(0, length).to_bytes(2, "big") + bytes([protocol, 64]) + ends + payload


_benches: list[Bench] = []


def fuzz(raw: bytes) -> None:
    """Send some packets and one report."""
    data = atheris.FuzzedDataProvider(raw)
    if _benches and _benches[0].used > 2000:
        _benches.pop().close()
    if not _benches:
        _benches.append(Bench())
    bench = _benches[0]
    bench.used += 1
    for now in range(data.ConsumeIntInRange(1, 8)):
        ip = make_packet(data) if data.ConsumeBool() else data.ConsumeBytes(data.ConsumeIntInRange(0, 100))
        start = 20 if ip[:1] == b"\x45" else 40
        offset = data.PickValueInList([6, 16])
        open_checksum = bytes([1, 0, 0, 0, 0, 0]) + start.to_bytes(2, "little") + offset.to_bytes(2, "little")
        packet = memoryview(data.PickValueInList([ZERO_HEADER, open_checksum]) + ip)
        if check_header(packet) is None and bench.gate.passes(packet, now):
            bench.ours.send(packet)
        assert bench.engine.turn(longest=0)
    while True:
        try:
            bench.gate.hears(memoryview(ZERO_HEADER + bench.ours.recv(70_000)), 0)
        except BlockingIOError:
            break
    while True:
        try:
            decode_report(bench.orders.recv(70_000))
        except BlockingIOError:
            break
    with contextlib.suppress(RemoteProtocolError):
        assert isinstance(decode_report(data.ConsumeBytes(200)), Report)


if __name__ == "__main__":
    enter_empty_network()
    engines.sandbox.enter = lambda *_, **__: ()  # type: ignore[assignment]  # the fuzzer writes files
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
