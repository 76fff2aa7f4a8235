"""Every remedy names commands, options, keys, targets and files that exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.words import ROOT, problems

MARKS = {"fix", "hint", "otherwise"}
"""Parameters, fields and variables that hold a remedy."""


def _is_marked(name: str) -> bool:
    words = set(name.lower().strip("_").split("_"))
    return bool(words & {"fix", "fixes", "hint", "remedy"}) or name == "otherwise"


def _trees() -> Iterator[tuple[Path, ast.Module]]:
    for folder in ("wgvsock", "lab"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def _positions() -> dict[str, int]:
    """Return the position of the remedy among positional arguments, for each function or dataclass that takes one."""
    found: dict[str, int] = {}
    for _, tree in _trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names = [argument.arg for argument in node.args.args if argument.arg not in {"self", "cls"}]
            elif isinstance(node, ast.ClassDef):
                fields = [each.target for each in node.body if isinstance(each, ast.AnnAssign)]
                names = [target.id for target in fields if isinstance(target, ast.Name)]
            else:
                continue
            for position, name in enumerate(names):
                if name in MARKS:
                    found[node.name] = position
    return found


def _text(node: ast.expr) -> Iterator[str]:
    """Yield the texts in an expression. Filled-in values become a word that stands for anything."""
    if isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else "NAME" for part in node.values]
        yield "".join(str(part) for part in parts)
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            yield node.value
    elif isinstance(node, ast.BinOp | ast.IfExp | ast.Dict | ast.Tuple):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr) and not isinstance(child, ast.Compare):
                yield from _text(child)
    elif isinstance(node, ast.Call):
        for argument in node.args:
            yield from _text(argument)


def hints() -> list[tuple[str, str]]:
    """Return every remedy with its location."""
    positions = _positions()
    found: list[tuple[str, str]] = []
    for path, tree in _trees():
        for node in ast.walk(tree):
            values: list[ast.expr] = []
            if isinstance(node, ast.Call):
                values += [keyword.value for keyword in node.keywords if keyword.arg in MARKS]
                name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                if (position := positions.get(name)) is not None and position < len(node.args):
                    values.append(node.args[position])
            elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [getattr(target, "id", getattr(target, "attr", "")) for target in targets]
                if any(_is_marked(name) for name in names):
                    values.append(node.value)
            elif isinstance(node, ast.FunctionDef) and _is_marked(node.name):
                values += [each.value for each in ast.walk(node) if isinstance(each, ast.Return) and each.value]
            place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            found += [(place, text) for value in values for text in _text(value) if text]
    return found


HINTS = hints()


def test_the_tree_is_read() -> None:
    assert len(HINTS) > 250
    assert {place.partition("/")[0] for place, _ in HINTS} == {"wgvsock", "lab"}


def test_every_remedy_names_what_exists() -> None:
    wrong = [f"{place}: {problem}: {text}" for place, text in HINTS for problem in problems(text)]
    assert not wrong, "\n".join(wrong)


def test_the_remedies_of_the_catalogue_name_what_exists() -> None:
    rows = re.findall(r"^\| (WGV-E\d{3}) \|.*\| (.*) \|$", (ROOT / "docs/errors.md").read_text("utf-8"), re.MULTILINE)
    wrong = [f"{code}: {problem}: {text}" for code, text in rows for problem in problems(text)]
    assert not wrong, "\n".join(wrong)


def test_the_variables_of_the_targets_help_are_read() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    helps = re.findall(r"^[a-z -]+:.*## (.*)$", makefile, re.MULTILINE)
    assert len(helps) > 15
    named = {name for text in helps for name in re.findall(r"\b[A-Z_]{4,}\b", text)} - {"JSON", "QEMU", "AF_VSOCK"}
    assert {"ARGS", "NAME"} <= named
    assert not {name for name in named if f"$({name}" not in makefile and f"$${{{name}" not in makefile}


@pytest.mark.parametrize(
    "text",
    [
        "look at `wgvsock state`",
        "wgvsock keys make",
        "wgvsock keys gen --signed -o FILE",
        "the key that wgvsock keys pub prints for the relay's signing key",
        "add it with --roots-sha256 or attestation-root-sha256",
        'set "runtime_folder"',
        "write it into [attestations]",
        'write defaults = "deny"',
        "change nat.uplinks",
        "name it in launch_nitro_cli",
        "python -m lab state",
        "make lab-upp",
        "docs/operation.md has one",
        "pass an open TUN in WG_TUN_FILE",
        "`nitro-cli describe-enclave`",
    ],
)
def test_a_wrong_name_is_seen(text: str) -> None:
    assert problems(text)
