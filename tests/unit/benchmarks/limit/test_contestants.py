"""The C loop is built where possible, and otherwise left out with a reason."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.limit.contestants import build

NEEDS_COMPILER = pytest.mark.skipif(
    shutil.which("cc") is None or not Path("/usr/include/openssl/evp.h").exists(), reason="no C compiler, or no OpenSSL"
)


@NEEDS_COMPILER
def test_it_is_built_and_refuses_a_command_line_that_is_not_its_own(tmp_path: Path) -> None:
    assert subprocess.run([build(tmp_path)], check=False).returncode == 2


def test_without_a_compiler_it_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="no C compiler"):
        build(tmp_path)


def test_a_compiler_s_complaint_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'fatal error: openssl/evp.h: no such file' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(RuntimeError, match=r"openssl/evp\.h"):
        build(tmp_path)
