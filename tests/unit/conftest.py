"""Real attestation documents, where this machine has them: beside the checkout, or at WGVSOCK_SAMPLES.

They belong to others, so none is copied into the project.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

_FOLDER = Path(
    os.environ.get("WGVSOCK_SAMPLES", Path(__file__).resolve().parents[3] / "shared" / "samples" / "attestation")
)


@dataclass(frozen=True, slots=True)
class AttestationSample:
    """One document with its entry in the manifest."""

    path: Path
    expected: dict[str, Any]

    @property
    def data(self) -> bytes:
        return self.path.read_bytes()

    @property
    def at(self) -> datetime:
        return datetime.fromisoformat(self.expected["utc"])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that requests `attestation_sample` runs once for each document of the manifest.

    One that requests `enclave_sample` skips those of an instance's NitroTPM, whose payload is different.
    """
    for fixture in {"attestation_sample", "enclave_sample"} & set(metafunc.fixturenames):
        manifest = _FOLDER / "manifest.json"
        if not manifest.exists():
            reason = f"no real attestation documents in {_FOLDER} (set WGVSOCK_SAMPLES)"
            skipped = pytest.param(None, marks=pytest.mark.skip(reason=reason), id="absent")
            metafunc.parametrize(fixture, [skipped])
            return
        samples = [AttestationSample(_FOLDER / entry["file"], entry) for entry in json.loads(manifest.read_bytes())]
        if fixture == "enclave_sample":
            samples = [sample for sample in samples if sample.expected["expect_today"] != "payload.nitrotpm"]
        metafunc.parametrize(fixture, [pytest.param(sample, id=sample.path.stem) for sample in samples])
