"""A terminal in a guest: ``python -m lab.qemu.shell SOCKET -- argv…``; the exit code is the command's.

It has a virtio-serial port of its own, so that a person's shell and the laboratory's requests do not meet.
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

    def show(_stream: str, data: bytes) -> None:
        os.write(sys.stdout.fileno(), data)

    def type_along(pid: int) -> None:
        def copy() -> None:
            while data := os.read(sys.stdin.fileno(), 4096):
                channel.feed(pid, data)

        threading.Thread(target=copy, name="keyboard", daemon=True).start()

    with _raw_terminal():
        try:
            return channel.interact(command, show, type_along)
        finally:
            channel.close()


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Every key goes to the guest, Ctrl-C too; nothing to do where standard input is no terminal."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setraw(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
