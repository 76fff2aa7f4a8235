"""The command that rehearses an example: each has a story, and failures are reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.cli import example
from lab.cli.example import REHEARSALS, main
from lab.errors import LabError
from lab.nitro.rehearsal import EXAMPLES


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Where the rehearsal of hello-enclave was to keep its files. It fails."""
    given: list[Path] = []

    def rehearse(folder: Path) -> None:
        given.append(folder)
        raise LabError("another application answered")

    monkeypatch.setitem(REHEARSALS, "hello-enclave", rehearse)
    monkeypatch.setattr(example, "why_not_here", lambda _: "")
    return given


def test_each_example_has_a_rehearsal() -> None:
    assert sorted(REHEARSALS) == sorted(path.name for path in EXAMPLES.iterdir() if (path / "Dockerfile").exists())


def test_a_step_that_goes_another_way_is_told(folders: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hello-enclave"]) == LabError.exit_code
    assert "error[WGV-E090]: another application answered" in capsys.readouterr().out
    assert not folders[0].exists()


def test_a_machine_that_launches_no_enclave_says_why(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(example, "why_not_here", lambda _: "missing: qemu")
    assert main(["hello-enclave"]) == 7
    assert "missing: qemu" in capsys.readouterr().out
    assert not folders


def test_an_example_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["hallo"])
    assert "hello-enclave" in capsys.readouterr().err
