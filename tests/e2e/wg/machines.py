"""Two machines with a cable between them, and a WireGuard interface of some implementation on each.

::

    left                             right
    192.0.2.1, 2001:db8::1  ────────  192.0.2.2, 2001:db8::2    veth
    10.9.0.1, fd09::1       ════════  10.9.0.2, fd09::2         WireGuard

Every machine is a network namespace with its own ``/run/wireguard``, so that interface names are free to choose and
``wg show`` lists one machine's interfaces. The machines of a test share a ``/run/wgvsock``: Unix streams connect them.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from lab.deadline import Deadline, patiently
from lab.netns import namespaces, privilege
from lab.process import LocalProcess

ROOT: Final = Path(__file__).resolve().parents[3]
DEVICE: Final = Path(sys.executable).with_name("wgvsock-device")
DEVICE_ENTRY: Final = Path(__file__).with_name("device_entry.py")

_ENTER: Final = """
mkdir -p /run/wireguard /run/wgvsock
mount --bind "$0/wireguard" /run/wireguard && mount --bind "$0/../streams" /run/wgvsock && exec "$@"
"""


def require(*tools: str) -> None:
    """Skip the test unless the tools are installed and namespaces can be created."""
    if reason := privilege.unavailable():
        pytest.skip(f"network namespaces cannot be made here: {reason}")
    packages = {"wg": "wireguard-tools", "wg-quick": "wireguard-tools"}
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"missing: {tool} (apt-get install --no-install-recommends {packages.get(tool, tool)})")


@dataclass
class Machine:
    """A network namespace."""

    name: str
    index: int
    directory: Path
    processes: list[LocalProcess] = field(default_factory=list)

    @property
    def namespace(self) -> str:
        return f"wgv-wg-{os.getpid():x}-{self.name}"

    @property
    def address(self) -> str:
        """On the cable."""
        return f"192.0.2.{self.index}"

    @property
    def address6(self) -> str:
        return f"2001:db8::{self.index}"

    @property
    def inner(self) -> str:
        """In the tunnel."""
        return f"10.9.0.{self.index}"

    @property
    def inner6(self) -> str:
        return f"fd09::{self.index}"

    def argv(self, command: Sequence[str | Path]) -> list[str]:
        enter = (*namespaces.enter(self.namespace), "sh", "-c", _ENTER, str(self.directory))
        return [*enter, *map(str, command)]

    def run(
        self, *command: str | Path, stdin: str = "", check: bool = True, environment: Mapping[str, str] | None = None
    ) -> str:
        """Run a command to its end, and return its standard output."""
        done = subprocess.run(
            self.argv(command),
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env={**os.environ, **(environment or {})},
        )
        if check and done.returncode:
            pytest.fail(f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout}{done.stderr}", pytrace=True)
        return done.stdout

    def start(self, *command: str | Path, name: str, environment: Mapping[str, str] | None = None) -> LocalProcess:
        """Run a command until the machine ends."""
        process = LocalProcess.start(
            name, self.argv(command), log=self.directory / f"{name}.log", environment=environment
        )
        self.processes.append(process)
        return process

    def socket(self, interface: str) -> Path:
        """The control socket's path, seen from outside."""
        return self.directory / "wireguard" / f"{interface}.sock"

    def wg(self, *arguments: str | Path, stdin: str = "", check: bool = True) -> str:
        return self.run("wg", *arguments, stdin=stdin, check=check)

    def ping(self, address: str, *, count: int = 3, check: bool = True) -> str:
        """Send this many pings at once, each of which may take two seconds.

        ``-W`` alone does not ensure that: it counts only until the first answer. Then ping waits for the last one no
        longer than the interval, or twice the longest time so far, whichever is more (iputils 20221126,
        ``schedule_exit``), and with an interval of 0.05 s it called an answer lost that was 50 ms late.
        """
        at_once = ("-l", str(count), "-i", "2", "-W", "2")
        return self.run("ping", "-n", "-c", str(count), *at_once, address, check=check)

    def pinging(self, address: str, *, name: str = "ping") -> Pings:
        """Ping every 50 ms until told to stop."""
        return Pings(self.start("ping", "-n", "-i", "0.05", address, name=name))

    def reaches(self, address: str) -> bool:
        return " 0% packet loss" in self.ping(address, count=1, check=False)

    def clear(self) -> None:
        """End everything that runs here."""
        for process in self.processes:
            process.kill()
        for pid in namespaces.processes_in(self.namespace):  # what went into the background
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@dataclass
class Pings:
    """Continuous pings. The last ones are not lost merely because nothing waits for them."""

    process: LocalProcess

    @property
    def answered(self) -> list[int]:
        """Return the numbers of the answered ones, in the order of the answers."""
        return [int(number) for number in re.findall(r"icmp_seq=(\d+) ttl=", self.process.output())]

    @property
    def last(self) -> int:
        """Return the greatest answered number."""
        return max(self.answered, default=0)

    def lost(self) -> list[int]:
        """End the pings, and return those so far that are not answered two seconds later."""
        last = self.last
        patiently(10).poll(lambda: self.last > last + 5, "pings to be answered")
        patience = Deadline(2)
        while (missing := {*range(1, last + 6)} - {*self.answered}) and not patience.expired:
            time.sleep(0.05)
        self.process.kill()
        return sorted(missing)


