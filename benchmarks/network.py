"""Network namespaces for the contestants: one external host, and an enclave and a relay for each contestant.

    enclave ──(the contestant's tunnel)── relay ──veth, NAT── external

Every contestant has its own lane, so that all are ready at the same time and rounds can be interleaved. Lanes share the
external host. The namespace in which the benchmark was started stays untouched.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab.netns import namespaces

UPLINK_MTU: Final = 1500
ENCLAVE_ADDRESS: Final = "10.73.0.2"
RELAY_ADDRESS: Final = "10.73.0.1"

PUBLISHED_PORT: Final = 9000
"""TCP port of the relay that leads to the enclave's port of the same number."""

NAT_RULES: Final = f"""
table ip benchmark {{
    chain prerouting {{
        type nat hook prerouting priority -100
        iifname "eth0" tcp dport {PUBLISHED_PORT} dnat to {ENCLAVE_ADDRESS}
    }}
    chain postrouting {{
        type nat hook postrouting priority 100
        oifname "eth0" masquerade
    }}
}}
"""


def run(*command: str, text_input: str | None = None) -> str:
    """Run a command to its end, and return its standard output.

    Raises:
        RuntimeError: It failed. The message has its standard error.
    """
    done = subprocess.run(command, input=text_input, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace, identified by its name."""

    name: str

    def command(self, *command: str) -> tuple[str, ...]:
        """Return the command, wrapped to run inside the namespace."""
        return (*namespaces.enter(self.name), *command)

    def run(self, *command: str, text_input: str | None = None) -> str:
        """Run a command inside. See `run`."""
        return run(*self.command(*command), text_input=text_input)

    def ip(self, *arguments: str) -> None:
        """Run ``ip`` for this namespace."""
        run(*namespaces.own_root(), "ip", "-n", self.name, *arguments)

    def start(self, command: Sequence[str], *, log: Path | None = None) -> subprocess.Popen[str]:
        """Start a long-running process inside. Its standard output is a pipe, or goes to the log with its errors."""
        with contextlib.ExitStack() as stack:
            stream = stack.enter_context(log.open("w")) if log else subprocess.PIPE
            return subprocess.Popen(
                self.command(*command),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT if log else subprocess.DEVNULL,
                text=True,
            )


@dataclass(frozen=True, slots=True)
class Lane:
    """One contestant's part of the network.

    Attributes:
        enclave: Namespace with no interface except the contestant's.
        relay: Namespace with ``eth0`` towards the external host, which forwards and masquerades.
        external: Namespace shared by all lanes.
        relay_address: The relay's address on this lane, for the external host.
        external_address: The external host's address on this lane.
        scratch: Folder for sockets and logs.
        mtu: MTU of the uplink, in bytes.
    """

    enclave: Namespace
    relay: Namespace
    external: Namespace
    relay_address: str
    external_address: str
    scratch: Path
    mtu: int = UPLINK_MTU

    def cable(self, enclave_address: str, relay_address: str, prefix: int) -> None:
        """Create a veth pair ``cable0`` between enclave and relay, for contestants that need an underlying network."""
        self.relay.ip("link", "add", "cable0", "type", "veth", "peer", "name", "cable0", "netns", self.enclave.name)
        for namespace, address in ((self.enclave, enclave_address), (self.relay, relay_address)):
            namespace.ip("address", "add", f"{address}/{prefix}", "dev", "cable0")
            namespace.ip("link", "set", "cable0", "mtu", str(self.mtu), "up")

    def configure_tunnel(self, interface: str, *, mtu: int, queue_length: int | None = None) -> None:
        """Configure addresses and the enclave's default route for a tunnel interface that exists at both ends."""
        queue = () if queue_length is None else ("txqueuelen", str(queue_length))
        for namespace, address in ((self.enclave, ENCLAVE_ADDRESS), (self.relay, RELAY_ADDRESS)):
            namespace.ip("address", "add", f"{address}/24", "dev", interface)
            namespace.ip("link", "set", interface, "mtu", str(mtu), *queue, "up")
        self.enclave.ip("route", "add", "default", "via", RELAY_ADDRESS)


class Network:
    """Builds lanes, and removes everything when its context ends.

    Args:
        scratch: Folder for sockets and logs.
    """

    def __init__(self, scratch: Path) -> None:
        self._prefix = f"wgvbench{os.getpid()}"
        self._scratch = scratch
        self._namespaces: list[Namespace] = []
        self._lanes = 0
        self.external = self._namespace("external")

    def lane(self, name: str, mtu: int = UPLINK_MTU) -> Lane:
        """Return another lane, whose uplink has this MTU in bytes."""
        self._lanes += 1
        enclave, relay = self._namespace(f"{name}-enclave"), self._namespace(f"{name}-relay")
        base = 4 * self._lanes
        relay_address, external_address = f"192.0.2.{base + 1}", f"192.0.2.{base + 2}"
        uplink = f"lane{self._lanes}"
        relay.ip("link", "add", "eth0", "type", "veth", "peer", "name", uplink, "netns", self.external.name)
        relay.ip("address", "add", f"{relay_address}/30", "dev", "eth0")
        relay.ip("link", "set", "eth0", "mtu", str(mtu), "up")
        self.external.ip("address", "add", f"{external_address}/30", "dev", uplink)
        self.external.ip("link", "set", uplink, "mtu", str(mtu), "up")
        relay.ip("route", "add", "default", "via", external_address)
        relay.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        relay.run("nft", "-f", "-", text_input=NAT_RULES)
        scratch = self._scratch / name
        scratch.mkdir()
        return Lane(enclave, relay, self.external, relay_address, external_address, scratch, mtu)

    def close(self) -> None:
        """Remove every namespace, and with it all interfaces and rules."""
        while self._namespaces:
            with contextlib.suppress(RuntimeError):
                run("ip", "netns", "delete", self._namespaces.pop().name)

    def _namespace(self, name: str) -> Namespace:
        namespace = Namespace(f"{self._prefix}-{name}")
        run("ip", "netns", "add", namespace.name)
        self._namespaces.append(namespace)
        namespace.ip("link", "set", "lo", "up")
        return namespace


@contextlib.contextmanager
def network(scratch: Path) -> Iterator[Network]:
    """Provide a network that is removed when the context ends."""
    built = Network(scratch)
    try:
        yield built
    finally:
        built.close()


def unwind_on_sigterm() -> None:
    """Make SIGTERM raise SystemExit, so that no namespace or process is left behind."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
