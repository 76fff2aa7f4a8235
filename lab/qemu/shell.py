"""A shell, or a command, in a guest: ``python -m lab.qemu.shell SOCKET -- argv…``; the exit code is the command's.

The command has a terminal exactly if this one has; otherwise all of standard input is read first, and output and error
stay apart, byte by byte. It has a virtio-serial port of its own, so that a person's shell and the laboratory's
requests do not meet.
"""

from __future__ import annotations

import contextlib
import os
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from pathlib import Path

from lab.deadline import Deadline
from lab.qemu.channel import Channel
from lab.qemu.machine import connected


def main(argv: list[str]) -> int:
    """Join this terminal, or standard input and output, to a command in the guest."""
    path, _, *command = argv
    channel = Channel(Deadline(10).poll(lambda: connected(Path(path)), "the guest's shell port"), "shell")

    try:
        if sys.stdin.isatty():
            return _in_terminal(channel, command)
        return channel.stream(command, sys.stdin.buffer.read(), _write)
    finally:
        channel.close()


def _write(stream: str, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write({"stdout": 1, "stderr": 2}[stream], view) :]


def _in_terminal(channel: Channel, command: list[str]) -> int:
    def type_along(pid: int) -> None:
        def copy() -> None:
            while data := os.read(sys.stdin.fileno(), 4096):
                channel.feed(pid, data)

        threading.Thread(target=copy, name="keyboard", daemon=True).start()

    with _raw_terminal():
        return channel.interact(command, _write, type_along)


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Every key goes to the guest, Ctrl-C too."""
    before = termios.tcgetattr(sys.stdin)
    tty.setraw(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
