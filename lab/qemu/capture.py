"""A capture at an interface of a guest: `lab.guest.recorder` runs there, and its records are read over the channel.

Times are corrected by the offset between the two clocks, measured when the capture starts.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from dataclasses import replace

from lab.deadline import Deadline
from lab.errors import LabError
from lab.guest import recorder
from lab.guest.packets import CapturedPacket
from lab.qemu.channel import GuestProcess
from lab.qemu.machine import Machine
from lab.topology import Point
from lab.watch.capture import PacketCapture


class GuestCapture(PacketCapture):
    """A capture that runs in a guest. See `lab.watch.capture.PacketCapture`."""

    def __init__(
        self,
        point: Point,
        machine: Machine,
        process: GuestProcess,
        records: str,
        deadline: Callable[[float], Deadline],
    ) -> None:
        self.point = point
        self._machine = machine
        self._process = process
        self._records = records
        self._deadline = deadline
        self._offset = 0
        self._reader = recorder.RecordReader()
        self._packets: list[CapturedPacket] = []
        self._closed = False
        self.clock_offset, self.clock_error = machine.clock_offset()
        process.wait_for_line(recorder.READY, deadline(20))

    def packets(self) -> list[CapturedPacket]:
        """Return every packet that has passed before this call.

        Raises:
            LabTimeoutError: The guest does not answer.
        """
        if not self._closed:
            marks = self._reader.marks
            self._process.signal(signal.SIGUSR1)
            self._deadline(10).poll(lambda: self._read(marks), f"{self._process.name} to be complete")
        return self._packets

    def _read(self, marks: int) -> bool:
        ended = self._process.poll() is not None
        data = self._machine.channel().read_file(self._records, self._offset)
        self._offset += len(data)
        packets = self._reader.feed(data)
        self._packets += [replace(packet, time=packet.time + self.clock_offset) for packet in packets]
        return ended or self._reader.marks > marks

    def close(self) -> None:
        """Read what is there, and stop."""
        if not self._closed:
            with contextlib.suppress(LabError):
                self.packets()
            self._process.kill()
            self._closed = True
