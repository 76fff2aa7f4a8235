"""The wheel holds the product and nothing else, and runs from an empty environment outside the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT], check=True, capture_output=True, text=True
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def empty_environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    subprocess.run(
        [environment / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel],
        check=True,
        capture_output=True,
    )
    return environment / "bin"


def run(program: Path, *arguments: str, cwd: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    bare = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COV"))}
    return subprocess.run(
        [program, *arguments], cwd=cwd, input=stdin, env=bare, capture_output=True, text=True, check=False
    )


def test_the_wheel_holds_the_product_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"wgvsock"}
    assert "wgvsock/py.typed" in names


def test_the_wheel_depends_on_no_laboratory_library(empty_environment: Path, tmp_path: Path) -> None:
    listed = run(empty_environment / "python", "-m", "pip", "list", "--format=json", cwd=tmp_path)
    installed = {package["name"].lower() for package in json.loads(listed.stdout)}
    assert installed.isdisjoint({"scapy", "pycose", "ansible-runner", "pytest"})
    absent = run(empty_environment / "python", "-c", "import lab", cwd=tmp_path)
    assert "ModuleNotFoundError" in absent.stderr


def test_keys(empty_environment: Path, tmp_path: Path) -> None:
    private = run(empty_environment / "wgvsock", "keys", "gen", cwd=tmp_path)
    assert private.returncode == 0
    public = run(empty_environment / "wgvsock", "keys", "pub", cwd=tmp_path, stdin=private.stdout)
    assert public.returncode == 0
    assert len(public.stdout.strip()) == 44
    assert public.stdout != private.stdout


def test_config_init_writes_what_config_check_accepts(empty_environment: Path, tmp_path: Path) -> None:
    for role in ("relay", "enclave"):
        written = run(empty_environment / "wgvsock", "config", "init", role, cwd=tmp_path)
        assert written.returncode == 0, written.stderr
        (tmp_path / f"{role}.toml").write_text(written.stdout)
        checked = run(empty_environment / "wgvsock", "config", "check", role, f"{role}.toml", cwd=tmp_path)
        assert checked.returncode == 0, checked.stderr


def test_attest_verify_refuses_garbage_with_exit_5(empty_environment: Path, tmp_path: Path) -> None:
    (tmp_path / "document").write_bytes(b"\x84garbage")
    refused = run(empty_environment / "wgvsock", "attest", "verify", "document", cwd=tmp_path)
    assert refused.returncode == 5
    assert "Traceback" not in refused.stderr
