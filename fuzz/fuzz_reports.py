"""For any report of an agent, the relay reads it or raises RemoteProtocolError, and shows only printable text.

Below it, encoding a decoded report and decoding it again gives the same report, and the record of an application stays
within its bounds.

    python fuzz/fuzz_reports.py -max_total_time=60
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

with atheris.instrument_imports(include=["wgvsock.telemetry.reports", "wgvsock.relay.enclaves.application"]):
    from wgvsock.errors import RemoteProtocolError
    from wgvsock.relay.enclaves.application import MAX_KEPT, MAX_LINE, ApplicationRecord
    from wgvsock.telemetry.reports import Report, decode, encode


def show(line: str) -> None:
    """Check a line that reaches an operator's terminal."""
    assert line.isprintable()
    assert line.startswith("enclave=e stream=")


def read(line: bytes) -> Report | None:
    """Return the report in a line, or None."""
    try:
        report = decode(line)
    except RemoteProtocolError:
        return None
    assert decode(encode(report)) == report
    return report


def test_one_input(data: bytes) -> None:
    """Use one input as a stream of reports."""
    record = ApplicationRecord("e", show)
    for number, line in enumerate(data.split(b"\n")):
        if (report := read(line)) is not None:
            record.take(report, float(number))
    assert sum(len(line.text) for line in record.lines_after(0, 1 << 20)) <= MAX_KEPT
    assert all(len(rest) <= MAX_LINE for rest in record._partial.values())  # noqa: SLF001
    record.ready()


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
