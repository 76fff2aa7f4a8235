"""Shared fixtures of tests for deploy/: this checkout's images in a storage that ends with the session."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.container import engine as engines
from lab.container.engine import Engine
from lab.image.oci import archive

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    if (lacks := engines.unavailable()) is not None:
        pytest.skip(str(lacks))
    # Not in pytest's own folder: podman takes no runroot of more than 50 characters.
    storage = Engine(Path(tempfile.mkdtemp(prefix="wgv-e-")))
    yield storage
    storage.close()


@pytest.fixture(scope="session")
def relay_image(engine: Engine) -> str:
    return engine.load(archive("relay"))


@pytest.fixture(scope="session")
def enclave_image(engine: Engine) -> str:
    return engine.load(archive("enclave"))
