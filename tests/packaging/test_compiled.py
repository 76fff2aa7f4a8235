"""The compiled wheel: for this Python only, with its sources, and reporting what it is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("cc") is None or not Path(sysconfig.get_path("include"), "Python.h").exists(),
        reason="no C compiler, or no headers of Python",
    ),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command: list[str | Path] = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, ROOT]
    subprocess.run(command, env={**os.environ, "WGVSOCK_COMPILE": "1"}, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def python(installed: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-P", *arguments]
    return subprocess.run(
        command, env=environment, cwd=installed, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_it_is_a_wheel_of_this_python(wheel: Path) -> None:
    version = "cp{}{}".format(*sys.version_info)
    assert f"-{version}-{version}-" in wheel.name


def test_each_compiled_module_has_its_source_beside_it(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    suffix = EXTENSION_SUFFIXES[0]
    compiled = {name.removesuffix(suffix) for name in names if name.endswith(suffix) and name.startswith("wgvsock/")}
    assert {"wgvsock/framing", "wgvsock/tunnel/tunnel", "wgvsock/wireguard/send"} <= compiled
    assert {f"{name}.py" for name in compiled} <= names


def test_what_a_packet_meets_is_machine_code(installed: Path) -> None:
    said = python(installed, "-c", "from wgvsock.wireguard import seal_into; print(type(seal_into).__name__)")
    assert said == "builtin_function_or_method"


def test_it_says_so(installed: Path) -> None:
    run = "import sys; from wgvsock.cli import main; sys.argv[1:] = ['version', '--json']; sys.exit(main())"
    assert json.loads(python(installed, "-c", run))["compiled"] is True
