"""The contestants: each brings one lane up and tells which processes its packets cost."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.network import UPLINK_MTU, Lane, Namespace
from wgvsock.wireguard.primitives import generate_private_key, public_key

START_TIMEOUT: Final = 15.0
"""Seconds until a contestant's interface or socket is there."""

INTEROPERABLE_MTU: Final = 1420
"""What an IP packet may have in a WireGuard over UDP over 1500 bytes: every other implementation's default."""

_SETTLE: Final = 0.05


class UnavailableError(Exception):
    """The contestant cannot run here; the message says why."""


@dataclass
class System:
    """A contestant.

    Attributes:
        name: What reports call it.
        start: Brings its lane up and returns the processes to charge for its packets.
        encrypts: Whether it protects what it carries.
    """

    name: str
    start: Callable[[Lane], list[subprocess.Popen[str]]]
    encrypts: bool = True
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def bring_up(self, lane: Lane) -> None:
        """Start it on its lane.

        Raises:
            UnavailableError: It does not run here.
        """
        try:
            self.processes = self.start(lane)
        except (OSError, RuntimeError) as error:
            raise UnavailableError(str(error)) from None

    def pids(self) -> list[int]:
        """The processes to charge: ``ip netns exec`` becomes the command it runs."""
        return [process.pid for process in self.processes]

    def stop(self) -> None:
        """End its processes."""
        _end(self.processes)


def wgvsock(name: str, profile: str, *, mtu: int, queue_length: int | None = None) -> System:
    """Ours, with one profile, over a Unix stream as stand-in for vsock."""

    def start(lane: Lane) -> list[subprocess.Popen[str]]:
        stream = f"unix:{lane.scratch}/stream"
        endpoint = (sys.executable, "-m", "benchmarks.endpoint")
        options = ("--profile", profile)
        listening = lane.enclave.start((*endpoint, "enclave", "--listen", stream, *options))
        _expect_line(listening, "ready")
        dialling = lane.relay.start((*endpoint, "relay", "--dial", stream, *options))
        _expect_line(dialling, "ready")
        _expect_line(dialling, "up")
        lane.configure_tunnel("wg0", mtu=mtu, queue_length=queue_length)
        return [listening, dialling]

    return System(name, start)


def wireguard_go(name: str, program: Path) -> System:
    """Anything that speaks wireguard-go's command line and control socket, over UDP, or over TCP if it has ``-n``."""

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
    """Start one end; ``-n tcp`` first, which Debian's wireguard-go answers with its usage and exit code 1.

    Asking with ``--help`` is no way: wireguard-go would make an interface of that name.
    """
    for options in (("-n", "tcp"), ()):
        process = namespace.start((str(program), *options, "-f", interface), log=log)
        deadline = time.monotonic() + START_TIMEOUT
        while process.poll() is None and time.monotonic() < deadline:
            if Path(f"/var/run/wireguard/{interface}.sock").exists():
                return process
            time.sleep(_SETTLE)
        _end([process])
    last = (log.read_text().strip().splitlines() or ["no message"])[-1]
    raise RuntimeError(f"it did not come up: {last}")


def slirp4netns(program: Path) -> System:
    """User-mode TCP/IP without encryption, as rootless containers use it."""

    def start(lane: Lane) -> list[subprocess.Popen[str]]:
        target = f"/run/netns/{lane.enclave.name}"
        command = (str(program), "--configure", f"--mtu={UPLINK_MTU}", "--netns-type=path", target, "tap0")
        process = lane.relay.start(command, log=lane.scratch / "log")
        _await(lambda: _has_default_route(lane.enclave), process, lane.scratch / "log")
        return [process]

    return System("slirp4netns", start, encrypts=False)


def pasta(program: Path) -> System:
    """Socket splicing without encryption, as Podman uses it."""

    def start(lane: Lane) -> list[subprocess.Popen[str]]:
        target = f"/run/netns/{lane.enclave.name}"
        command = (str(program), "--foreground", "--config-net", "--quiet", "--mtu", str(UPLINK_MTU), "--netns", target)
        process = lane.relay.start(command, log=lane.scratch / "log")
        _await(lambda: _has_default_route(lane.enclave), process, lane.scratch / "log")
        return [process]

    return System("pasta", start, encrypts=False)


def gvproxy(program: Path, forwarder: Path) -> System:
    """The network stack of gVisor without encryption, as podman machine and nitriding use it."""

    def start(lane: Lane) -> list[subprocess.Popen[str]]:
        stream = f"unix://{lane.scratch}/stream"
        proxy = lane.relay.start((str(program), "-mtu", str(UPLINK_MTU), "-listen", stream, "-ssh-port", "-1"))
        _await((lane.scratch / "stream").exists, proxy, None)
        tap = lane.enclave.start((str(forwarder), "-url", f"{stream}/connect", "-iface", "tap0"))
        lane.enclave.ip("link", "set", "lo", "up")
        _await(lambda: "tap0" in lane.enclave.run("ip", "-br", "link"), tap, None)
        lane.enclave.ip("address", "replace", "192.168.127.3/24", "dev", "tap0")
        lane.enclave.ip("link", "set", "tap0", "up")
        lane.enclave.ip("route", "replace", "default", "via", "192.168.127.1")
        return [proxy, tap]

    return System("gvproxy", start, encrypts=False)


def no_tunnel() -> System:
    """A cable and NAT: what the machine itself can do."""

    def start(lane: Lane) -> list[subprocess.Popen[str]]:
        lane.cable("10.73.0.2", "10.73.0.1", 24)
        lane.enclave.ip("route", "add", "default", "via", "10.73.0.1")
        return []

    return System("no tunnel", start, encrypts=False)


def proxies() -> tuple[list[System], dict[str, str]]:
    """The unencrypted user-space proxies that are installed, and why the others are left out."""
    found, skipped = [], {}
    makers = {"slirp4netns": slirp4netns, "pasta": pasta}
    for name, make in makers.items():
        program = shutil.which(name)
        if program:
            found.append(make(Path(program)))
        else:
            skipped[name] = "not installed"
    program, forwarder = shutil.which("gvproxy"), shutil.which("gvforwarder")
    if program and forwarder:
        found.append(gvproxy(Path(program), Path(forwarder)))
    else:
        skipped["gvproxy"] = "gvproxy and gvforwarder are not both installed"
    return found, skipped


def _control(interface: str, private_key: bytes, peer: bytes, remote: str) -> None:
    """Configure one end over the cross-platform control socket (wireguard.com/xplatform)."""
    path = f"/var/run/wireguard/{interface}.sock"
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
    """Stop processes, by force if they do not heed."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _expect_line(process: subprocess.Popen[str], expected: str) -> None:
    line = process.stdout.readline().strip() if process.stdout else ""
    if line != expected:
        process.kill()
        raise RuntimeError(f"expected {expected!r} of {' '.join(map(str, _arguments(process)))}, got {line!r}")


def _arguments(process: subprocess.Popen[str]) -> Sequence[object]:
    return process.args if isinstance(process.args, list | tuple) else (process.args,)


def _has_default_route(namespace: Namespace) -> bool:
    return bool(namespace.run("ip", "route", "show", "default").strip())


def _await(condition: Callable[[], bool], process: subprocess.Popen[str], log: Path | None) -> None:
    """Wait for a condition while the process lives."""
    deadline = time.monotonic() + START_TIMEOUT
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            last = (log.read_text().strip().splitlines() or [""])[-1] if log else ""
            raise RuntimeError(f"it did not come up: {last}")
        time.sleep(_SETTLE)
