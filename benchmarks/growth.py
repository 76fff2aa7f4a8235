"""What grows, and how: ``make bench ARGS=--growth``. Nothing here uses the kernel's network.

Each series has a number that grows by powers of ten, and its cost. Microseconds are processor time of one thread, the
fastest of some repetitions: slower ones include other work on this machine.
"""

from __future__ import annotations

import gc
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, ip_network
from typing import Any, Final

from benchmarks import growth_status
from benchmarks.series import Series, fastest, series
from wgvsock.addresses import IpNetwork
from wgvsock.runtime import memory
from wgvsock.telemetry.schema import SCHEMA
from wgvsock.wireguard import AllowedIps, Device, Peer, open_into, peer_for_packet, seal_into
from wgvsock.wireguard.primitives import public_key

PEERS: Final = (1, 10, 100, 1_000, 10_000)
NETWORKS: Final = (10, 100, 1_000, 10_000, 100_000)

_PACKETS: Final = 4_000
_KEY: Final = bytes(31) + b"\x40"
_TIMERS_APART: Final = 60.0
"""Seconds after which every peer's keepalive is due, whatever its interval."""


def address_of(number: int) -> IPv4Address:
    """Return the distinct address of a peer or of a network's host."""
    return IPv4Address(0x0A00_0000 + number)


def key_of(number: int) -> bytes:
    """Return a public key for a peer that makes no handshake."""
    return number.to_bytes(4, "little") + bytes([9]) * 28


def device_with(peers: int) -> Device:
    """Return a device with this many peers, each with its own address and a keepalive."""
    device = Device(random=os.urandom, wall_clock=time.time_ns)
    device.set_private_key(_KEY, 0.0)
    for number in range(peers):
        device.add_peer(
            key_of(number),
            allowed_ips=[ip_network(f"{address_of(number)}/32")],
            endpoint=number,
            persistent_keepalive=25,
            now=0.0,
        )
    return device


def packet_to(number: int, size: int = 64) -> memoryview:
    """Return an IPv4 packet to a peer, followed by space for its padding."""
    header = bytes([0x45, 0]) + size.to_bytes(2, "big") + bytes(12) + address_of(number).packed
    return memoryview(bytearray(header + bytes(size - 20 + 16)))


def peers() -> list[Series]:
    """Measure a packet's path through a device, and the cost of silent peers."""
    costs = {
        "routing a packet, µs": _routing,
        "sealing and opening it, µs": _pass,
        "adding one, µs": _adding,
        "the timers of one that is due, µs": _timers,
        "memory of one, KiB": lambda count: _kibibytes(lambda: device_with(count)) / count,
    }
    return [series(f"peers: {name}", PEERS, cost) for name, cost in costs.items()]


def networks() -> list[Series]:
    """Measure cryptokey routing with many allowed IPs, for cached and for uncached addresses."""
    costs = {
        "an address in use, µs": lambda count: _looking_up(count, 64),
        "an address for the first time, µs": lambda count: _looking_up(count, _PACKETS),
        "adding one, µs": _inserting,
        "memory of one, KiB": lambda count: _kibibytes(lambda: table_of(count)) / count,
    }
    return [series(f"allowed IPs: {name}", NETWORKS, cost) for name, cost in costs.items()]


def _kibibytes(make: Callable[[], object]) -> float:
    """Return the memory that a new object keeps, in KiB."""
    gc.collect()
    tracemalloc.start()
    made = make()
    gc.collect()
    kept = tracemalloc.get_traced_memory()[0] / 1024
    tracemalloc.stop()
    del made
    return kept


def _adding(count: int) -> float:
    started = time.process_time()
    device_with(count)
    return (time.process_time() - started) / count * 1e6


def _routing(count: int) -> float:
    device = device_with(count)
    packets = [packet_to(number * 7919 % count) for number in range(_PACKETS)]
    return fastest(lambda: [peer_for_packet(device, packet) for packet in packets], _PACKETS)


def _pass(count: int) -> float:
    """Measure sealing for one peer among many, and opening at the far end, which has as many."""
    _sender, receiver, peer = _session(count)
    out, plain = memoryview(bytearray(256)), memoryview(bytearray(256))
    packet = packet_to(0)

    def step() -> None:
        for _ in range(_PACKETS):
            length = seal_into(peer, packet, 64, out, 1.0)
            if not open_into(receiver, out[:length], "peer", plain, 1.0):
                raise RuntimeError("a packet was refused")

    return fastest(step, _PACKETS)


def _session(count: int) -> tuple[Device, Device, Peer]:
    """Return two devices with a session, each with this many other peers."""
    private = bytes(30) + b"\x01\x40"
    devices = device_with(count), device_with(count)
    devices[1].set_private_key(private, 0.0)
    ours = devices[0].add_peer(
        public_key(private), allowed_ips=[ip_network(f"{address_of(0)}/32")], endpoint="peer", now=0.0
    )
    devices[1].add_peer(public_key(_KEY), allowed_ips=[ip_network("0.0.0.0/8")], endpoint="peer", now=0.0)
    ours.initiate_handshake(1.0)
    for here, there in ((0, 1), (1, 0), (0, 1)):
        for _, datagram in devices[here].datagrams_to_send():
            devices[there].receive_datagram(datagram, "peer", 1.0)
    if not ours.has_session(1.0):
        raise RuntimeError("the handshake did not complete")
    return devices[0], devices[1], ours


