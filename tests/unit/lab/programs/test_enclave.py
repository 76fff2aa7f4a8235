"""The entropy that the laboratory's agent records."""

from __future__ import annotations

import io

from lab.programs.enclave import RecordingMachine


def test_draws_of_32_bytes_are_recorded_and_handed_on() -> None:
    stream = io.BytesIO()
    machine = RecordingMachine(stream)
    drawn = machine.random(32)
    assert (len(drawn), len(machine.random(4))) == (32, 4)
    assert drawn != machine.random(32)
    assert stream.getvalue().splitlines()[0] == drawn.hex().encode()
    assert len(stream.getvalue().splitlines()) == 2
