"""The images: identical for identical content, small, without a shell, and correctly labelled."""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import IO, Any

import pytest

from lab.container.engine import Engine
from lab.image.oci import archive, build
from tests.deploy.conftest import ROOT

pytestmark = pytest.mark.slow

MAX_BYTES = 90_000_000
RUN = ("run", "--rm", "--network", "none", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=10000:10000")
PROGRAMS = {
    "relay": {"usr/bin/python3", "usr/bin/python3.11", "usr/bin/wgvsock", "usr/sbin/nft"},
    "enclave": {"usr/bin/python3", "usr/bin/python3.11", "usr/bin/wgvsock"},
}


@pytest.fixture(scope="session")
def layers(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The single layer of each image, unpacked: each step back in a compressed tar would unpack it from the start."""
    folder = tmp_path_factory.mktemp("layers")
    return {role: unpack(archive(role), folder / f"{role}.tar") for role in PROGRAMS}


def unpack(path: Path, target: Path) -> Path:
    """Write an archive's single layer to a file."""
    with tarfile.open(path) as image:

        def blob(digest: str) -> IO[bytes]:
            file = image.extractfile(f"blobs/{digest.replace(':', '/')}")
            assert file is not None
            return file

        index = image.extractfile("index.json")
        assert index is not None
        (described,) = json.loads(index.read())["manifests"]
        (only,) = json.loads(blob(described["digest"]).read())["layers"]
        with gzip.open(blob(only["digest"])) as packed, target.open("wb") as file:
            shutil.copyfileobj(packed, file)
    return target


@pytest.fixture(scope="session")
def sbom() -> Any:
    spec = importlib.util.spec_from_file_location("sbom", ROOT / "deploy/image/sbom.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("role", PROGRAMS)
def test_what_is_in_an_image(role: str, layers: dict[str, Path]) -> None:
    with tarfile.open(layers[role]) as files:
        members = files.getmembers()
    assert sum(member.size for member in members) < MAX_BYTES
    names = {member.name for member in members if not member.isdir()}
    assert {name for name in names if re.match(r"(usr/)?s?bin/", name)} == PROGRAMS[role]
    assert not [member.name for member in members if member.isdev() or member.mode & 0o6000]  # no device, no set-uid
    assert not [name for name in names if "/pip/" in name or name.startswith(("etc/apt", "var/lib/apt"))]
    of_the_build = re.compile(r"/(mypyc?|setuptools|librt)/|/cc1$|/Python\.h$")
    assert not [name for name in names if of_the_build.search(name)]
    others_write = [member.name for member in members if not member.issym() and member.mode & 0o002]
    assert set(others_write) <= {"tmp", "var/tmp", "var/lock", "run/lock"}


def test_every_module_is_compiled_and_checked_against_nothing(layers: dict[str, Path]) -> None:
    with tarfile.open(layers["relay"]) as files:
        names = {member.name for member in files.getmembers()}
        sources = [name for name in names if re.match(r"(usr/lib/python3.11|opt/wgvsock/lib)/.*\.py$", name)]
        assert len(sources) > 1000
        for source in sources:
            folder, _, module = source.rpartition("/")
            compiled = files.extractfile(f"{folder}/__pycache__/{module.removesuffix('.py')}.cpython-311.pyc")
            assert compiled is not None
            assert compiled.read(8)[4:] == b"\x01\0\0\0", source  # PEP 552: by hash, unchecked


def test_what_a_packet_meets_is_machine_code_with_its_source_beside_it(layers: dict[str, Path]) -> None:
    with tarfile.open(layers["enclave"]) as files:
        names = {member.name for member in files.getmembers()}
    site = "opt/wgvsock/lib/python3.11/site-packages"
    for module in ("tunnel/tunnel", "wireguard/receive", "wireguard/send"):
        assert {f"{site}/wgvsock/{module}.py", f"{site}/wgvsock/{module}.cpython-311-x86_64-linux-gnu.so"} <= names


def test_the_compiler_is_pinned_by_hash() -> None:
    lines = (ROOT / "deploy/image/compiler.txt").read_text().splitlines()[1:]
    assert {line.partition("==")[0] for line in lines} >= {"mypy", "setuptools"}
    assert all(re.fullmatch(r"\w+==\S+ --hash=sha256:[0-9a-f]{64}", line) for line in lines)


def test_two_builds_have_one_identifier(engine: Engine, relay_image: str, tmp_path: Path) -> None:
    # The cache's archive may be of an earlier commit with the same content, and says so.
    found = engine.inspect(relay_image)
    assert found is not None
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    cached = found["Config"]["Labels"]["org.opencontainers.image.revision"] == commit.stdout.strip()
    first = [relay_image] if cached else identifiers(build(tmp_path / "one", "relay"))
    assert identifiers(build(tmp_path / "two", "relay")) == first
    assert len(first) == 1


def identifiers(said: str) -> list[str]:
    return re.findall(r"[0-9a-f]{64}", said)


def test_an_image_says_what_it_is(engine: Engine, relay_image: str, enclave_image: str) -> None:
    for image in (relay_image, enclave_image):
        found = engine.inspect(image)
        assert found is not None
        labels = found["Config"]["Labels"]
        words = (*RUN, "--read-only", "--cap-drop", "ALL", "--entrypoint", "/usr/bin/wgvsock")
        said = json.loads(engine.run(*words, image, "version", "--json").stdout)
        assert said["version"] == labels["org.opencontainers.image.version"]
        assert (said["commit"] or "unknown") == labels["org.opencontainers.image.revision"]
        assert said["build"] == labels["wgvsock.build"]
        assert said["python"].startswith("3.11.")
        assert said["compiled"] is True


def test_there_is_no_shell(engine: Engine, relay_image: str) -> None:
    refused = engine.run(*RUN, "--entrypoint", "/bin/sh", relay_image, "-c", "true", check=False)
    assert refused.exit_code == 127
    assert b"no such file" in refused.stderr


def test_the_bill_of_materials_names_each_package(layers: dict[str, Path], sbom: Any) -> None:
    rootfs = layers["relay"]
    with tarfile.open(rootfs) as files:
        stored = {member.name for member in files.getmembers()}
    bill = sbom.bill(rootfs, "wgvsock-relay", "1")
    assert bill == sbom.bill(rootfs, "wgvsock-relay", "1")  # no time, no chance
    names = {component["name"] for component in bill["components"]}
    assert {name.rpartition("/")[2] for name in stored if name.startswith("var/lib/dpkg/status.d/")} <= names
    pinned = re.findall(r"^([\w-]+)==", (ROOT / "deploy/image/wheels.txt").read_text(), re.MULTILINE)
    assert {*pinned, "wgvsock", "nftables", "libc6", "python3.11-minimal"} <= names
    purls = [component["purl"] for component in bill["components"]]
    assert len(set(purls)) == len(purls)
    assert all(re.fullmatch(r"pkg:(deb/debian|pypi)/[\w.+%~-]+@[\w.+%~-]+(\?\S+)?", purl) for purl in purls)


def test_an_enclave_in_no_enclave_says_so(engine: Engine, enclave_image: str) -> None:
    refused = engine.run(*RUN, enclave_image, "/usr/bin/python3", "--version", check=False)
    assert refused.exit_code == 2  # no /etc/wgvsock/enclave.toml: the base has none
    assert b"error[WGV-E004]" in refused.stderr


def test_the_bill_of_materials_is_valid_cyclonedx(layers: dict[str, Path], sbom: Any) -> None:
    validation = pytest.importorskip("cyclonedx.validation.json", reason="missing: cyclonedx-python-lib")
    schema = pytest.importorskip("cyclonedx.schema")
    text = json.dumps(sbom.bill(layers["relay"], "wgvsock-relay", "1"))
    validator = validation.JsonStrictValidator(schema.SchemaVersion.V1_6)
    assert validator.validate_str(text) is None
    assert validator.validate_str(text.replace("bomFormat", "bomFormt")) is not None