def _timers(count: int) -> float:
    """Measure the timers when every peer's keepalive is due in turn, including the handshakes that they start."""
    device = device_with(count)
    now = _TIMERS_APART
    started = time.process_time()
    while (deadline := device.next_deadline()) is not None and deadline <= now:
        device.handle_timers(now)
        device.datagrams_to_send()
    return (time.process_time() - started) / count * 1e6


def _looking_up(count: int, different: int) -> float:
    """Measure the look-up of one of `different` addresses in turns, with an empty cache after a change of the table."""
    table = table_of(count)
    addresses = [
        address_of((number * 7919 % 1_000_000) << 4).packed for number in range(different)
    ]  # some have no peer
    asked = addresses * (_PACKETS // different)

    def step() -> None:
        table.remove_owner(-1)  # owns nothing: this only empties the cache
        for address in asked:
            table.lookup(address)

    return fastest(step, len(asked))


def _inserting(count: int) -> float:
    places = [_network(number) for number in range(count)]
    return fastest(lambda: _fill(AllowedIps(), places), count)


def _network(number: int) -> IpNetwork:
    return ip_network(f"{address_of(number << 4)}/{28 + number % 5}")


def table_of(count: int) -> AllowedIps[int]:
    """Return a table of this many networks of five lengths, each with its own owner."""
    table: AllowedIps[int] = AllowedIps()
    _fill(table, map(_network, range(count)))
    return table


def _fill(table: AllowedIps[int], places: Iterable[IpNetwork]) -> None:
    for number, place in enumerate(places):
        table.insert(place, number)


def imports(statement: str, repetitions: int = 9) -> tuple[float, dict[str, float]]:
    """Measure an import by a service: processor time beyond an empty interpreter's, and milliseconds by package.

    From byte code, as in an installed package or an image, independent of this process's environment. The garbage
    collector is off, as in a service, and the interpreter's exit is not counted.
    """
    with tempfile.TemporaryDirectory(prefix="wgvsock-imports-") as cache:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = cache

        def run(code: str, *options: str) -> str:
            command = (sys.executable, *options, "-c", f"import gc, os; gc.disable(); {code}; os._exit(0)")
            return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stderr

        def spent(code: str) -> float:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            run(code)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            return 1e3 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

        run(statement)  # compiles
        empty, whole = (statistics.median(spent(code) for _ in range(repetitions)) for code in ("pass", statement))
        said = run(statement, "-X", "importtime")
    packages: dict[str, float] = {}
    for line in said.splitlines():
        own, _, name = line.removeprefix("import time:").split("|")
        if own.strip().isdigit():
            package = name.strip().partition(".")[0]
            packages[package] = packages.get(package, 0.0) + int(own)
    # The interpreter reports wall-clock time, including other processes' share of the processor. Only ratios count.
    share = (whole - empty) / sum(packages.values())
    return whole - empty, {name: own * share for name, own in sorted(packages.items(), key=lambda one: -one[1])[:8]}


SERVICES: Final = {
    "enclave run": "import wgvsock.cli.entry, wgvsock.cli.enclave, wgvsock.devices.nsm, wgvsock.machine.enclave,"
    " wgvsock.enclave.supervisor",
    "relay run": "import wgvsock.cli.entry, wgvsock.cli.relay, wgvsock.machine.relay, wgvsock.relay.service",
    "device": "import wgvsock.cli.entry, wgvsock.cli.device",
}
"""What each service imports before it runs."""


def run() -> dict[str, Any]:
    """Measure all series and the imports, for `benchmarks.line_chart` and for JSON."""
    memory.settle()  # as a service does after its start: the collector then scans 10,000 peers less often
    return {
        "series": [*peers(), *networks(), *growth_status.flows(), *growth_status.scrapes(device_with(1))],
        "imports": {name: imports(statement) for name, statement in SERVICES.items()},
    }


def as_json(results: dict[str, Any]) -> dict[str, Any]:
    """Return the machine-readable report."""
    told = [
        {"name": one.name, "unit": one.unit, "points": one.points, "exponent": round(one.exponent, 3)}
        for one in results["series"]
    ]
    imports = {
        name: {"cpu_ms": round(cost, 1), "packages_ms": packages}
        for name, (cost, packages) in results["imports"].items()
    }
    return {"schema": SCHEMA, "kind": "growth", "series": told, "imports": imports}


def as_table(results: dict[str, Any]) -> str:
    """Return the report for people: one line per series, with its growth in words."""
    lines = []
    for one in results["series"]:
        points = "  ".join(f"{number:g}: {cost:.3g}" for number, cost in one.points)
        lines.append(f"{one.name}, {one.unit}: {points}  ({one.slope})")
    for name, (milliseconds, packages) in results["imports"].items():
        shown = ", ".join(f"{package} {cost:.0f}" for package, cost in packages.items())
        lines.append(f"imports of {name}: {milliseconds:.0f} ms of processor time ({shown})")
    return "\n".join(lines)
