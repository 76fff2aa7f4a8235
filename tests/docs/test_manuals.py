"""Man pages and completions match the commands."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from wgvsock.cli.entry import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
SHARE = ROOT / "share"

pytest.importorskip("shtab")
pytest.importorskip("argparse_manpage")


@pytest.fixture(scope="module")
def manuals() -> ModuleType:
    spec = importlib.util.spec_from_file_location("manuals", ROOT / "tools/manuals.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="argparse writes its help otherwise: they are made by 3.11")
def test_they_are_up_to_date(manuals: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # the terminal's width makes no difference
    made = dict(manuals.files())
    there = {str(path.relative_to(SHARE)): path.read_text("utf-8") for path in SHARE.rglob("*") if path.is_file()}
    assert made == there, "make manuals"


def test_every_command_has_its_part_of_the_page() -> None:
    page = (SHARE / "man/man1/wgvsock.1").read_text(encoding="utf-8")
    for name in COMMANDS:
        assert f"COMMAND \\fI\\,'wgvsock {name}'" in page
    assert ":``" not in page


def completed(*words: str) -> set[str]:
    """Return what bash offers for the last of these words."""
    listed = " ".join(f"'{word}'" for word in words)
    script = f"""
        source {SHARE}/bash-completion/completions/wgvsock
        COMP_WORDS=({listed}) COMP_CWORD={len(words) - 1}
        $(complete -p wgvsock | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    ended = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert not ended.stderr
    return set(ended.stdout.split())


def test_bash_offers_commands_verbs_and_options() -> None:
    assert completed("wgvsock", "") >= set(COMMANDS)
    assert completed("wgvsock", "config", "sch") == {"schema"}
    assert completed("wgvsock", "keys", "gen", "--si") == {"--signing"}
    assert completed("wgvsock", "config", "init", "") == {"relay", "enclave"}
