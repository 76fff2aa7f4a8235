"""The relay's Ed25519 seed, which signs its requests: the operator's (relay pin) or one that the relay generates.

An enclave without a pin adopts the signing key of the relay that it serves. Therefore the relay generates its key once
and keeps it in the runtime directory. A relay that was killed and restarted is then recognised at once.
"""

from __future__ import annotations

import base64
import binascii
import logging
import os
from collections.abc import Callable
from pathlib import Path

from wgvsock.provisioning.pin import SEED_BYTES
from wgvsock.relay.errors import SigningKeyError
from wgvsock.relay.spec import EnclaveSpec
from wgvsock.runtime import private
from wgvsock.telemetry.logs import fields

_log = logging.getLogger(__name__)


def signing_key_path(spec: EnclaveSpec) -> Path:
    """Path of the seed: the operator's file, or a generated one in the runtime directory."""
    configured = spec.provisioning.signing_key_file
    return Path(spec.runtime_directory) / f"{spec.relay}.key" if configured is None else Path(configured)


def load_signing_seed(spec: EnclaveSpec, random: Callable[[int], bytes]) -> bytes:
    """Load the seed, or generate and save one.

    Args:
        spec: The enclave's specification.
        random: Returns as many random bytes as asked for.

    Returns:
        The seed, 32 bytes.

    Raises:
        SigningKeyError: The file is missing, malformed or accessible to others, or a generated seed cannot be saved.
    """
    path = signing_key_path(spec)
    if spec.provisioning.signing_key_file is not None:
        seed = _read(path, private.read_secret)
        _log.info("requests are signed with the configured key", extra=fields(file=path))
        return seed
    if os.path.lexists(path):
        seed = _read(path, private.read)
        _log.info("requests are signed with the key of an earlier run", extra=fields(file=path))
        return seed
    seed = random(SEED_BYTES)
    try:
        private.write(path, base64.b64encode(seed) + b"\n")
    except OSError as error:
        raise SigningKeyError(
            f"cannot save the signing key in {path}",
            why=private.why(error),
            fix='make "runtime_directory" writable, or set "provisioning.signing_key_file"',
        ) from error
    _log.info(
        "requests are signed with a new key, which was saved: an enclave without a pin that has adopted another key "
        "serves this relay only after the other one has been silent for 180 s",
        extra=fields(file=path),
    )
    return seed


def _read(path: Path, read: Callable[[Path], bytes]) -> bytes:
    try:
        seed = base64.b64decode(read(path).strip(), validate=True)
    except OSError as error:
        raise SigningKeyError(
            f"cannot read the signing key {path}",
            why=private.why(error),
            fix=private.fix(
                error, "check that the path is right and that this user may read it (a Pod needs fsGroup for that)"
            ),
        ) from error
    except binascii.Error:
        seed = b""
    if len(seed) != SEED_BYTES:
        raise SigningKeyError(
            f"cannot use the signing key {path}",
            why="it does not hold 32 bytes in base64",
            fix=f"generate one with: wgvsock keys gen --signing -o {path}",
        )
    return seed
