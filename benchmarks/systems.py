"""The contestants: each brings one lane up and names the processes that carry its packets."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.network import ENCLAVE_ADDRESS, RELAY_ADDRESS, UPLINK_MTU, Lane, Namespace
from wgvsock.relay.uplink.userspace import TUNNEL_MTU
from wgvsock.uapi.server import socket_path
from wgvsock.wireguard.primitives import generate_private_key, public_key

START_TIMEOUT: Final = 15.0
"""Seconds to wait for a contestant's interface or socket."""

INTEROPERABLE_MTU: Final = 1420
"""Bytes of an IP packet in WireGuard over UDP over 1500 bytes: every other implementation's default."""

_SETTLE: Final = 0.05


class UnavailableError(Exception):
    """The contestant cannot run here. The message says why."""


@dataclass
class System:
    """A contestant.

    Attributes:
        name: Its name in reports.
        start: Brings its lane up and returns the processes whose processor time counts.
        encrypts: Whether it encrypts what it carries.
        tcp_only: Whether it carries streams instead of packets, with a process for each: only rates can be measured.
        mtu: MTU of its uplink, in bytes.
        children: Child processes of those, whose processor time counts as well.
    """

    name: str
    start: Callable[[Lane], list[subprocess.Popen[str]]]
    encrypts: bool = True
    tcp_only: bool = False
    mtu: int = UPLINK_MTU
    processes: list[subprocess.Popen[str]] = field(default_factory=list)
    children: list[int] = field(default_factory=list)

    def bring_up(self, lane: Lane) -> None:
        """Start it on its lane.

        Raises:
            UnavailableError: It cannot run here.
        """
        try:
            self.processes = self.start(lane)
        except (OSError, RuntimeError) as error:
            raise UnavailableError(str(error)) from None

    def pids(self) -> list[int]:
        """Return the processes whose time counts. ``ip netns exec`` becomes the command that it runs."""
        return [] if self.tcp_only else [*(process.pid for process in self.processes), *self.children]

    def own(self, values: dict[str, float]) -> dict[str, float]:
        """Return the values that apply to this contestant: without packets a ping never leaves the enclave."""
        return {metric: value for metric, value in values.items() if not (self.tcp_only and metric.endswith("ping_ms"))}

    def stop(self) -> None:
        """End its processes."""
        _end(self.processes)


def wgvsock(
    name: str,
    profile: str,
    *,
    mtu: int,
    options: Sequence[str] = (),
    queue_length: int | None = None,
    build: Path | None = None,
) -> System:
    """Return wgvsock over a Unix stream, which stands in for vsock.

    Args:
        name: Its name in reports.
        profile: Profile for `benchmarks.endpoint`.
        mtu: MTU of the tunnel, in bytes.
        options: Further options for `benchmarks.endpoint`.
        queue_length: Queue length of the interface in packets. None: the kernel's default.
        build: Folder of a build of the package that replaces the checkout's.
    """
    options = ("--profile", profile, *options)

    def start(lane: Lane) -> list[subprocess.Popen[str]]:
        stream = f"unix:{lane.scratch}/stream"
        endpoint: tuple[str, ...] = (sys.executable, "-m", "benchmarks.endpoint")
        if build is not None:  # -P: the checkout in the working directory comes second
            endpoint = ("env", f"PYTHONPATH={build.absolute()}:{Path.cwd()}", sys.executable, "-P", *endpoint[1:])
        listening = lane.enclave.start((*endpoint, "enclave", "--listen", stream, *options))
        expect_line(listening, "ready")
        dialling = lane.relay.start((*endpoint, "relay", "--dial", stream, *options))
        expect_line(dialling, "ready")
        expect_line(dialling, "up")
        lane.configure_tunnel("wg0", mtu=mtu, queue_length=queue_length)
        return [listening, dialling]

    return System(name, start, mtu=max(mtu, UPLINK_MTU))


def userspace(name: str, profile: str = "plain") -> System:
    """Return wgvsock with a relay without NET_ADMIN: the same tunnel ends in the engine with libslirp."""

    def start(lane: Lane) -> list[subprocess.Popen[str]]:
        stream = f"unix:{lane.scratch}/stream"
        endpoint = (sys.executable, "-m", "benchmarks.endpoint")
        lane.relay.run("sysctl", "-qw", "net.ipv4.ping_group_range=0 2147483647")  # as container runtimes set it
        listening = lane.enclave.start((*endpoint, "enclave", "--listen", stream, "--profile", profile))
        expect_line(listening, "ready")
        dialling = lane.relay.start((*endpoint, "relay", "--dial", stream, "--userspace", "--profile", profile))
        system.children = [int(expect_line(dialling, "engine").split()[1])]
        expect_line(dialling, "ready")
        expect_line(dialling, "up")
        lane.enclave.ip("address", "add", f"{ENCLAVE_ADDRESS}/24", "dev", "wg0")
        lane.enclave.ip("link", "set", "wg0", "mtu", str(TUNNEL_MTU), "up")
        lane.enclave.ip("route", "add", "default", "via", RELAY_ADDRESS)
        return [listening, dialling]

    system = System(name, start)
    return system


