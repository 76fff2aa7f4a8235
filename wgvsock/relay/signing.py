"""The relay's Ed25519 seed, which signs its requests: the operator's (relay pin) or one of our own.

An enclave without a pin adopts the signing key of the relay that it serves. So our own key is made once and kept in the
runtime directory: a relay that was killed and comes back is recognised at once.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from pathlib import Path

from wgvsock.provisioning.pin import SEED_BYTES
from wgvsock.relay.config import RelayConfig
from wgvsock.relay.errors import SigningKeyError
from wgvsock.system.journal import read_private, write_private


def load_signing_seed(config: RelayConfig, random: Callable[[int], bytes]) -> bytes:
    """The 32-byte seed.

    Raises:
        SigningKeyError: The configured file is missing or malformed, or ours cannot be kept.
    """
    if config.provisioning.signing_key_file is not None:
        return _read(Path(config.provisioning.signing_key_file), Path.read_bytes)
    path = Path(config.runtime_directory) / f"{config.name}.key"
    if path.exists():
        return _read(path, read_private)
    seed = random(SEED_BYTES)
    try:
        write_private(path, base64.b64encode(seed) + b"\n")
    except OSError as error:
        raise SigningKeyError(
            f"cannot keep the signing key in {path}",
            why=error.strerror or str(error),
            fix='make "runtime_directory" writable, or give a "provisioning.signing_key_file"',
        ) from error
    return seed


def _read(path: Path, read: Callable[[Path], bytes]) -> bytes:
    try:
        seed = base64.b64decode(read(path).strip(), validate=True)
    except OSError as error:
        raise SigningKeyError(
            f"cannot read the signing key {path}", why=error.strerror or str(error), fix="check the path and its mode"
        ) from error
    except binascii.Error:
        seed = b""
    if len(seed) != SEED_BYTES:
        raise SigningKeyError(
            f"cannot use the signing key {path}",
            why="it does not hold 32 bytes in base64",
            fix="make one with: wgvsock keys gen --signing",
        )
    return seed
