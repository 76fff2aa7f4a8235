"""The output of a build becomes a policy that the relay accepts."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wgvsock.relay import config

MEASURED = {f"PCR{index}": f"{index + 1:096x}" for index in (0, 1, 2)}


@pytest.fixture
def printed(tmp_path: Path) -> Callable[..., str]:
    """A file with the output of nitro-cli."""

    def write(name: str, **measured: str) -> str:
        path = tmp_path / name
        path.write_text(json.dumps({"Measurements": {"HashAlgorithm": "Sha384 { ... }", **measured}}))
        return str(path)

    return write


def sets(text: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tomllib.loads(text)["attestation"]["pcr_sets"]
    return found


def test_one_image(prints: Callable[..., str], printed: Callable[..., str], tmp_path: Path) -> None:
    text = prints("config", "init", "relay", "--pcrs", printed("one.json", **MEASURED))
    assert sets(text) == [{name.lower(): value for name, value in MEASURED.items()}]
    assert "zeros" not in text
    (tmp_path / "relay.toml").write_text(text)
    (spec,) = config.load(str(tmp_path / "relay.toml")).specs()
    assert not spec.attestation.has_placeholder


def test_the_old_and_the_new_image_side_by_side(prints: Callable[..., str], printed: Callable[..., str]) -> None:
    other = {name: value.replace("0", "a") for name, value in MEASURED.items()}
    files = (printed("old.json", **MEASURED), printed("new.json", **other))
    text = prints("config", "init", "relay", "--pcrs", files[0], "--pcrs", files[1])
    assert [entry["pcr0"] for entry in sets(text)] == [MEASURED["PCR0"], other["PCR0"]]


def test_the_signer_is_kept_and_the_parent_s_registers_are_not(
    prints: Callable[..., str], printed: Callable[..., str]
) -> None:
    more = {f"PCR{index}": f"{index:096x}" for index in (3, 4, 8)}
    (only,) = sets(prints("config", "init", "relay", "--pcrs", printed("x.json", **MEASURED, **more)))
    assert set(only) == {"pcr0", "pcr1", "pcr2", "pcr8"}


def test_what_the_rest_says_stays(prints: Callable[..., str], printed: Callable[..., str]) -> None:
    plain = prints("config", "init", "relay").splitlines()
    filled = prints("config", "init", "relay", "--pcrs", printed("x.json", **MEASURED)).splitlines()
    assert filled[:10] == plain[:10]
    assert filled[-20:] == plain[-20:]


def test_registers_are_missing(fails: Callable[..., Any], printed: Callable[..., str]) -> None:
    failure = fails("config", "init", "relay", "--pcrs", printed("x.json", PCR0=MEASURED["PCR0"]), status=2)
    assert failure.why == "it lacks PCR1, PCR2"


def test_the_enclave_accepts_no_images(fails: Callable[..., Any], printed: Callable[..., str]) -> None:
    failure = fails("config", "init", "enclave", "--pcrs", printed("x.json", **MEASURED), status=2)
    assert "for the enclave" in failure.what


def test_a_file_that_is_not_there(fails: Callable[..., Any]) -> None:
    assert "cannot read" in fails("config", "init", "relay", "--pcrs", "/no/such/file", status=2).what
