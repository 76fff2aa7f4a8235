"""The installed commands as processes: signals in their first second, and the duties of process 1.

They need no enclave: a relay without one waits for it.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

from lab.deadline import Deadline
from lab.netns.namespaces import own_root

COMMANDS: Final = Path(sys.executable).parent
MOMENTS: Final = [round(random.Random(number).uniform(0, 1), 3) for number in range(8)]
"""Seconds after the command's first line has run. Until then it is Python's process, with the kernel's defaults."""

NETWORK: Final = """
ip link set lo up && ip link add up0 type veth peer name up1 && ip link set up1 up && ip link set up0 up &&
ip address add 192.0.2.1/24 dev up0 && ip route add default via 192.0.2.2 && exec "$@"
"""
SETTLES: Final = 60.0
"""Seconds, on a very busy machine."""


class Service:
    """A command in a separate network, with its output in a file."""

    def __init__(self, folder: Path, *argv: str, unshare: Sequence[str] = ()) -> None:
        self.log = folder / "log"
        command = [*own_root(), "unshare", "--net", "--mount", *unshare, "--", "sh", "-c", NETWORK, "sh", *argv]
        with self.log.open("wb") as output:
            self.child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        self.pid = self.child.pid

    def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = Deadline(SETTLES)
        while not condition():
            assert self.child.poll() is None, f"ended with {self.child.returncode}: {self.log.read_text()}"
            assert not deadline.expired, f"no {what}: {self.log.read_text()}"
            time.sleep(0.002)

    def until_it_says(self, text: str) -> None:
        self.until(lambda: text in self.log.read_text(), f"line with {text!r}")

    def until_it_begins(self) -> None:
        """Wait until its first line has run: signals are then held, or have handlers."""
        self.until(lambda: self._minds(signal.SIGUSR1), "first line")

    def _minds(self, number: signal.Signals) -> bool:
        status = Path(f"/proc/{self.pid}/status").read_text()
        if not status.startswith("Name:\twgvsock"):
            return False  # the shell, which holds signals too while it starts something
        masks = [int(mask, 16) for mask in re.findall(r"^Sig(?:Blk|Cgt):\t([0-9a-f]+)$", status, re.MULTILINE)]
        return any(mask >> (number - 1) & 1 for mask in masks)

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def end(self) -> int:
        return self.child.wait(SETTLES)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Start a command, and kill what is left of it afterwards."""
    services: list[Service] = []

    def run(*argv: str, **options: Sequence[str]) -> Service:
        services.append(Service(tmp_path, *argv, **options))
        return services[-1]

    yield run
    for service in services:
        if service.child.poll() is None:
            service.child.kill()
            service.child.wait()


@pytest.fixture
def relay(tmp_path: Path) -> tuple[str, ...]:
    """Return the command of a relay whose enclave does not exist."""
    file = tmp_path / "relay.toml"
    zeros = "11" * 48
    file.write_text(
        f"""\
