"""The signing key: the operator's, or one of our own that is kept."""

from __future__ import annotations

import base64
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from wgvsock.relay.config import ProvisioningSettings, RelayConfig
from wgvsock.relay.errors import SigningKeyError
from wgvsock.relay.signing import load_signing_seed


def never(size: int) -> bytes:
    raise AssertionError(size)


def test_our_own_key_is_made_once_and_kept(config: RelayConfig) -> None:
    seed = load_signing_seed(config, lambda size: b"s" * size)
    assert seed == b"s" * 32
    assert load_signing_seed(config, never) == seed
    assert stat.S_IMODE((Path(config.runtime_directory) / "relay.key").stat().st_mode) == 0o600


def with_file(config: RelayConfig, path: Path) -> bytes:
    config = replace(config, provisioning=ProvisioningSettings(signing_key_file=str(path)))
    return load_signing_seed(config, never)


def test_the_operator_s_key(config: RelayConfig, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(base64.b64encode(b"o" * 32) + b"\n")
    assert with_file(config, path) == b"o" * 32


@pytest.mark.parametrize("content", [b"", b"short", b"!" * 44, base64.b64encode(b"x" * 31)])
def test_a_file_that_holds_no_key(config: RelayConfig, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(SigningKeyError, match="it does not hold 32 bytes"):
        with_file(config, path)


def test_a_missing_file(config: RelayConfig, tmp_path: Path) -> None:
    with pytest.raises(SigningKeyError, match="No such file"):
        with_file(config, tmp_path / "key")


def test_a_directory_that_cannot_be_written(config: RelayConfig, tmp_path: Path) -> None:
    config = replace(config, runtime_directory=str(tmp_path / "missing"))
    with pytest.raises(SigningKeyError, match="cannot keep the signing key"):
        load_signing_seed(config, bytes)
