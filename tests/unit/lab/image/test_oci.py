"""The cache of images: one build per content, the newest kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lab.errors import LabError
from lab.image import oci as images


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "checkout"
    for name in ("wgvsock/a.py", "wgvsock/__pycache__/a.pyc", "deploy/image/build", "tools/build"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "docs/protocol").mkdir(parents=True)
    (folder / "share").mkdir()
    pages = ("docs/errors.md", "docs/operations.md", "docs/protocol/attestation.md")
    for name in ("pyproject.toml", "setup.py", "tools/build-constraints.txt", *pages):
        (folder / name).write_text(name)
    builder = (
        '#!/bin/sh\n[ -d "$ENGINE_ROOT" ] && echo "built $3" > "$2/wgvsock-$3.oci.tar" && echo >> "$2/../../count"\n'
    )
    (folder / "deploy/image/build").write_text(builder)
    (folder / "deploy/image/build").chmod(0o755)
    monkeypatch.setattr(images, "CHECKOUT", folder)
    return folder


def test_the_fingerprint_follows_what_an_image_is_made_of(checkout: Path) -> None:
    before = images.fingerprint()
    (checkout / "wgvsock/__pycache__/a.pyc").write_text("other")
    (checkout / "README.md").write_text("other")
    assert images.fingerprint() == before
    (checkout / "wgvsock/a.py").write_text("other")
    assert images.fingerprint() != before


def test_the_real_ingredients_are_all_there() -> None:
    found = {str(path.relative_to(images.CHECKOUT)) for path in images.ingredients()}
    assert {"deploy/image/Containerfile", "deploy/image/furnish", "setup.py", "wgvsock/cli/start.py"} <= found


def test_an_archive_is_built_once(checkout: Path, tmp_path: Path) -> None:
    target = images.archive("relay", tmp_path)
    assert target.read_text() == "built relay\n"
    assert images.archive("relay", tmp_path) == target
    assert (tmp_path / "count").read_text() == "\n"
    assert images.archive("enclave", tmp_path).read_text() == "built enclave\n"


def test_a_build_that_fails_leaves_its_words(checkout: Path, tmp_path: Path) -> None:
    (checkout / "deploy/image/build").write_text("#!/bin/sh\necho 'no mirror' >&2; exit 1\n")
    with pytest.raises(LabError) as caught:
        images.archive("relay", tmp_path)
    assert "no mirror" in caught.value.why


def test_old_builds_are_forgotten(tmp_path: Path) -> None:
    for age in range(5):
        (tmp_path / str(age)).mkdir()
        os.utime(tmp_path / str(age), (1000 - age, 1000 - age))
    images.forget_old_builds(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]
