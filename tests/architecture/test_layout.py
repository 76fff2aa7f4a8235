"""The layout is as documented: every module has its test file, and every path that the documents name exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "wgvsock"

MODULES = sorted(
    path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path.name not in {"__init__.py", "__main__.py"}
)
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])

# A path of ours: one of the top-level folders and a slash. `wgvsock/prov/1` and the like name protocols and schemas.
PROTOCOL = r"wgvsock/(?:prov/|wg-key/|client/|own/)?v?\d"
PATH = re.compile(
    rf"(?<![\w/.])(?!{PROTOCOL})((?:wgvsock|lab|tests|docs|benchmarks|fuzz|deploy|tools)/[\w./-]*\w)(?:::(\w+))?"
)
MAX_LINES = 400


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_every_module_has_a_test_file_of_its_name(module: Path) -> None:
    assert (ROOT / "tests/unit" / module.parent / f"test_{module.name}").exists()


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_has_one_job(module: Path) -> None:
    lines = (PACKAGE / module).read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_LINES, "a longer file has two jobs"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_path_that_a_document_names_exists(document: Path) -> None:
    absent = []
    for path, test in PATH.findall(document.read_text(encoding="utf-8")):
        file = ROOT / path
        if not file.exists() or (test and f"def {test}(" not in file.read_text(encoding="utf-8")):
            absent.append(f"{path}::{test}" if test else path)
    assert not absent


def test_the_paper_s_steps_all_have_a_test() -> None:
    tables = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    for lifecycle, steps in (("egress", 8), ("ingress", 9)):
        for step in range(1, steps + 1):
            assert re.search(rf"tests/e2e/test_{lifecycle}_lifecycle\.py::test_step_{step}_\w+", tables), (
                f"{lifecycle} step {step} names no test"
            )