def wireguard_go(name: str, program: Path) -> System:
    """Return a program with wireguard-go's command line and control socket, over UDP, or over TCP if it has ``-n``."""

    def start(lane: Lane) -> list[subprocess.Popen[str]]:
        lane.cable("198.51.100.2", "198.51.100.1", 30)
        interface = f"wgb{secrets.token_hex(4)}"  # the control sockets of all namespaces share one folder
        keys = [generate_private_key(os.urandom) for _ in range(2)]
        processes: list[subprocess.Popen[str]] = []
        ends = ((lane.enclave, "e", "198.51.100.1"), (lane.relay, "r", "198.51.100.2"))
        try:
            for index, (namespace, letter, remote) in enumerate(ends):
                processes.append(_start_implementation(program, namespace, interface + letter, lane.scratch / letter))
                _control(interface + letter, keys[index], public_key(keys[1 - index]), remote)
                namespace.ip("link", "set", interface + letter, "name", "wg0")
            lane.configure_tunnel("wg0", mtu=INTEROPERABLE_MTU)
        except BaseException:
            _end(processes)
            raise
        return processes

    return System(name, start)


def _start_implementation(program: Path, namespace: Namespace, interface: str, log: Path) -> subprocess.Popen[str]:
    """Start one end. ``-n tcp`` is tried first: Debian's wireguard-go prints its usage and exits with 1.

    ``--help`` cannot be used to find out, because wireguard-go would create an interface of that name.
    """
    for options in (("-n", "tcp"), ()):
        process = namespace.start((str(program), *options, "-f", interface), log=log)
        deadline = time.monotonic() + START_TIMEOUT
        while process.poll() is None and time.monotonic() < deadline:
            if socket_path(interface).exists():
                return process
            time.sleep(_SETTLE)
        _end([process])
    last = (log.read_text().strip().splitlines() or ["no message"])[-1]
    raise RuntimeError(f"it did not come up: {last}")


def no_tunnel() -> System:
    """Return a veth pair with NAT: the limit of the machine itself."""

    def start(lane: Lane) -> list[subprocess.Popen[str]]:
        lane.cable("10.73.0.2", "10.73.0.1", 24)
        lane.enclave.ip("route", "add", "default", "via", "10.73.0.1")
        return []

    return System("no tunnel", start, encrypts=False)


def _control(interface: str, private_key: bytes, peer: bytes, remote: str) -> None:
    """Configure one end over the cross-platform control socket (wireguard.com/xplatform)."""
    path = str(socket_path(interface))
    request = (
        f"set=1\nprivate_key={private_key.hex()}\nlisten_port=51820\npublic_key={peer.hex()}\n"
        f"endpoint={remote}:51820\nallowed_ip=0.0.0.0/0\n\n"
    )
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            with socket.socket(socket.AF_UNIX) as control:
                control.connect(path)
                control.sendall(request.encode())
                answer = control.recv(64)
            break
        except (FileNotFoundError, ConnectionRefusedError):
            if time.monotonic() > deadline:
                raise
            time.sleep(_SETTLE)
    if answer != b"errno=0\n\n":
        raise RuntimeError(f"{interface} refused its configuration: {answer.decode().strip()}")


def _end(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Stop processes, by SIGKILL if necessary."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def expect_line(process: subprocess.Popen[str], expected: str) -> str:
    """Read the first line of a process's output, whose first word has to be `expected`.

    Raises:
        RuntimeError: The word differs, or there is no line. The process is ended.
    """
    line = process.stdout.readline().strip() if process.stdout else ""
    if line.split()[:1] != [expected]:
        process.kill()
        raise RuntimeError(f"expected {expected!r} of {' '.join(map(str, _arguments(process)))}, got {line!r}")
    return line


def _arguments(process: subprocess.Popen[str]) -> Sequence[object]:
    return process.args if isinstance(process.args, list | tuple) else (process.args,)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], log: Path | None) -> None:
    """Wait for a condition while the process lives."""
    deadline = time.monotonic() + START_TIMEOUT
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            last = (log.read_text().strip().splitlines() or [""])[-1] if log else ""
            raise RuntimeError(f"it did not come up: {last}")
        time.sleep(_SETTLE)
