"""``python3 -m lab.qemu.nested_ports FOLDER NAME…``: lead an inner guest's channels out of the outer guest.

QEMU in the outer guest connects each channel NAME of its guest to the Unix socket ``FOLDER/NAME.sock``; here it is
joined to the virtio-serial port ``inner.NAME`` of the outer guest, whose other end is a socket or a file of the real
host. A channel may come and go with its guest, and so may the host. Standard library alone.
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

from lab.qemu.agent import open_port

PREFIX: Final = "inner."
READY: Final = "ready"

_PIECE: Final = 65536  # bytes
_IDLE_PAUSE: Final = 0.05  # seconds; a port without a host reads as empty, again and again


class Joint:
    """One channel and its port.

    Args:
        port: The virtio-serial port, blocking; a file, as the number of one that is closed may be another file's.
        listener: Where the inner guest's QEMU connects.
    """

    def __init__(self, port: FileIO, listener: socket.socket) -> None:
        self._port = port
        self._listener = listener
        self._channel: socket.socket | None = None

    def carry_out(self) -> None:
        """What each guest in turn writes goes to the port; while no host is there, the port swallows it."""
        while True:
            self._channel, _ = self._listener.accept()
            with self._channel as channel, contextlib.suppress(ConnectionError):
                while data := channel.recv(_PIECE):
                    view = memoryview(data)
                    while view:
                        view = view[self._port.write(view) :]
            self._channel = None

    def carry_in(self) -> None:
        """What the host writes goes to the guest that is there; to none, where there is none."""
        while True:
            data = self._port.read(_PIECE)
            if not data:
                time.sleep(_IDLE_PAUSE)
            elif (channel := self._channel) is not None:
                with contextlib.suppress(OSError):  # it is on its way out
                    channel.sendall(data)


def main(argv: Sequence[str]) -> None:
    """Join all until killed."""
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
