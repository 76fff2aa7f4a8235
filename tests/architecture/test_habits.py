"""The tools for contributors: hooks that exist, valid forms, targets that CONTRIBUTING.md names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
yaml = pytest.importorskip("yaml")


def test_every_hook_runs_a_program_of_the_project() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert repository["repo"] == "local"  # nothing is downloaded
    lint = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\nlint:")[2].partition("\n\n")[0]
    for hook in repository["hooks"]:
        program = hook["entry"].split()[0]
        name = program.rpartition("/")[2]
        assert (ROOT / program).exists() if program.startswith("tools/") else f"$(BIN)/{name}" in lint
    assert len(repository["hooks"]) > len(re.findall(r"\$\(BIN\)", lint))  # all of make lint, and the message


@pytest.mark.parametrize(
    "form", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda path: path.stem
)
def test_an_issue_form(form: Path) -> None:
    content = yaml.safe_load(form.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= set(content)
    fields = [field for field in content["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(field["attributes"]["label"] for field in fields)
    assert any(field.get("validations", {}).get("required") for field in fields)


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", ".github/pull_request_template.md"])
def test_targets_and_files_that_are_named_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?:`|^ {4})make ([a-z][a-z0-9-]*)", text, re.MULTILINE))
    assert targets
    assert {t for t in targets if not re.search(rf"^[^#\n\t]*\b{t}\b[^\n=]*:(?!=)", makefile, re.MULTILINE)} == set()
    files = set(re.findall(r"`((?:docs|tools|tests|\.github|\.ci)/[\w./-]+)`|\]\(([\w./-]+)\)", text))
    assert {name for pair in files for name in pair if name and not (ROOT / name).exists()} == set()
