"""For any bytes in any chunks, neither side raises, and both behave as with a single chunk.

Below it, a message decoder raises only ExchangeError, or returns a message whose encoding is the input. An enclave
never offers its shell settings that break a rule.

    python fuzz/fuzz_provisioning.py -max_total_time=60
"""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

with atheris.instrument_imports(include=["wgvsock.provisioning", "wgvsock.attestation.cbor"]):
    from wgvsock.attestation.policy import Expectations, PcrSet, Policy
    from wgvsock.attestation.verifier import Verifier
    from wgvsock.provisioning import (
        AttestationNeeded,
        ConfigurationOffered,
        EnclaveProvisioned,
        EnclaveProvisioning,
        ProvisioningFailed,
        RelayProvisioning,
    )
    from wgvsock.provisioning.errors import ExchangeError
    from wgvsock.provisioning.frames import encode_frame
    from wgvsock.provisioning.messages import (
        Hello,
        Request,
        decode_hello,
        decode_request,
        decode_response,
        decode_result,
    )
    from wgvsock.provisioning.transcript import Ephemeral
    from wgvsock.testing.clock import SeededRandom
    from wgvsock.testing.provisioning import RELAY_PUBLIC_KEY, TUNNEL_CONFIG, RelayHalf

NOW = datetime(2027, 1, 15, tzinfo=UTC)
VERIFIER = Verifier(Policy(pcr_sets=(PcrSet(dict.fromkeys(range(3), b"\1" * 48)),)))
PUBLIC = Ephemeral(b"f" * 32).public
CHOICE = ("framing/native", "profile/plain")
HELLO = Hello(b"n" * 32, PUBLIC, CHOICE).encode()
REQUEST = Request(b"n" * 32, RELAY_PUBLIC_KEY, 1, replace(TUNNEL_CONFIG, capabilities=CHOICE).to_fields()).encode()
GREETING = EnclaveProvisioning(random=SeededRandom("fuzz")).accept(0.0).data_to_send()[4:]
"""The HELLO of every enclave here, because all have the same random source."""


def sealed(request: bytes) -> bytes:
    """Return M1 around a REQUEST's map, in answer to `GREETING`."""
    return RelayHalf(GREETING).request(request)


def decode_all(data: bytes) -> None:
    """Check that every decoder refuses the bytes, or returns a message that encodes to them."""
    for decode in (decode_hello, decode_request, decode_response, decode_result):
        try:
            message = decode(data)
        except ExchangeError:
            continue
        assert message.encode() == data


def enclave(first: bytes, chunks: list[bytes]) -> list[object]:
    """Feed an enclave `first`, let its shell answer, feed it the chunks, and return everything visible."""
    provisioning = EnclaveProvisioning(random=SeededRandom("fuzz"))
    exchange = provisioning.accept(0.0)
    exchange.receive_data(first, 0.0)
    seen: list[object] = []
    while (event := provisioning.next_event()) is not None:
        seen.append(type(event))
        if isinstance(event, ConfigurationOffered):
            event.assignment.config.validate()
            exchange.configuration_applied(b"k" * 32, 0.0)
        elif isinstance(event, AttestationNeeded):
            exchange.attestation_ready(event.user_data, 0.0)
    for chunk in chunks:
        exchange.receive_data(chunk, 0.0)
    while (event := provisioning.next_event()) is not None:
        seen.append(type(event))
    return [*seen, exchange.data_to_send(), exchange.state, provisioning.state]


def relay(first: bytes, chunks: list[bytes]) -> list[object]:
    """Do the same with a relay that accepts no document."""
    exchange = RelayProvisioning(
        config=TUNNEL_CONFIG,
        relay_public_key=RELAY_PUBLIC_KEY,
        verifier=VERIFIER,
        expectations=Expectations(user_data=b""),
        epoch_ms=1,
        random=SeededRandom("fuzz"),
        utc_now=lambda: NOW,
        now=0.0,
    )
    for chunk in (first, *chunks):
        exchange.receive_data(chunk, 0.0)
    event = exchange.next_event()
    assert not isinstance(event, EnclaveProvisioned)
    outcome = str(event.error) if isinstance(event, ProvisioningFailed) else ""
    return [outcome, exchange.data_to_send(), exchange.state]


def edited(message: bytes, edits: bytes) -> bytes:
    """Return the message with some bytes changed. An edit has three bytes: position (16 bits), new value."""
    changed = bytearray(message)
    for start in range(0, len(edits) - 2, 3):
        changed[int.from_bytes(edits[start : start + 2], "big") % len(changed)] = edits[start + 2]
    return bytes(changed)


def test_one_input(data: bytes) -> None:
    """Use one input as a message, as a stream, as the stream after a good message, and as changes to a good message."""
    decode_all(data)
    hello, request = edited(HELLO, data), edited(REQUEST, data)
    decode_all(hello)
    decode_all(request)
    for side, good, changed in (
        (enclave, sealed(REQUEST), sealed(request)),
        (enclave, sealed(REQUEST), edited(sealed(REQUEST), data)),
        (relay, HELLO, hello),
    ):
        for first in (b"", encode_frame(good)):
            assert side(first, [bytes((byte,)) for byte in data]) == side(first, [data])
        frame = encode_frame(changed)
        cut = sum(data) % len(frame)
        assert side(b"", [frame[:cut], frame[cut:]]) == side(b"", [frame])


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
