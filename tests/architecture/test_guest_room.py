"""Programs in the laboratory's machines need only Python: no other package, no site-packages."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOM = ROOT / "lab/guest"
MODULES = sorted(path.relative_to(ROOT) for path in ROOM.rglob("*.py"))

IMPORT = """
import importlib, sys
sys.path.insert(0, sys.argv[1])
importlib.import_module(sys.argv[2])
packages = {name.partition(".")[0] for name in sys.modules}
strangers = packages - sys.stdlib_module_names - {"__main__", "lab"}
sys.exit(f"imported too: {strangers}" if strangers else 0)
"""


def imported(tree: ast.Module) -> set[str]:
    """Return the names of the modules that a module imports, including lazy imports."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_it_names_the_standard_library_and_its_room_alone(module: Path) -> None:
    names = imported(ast.parse((ROOT / module).read_text(encoding="utf-8")))
    ours = {name for name in names if name == "lab.guest" or name.startswith("lab.guest.")}
    assert {name.partition(".")[0] for name in names - ours} <= sys.stdlib_module_names


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing else of the checkout."""
    folder = tmp_path_factory.mktemp("machine")
    shutil.copytree(ROOM, folder / "lab/guest", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "lab/__init__.py", folder / "lab")
    return folder


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_it_runs_where_there_is_only_a_python(module: Path, room: Path) -> None:
    name = ".".join(module.with_suffix("").parts).removesuffix(".__init__")
    command = [sys.executable, "-I", "-S", "-c", IMPORT, str(room), name]
    done = subprocess.run(command, cwd=room, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
