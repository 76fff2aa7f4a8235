from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lab.backend import Completed
from lab.deadline import Deadline
from lab.errors import LabError
from lab.guest.command import alone
from lab.qemu.nodes import GuestNodes, in_guest
from lab.topology import TOPOLOGY, Node


class Guest:
    """Records the requests to it and to its own channel."""

    directory = Path("/lab/vm-node")

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.ran: list[list[str]] = []
        self.asked: list[str] = []
        self.written: dict[str, bytes] = {}

    def channel(self) -> Guest:
        return self

    def run(self, argv: Sequence[str], **_: object) -> Completed:
        self.ran.append(list(argv))
        return Completed(tuple(argv), 0, self.answers.pop(0) if self.answers else b"", b"")

    def write_file(self, path: str, data: bytes) -> None:
        self.written[path] = data

    def ask(self, path: str, request: bytes, deadline: Deadline) -> bytes:
        self.asked.append(path)
        if not self.answers:
            raise LabError("nobody listens")
        return self.answers.pop(0)


def nodes(guest: Any, *moved: Node) -> tuple[GuestNodes, list[list[str]]]:
    """The nodes of a guest, and what is spawned in it."""
    spawned: list[list[str]] = []

    def spawn(machine: Any, argv: Sequence[str], *, name: str, stdin: bool = False) -> Any:
        assert machine is guest
        spawned.append([name, *argv])

    return GuestNodes(guest, "wgv-x", nodes=moved, spawn=spawn, logs=Path("/logs")), spawned


def test_commands_are_translated_to_where_the_guest_has_things() -> None:
    wgvsock = str(Path(sys.executable).with_name("wgvsock"))
    assert in_guest([*alone("probe"), "udp", "198.51.100.10"]) == [
        *("/usr/bin/python3", "-I", "-S"),
        "/opt/wgvsock/lab/guest/probe.py",
        "udp",
        "198.51.100.10",
    ]
    assert in_guest([wgvsock, "status"]) == ["wgvsock", "status"]


def test_what_is_moved_is_a_namespace_of_the_guest_and_the_rest_the_guest_itself() -> None:
    guest = Guest()
    place, spawned = nodes(guest, Node.POD)
    place.run(Node.POD, [sys.executable, "-V"], stdin=b"", deadline=Deadline(1))
    place.spawn(Node.ENCLAVE, [sys.executable, "-V"], name="version", stdin=False)
    assert "wgv-x-pod" in guest.ran[0]
    assert guest.ran[0][-2:] == ["/usr/bin/python3", "-V"]
    assert spawned == [["version", "/usr/bin/python3", "-V"]]


def test_a_command_of_this_machine_enters_through_the_guest_s_shell() -> None:
    place, _ = nodes(Guest(), Node.POD)
    shell = [sys.executable, "-m", "lab.qemu.shell"]
    assert place.enter(Node.ENCLAVE)[:3] == place.enter(Node.POD)[:3] == shell
    assert place.enter(Node.ENCLAVE)[-1] == "--"
    assert "wgv-x-pod" in place.enter(Node.POD)


def test_each_node_gets_its_name_server_and_all_are_raised_in_one_go() -> None:
    guest = Guest()
    place, _ = nodes(guest, Node.POD, Node.NODE)
    place.up(TOPOLOGY, Deadline)
    resolver = f"nameserver {TOPOLOGY.external4}\n".encode()
    assert guest.written == {"/lab/pod/etc/resolv.conf": resolver, "/lab/node/etc/resolv.conf": b""}
    assert guest.ran[0][-2:] == ["/lab/node", "/lab/pod"]
    assert guest.ran[1][-4:] == ["--prefix", "wgv-x", "--nodes", "node,pod"]


def test_processes_without_the_agent() -> None:
    guest = Guest(b"[1, 7, 9]", b"12\n13\n")
    place, _ = nodes(guest, Node.POD)
    assert place.processes_in(Node.ENCLAVE) == [7, 9]
    assert place.processes_in(Node.POD) == [12, 13]


def test_a_file_is_brought_into_the_guest(tmp_path: Path) -> None:
    guest = Guest()
    place, _ = nodes(guest)
    (tmp_path / "relay.toml").write_text("a = 1")
    assert place.bring(tmp_path / "relay.toml") == "/lab/relay.toml"
    assert guest.written == {"/lab/relay.toml": b"a = 1"}


@pytest.mark.parametrize(("node", "path"), [(Node.POD, "/lab/pod/run/x.sock"), (Node.ENCLAVE, "/run/x.sock")])
def test_a_service_is_asked_in_its_own_run_folder(node: Node, path: str) -> None:
    guest = Guest(b"answer")
    place, _ = nodes(guest, Node.POD)
    assert place.ask(node, "x.sock", b"?", Deadline(1)) == b"answer"
    assert place.ask(node, "x.sock", b"?", Deadline(1)) is None
    assert guest.asked == [path, path]
