"""The wheel holds the product and nothing else, and runs from an empty environment outside the checkout."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
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
    assert {top for top in tops if not top.endswith((".dist-info", ".data"))} == {"wgvsock"}
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
        (tmp_path / f"{role}.toml").write_text(written.stdout.replace("00" * 48, "ab" * 48))
        checked = run(empty_environment / "wgvsock", "config", "check", role, f"{role}.toml", cwd=tmp_path)
        assert checked.returncode == 0, checked.stderr


def test_man_pages_and_completions_are_installed(wheel: Path, empty_environment: Path) -> None:
    names = {name.partition(".data/data/")[2] for name in zipfile.ZipFile(wheel).namelist()} - {""}
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "share").rglob("*") if path.is_file()}
    assert names == there
    assert len(names) == 6
    assert all((empty_environment.parent / name).is_file() for name in names)


def test_errors_are_explained_without_the_checkout(empty_environment: Path, tmp_path: Path) -> None:
    explained = run(empty_environment / "wgvsock", "explain", "e031", cwd=tmp_path)
    assert explained.returncode == 0, explained.stderr
    assert explained.stdout.startswith("WGV-E031 (error)\nwhat: ")


def test_attest_verify_refuses_garbage_with_exit_5(empty_environment: Path, tmp_path: Path) -> None:
    (tmp_path / "document").write_bytes(b"\x84garbage")
    refused = run(empty_environment / "wgvsock", "attest", "verify", "document", cwd=tmp_path)
    assert refused.returncode == 5
    assert "Traceback" not in refused.stderr


def test_the_same_commit_gives_the_same_bytes(tmp_path: Path) -> None:
    built = []
    for number, umask in enumerate((0o022, 0o077)):
        copy, dist = tmp_path / f"{number}/copy", tmp_path / f"{number}/dist"
        copy.mkdir(parents=True)
        for name in ("wgvsock", "docs", "share", "tools", "pyproject.toml", "setup.py", "README.md", "LICENSE"):
            (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, copy / name)
        for path in copy.rglob("*"):  # what another checkout may differ in
            path.chmod(path.stat().st_mode & ~umask)
            os.utime(path, (number, number))
        stamped = {"WGVSOCK_COMMIT": "0" * 40, "SOURCE_DATE_EPOCH": "1767225600"}
        subprocess.run(
            [copy / "tools/build", sys.executable, dist],
            env={**os.environ, **stamped},
            umask=umask,
            check=True,
            capture_output=True,
        )
        built.append({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in dist.iterdir()})
    assert {Path(name).suffix for name in built[0]} == {".whl", ".gz"}
    assert built[0] == built[1]
    wheel = zipfile.ZipFile(next((tmp_path / "0/dist").glob("*.whl")))
    assert json.loads(wheel.read("wgvsock/build.json")) == {"commit": "0" * 40, "build": "20260101T000000Z"}
