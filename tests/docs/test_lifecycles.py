"""The traced page has the steps of the demonstration, in the same words and order."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def titles() -> list[tuple[int, str]]:
    """Return number and title of every step, as in the source."""
    tree = ast.parse((ROOT / "lab/watch/walkthrough.py").read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Step"]
    calls.sort(key=lambda call: call.lineno)
    return [(ast.literal_eval(call.args[0]), ast.literal_eval(call.args[1])) for call in calls]


def test_every_step_of_both_lifecycles_is_on_the_page() -> None:
    page = (ROOT / "docs/lifecycles.md").read_text(encoding="utf-8")
    found = [(int(number), title) for number, title in re.findall(r"^ ✓ (\d)  (.+)$", page, re.MULTILINE)]
    assert len(found) == 8 + 9
    assert found == titles()
