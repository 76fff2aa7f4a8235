from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from lab.cli import demo
from lab.cli.demo import Demonstration
from lab.cli.narration import Narrator
from lab.errors import LabError
from lab.topology import TOPOLOGY


class BrokenBackend:
    name = "broken"

    def __init__(self) -> None:
        self.kept: list[Path] = []

    def up(self) -> None:
        raise LabError("cannot raise the network", why="no cables")

    def keep_artifacts(self, folder: Path) -> None:
        self.kept.append(folder)


class BrokenLadder:
    topology = TOPOLOGY

    def __init__(self) -> None:
        self.backend = BrokenBackend()


def test_a_step_that_fails_ends_it_with_the_reason_and_keeps_the_artifacts() -> None:
    ladder, told = BrokenLadder(), io.StringIO()
    demonstration = Demonstration(ladder, Narrator(told))  # type: ignore[arg-type]
    assert demonstration.run() is False
    assert demonstration.record == {
        "schema": "wgvsock/v1",
        "ok": False,
        "error": "cannot raise the network: no cables",
    }
    assert "✗ cannot raise the network" in told.getvalue()
    assert ladder.backend.kept == [demo.ARTIFACTS]


def test_without_the_kernels_uplink_there_is_no_path_to_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPLINK", "userspace")
    demonstration = Demonstration(BrokenLadder(), Narrator(io.StringIO()))  # type: ignore[arg-type]
    assert demonstration.run() is False
    assert demonstration.record["error"] == "the demonstration follows packets through the Relay's wg0"


class FakePassage:
    def __init__(self, direction: str, *, ok: bool = True, readable: bool = False) -> None:
        self.direction, self.ok, self.readable, self.vsock_bytes = direction, ok, readable, 100
        self.steps: list[object] = []

    def report(self) -> dict[str, Any]:
        end = {"source": "a", "destination": "b"}
        return {"nat": {"before": end, "after": end}}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"egress": False}, False),
        ({"ingress": False}, False),
        ({"verified": False}, False),
        ({"peer_is_attested": False}, False),
        ({"others": False}, False),
    ],
)
def test_ok_only_if_all_was_as_it_has_to_be(change: dict[str, bool], expected: bool) -> None:
    told = io.StringIO()
    demonstration = Demonstration(BrokenLadder(), Narrator(told))  # type: ignore[arg-type]
    demonstration.record = {
        "attestation": {"verified": change.get("verified", True), "pcr0": "ab" * 48},
        "wireguard": {"peer_is_attested": change.get("peer_is_attested", True)},
    }
    passages = [FakePassage(way, ok=change.get(way, True)) for way in ("egress", "ingress")]
    others = {"ok": change.get("others", True)}
    assert demonstration._conclude(passages, others) is expected  # type: ignore[arg-type]
    assert demonstration.record["ok"] is expected
    assert demonstration.record["wireguard"]["vsock"] == {"bytes": 200, "plaintext_found": False}
    assert ("NOT as required" in told.getvalue()) is not expected
