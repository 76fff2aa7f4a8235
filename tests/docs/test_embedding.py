"""The code of docs/embedding.md runs, block after block."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_s_code_runs() -> None:
    page = (ROOT / "docs/embedding.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    exec(compile("\n".join(blocks), "docs/embedding.md", "exec"), {"__name__": "embedding"})  # noqa: S102
