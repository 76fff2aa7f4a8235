"""`make try` as a newcomer runs it. docs/try.md is its transcript."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lab.netns.backend import NetnsBackend

pytestmark = pytest.mark.lab

ROOT = Path(__file__).resolve().parents[2]

if BACKEND_LACKS := NetnsBackend.unavailable():
    pytest.skip(f"network namespaces cannot be made here: {BACKEND_LACKS}", allow_module_level=True)


def may_make_user_namespaces() -> bool:
    return subprocess.run(["unshare", "-Urnm", "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("way", ["as-we-are", "in-a-user-namespace"])
def test_the_page_is_the_transcript(way: str, tmp_path: Path) -> None:
    arguments = ["--userns"] if way == "in-a-user-namespace" else []
    if arguments and not may_make_user_namespaces():
        pytest.skip("forbidden: user namespaces")
    command = [sys.executable, "-m", "lab", "try", "--markdown", str(tmp_path / "try.md"), *arguments]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert "Hello from the enclave\n" in done.stdout
    written = (tmp_path / "try.md").read_text(encoding="utf-8")
    page = (ROOT / "docs/try.md").read_text(encoding="utf-8")
    assert written == page, "write it anew: python -m lab try --markdown docs/try.md"
    # Nothing of it is left, and nothing was ever in this machine's own namespace.
    assert "wgvsock-try" not in subprocess.run(["ps", "axww"], capture_output=True, text=True, check=False).stdout
    links = subprocess.run(["ip", "link"], capture_output=True, text=True, check=False).stdout
    assert " world@" not in links
