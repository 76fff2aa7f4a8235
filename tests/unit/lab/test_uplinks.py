"""What ``UPLINK`` requests."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from lab import uplinks
from lab.errors import LabError
from lab.topology import PACKET_POINTS, Point
from tests.e2e.conftest import KERNELS_OWN


def test_by_default_the_relays_own_default_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UPLINK", raising=False)
    assert uplinks.settings() == {}


def test_a_mode_stands_in_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPLINK", "userspace")
    assert uplinks.settings() == {"uplink": {"mode": "userspace"}}


def test_there_are_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPLINK", "slirp")
    with pytest.raises(LabError, match="no uplink 'slirp'"):
        uplinks.asked_for()


def test_there_is_no_wg0_to_watch_in_user_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPLINK", "auto")
    assert set(uplinks.packet_points()) == set(PACKET_POINTS)
    monkeypatch.setenv("UPLINK", "userspace")
    assert set(PACKET_POINTS) - set(uplinks.packet_points()) == {Point.RELAY_WG0}


@pytest.mark.parametrize("file", sorted(KERNELS_OWN))
def test_what_is_left_out_in_user_space_exists(file: str) -> None:
    """A test that was renamed runs there again, and one that is gone needs no reason."""
    own, path = KERNELS_OWN[file], Path("tests/e2e") / file
    assert path.exists()
    if isinstance(own, dict):
        names = {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}
        assert {name.partition("[")[0] for name in own} <= names