runtime_directory = "{tmp_path}/run"
[enclave]
address = "unix:{tmp_path}/nowhere"
provisioning_address = "unix:{tmp_path}/nowhere-too"
[[attestation.pcr_sets]]
pcr0 = "{zeros}"
pcr1 = "{zeros}"
pcr2 = "{zeros}"
"""
    )
    return str(COMMANDS / "wgvsock"), "relay", "run", "-c", str(file)


UP: Final = "the enclave is not provisioned"
DOWN: Final = "the relay has stopped and reverted its changes"


ANSWERS: Final = {signal.SIGUSR1: "attestation was requested", signal.SIGHUP: "was reloaded", signal.SIGTERM: DOWN}


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("number", ANSWERS)
def test_a_relay_heeds_a_signal_at_any_moment(
    start: Callable[..., Service], relay: tuple[str, ...], moment: float, number: signal.Signals
) -> None:
    service = start(*relay)
    service.until_it_begins()
    time.sleep(moment)
    service.send(number)
    if number != signal.SIGTERM:
        service.until_it_says(ANSWERS[number])
        service.until_it_says(UP)
        assert "Max core file size        0 " in Path(f"/proc/{service.pid}/limits").read_text()
        service.send(signal.SIGTERM)
    assert service.end() == 0
    log = service.log.read_text()
    assert DOWN in log
    assert "Traceback" not in log
    assert not list(service.log.parent.glob("run/*.json"))  # nothing is left to undo


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS[:4])
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_an_agent_without_its_module_says_so_whatever_signal_comes(
    start: Callable[..., Service], tmp_path: Path, moment: float, number: signal.Signals
) -> None:
    (tmp_path / "enclave.toml").write_text("")
    service = start(str(COMMANDS / "wgvsock"), "enclave", "run", "-c", str(tmp_path / "enclave.toml"))
    service.until_it_begins()
    time.sleep(moment / 8)
    if service.child.poll() is None:
        service.send(number)
    assert service.end() == 7
    assert "error[WGV-E075]" in service.log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_device_heeds_a_signal_at_any_moment(start: Callable[..., Service], moment: float) -> None:
    service = start(str(COMMANDS / "wgvsock-device"), "-f", "-n", "udp", f"wgp{os.getpid() % 10_000}")
    service.until_it_begins()
    time.sleep(moment)
    service.send(signal.SIGUSR1)  # as nothing to wireguard-go
    service.send(signal.SIGTERM)
    assert service.end() == 0
    assert "Traceback" not in service.log.read_text()


# Process 1 of a container, or of an enclave. The kernel throws away what it does not handle yet.

AS_PROCESS_1: Final = ("--pid", "--fork", "--mount-proc", "--kill-child")


@pytest.fixture
def first(start: Callable[..., Service], relay: tuple[str, ...]) -> Service:
    """A relay that is process 1."""
    service = start(*relay, unshare=AS_PROCESS_1)
    children = Path(f"/proc/{service.child.pid}/task/{service.child.pid}/children")

    def processes_1() -> list[str]:
        """Return its children in their own process namespace. In a chroot there are others before it."""
        found = [(pid, Path(f"/proc/{pid}/status")) for pid in children.read_text().split()]
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            return [
                pid
                for pid, status in found
                if re.search(r"^NSpid:\t\d+\t(?:\d+\t)*1$", status.read_text(), re.MULTILINE)
            ]
        return []

    service.until(processes_1, "process 1")
    service.pid = int(processes_1()[0])
    return service


def test_process_1_heeds_the_signal_that_ends_its_container(first: Service) -> None:
    first.until_it_begins()
    first.send(signal.SIGTERM)
    assert first.end() == 0
    assert DOWN in first.log.read_text()


def children(first: Service) -> dict[int, str]:
    """Return the command line of each child of process 1, none for one that has ended, by its ID on this machine."""
    commands = {}
    for pid in Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it was reaped meanwhile
            commands[int(pid)] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    return commands


def orphans(first: Service) -> list[int]:
    """Return what the next test leaves to process 1 for long. Other children are its own, or end by themselves."""
    return [pid for pid, command in children(first).items() if command == "sleep 600"]


def test_process_1_collects_what_others_leave_and_keeps_what_is_its_own(first: Service) -> None:
    first.until_it_says(UP)
    script = "for number in 1 2 3 4 5 6 7 8 9; do sleep 0.0$number & done; sleep 600 &"
    enter = ["nsenter", "--target", str(first.pid), "--pid", "--mount", "--root", "--", "sh", "-c", script]
    for _ in range(5):
        subprocess.run(enter, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        first.send(signal.SIGHUP)  # it runs nft, whose exit status it needs
    first.until(lambda: len(orphans(first)) == 5, "orphans")
    for pid in orphans(first):
        os.kill(pid, signal.SIGKILL)
    first.until(lambda: not children(first), "end of the orphans")
    first.send(signal.SIGTERM)
    assert first.end() == 0
    log = first.log.read_text()
    assert DOWN in log
    assert "child process pid" not in log  # asyncio's words for a status that somebody else took
    assert "level=error" not in log
