"""The host's end of a guest's request channel (`lab.guest.agent` has the protocol)."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import queue
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from lab.backend import Completed
from lab.deadline import Deadline
from lab.errors import LabError, LabTimeoutError
from lab.process import LocalProcess
from lab.qemu.errors import GuestError

if TYPE_CHECKING:
    from typing_extensions import Buffer

_CLOCK_SAMPLES: Final = 24
_PATIENCE: Final = 60.0
"""Seconds for an answer that takes the agent no time, on the slowest guest."""

Answers = queue.SimpleQueue[dict[str, Any]]


class Channel:
    """Requests to one guest. Any thread may use it.

    Args:
        sock: Connected to QEMU's end of the virtio-serial port.
        name: The guest's name, for messages.
    """

    def __init__(self, sock: socket.socket, name: str) -> None:
        self.name = name
        self._sock = sock
        # An answer to an earlier host may still arrive: its number must not equal one used here.
        self._last = random.getrandbits(40)
        self._sending = threading.Lock()
        self._answers: dict[int, Answers] = {}
        self._send(b"\n")  # ends a line that an earlier host left half-written
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
            LabTimeoutError: It did not end in time, and was killed.
            GuestError: The guest is gone, or could not start the command.
        """
        output = {"stdout": b"", "stderr": b""}

        def collect(stream: str, data: bytes) -> None:
            output[stream] += data

        request = {"argv": list(argv), "stdin": _encode(stdin), "environment": dict(environment or {})}
        with self._request("run", **request) as answers:
            code = self._follow(answers, deadline, f"end {' '.join(argv)}", collect)
        return Completed(tuple(argv), code, output["stdout"], output["stderr"])

    def stream(self, argv: Sequence[str], stdin: bytes, output: Callable[[str, bytes], None]) -> int:
        """Run a command without a terminal, and return its exit code. Its output arrives as it is written.

        Raises:
            GuestError: The guest is gone, or could not start the command.
        """
        with self._request("run", argv=list(argv), stdin=_encode(stdin)) as answers:
            return self._follow(answers, None, f"run {' '.join(argv)}", output)

    def interact(
        self, argv: Sequence[str], output: Callable[[str, bytes], None], started: Callable[[int], None]
    ) -> int:
        """Run a command with a terminal until it ends, and return its exit code.

        Args:
            argv: The command.
            output: Called with its output.
            started: Called with its pid, for `feed` from another thread.
        """
        with self._request("run", argv=list(argv), terminal=True, environment={"TERM": "linux"}) as answers:
            return self._follow(answers, None, "run a shell", output, started)

    def feed(self, pid: int, data: bytes) -> None:
        """Send input to the terminal of `interact`."""
        with self._request("input", pid=pid, data=_encode(data)):
            pass

    def spawn(
        self,
        argv: Sequence[str],
        *,
        stdout: str,
        stderr: str,
        stdin: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> int:
        """Start a command and leave it running, with its output appended to files of the guest. Returns its pid.

        Raises:
            GuestError: The guest is gone, or could not start the command.
        """
        request = {"argv": list(argv), "stdin": stdin, "stdout": stdout, "stderr": stderr}
        answer = self._ask(f"start {' '.join(argv)}", "spawn", environment=dict(environment or {}), **request)
        return int(answer["pid"])

    def write_input(self, pid: int, data: bytes, *, end: bool = False) -> None:
        """Write to a spawned command's standard input, or close it.

        Raises:
            GuestError: The guest is gone, or the command does not read.
        """
        self._ask("feed a command", "input", pid=pid, data=_encode(data), end=end)

    def poll(self, pid: int) -> int | None:
        """Return the exit code of a spawned command, negative for a signal, or None while it runs."""
        code: int | None = self._ask("report a command's state", "poll", pid=pid)["code"]
        return code

    def signal(self, pid: int, signum: int, *, group: bool = False) -> None:
        """Send a signal to a command that this channel started. Does nothing if it has ended."""
        self._ask("signal a command", "signal", pid=pid, signal=int(signum), group=group)

    def write_file(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """Write a file in the guest, with its parent folders.

        Raises:
            GuestError: The guest is gone or refused.
        """
        self._ask(f"write {path}", "write", path=path, data=_encode(data), mode=mode)

    def read_file(self, path: str, offset: int = 0) -> bytes:
        """Return a file's content from an offset on.

        Raises:
            GuestError: The guest is gone or has no such file.
        """
        content = b""
        while piece := self._ask(f"read {path}", "read", path=path, offset=offset + len(content))["data"]:
            content += base64.b64decode(piece)
        return content

    def ask(self, path: str, data: bytes, deadline: Deadline) -> bytes:
        """Return the complete answer of a server at a Unix socket of the guest. No command is started for it.

        Raises:
            LabTimeoutError: The server does not close the connection.
            GuestError: Nothing listens there, or the guest is gone.
        """
        with self._request("ask", path=path, data=_encode(data)) as answers:
            return base64.b64decode(self._next(answers, deadline, f"answer at {path}")["data"])

    def set_clock(self, now: float) -> None:
        """Set the guest's wall clock, Unix time in seconds. After boot it has whole seconds only."""
        self._ask("set its clock", "set-clock", time=now)

    def clock_offset(self) -> tuple[float, float]:
        """Return the seconds that this wall clock is ahead of the guest's, from the fastest of some exchanges.

        The second number is the largest error that this can have: half of that exchange's duration (RFC 5905, 8).
        """
        exchanges = []
        for _ in range(_CLOCK_SAMPLES):
            before = time.time()
            theirs = self._ask("tell the time", "clock")["time"]
            after = time.time()
            exchanges.append(((after - before) / 2, (before + after) / 2 - theirs))
        error, offset = min(exchanges)
        return offset, error

    def close(self) -> None:
        """Close the connection. Idempotent."""
        with contextlib.suppress(OSError):  # QEMU ended first
            self._sock.shutdown(socket.SHUT_RDWR)
        self._reader.join()
        self._sock.close()

    @contextlib.contextmanager
    def _request(self, operation: str, **fields: Any) -> Any:
        """Send a request. Its answers go to the queue."""
        answers: Answers = queue.SimpleQueue()
        with self._sending:
            self._last += 1
            number = self._last
        self._answers[number] = answers
        try:
            self._send(json.dumps({"id": number, "op": operation, **fields}).encode() + b"\n")
            yield answers
        finally:
            del self._answers[number]

    def _send(self, line: bytes) -> None:
        try:
            with self._sending:
                self._sock.sendall(line)
        except OSError as error:
            raise GuestError(f"cannot reach the guest {self.name}", why=str(error)) from None

    def _ask(self, what: str, operation: str, **fields: Any) -> dict[str, Any]:
        with self._request(operation, **fields) as answers:
            return self._next(answers, Deadline(_PATIENCE), what)

    def _follow(
        self,
        answers: Answers,
        deadline: Deadline | None,
        what: str,
        output: Callable[[str, bytes], None],
        started: Callable[[int], None] | None = None,
    ) -> int:
        pid = 0
        try:
            while True:
                answer = self._next(answers, deadline, what)
                match answer["event"]:
                    case "started":
                        pid = answer["pid"]
                        if started is not None:
                            started(pid)
                    case "output":
                        output(answer["stream"], base64.b64decode(answer["data"]))
                    case "exit":
                        return int(answer["code"])
        except LabTimeoutError:
            if pid:
                self.signal(pid, signal.SIGKILL, group=True)
            raise

    def _next(self, answers: Answers, deadline: Deadline | None, what: str) -> dict[str, Any]:
        try:
            answer = answers.get(timeout=None if deadline is None else max(deadline.remaining, 0.001))
        except queue.Empty:
            waited = deadline.seconds if deadline is not None else 0.0
            raise LabTimeoutError(
                f"waited {waited:.1f} s for the guest {self.name} to {what}", why="it did not happen"
            ) from None
        if answer["event"] == "error":
            raise GuestError(f"the guest {self.name} could not {what}", why=answer["message"])
        return answer

    def _read_answers(self) -> None:
        with self._sock.makefile("rb") as stream, contextlib.suppress(OSError):
            for line in stream:
                with contextlib.suppress(ValueError):  # the end of an answer to an earlier host
                    answer = json.loads(line)
                    if (answers := self._answers.get(answer["id"])) is not None:
                        answers.put(answer)
        for answers in list(self._answers.values()):
            answers.put({"event": "error", "message": "the guest is gone"})


class GuestInput(io.RawIOBase):
    """The standard input of a command that was spawned in a guest.

    Args:
        channel: To the guest.
        pid: In the guest.
    """

    def __init__(self, channel: Callable[[], Channel], pid: int) -> None:
        super().__init__()
        self._channel = channel
        self._pid = pid

    def writable(self) -> bool:
        """Always true."""
        return True

    def write(self, data: Buffer, /) -> int:
        """Write to the command.

        Raises:
            GuestError: See `Channel.write_input`.
        """
        self._channel().write_input(self._pid, bytes(data))
        return len(memoryview(data))

    def close(self) -> None:
        """Close it. Idempotent, and does nothing if the guest is gone."""
        if not self.closed:
            super().close()
            with contextlib.suppress(GuestError):
                self._channel().write_input(self._pid, b"", end=True)


class GuestProcess(LocalProcess):
    """A command that keeps running in a guest. See `lab.backend.Process`. It outlives the connection to its guest.

    Its output is a file of the guest. `output` updates the log on this machine.

    Args:
        name: For messages.
        log: On this machine.
        channel: Returns the channel to the guest. Called for each use, because the channel may be reopened.
        pid: In the guest.
        remote_log: The file in the guest.
        offset: Where its output begins in the log of this machine, in bytes.
        stdin: Whether it was spawned with a standard input.
    """

    def __init__(
        self,
        name: str,
        log: Path,
        channel: Callable[[], Channel],
        *,
        pid: int,
        remote_log: str,
        offset: int = 0,
        stdin: bool = False,
    ) -> None:
        super().__init__(name, log, pid=pid, started="", offset=offset)
        self._channel = channel
        self._remote_log = remote_log
        self._code: int | None = None
        self._stdin = io.BufferedWriter(GuestInput(channel, pid)) if stdin else None

    @property
    def stdin(self) -> IO[bytes]:
        """The standard input in the guest. Only with ``stdin=True``."""
        if self._stdin is None:
            raise LabError(f"{self.name} has no standard input")
        return self._stdin

    def poll(self) -> int | None:
        """Return its exit code, negative for a signal, or None while it runs. SIGKILL's if the guest is gone."""
        if self._code is None:
            try:
                self._code = self._channel().poll(self.pid)
            except GuestError:
                self._code = -signal.SIGKILL
        return self._code

    def signal(self, signum: int) -> None:
        """Send a signal to the command. Does nothing if it has ended."""
        if self.poll() is None:
            self._channel().signal(self.pid, signum)

    def kill(self) -> None:
        """Send SIGKILL to the command and its process group, and wait until it is gone. Idempotent."""
        if self.poll() is None:
            with contextlib.suppress(GuestError):  # it ended with its guest
                self._channel().signal(self.pid, signal.SIGKILL, group=True)
            self.wait(Deadline(_PATIENCE))
        if self._stdin is not None:
            self._stdin.close()

    def output(self) -> str:
        """Return its output since it was started."""
        with self.log.open("ab") as log, contextlib.suppress(GuestError):
            log.write(self._channel().read_file(self._remote_log, log.tell() - self._offset))
        return super().output()

    def describe(self) -> dict[str, Any]:
        """Return what is needed to find it again."""
        return {"name": self.name, "pid": self.pid, "remote_log": self._remote_log, "offset": self._offset}


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()
