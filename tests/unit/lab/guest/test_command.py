from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from lab.guest import probe
from lab.guest.command import alone


def test_it_names_a_program_of_the_room() -> None:
    interpreter, *options, program = alone("probe")
    assert (interpreter, options) == (sys.executable, ["-I", "-S"])
    assert Path(program).samefile(probe.__file__)


def test_the_program_finds_the_standard_library_alone(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the working directory was searched')")
    done = subprocess.run([*alone("probe"), "--help"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage" in done.stdout
