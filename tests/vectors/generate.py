"""Write the generated vectors with the second implementation: ``python -m tests.vectors.generate``.

Inputs are hashes of their names, so that every run gives the same files.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.vectors import reference, reference_provisioning

FOLDER = Path(__file__).parent
SOURCE = "tests/vectors/generate.py, computed by tests/vectors/reference.py"
PROVISIONING_SOURCE = "tests/vectors/generate.py, computed by tests/vectors/reference_provisioning.py"


def _made_up(name: str, size: int = 32) -> bytes:
    return reference.blake2s(name.encode(), size=size)


def kdf_vectors() -> dict[str, object]:
    """HMAC and KDF1 to KDF3 for inputs around BLAKE2s's block size."""
    cases = []
    for size in (0, 1, 31, 32, 33, 64, 65, 200):
        key, data = _made_up(f"kdf key {size}"), (_made_up(f"kdf input {size}") * 7)[:size]
        cases.append(
            {
                "key": key.hex(),
                "input": data.hex(),
                "hmac": reference.hmac(key, data).hex(),
                "outputs": [output.hex() for output in reference.hkdf(key, data, 3)],
            }
        )
    return {"source": SOURCE, "kdf": cases}


def handshake_vectors() -> dict[str, object]:
    """Whole handshakes, the first transport messages and a cookie reply, with and without a preshared key."""
    return {"source": SOURCE, "handshakes": [_handshake("no preshared key", bytes(32)), _handshake("preshared key")]}


def _handshake(name: str, preshared_key: bytes | None = None) -> dict[str, object]:
    secrets = {
        field: _made_up(f"{name} {field}")
        for field in ("initiator_static", "responder_static", "initiator_ephemeral", "responder_ephemeral")
    }
    preshared_key = _made_up(f"{name} preshared") if preshared_key is None else preshared_key
    # 2027, on the grid of 2**25 ns that wgvsock rounds its timestamps to.
    seconds, nanoseconds = divmod(53_644_181_000 * 2**25, 10**9)
    timestamp = (2**62 + 10 + seconds).to_bytes(8, "big") + nanoseconds.to_bytes(4, "big")
    initiator_index, responder_index = 0x01234567, 0x89ABCDEF
    transcript = reference.wireguard_handshake(
        **secrets,
        preshared_key=preshared_key,
        timestamp=timestamp,
        initiator_index=initiator_index,
        responder_index=responder_index,
    )
    keepalive = reference.transport_data(transcript.initiator_to_responder_key, responder_index, 0, b"")
    packet = _made_up(f"{name} packet") + b"and some"
    data = reference.transport_data(transcript.responder_to_initiator_key, initiator_index, 0, packet)
    responder = reference.x25519(secrets["responder_static"], reference.BASE_POINT)
    cookie_secret, source = _made_up(f"{name} cookie secret"), b"192.0.2.1:51820"
    nonce = _made_up(f"{name} cookie nonce", 24)
    cookie = reference.blake2s(source, key=cookie_secret, size=16)
    return {
        "name": name,
        **{field: secret.hex() for field, secret in secrets.items()},
        "initiator_public": reference.x25519(secrets["initiator_static"], reference.BASE_POINT).hex(),
        "responder_public": responder.hex(),
        "preshared_key": preshared_key.hex(),
        "timestamp": timestamp.hex(),
        "initiator_index": initiator_index,
        "responder_index": responder_index,
        "initiation": transcript.initiation.hex(),
        "response": transcript.response.hex(),
        "initiator_to_responder_key": transcript.initiator_to_responder_key.hex(),
        "responder_to_initiator_key": transcript.responder_to_initiator_key.hex(),
        "keepalive_from_initiator": keepalive.hex(),
        "packet": packet.hex(),
        "data_from_responder": data.hex(),
        "cookie_secret": cookie_secret.hex(),
        "cookie_source": source.hex(),
        "cookie_nonce": nonce.hex(),
        "cookie_reply": reference.cookie_reply(
            responder, cookie, nonce=nonce, receiver_index=initiator_index, mac1=transcript.initiation[-32:-16]
        ).hex(),
        "initiation_with_cookie": reference.with_macs(transcript.initiation[:-32], responder, cookie).hex(),
    }


def provisioning_vectors() -> dict[str, object]:
    """Exchanges of ``wgvsock/prov/1``: what is sealed, how, and what the preshared key is."""
    exchanges = [_exchange("short messages", b"request", b"response", b"result")]
    exchanges.append(_exchange("long messages", _made_up("request") * 12, _made_up("document") * 130, b"\0"))
    return {"source": PROVISIONING_SOURCE, "exchanges": exchanges}


def _exchange(name: str, request: bytes, response: bytes, result: bytes) -> dict[str, str]:
    enclave, relay = _made_up(f"{name} enclave ephemeral"), _made_up(f"{name} relay ephemeral")
    hello = b"\xa5\x01\x01\x02\x00\x03\x58\x20" + _made_up(f"{name} nonce")
    hello += b"\x04\x58\x20" + reference.x25519(enclave, reference.BASE_POINT) + b"\x05\x80"
    values = reference_provisioning.exchange(hello, enclave, relay, request, response, result)
    return {"name": name} | {field: value.hex() for field, value in values.items()}


def files() -> dict[Path, str]:
    """Every generated file's path and content."""
    return {
        FOLDER / "kdf.json": json.dumps(kdf_vectors(), indent=2) + "\n",
        FOLDER / "handshake.json": json.dumps(handshake_vectors(), indent=2) + "\n",
        FOLDER / "provisioning.json": json.dumps(provisioning_vectors(), indent=2) + "\n",
    }


if __name__ == "__main__":
    for path, content in files().items():
        path.write_text(content)