@contextlib.contextmanager
def machines(directory: Path, *names: str) -> Iterator[list[Machine]]:
    """Provide this many machines on one switch, and clean them up afterwards."""
    made: list[Machine] = []
    (directory / "streams").mkdir(parents=True)
    try:
        for index, name in enumerate(names, start=1):
            (directory / name / "wireguard").mkdir(parents=True)
            machine = Machine(name, index, directory / name)
            namespaces.create(machine.namespace)
            made.append(machine)
            namespaces.raise_loopback(machine.namespace)
        _connect(made)
        yield made
    finally:
        for machine in made:
            machine.clear()
            namespaces.remove(machine.namespace)


def _connect(made: Sequence[Machine]) -> None:
    """The first machine is also the switch: a veth from it to every other one, behind a bridge."""
    first, others = made[0], made[1:]
    _ip(first, "link", "add", "eth0", "type", "bridge")
    for other in others:
        port = f"to-{other.index}"
        _ip(first, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", other.namespace)
        _ip(first, "link", "set", port, "master", "eth0", "up")
    for machine in made:
        _ip(machine, "addr", "add", f"{machine.address}/24", "dev", "eth0")
        _ip(machine, "addr", "add", f"{machine.address6}/64", "dev", "eth0", "nodad")
        _ip(machine, "link", "set", "eth0", "up")


def _ip(machine: Machine, *arguments: str) -> None:
    subprocess.run([*namespaces.own_root(), "ip", "-n", machine.namespace, *arguments], check=True)


@dataclass(frozen=True, slots=True)
class Implementation:
    """A userspace WireGuard: its command line, and what a test has to know about it."""

    name: str
    command: tuple[str, ...]

    def start(self, machine: Machine, interface: str, *options: str, level: str = "debug") -> LocalProcess:
        """Start it in the foreground and wait for its control socket."""
        process = machine.start(
            *self.command, "-f", *options, interface, name=f"{self.name}-{interface}", environment={"LOG_LEVEL": level}
        )
        socket = machine.socket(interface)

        def ready() -> bool:
            assert process.poll() is None, process.output()
            return socket.exists() and machine.run("wg", "show", interface, check=False) != ""

        patiently(20).poll(ready, f"{process.name} to answer")
        return process


WIREGUARD_GO: Final = Implementation("wireguard-go", ("wireguard-go",))


def wgvsock(carrier: str, *options: str) -> Implementation:
    """``wgvsock device`` with a carrier. For vsock, Unix sockets replace AF_VSOCK."""
    entry = (sys.executable, str(DEVICE_ENTRY), "--vsock-on-unix") if carrier == "vsock" else (str(DEVICE),)
    return Implementation(f"wgvsock-{carrier}", (*entry, "-n", carrier, *options))


def short_timers(carrier: str, rekey_after: float) -> Implementation:
    """``wgvsock device`` that begins a new handshake this many seconds after the last one."""
    command = (sys.executable, str(DEVICE_ENTRY), "--rekey-after", str(rekey_after), "-n", carrier)
    return Implementation("wgvsock-rekeying", command)
