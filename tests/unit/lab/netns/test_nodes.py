from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from lab.deadline import Deadline
from lab.netns import namespaces
from lab.netns.nodes import NamespaceNodes
from lab.topology import TOPOLOGY, Node


def nodes(folder: Path, spawned: list[list[str]] | None = None) -> NamespaceNodes:
    """Nodes that have not been raised."""

    def spawn(argv: Any, *, name: str, stdin: bool = False) -> Any:
        assert spawned is not None
        spawned.append([name, *argv])

    return NamespaceNodes(TOPOLOGY, "wgv-x", folder, nodes={Node.POD}, spawn=spawn)


def test_a_command_is_spawned_in_its_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces, "own_root", lambda: ["own", "root"])
    spawned: list[list[str]] = []
    nodes(tmp_path, spawned).spawn(Node.POD, ["true"], name="nothing", stdin=False)
    (argv,) = spawned
    assert argv[:3] == ["nothing", "own", "root"]
    assert "wgv-x-pod" in argv
    assert argv[-1] == "true"


def test_a_namespace_sees_this_machine_s_files(tmp_path: Path) -> None:
    place = nodes(tmp_path)
    assert place.bring(tmp_path / "relay.toml") == f"{tmp_path}/relay.toml"
    assert place.translate(["python", "x"]) == ["python", "x"]
    assert place.directory == str(tmp_path)


def test_a_service_is_asked_at_its_socket(tmp_path: Path) -> None:
    run = tmp_path / "pod/run"
    run.mkdir(parents=True)
    asked: list[bytes] = []

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            asked.append(connection.recv(100))
            connection.sendall(b"answer")

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(run / "x.sock"))
        listener.listen()
        server = threading.Thread(target=serve)
        server.start()
        assert nodes(tmp_path).ask(Node.POD, "x.sock", b"?", Deadline(10)) == b"answer"
        server.join(10)
    assert asked == [b"?"]
    assert nodes(tmp_path).ask(Node.POD, "x.sock", b"?", Deadline(10)) is None
