"""A shell, or a command, in a guest: ``python -m lab.qemu.shell SOCKET -- argv…``. The exit code is the command's.

The command has a terminal exactly if this one has. Otherwise all of standard input is read first, and output and error
stay separate, byte by byte. It has its own virtio-serial port, so that a person's shell and the laboratory's requests
do not interfere.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from lab.deadline import Deadline
from lab.errors import LabError, LabTimeoutError
from lab.qemu.channel import Channel
from lab.qemu.errors import GuestError
from lab.qemu.machine import connected

_QUEUE_DEADLINE: Final = 180.0  # seconds: Ansible's modules need tens of them each on an emulated processor


def main(argv: list[str]) -> int:
    """Join this terminal, or standard input and output, to a command in the guest."""
    path, _, *command = argv
    terminal = sys.stdin.isatty()
    with _reserved(Path(path).with_suffix(".lock"), Deadline(2 if terminal else _QUEUE_DEADLINE)):
        channel = Channel(Deadline(10).poll(lambda: connected(Path(path)), "the guest's shell port"), "shell")
        try:
            if terminal:
                return _in_terminal(channel, command)
            return channel.stream(command, sys.stdin.buffer.read(), _write)
        finally:
            channel.close()


@contextlib.contextmanager
def _reserved(path: Path, deadline: Deadline) -> Iterator[None]:
    """Lock the port, which serves one process at a time. Commands queue for it, but not for ever.

    Raises:
        GuestError: Another process keeps it.
    """
    with path.open("w") as lock:
        try:
            deadline.poll(lambda: _lock(lock), "the guest's shell port")
        except LabTimeoutError:
            raise GuestError(
                "the guest's shell port is in use", why="another shell or command holds it", fix="end that one first"
            ) from None
        yield


def _lock(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


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
    """Send every key to the guest, including Ctrl-C."""
    before = termios.tcgetattr(sys.stdin)
    tty.setraw(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except LabError as error:
        sys.exit(f"error[{error.code}]: {error.what}\n  why: {error.why}\n  fix: {error.fix}")
