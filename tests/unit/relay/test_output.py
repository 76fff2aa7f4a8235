"""The relay's standard output: nothing waits for its reader."""

from __future__ import annotations

import contextlib
import os

from wgvsock.relay.output import LineWriter


def read_all(descriptor: int) -> bytes:
    data = b""
    while part := os.read(descriptor, 65536):
        data += part
    os.close(descriptor)
    return data


def test_lines_are_written_in_order_whatever_is_in_them() -> None:
    reading, writing = os.pipe()
    writer = LineWriter(writing)
    for number in range(100):
        writer(f"line {number} ü \ud800")
    writer.close(60)
    os.close(writing)
    assert read_all(reading).splitlines() == [f"line {number} ü \\ud800".encode() for number in range(100)]
    assert writer.dropped == 0


def test_a_reader_that_does_not_read_costs_lines_and_no_time() -> None:
    reading, writing = os.pipe()
    writer = LineWriter(writing, limit=300_000)
    for _ in range(100):
        writer("x" * 9999)  # the pipe takes 64 KiB, and then nothing more comes through
    assert writer.dropped > 50
    before = writer.dropped
    left = b""
    while len(left) < 300_000 - 10_000:  # somebody reads again
        left += os.read(reading, 65536)
    os.set_blocking(reading, False)  # what was the last piece nobody knows
    while writer._waiting:
        with contextlib.suppress(BlockingIOError):
            left += os.read(reading, 65536)
    os.set_blocking(reading, True)
    writer("after")
    writer.close(60)
    os.close(writing)
    lines = (left + read_all(reading)).splitlines()
    assert lines[-2:] == [b"stream=lost %d lines were dropped: nobody read them in time" % before, b"after"]


def test_a_reader_that_has_gone_is_nobodys_end() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    writer = LineWriter(writing)
    writer("x")
    writer.close(60)
    os.close(writing)
    writer("after the end")
    assert writer.dropped == 1


def test_the_end_does_not_wait_for_a_reader_that_has_stopped() -> None:
    reading, writing = os.pipe()
    writer = LineWriter(writing)
    for _ in range(50):
        writer("x" * 9999)
    writer.close(0.0)
    os.close(reading)  # lets the thread go on to its end
    writer._thread.join(60)
    os.close(writing)
    assert not writer._thread.is_alive()
