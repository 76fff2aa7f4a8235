"""The signing key: the operator's, or a generated one that is kept."""

from __future__ import annotations

import base64
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from wgvsock.relay.enclaves.signing import load_signing_seed, signing_key_path
from wgvsock.relay.errors import SigningKeyError
from wgvsock.relay.sections import ProvisioningSettings
from wgvsock.relay.spec import EnclaveSpec


def never(size: int) -> bytes:
    raise AssertionError(size)


def test_our_own_key_is_made_once_and_kept(spec: EnclaveSpec) -> None:
    seed = load_signing_seed(spec, lambda size: b"s" * size)
    assert seed == b"s" * 32
    assert load_signing_seed(spec, never) == seed
    assert stat.S_IMODE((Path(spec.runtime_directory) / "relay.key").stat().st_mode) == 0o600


def with_file(spec: EnclaveSpec, path: Path) -> bytes:
    spec = replace(spec, provisioning=ProvisioningSettings(signing_key_file=str(path)))
    return load_signing_seed(spec, never)


def test_the_operator_s_key(spec: EnclaveSpec, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.touch(mode=0o600)
    path.write_bytes(base64.b64encode(b"o" * 32) + b"\n")
    assert with_file(spec, path) == b"o" * 32
    configured = replace(spec, provisioning=ProvisioningSettings(signing_key_file=str(path)))
    assert signing_key_path(configured) == path  # what the start's log says
    assert signing_key_path(spec) == Path(spec.runtime_directory) / "relay.key"


@pytest.mark.parametrize("content", [b"", b"short", b"!" * 44, base64.b64encode(b"x" * 31)])
def test_a_file_that_holds_no_key(spec: EnclaveSpec, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.touch(mode=0o600)
    path.write_bytes(content)
    with pytest.raises(SigningKeyError, match="it does not hold 32 bytes"):
        with_file(spec, path)


def test_a_missing_file(spec: EnclaveSpec, tmp_path: Path) -> None:
    with pytest.raises(SigningKeyError, match="No such file"):
        with_file(spec, tmp_path / "key")


def test_a_directory_that_cannot_be_written(spec: EnclaveSpec, tmp_path: Path) -> None:
    spec = replace(spec, runtime_directory=str(tmp_path / "missing"))
    with pytest.raises(SigningKeyError, match="cannot save the signing key"):
        load_signing_seed(spec, bytes)


def test_a_key_that_others_can_read(spec: EnclaveSpec, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(base64.b64encode(b"o" * 32) + b"\n")
    path.chmod(0o644)
    with pytest.raises(SigningKeyError, match="its mode is 0644") as caught:
        with_file(spec, path)
    assert f"chmod 600 {path}" in caught.value.fix


def test_a_link_in_the_place_of_our_own_key(spec: EnclaveSpec, tmp_path: Path) -> None:
    (Path(spec.runtime_directory) / "relay.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SigningKeyError, match="key is a symbolic link"):
        load_signing_seed(spec, never)
    assert not (tmp_path / "elsewhere").exists()


def test_it_is_said_which_key_it_is_and_where(
    spec: EnclaveSpec, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path = tmp_path / "key"
    path.touch(mode=0o600)
    path.write_bytes(base64.b64encode(b"o" * 32))
    load_signing_seed(spec, lambda size: b"s" * size)
    load_signing_seed(spec, never)
    with_file(spec, path)
    own = Path(spec.runtime_directory) / "relay.key"
    said = [(record.getMessage().partition(",")[0], record.wgvsock_fields["file"]) for record in caplog.records]  # type: ignore[attr-defined]
    assert said == [
        ("requests are signed with a new key", own),
        ("requests are signed with the key of an earlier run", own),
        ("requests are signed with the configured key", path),
    ]
    assert base64.b64encode(b"s" * 32).decode() not in caplog.text
