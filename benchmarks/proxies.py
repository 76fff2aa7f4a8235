"""The unencrypted user-space proxies as contestants: the baseline that a user-space tunnel has to beat."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks import peers
from benchmarks.limit.contestants import build
from benchmarks.network import UPLINK_MTU, Lane, Namespace
from benchmarks.systems import System, expect_line, wait_until

IPERF_PORT: Final = 5201


def proxies() -> tuple[list[System], dict[str, str]]:
    """Return the installed proxies, and why the others are skipped."""
    makers: dict[str, Callable[[Path], System]] = {
        "slirp4netns": slirp4netns,
        "pasta": pasta,
        "gvproxy": gvproxy,
        "socat": socat,
    }
    programs = {name: shutil.which(name) for name in makers} | {"gvproxy": peers.gvproxy()}
    found = [makers[name](Path(program)) for name, program in programs.items() if program]
    return found, {name: "not installed" for name, program in programs.items() if not program}


def slirp4netns(program: Path) -> System:
    """User-mode TCP/IP without encryption, as rootless containers use it."""

    def start(lane: Lane) -> list[subprocess.Popen[str]]:
        target = f"/run/netns/{lane.enclave.name}"
        command = (str(program), "--configure", f"--mtu={UPLINK_MTU}", "--netns-type=path", target, "tap0")
        process = lane.relay.start(command, log=lane.scratch / "log")
        wait_until(lambda: _has_default_route(lane.enclave), process, lane.scratch / "log")
        return [process]

    return System("slirp4netns", start, encrypts=False)


def pasta(program: Path) -> System:
    """Socket splicing without encryption, as Podman uses it."""

    def start(lane: Lane) -> list[subprocess.Popen[str]]:
        target = f"/run/netns/{lane.enclave.name}"
        command = (str(program), "--foreground", "--config-net", "--quiet", "--mtu", str(UPLINK_MTU), "--netns", target)
        process = lane.relay.start(command, log=lane.scratch / "log")
        wait_until(lambda: _has_default_route(lane.enclave), process, lane.scratch / "log")
        return [process]

    return System("pasta", start, encrypts=False)


def gvproxy(program: Path) -> System:
    """The network stack of gVisor without encryption, as podman machine and nitriding use it.

    The enclave's end of its stream is the C loop with a TAP, which is cheaper than the program that ships with gvproxy.
    """

    def start(lane: Lane) -> list[subprocess.Popen[str]]:
        stream = lane.scratch / "stream"
        command = (str(program), "-mtu", str(UPLINK_MTU), "-listen-qemu", f"unix://{stream}", "-ssh-port", "-1")
        proxy = lane.relay.start(command, log=lane.scratch / "log")
        wait_until(stream.exists, proxy, lane.scratch / "log")
        tap = lane.enclave.start((str(build(lane.scratch)), "frames", "tap0", "dial", str(stream)))
        expect_line(tap, "ready")
        lane.enclave.ip("address", "replace", "192.168.127.3/24", "dev", "tap0")
        lane.enclave.ip("link", "set", "tap0", "mtu", str(UPLINK_MTU), "up")
        lane.enclave.ip("route", "replace", "default", "via", "192.168.127.1")
        return [proxy, tap]

    return System("gvproxy", start, encrypts=False)


def socat(program: Path) -> System:
    """One stream per connection without cipher and IP, like a vsock proxy: only TCP can be measured.

    It starts a process for each connection, which has ended before its processor time could be read.
    """

    def start(lane: Lane) -> list[subprocess.Popen[str]]:
        stream = f"{lane.scratch}/stream"
        lane.enclave.ip("address", "add", f"{lane.external_address}/32", "dev", "lo")
        ends: list[tuple[Namespace, str, str]] = [
            (lane.relay, f"UNIX-LISTEN:{stream},fork", f"TCP:{lane.external_address}:{IPERF_PORT}"),
            (lane.enclave, f"TCP-LISTEN:{IPERF_PORT},fork,reuseaddr", f"UNIX-CONNECT:{stream}"),
        ]
        return [space.start((str(program), "-b", "65536", source, target)) for space, source, target in ends]

    return System("socat", start, encrypts=False, tcp_only=True)


def _has_default_route(namespace: Namespace) -> bool:
    return bool(namespace.run("ip", "route", "show", "default").strip())
