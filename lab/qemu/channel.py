"""The host's end of a guest's request channel (`lab.qemu.agent` has the protocol)."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import queue
import signal
import socket
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

from lab.backend import Completed
from lab.deadline import Deadline
from lab.errors import LabTimeoutError
from lab.process import LoggedProcess
from lab.qemu.errors import GuestError

_KILL_PATIENCE: Final = 30.0  # seconds until a killed command must be gone, however slow its processor is


class Channel:
    """Requests to one guest; any thread may use it.

    Args:
        sock: Connected to QEMU's end of the virtio-serial port.
        name: Of the guest, for messages.
    """

    def __init__(self, sock: socket.socket, name: str) -> None:
        self.name = name
        self._sock = sock
        self._ids = itertools.count(1)
        self._sending = threading.Lock()
        self._answers: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}
        self._reader = threading.Thread(target=self._read_answers, name=f"channel {name}", daemon=True)
        self._reader.start()

    def run(
        self,
        argv: Sequence[str],
        *,
        deadline: Deadline,
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run a command to its end.

        Raises:
            LabTimeoutError: It did not end in time; it was killed.
            GuestError: The guest is gone, or could not start the command.
        """
        request, answers = self._request(
            "start", argv=list(argv), stdin=_encode(stdin), environment=dict(environment or {})
        )
        pid = int(self._next(answers, deadline, "start a command")["pid"])
        output = {"stdout": b"", "stderr": b""}
        try:
            while (answer := self._next(answers, deadline, f"end {' '.join(argv)}"))["event"] != "exit":
                output[answer["event"]] += base64.b64decode(answer["data"])
        except LabTimeoutError:
            self.signal(pid, signal.SIGKILL, group=True)
            raise
        finally:
            self._answers.pop(request, None)
        return Completed(tuple(argv), int(answer["code"]), output["stdout"], output["stderr"])

    def spawn(
        self,
        argv: Sequence[str],
        *,
        name: str,
        log: Path,
        stdout: Path | None = None,
        deadline: Deadline,
        environment: Mapping[str, str] | None = None,
    ) -> GuestProcess:
        """Start a command and leave it running; its output is appended to `log`, or its standard output to `stdout`.

        Raises:
            GuestError: The guest is gone, or could not start the command.
        """
        _, answers = self._request("start", argv=list(argv), environment=dict(environment or {}))
        pid = int(self._next(answers, deadline, f"start {name}")["pid"])
        return GuestProcess(self, answers, pid, name=name, log=log, stdout=stdout)

    def signal(self, pid: int, signum: int, *, group: bool = False) -> None:
        """Signal a command that this channel has started; nothing when it has ended."""
        request, answers = self._request("signal", pid=pid, signal=int(signum), group=group)
        self._finish(request, answers, "signal a command")

    def write_file(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """Put a file into the guest, with its parents.

        Raises:
            GuestError: The guest is gone or refused.
        """
        request, answers = self._request("write", path=path, data=_encode(data), mode=mode)
        self._finish(request, answers, f"write {path}")

    def read_file(self, path: str) -> bytes:
        """A file's content.

        Raises:
            GuestError: The guest is gone or has no such file.
        """
        request, answers = self._request("read", path=path)
        return base64.b64decode(self._finish(request, answers, f"read {path}")["data"])

    def set_clock(self, now: float) -> None:
        """Set the guest's wall clock, Unix time in seconds: at boot it has whole seconds only."""
        request, answers = self._request("clock", time=now)
        self._finish(request, answers, "set its clock")

    def power_off(self) -> None:
        """Ask the guest to end."""
        self._request("poweroff")

    def close(self) -> None:
        """Hang up; idempotent."""
        with contextlib.suppress(OSError):  # QEMU went first
            self._sock.shutdown(socket.SHUT_RDWR)
        self._reader.join()
        self._sock.close()

    def _request(self, operation: str, **fields: Any) -> tuple[int, queue.SimpleQueue[dict[str, Any]]]:
        number = next(self._ids)
        answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._answers[number] = answers
        line = json.dumps({"id": number, "op": operation, **fields}).encode() + b"\n"
        try:
            with self._sending:
                self._sock.sendall(line)
        except OSError as error:
            raise GuestError(f"cannot reach the guest {self.name}", why=str(error)) from None
        return number, answers

    def _finish(self, request: int, answers: queue.SimpleQueue[dict[str, Any]], what: str) -> dict[str, Any]:
        try:
            return self._next(answers, Deadline(60), what)
        finally:
            self._answers.pop(request, None)

    def _next(self, answers: queue.SimpleQueue[dict[str, Any]], deadline: Deadline, what: str) -> dict[str, Any]:
        try:
            answer = answers.get(timeout=max(deadline.remaining, 0.001))
        except queue.Empty:
            raise LabTimeoutError(
                f"waited {deadline.seconds:.1f} s for the guest {self.name} to {what}", why="it did not happen"
            ) from None
        if answer["event"] == "error":
            raise GuestError(f"the guest {self.name} could not {what}", why=answer["message"])
        return answer

    def _read_answers(self) -> None:
        with self._sock.makefile("rb") as stream:
            try:
                for line in stream:
                    answer = json.loads(line)
                    if (answers := self._answers.get(answer["id"])) is not None:
                        answers.put(answer)
            except (OSError, ValueError):
                pass  # torn down in the middle of a line
        for answers in list(self._answers.values()):
            answers.put({"event": "error", "message": "the guest is gone"})


class GuestProcess(LoggedProcess):
    """A command that runs on in a guest; see `lab.backend.Process`.

    A thread of its own writes the output to the log as it comes.
    """

    def __init__(
        self,
        channel: Channel,
        answers: queue.SimpleQueue[dict[str, Any]],
        pid: int,
        *,
        name: str,
        log: Path,
        stdout: Path | None,
    ) -> None:
        super().__init__(name, log)
        self.pid = pid
        self._channel = channel
        self._code: int | None = None
        self._ended = threading.Event()
        files = {"stderr": log.open("ab", buffering=0), "stdout": (stdout or log).open("ab", buffering=0)}
        thread = threading.Thread(target=self._collect, args=(answers, files), name=f"output of {name}", daemon=True)
        thread.start()

    def poll(self) -> int | None:
        """Its exit code, negative for a signal, or None while it runs."""
        return self._code

    def signal(self, signum: int) -> None:
        """Send a signal to the command; nothing when it has ended."""
        if self._code is None:
            self._channel.signal(self.pid, signum)

    def kill(self) -> None:
        """SIGKILL for the command and its process group, and wait until it is gone; idempotent."""
        if self._code is None:
            with contextlib.suppress(GuestError):  # it went with its guest
                self._channel.signal(self.pid, signal.SIGKILL, group=True)
                self._ended.wait(_KILL_PATIENCE)

    def _collect(self, answers: queue.SimpleQueue[dict[str, Any]], files: Mapping[str, BinaryIO]) -> None:
        while True:
            answer = answers.get()
            if answer["event"] in files:
                files[answer["event"]].write(base64.b64decode(answer["data"]))
                continue
            self._code = int(answer["code"]) if answer["event"] == "exit" else -signal.SIGKILL
            break
        for file in files.values():
            file.close()
        self._ended.set()


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()
