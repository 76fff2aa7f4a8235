"""A backend consists of places: each command runs where its node is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lab.backend import Completed, Place
from lab.errors import LabError
from lab.laboratory import WGVSOCK, Laboratory
from lab.netns.backend import NetnsBackend
from lab.qemu.backends import GuestBackend
from lab.topology import Node, Point
from lab.watch.capture import PacketCapture
from wgvsock.addresses import WIREGUARD_PORT, Port, UnixAddress


class Captured(PacketCapture):
    def __init__(self, point: Point, clock_error: float) -> None:
        self.point, self.clock_error = point, clock_error

    def packets(self) -> list[Any]:
        return []

    def close(self) -> None:
        pass


class Somewhere:
    """A place that records what is done in it."""

    def __init__(self, directory: str, answer: bytes | None = None, clock_error: float = 0.0) -> None:
        self.directory = directory
        self.did: list[tuple[Any, ...]] = []
        self._answer = answer
        self._clock_error = clock_error

    def enter(self, node: Node) -> list[str]:
        return ["enter", self.directory, node]

    def translate(self, argv: Sequence[str]) -> list[str]:
        return [self.directory, *argv]

    def run(self, node: Node, argv: Sequence[str], **_: object) -> Completed:
        self.did.append(("run", node, *argv))
        return Completed(tuple(argv), 0, b"", b"")

    def spawn(self, node: Node, argv: Sequence[str], *, name: str, stdin: bool) -> Any:
        self.did.append(("spawn", node, name, *argv))

    def processes_in(self, node: Node) -> list[int]:
        return [len(node)]

    def bring(self, path: Path) -> str:
        return f"{self.directory}/{path.name}"

    def capture(self, point: Point, _deadline: object) -> PacketCapture:
        return Captured(point, self._clock_error)

    def ask(self, node: Node, path: str, request: bytes, _deadline: object) -> bytes | None:
        self.did.append(("ask", node, path, request.split()[1]))
        return self._answer

    def down(self) -> None:
        self.did.append(("down",))

    def leftovers(self) -> list[str]:
        return ["something here"]


class TwoPlaces(Laboratory):
    """The pod is elsewhere, all other nodes are here."""

    name = "two"

    def __init__(self, identity: str, **options: Any) -> None:
        super().__init__(identity, **options)
        self.here: Somewhere = Somewhere("/here")
        self.elsewhere = Somewhere("/elsewhere", clock_error=0.25)

    def place_of(self, node: Node) -> Place:
        return self.elsewhere if node is Node.POD else super().place_of(node)

    def _relay_side(self, port: Port) -> UnixAddress:
        return UnixAddress(f"/relay/{port}")

    def _enclave_side(self, port: Port) -> UnixAddress:
        return UnixAddress(f"/enclave/{port}")


@pytest.fixture
def two(tmp_path: Path) -> TwoPlaces:
    return TwoPlaces("x", directory=tmp_path)


def test_a_backend_with_guests_is_no_kind_of_netns() -> None:
    assert not issubclass(GuestBackend, NetnsBackend)


def test_a_command_is_done_where_its_node_is(two: TwoPlaces) -> None:
    two.run(Node.POD, ["a"])
    two.spawn(Node.EXTERNAL, ["b"], name="b")
    assert two.elsewhere.did == [("run", Node.POD, "a")]
    assert two.here.did == [("spawn", Node.EXTERNAL, "b", "b")]
    assert two.enter(Node.POD) == ["enter", "/elsewhere", "pod"]
    assert two.translate(Node.NODE, ["c"]) == ["/here", "c"]
    assert two.processes_in(Node.ENCLAVE) == [7]


def test_the_relay_is_started_with_a_file_of_its_place(two: TwoPlaces) -> None:
    two.enclave_measurements = dict.fromkeys(("PCR0", "PCR1", "PCR2"), "ab" * 48)
    two.start_relay()
    assert two.elsewhere.did == [
        ("spawn", Node.POD, "relay", WGVSOCK, "relay", "run", "--config", "/elsewhere/relay.toml")
    ]
    assert f"unix:/relay/{WIREGUARD_PORT}" in (two.directory / "relay.toml").read_text()


def test_other_timings_are_told_to_the_laboratory_s_own_program(two: TwoPlaces) -> None:
    two.start_relay({"log_level": "info"}, timings={"rekey_after_time": 1.5})
    ((_, _, _, *argv),) = two.elsewhere.did
    assert argv[1:3] == ["-m", "lab.programs.relay"]
    assert json.loads(argv[-1]) == {"rekey_after_time": 1.5}


@pytest.mark.parametrize(("scale", "seconds"), [(1.0, 6.0), (27.0, 54.0)])
def test_deadlines_are_patient_natively_and_measured_where_processors_are_emulated(
    two: TwoPlaces, scale: float, seconds: float
) -> None:
    two.scale = scale
    assert two.deadline(2.0).seconds == seconds


def test_a_packet_filter_has_its_folder_in_the_pod_s_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FILTER", "iptables")
    assert "/elsewhere/filter" in TwoPlaces("x", directory=tmp_path).with_filter(["true"])


def test_clocks_of_two_machines_are_off_in_opposite_directions(two: TwoPlaces) -> None:
    two.capture(Point.ENCLAVE_WG0)
    assert two.clock_error == 0.0
    two.capture(Point.RELAY_WG0)
    two.capture(Point.ENCLAVE_WG0)
    assert two.clock_error == 0.5


@pytest.mark.parametrize("answer", [None, b"", b"HTTP/1.0 503 \r\n\r\n"])
def test_a_service_that_does_not_answer_has_no_status(tmp_path: Path, answer: bytes | None) -> None:
    two = TwoPlaces("x", directory=tmp_path)
    two.elsewhere = Somewhere("/elsewhere", answer)
    assert two.status(Node.POD) is None
    assert two.elsewhere.did == [("ask", Node.POD, "wgvsock/relay.sock", b"/status")]


def test_a_status_is_the_answer_s_body(tmp_path: Path) -> None:
    two = TwoPlaces("x", directory=tmp_path)
    two.here = Somewhere("/here", b'HTTP/1.0 200 OK\r\n\r\n{"state": "ready"}')
    status = two.status(Node.ENCLAVE)
    assert status is not None
    assert status["state"] == "ready"
    assert two.here.did == [("ask", Node.ENCLAVE, "wgvsock/enclave.sock", b"/status")]


def test_it_is_found_again_by_its_state(two: TwoPlaces) -> None:
    two.root_sha256, two.enclave_measurements = "ab", {"PCR0": "cd"}
    attached = TwoPlaces.attach(json.loads(json.dumps(two.state())))
    assert attached.state() == two.state()
    attached.tap.close()


def test_nothing_of_it_stays(two: TwoPlaces) -> None:
    assert two.leftovers() == ["something here", f"folder {two.directory}"]
    two.down()
    assert two.here.did == [("down",)]
    assert two.leftovers() == ["something here"]


def test_a_plan_with_one_enclave_has_no_neighbour(two: TwoPlaces) -> None:
    with pytest.raises(LabError, match="two has no machine second"):
        two.start_neighbour(Node.SECOND)
