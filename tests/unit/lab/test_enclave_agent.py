from __future__ import annotations

import io

from lab.enclave_agent import RecordedEntropy


def test_draws_of_32_bytes_are_recorded_and_handed_on() -> None:
    stream = io.BytesIO()
    random = RecordedEntropy(stream, source=lambda size: bytes([size]) * size)
    assert random(32) == b"\x20" * 32
    assert random(4) == b"\x04" * 4
    assert stream.getvalue() == b"20" * 32 + b"\n"
