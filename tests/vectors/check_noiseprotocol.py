"""Replay handshake.json with a third implementation, the PyPI package ``noiseprotocol``.

It is not among the test dependencies. ``python -m venv /tmp/noise && /tmp/noise/bin/pip install noiseprotocol``, then
``/tmp/noise/bin/python tests/vectors/check_noiseprotocol.py`` from the root of the checkout.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

PROTOCOL = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
PROLOGUE = b"WireGuard v1 zx2c4 Jason@zx2c4.com"


def connection(vector: dict[str, str], role: str) -> Any:
    """One side of the handshake, with both of its private keys."""
    noise = importlib.import_module("noise.connection")
    side = noise.NoiseConnection.from_name(PROTOCOL)
    side.set_prologue(PROLOGUE)
    side.set_psks(psk=bytes.fromhex(vector["preshared_key"]))
    side.set_keypair_from_private_bytes(noise.Keypair.STATIC, bytes.fromhex(vector[f"{role}_static"]))
    side.set_keypair_from_private_bytes(noise.Keypair.EPHEMERAL, bytes.fromhex(vector[f"{role}_ephemeral"]))
    if role == "initiator":
        side.set_as_initiator()
        side.set_keypair_from_public_bytes(noise.Keypair.REMOTE_STATIC, bytes.fromhex(vector["responder_public"]))
    else:
        side.set_as_responder()
    side.start_handshake()
    return side


def agrees(vector: dict[str, str]) -> bool:
    """Return whether the handshake and the first transport message of each side come out the same."""
    initiator, responder = connection(vector, "initiator"), connection(vector, "responder")
    first = initiator.write_message(bytes.fromhex(vector["timestamp"]))
    timestamp = responder.read_message(first)
    second = responder.write_message(b"")
    initiator.read_message(second)
    packet = bytes.fromhex(vector["packet"])
    return (
        bytes(first) == bytes.fromhex(vector["initiation"])[8:-32]
        and bytes(timestamp) == bytes.fromhex(vector["timestamp"])
        and bytes(second) == bytes.fromhex(vector["response"])[12:-32]
        and initiator.encrypt(b"") == bytes.fromhex(vector["keepalive_from_initiator"])[16:]
        and responder.encrypt(packet + bytes(-len(packet) % 16)) == bytes.fromhex(vector["data_from_responder"])[16:]
    )


if __name__ == "__main__":
    vectors = json.loads((Path(__file__).parent / "handshake.json").read_text())["handshakes"]
    if not all(agrees(vector) for vector in vectors):
        sys.exit("handshake.json and noiseprotocol differ")
