from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lab.cli import standing
from lab.cli.standing import NotStandingError


@pytest.fixture(autouse=True)
def state_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


class FakeBackend:
    name = "fake"
    topology = None

    def __init__(self, state: dict[str, Any]) -> None:
        self._state = state

    def state(self) -> dict[str, Any]:
        return self._state

    @classmethod
    def attach(cls, state: dict[str, Any]) -> FakeBackend:
        return cls(state)

    def process(self, name: str) -> str:
        return f"the {name} of {self._state['prefix']}"


def test_a_laboratory_is_found_again_with_its_services(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing, "backend_class", {"fake": FakeBackend}.__getitem__)
    assert not standing.is_standing()
    standing.write_down(FakeBackend({"prefix": "wgv-1"}))  # type: ignore[arg-type]
    assert standing.is_standing()
    found = standing.find()
    assert [str(found.relay), str(found.enclave)] == ["the relay of wgv-1", "the enclave of wgv-1"]
    standing.forget()
    standing.forget()
    assert not standing.is_standing()


def test_nothing_to_find() -> None:
    with pytest.raises(NotStandingError) as caught:
        standing.find()
    assert (caught.value.code, caught.value.exit_code) == ("WGV-E098", 3)


def test_without_the_variable_it_is_kept_in_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert standing.record_path() == tmp_path / ".local/state/wgvsock-lab.json"
