"""``python3 -m lab.guest.nested_ports FOLDER NAME…``: lead an inner guest's channels out of the outer guest.

QEMU in the outer guest connects each channel NAME of its guest to the Unix socket ``FOLDER/NAME.sock``. This program
joins it to the virtio-serial port ``inner.NAME`` of the outer guest, whose other end is a socket or a file of the real
host. A channel may come and go with its guest, and so may the host. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from typing import Final

from lab.guest.agent import open_port

PREFIX: Final = "inner."
READY: Final = "ready"

_PIECE: Final = 65536  # bytes
_IDLE_PAUSE: Final = 0.05  # seconds: a port without a host repeatedly reads as empty


class Joint:
    """One channel and its port.

    Args:
        port: The virtio-serial port, blocking. A file object, because the number of a closed descriptor may be reused.
        listener: The socket to which the inner guest's QEMU connects.
    """

    def __init__(self, port: FileIO, listener: socket.socket) -> None:
        self._port = port
        self._listener = listener
        self._channel: socket.socket | None = None

    def carry_out(self) -> None:
        """Forward the output of each guest in turn to the port, which discards it while no host is connected."""
        while True:
            self._channel, _ = self._listener.accept()
            with self._channel as channel, contextlib.suppress(ConnectionError):
                while data := channel.recv(_PIECE):
                    view = memoryview(data)
                    while view:
                        view = view[self._port.write(view) :]
            self._channel = None

    def carry_in(self) -> None:
        """Forward the host's output to the current guest, or discard it without one."""
        while True:
            data = self._port.read(_PIECE)
            if not data:
                time.sleep(_IDLE_PAUSE)
            elif (channel := self._channel) is not None:
                with contextlib.suppress(OSError):  # it is about to end
                    channel.sendall(data)


def main(argv: Sequence[str]) -> None:
    """Join all channels until killed."""
    folder, *names = argv
    threads = []
    for name in names:
        port = open_port(PREFIX + name).descriptor
        os.set_blocking(port, True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(Path(folder) / f"{name}.sock"))
        listener.listen()
        joint = Joint(FileIO(port, "r+"), listener)
        threads += [threading.Thread(target=carry) for carry in (joint.carry_out, joint.carry_in)]
    for thread in threads:
        thread.start()
    print(READY, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
