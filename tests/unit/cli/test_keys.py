"""Keys as `wg` prints them, against the RFCs' vectors. A private key goes only where it was requested."""

from __future__ import annotations

import base64
import io
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

# RFC 7748, section 6.1, Alice's pair; RFC 8032, section 7.1, TEST 1.
X25519 = (
    bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"),
    bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"),
)
ED25519 = (
    bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"),
    bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"),
)

TypeInto = Callable[[bytes], None]


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> TypeInto:
    """Set the contents of standard input."""

    def set_stdin(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return set_stdin


def text(key: bytes) -> str:
    return base64.b64encode(key).decode()


@pytest.mark.parametrize("options", [(), ("--signing",)])
def test_each_key_is_fresh(prints: Callable[..., str], options: tuple[str, ...]) -> None:
    first, second = prints("keys", "gen", *options), prints("keys", "gen", *options)
    assert first != second
    assert first.endswith("\n")
    assert len(base64.b64decode(first, validate=False)) == 32


def test_a_wireguard_key_is_clamped_as_wg_genkey_does(prints: Callable[..., str]) -> None:
    for _ in range(8):
        key = base64.b64decode(prints("keys", "gen"))
        assert (key[0] & 7, key[31] & 0xC0) == (0, 0x40)


def test_a_wireguard_key_and_its_public_key(prints: Callable[..., str], stdin: TypeInto) -> None:
    private_key = prints("keys", "gen")
    stdin(private_key.encode())
    expected = X25519PrivateKey.from_private_bytes(base64.b64decode(private_key)).public_key().public_bytes_raw()
    assert prints("keys", "pub") == text(expected) + "\n"


def test_a_signing_key_and_its_public_key(prints: Callable[..., str], stdin: TypeInto) -> None:
    seed = prints("keys", "gen", "--signing")
    stdin(seed.encode())
    expected = Ed25519PrivateKey.from_private_bytes(base64.b64decode(seed)).public_key().public_bytes_raw()
    assert prints("keys", "pub", "--signing") == text(expected) + "\n"


@pytest.mark.parametrize(("pair", "kind", "options"), [(X25519, "wireguard", ()), (ED25519, "signing", ("--signing",))])
def test_published_pairs(
    prints_json: Callable[..., dict[str, Any]],
    stdin: TypeInto,
    pair: tuple[bytes, bytes],
    kind: str,
    options: tuple[str, ...],
) -> None:
    private_key, public_key = pair
    stdin(b"  " + text(private_key).encode() + b"\r\n")
    answer = prints_json("keys", "pub", *options)
    assert answer == {"schema": "wgvsock/v1", "kind": kind, "public_key": text(public_key)}


KEY = text(X25519[0])


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\n",
        X25519[0],
        X25519[0].hex().encode(),
        text(X25519[0][:31]).encode(),
        text(X25519[0] + b"\0").encode(),
        KEY.rstrip("=").encode(),
        KEY.replace("/", "_").encode() + b"!",
        f"{KEY}\n{KEY}".encode(),
        f"PrivateKey = {KEY}".encode(),
        KEY.encode("utf-16"),
        b"A" * 100_000,
    ],
)
@pytest.mark.parametrize("options", [(), ("--signing",)])
def test_garbage_is_refused_and_not_repeated(
    fails: Callable[..., Any], stdin: TypeInto, garbage: bytes, options: tuple[str, ...]
) -> None:
    stdin(garbage)
    failure = fails("keys", "pub", *options, status=2)
    assert failure.code == "WGV-E001"
    assert "32 bytes in base64" in failure.why
    assert KEY[:16] not in f"{failure.what} {failure.why} {failure.fix}"


# A separate file.


@pytest.fixture(params=[0o022, 0o000, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """A umask that the shell may have."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("options", [(), ("--signing",)])
@pytest.mark.usefixtures("umask")
def test_a_key_in_a_file_is_ours_alone(
    prints: Callable[..., str], stdin: TypeInto, tmp_path: Path, options: tuple[str, ...]
) -> None:
    path = tmp_path / "signing.key"
    assert not prints("keys", "gen", *options, "-o", str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    stdin(path.read_bytes())
    assert prints("keys", "pub", *options)


def test_a_key_is_replaced_when_that_is_asked_for(
    prints: Callable[..., str], fails: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / "signing.key"
    path.write_text(KEY)
    path.chmod(0o644)
    failure = fails("keys", "gen", "-o", str(path), status=2)
    assert (failure.code, "--force" in failure.fix) == ("WGV-E001", True)
    assert path.read_text() == KEY
    prints("keys", "gen", "--force", "-o", str(path))
    assert path.read_text() != KEY
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_key_that_cannot_be_written(fails: Callable[..., Any], tmp_path: Path) -> None:
    assert fails("keys", "gen", "-o", str(tmp_path / "missing" / "key"), status=1).code == "WGV-E056"
    assert fails("keys", "gen", "--force", "-o", str(tmp_path), status=1).why == "Is a directory"
    assert "-o FILE" in fails("keys", "gen", "--force", status=2).fix


@pytest.mark.parametrize(("mode", "warned"), [(0o644, True), (0o602, True), (0o640, False), (0o600, False)])
def test_a_redirection_to_a_file_that_others_can_read_is_warned_of(tmp_path: Path, mode: int, warned: bool) -> None:
    path = tmp_path / "key"
    path.touch()
    path.chmod(mode)
    with path.open("wb") as file:
        command = [sys.executable, "-c", "import sys; from wgvsock.cli import main; sys.exit(main())", "keys", "gen"]
        ended = subprocess.run(command, stdout=file, stderr=subprocess.PIPE, text=True, check=True)
    assert len(base64.b64decode(path.read_bytes())) == 32
    assert (f"mode {mode:04o}" in ended.stderr) == warned
    assert warned or not ended.stderr
