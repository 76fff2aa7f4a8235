"""The first process of a laboratory guest: starts commands for the host and reaps ended ones. Standard library only.

It uses separate channels, so that nothing depends on the vsock under test:

* the second serial port carries the verdict: ``ready UPTIME LOOP`` once the guest can work (seconds since the kernel
  started, seconds that `calibrate` took), or ``failed REASON``, or ``exit CODE`` when the guest's own service ended
* virtio-serial ports carry the requests of `lab.qemu.channel.Channel`, one JSON object per line in each direction: one
  port for the laboratory, one for a person's shell.

A request is ``{"id": n, "op": …}``. Every answer repeats the id:

* ``run``: argv, environment, stdin (base64), terminal -> started (pid), then any number of output (stream, data), then
  exit (code). With ``terminal`` the command has one
* ``spawn``: argv, environment, stdin (whether it has one), stdout, stderr (files, appended) -> started (pid)
* ``input``: pid, data, end (whether it was the last) -> done. For a terminal and for a spawned command's standard input
* ``poll``: pid -> state (code, or null while it runs)
* ``signal``: pid, signal, group -> done
* ``write``: path, mode, data -> done              * ``read``: path, offset -> content (data)
* ``ask``: path, data -> content (data): the complete answer of a Unix socket
* ``set-clock``: time (Unix, seconds) -> done      * ``clock`` -> clock (time)
* ``poweroff`` -> nothing: the machine ends

Spawned commands outlive the host's connection, and their exit codes are kept. Output that was still pending for a host
that has gone is dropped.

An image can have its own services in /etc/wgvsock/guest.json (`lab.image.enclave` writes it). They are started first.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from select import EPOLLET, EPOLLHUP, EPOLLIN, POLLHUP, POLLOUT, epoll, poll
from typing import Any, BinaryIO, Final

PORT_NAME: Final = "wgvsock.agent"
SHELL_PORT_NAME: Final = "wgvsock.shell"
VERDICT_PORT: Final = "/dev/ttyS1"
SERVICES_FILE: Final = "/etc/wgvsock/guest.json"
CALIBRATION_ROUNDS: Final = 100_000

READ_LIMIT: Final = 1 << 20
"""Bytes of a file in one answer. The host requests the rest separately."""

_READ_SIZE: Final = 65536
_LONGEST_LINE: Final = 64 << 20  # bytes: a file written in one request is base64 in one line
_DEVICE_DEADLINE: Final = 30.0  # seconds that a service may take to create the device that others wait for


def calibrate() -> float:
    """Return the seconds for a fixed amount of interpreter work. The ratio to the host's scales its deadlines."""
    start = time.perf_counter()
    total = 0
    for number in range(CALIBRATION_ROUNDS):
        total += number & 7
    return time.perf_counter() - start


class Port:
    """One request channel: a descriptor for reading and writing, and the beginning of the next line.

    Attributes:
        arrivals: Readable when data or a host has arrived. The port's own descriptor is always readable without a host,
            with nothing to read.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.arrivals = epoll()
        self.arrivals.register(descriptor, EPOLLIN | EPOLLET)
        self._buffer = b""
        self._writable = poll()
        self._writable.register(descriptor, POLLOUT)

    def requests(self) -> list[dict[str, Any]]:
        """Return all requests that have arrived. An invalid line is one that a host left half-written.

        A request can arrive before the kernel knows about the host that sent it, when no answer could be sent: it is
        taken when the host has come, which `arrivals` reports separately.
        """
        found: list[dict[str, Any]] = []
        if any(event & EPOLLHUP for _, event in self.arrivals.poll(0)):
            self._buffer = b""
            return found
        for data in self._read():
            *lines, self._buffer = (self._buffer + data).split(b"\n")
            if len(self._buffer) > _LONGEST_LINE:
                self._buffer = b""
            for line in lines:
                with contextlib.suppress(ValueError):
                    found.append(json.loads(line))
        return found

    def _read(self) -> Iterator[bytes]:
        """Read everything available, because `arrivals` does not report the rest again."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.descriptor, _READ_SIZE):
                yield data

    def answer(self, request: int, event: str, **fields: Any) -> None:
        """Send to the host. Does nothing without one."""
        view = memoryview(json.dumps({"id": request, "event": event, **fields}).encode() + b"\n")
        while view:
            try:
                view = view[os.write(self.descriptor, view) :]
            except BlockingIOError:
                if any(event & POLLHUP for _, event in self._writable.poll()):
                    return
            except OSError:
                return


class Running:
    """A command whose output and end a host waits for.

    Args:
        port: The host's channel.
        request: The ID to repeat in answers.
        child: The command.
        streams: Its output: name -> descriptor.
        terminal: The controlling end of its terminal, if it has one.
    """

    def __init__(
        self, port: Port, request: int, child: subprocess.Popen[bytes], streams: dict[str, int], terminal: int | None
    ) -> None:
        self.port = port
        self.request = request
        self.child = child
        self.streams = streams
        self.terminal = terminal


class Agent:
    """Serves request channels until the machine ends.

    Args:
        ports: The channels.
        exited: Called with process ID and exit code of a child that no request started.
    """

    def __init__(self, ports: list[Port], exited: Callable[[int, int], None]) -> None:
        self._ports = ports
        self._exited = exited
        self._selector = selectors.DefaultSelector()
        self._running: dict[int, Running] = {}
        self._spawned: dict[int, int | None] = {}
        self._inputs: dict[int, int] = {}  # of spawned commands: pid -> this end of the pipe
        self._operations: dict[str, Callable[[Port, dict[str, Any]], None]] = {
            "run": self._run,
            "input": self._input,
            "spawn": self._spawn,
            "poll": self._poll,
            "signal": self._signal,
            "write": self._write,
            "read": self._read,
            "ask": self._ask,
            "set-clock": self._set_clock,
            "clock": lambda port, request: port.answer(request["id"], "clock", time=time.time()),
            "poweroff": lambda _port, _request: power_off(),
        }

    def serve(self) -> None:
        """Handle requests and children's output, for ever."""
        wake_up, on_signal = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(on_signal, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector.register(wake_up, selectors.EVENT_READ, lambda: os.read(wake_up, 4096))
        for port in self._ports:
            self._selector.register(port.arrivals, selectors.EVENT_READ, lambda port=port: self._handle(port))
        while True:
            self._reap()
            for key, _ in self._selector.select():
                key.data()

    def _handle(self, port: Port) -> None:
        for request in port.requests():
            try:
                self._operations[request["op"]](port, request)
            except (OSError, ValueError, KeyError) as error:
                port.answer(request["id"], "error", message=f"{type(error).__name__}: {error}")

    def _run(self, port: Port, request: dict[str, Any]) -> None:
        if request.get("terminal"):
            terminal, theirs = os.openpty()
            with os.fdopen(theirs, "r+b", buffering=0) as end:
                child = _start(request, stdin=end, stdout=end, stderr=end)
            streams = {"stdout": terminal}
        else:
            terminal = None
            with _as_file(base64.b64decode(request.get("stdin", ""))) as stdin:
                child = _start(request, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            if child.stdout is None or child.stderr is None:
                raise ValueError("no pipes")
            # Detached from the objects, which would close them on collection.
            streams = {"stdout": os.dup(child.stdout.fileno()), "stderr": os.dup(child.stderr.fileno())}
            child.stdout.close()
            child.stderr.close()
        running = Running(port, request["id"], child, streams, terminal)
        self._running[child.pid] = running
        port.answer(request["id"], "started", pid=child.pid)
        for name, descriptor in streams.items():
            os.set_blocking(descriptor, False)
            forward = lambda name=name: self._forward(running, name)  # noqa: E731 (a handler with its arguments)
            self._selector.register(descriptor, selectors.EVENT_READ, forward)

    def _forward(self, running: Running, name: str) -> bool:
        """Forward one read's worth of output. False if nothing waits, or nothing more can come."""
        descriptor = running.streams[name]
        try:
            data = os.read(descriptor, _READ_SIZE)
        except BlockingIOError:
            return False
        except OSError:  # EIO: the last holder of the terminal's other end has gone
            data = b""
        if not data:
            self._close(running, name)
            return False
        encoded = base64.b64encode(data).decode()
        running.port.answer(running.request, "output", stream=name, data=encoded)
        return True

    def _close(self, running: Running, name: str) -> None:
        descriptor = running.streams.pop(name)
        self._selector.unregister(descriptor)
        os.close(descriptor)

    def _reap(self) -> None:
        """Reap children of requests, and orphans: the first process inherits every one."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            if pid in self._running:
                self._finish(self._running.pop(pid), code)
            elif pid in self._spawned:
                self._spawned[pid] = code
                if pid in self._inputs:
                    os.close(self._inputs.pop(pid))
            else:
                self._exited(pid, code)

    def _finish(self, running: Running, code: int) -> None:
        """Forward the rest of an ended command's output, and its end. Later output of its children is dropped."""
        running.child.returncode = code
        for name in list(running.streams):
            while name in running.streams and self._forward(running, name):
                pass
            if name in running.streams:
                self._close(running, name)
        running.port.answer(running.request, "exit", code=code)

    def _input(self, port: Port, request: dict[str, Any]) -> None:
        pid, data = request["pid"], base64.b64decode(request["data"])
        running = self._running.get(pid)
        if running is not None and running.terminal is not None:
            os.write(running.terminal, data)
        elif pid in self._inputs:
            if data and os.write(self._inputs[pid], data) < len(data):
                raise BlockingIOError("the command does not read its standard input")
            if request.get("end"):
                os.close(self._inputs.pop(pid))
        port.answer(request["id"], "done")

    def _spawn(self, port: Port, request: dict[str, Any]) -> None:
        stdin = subprocess.PIPE if request.get("stdin") else subprocess.DEVNULL
        with _appended(request["stdout"]) as stdout, _appended(request["stderr"]) as stderr:
            child = _start(request, stdin=stdin, stdout=stdout, stderr=stderr)
        child.returncode = 0  # reaped here: keeps the object from warning when it is collected
        if child.stdin is not None:
            self._inputs[child.pid] = os.dup(child.stdin.fileno())
            os.set_blocking(self._inputs[child.pid], False)
            child.stdin.close()
        self._spawned[child.pid] = None
        port.answer(request["id"], "started", pid=child.pid)

    def _poll(self, port: Port, request: dict[str, Any]) -> None:
        self._reap()
        port.answer(request["id"], "state", code=self._spawned[request["pid"]])

    def _signal(self, port: Port, request: dict[str, Any]) -> None:
        pid = request["pid"]
        if pid in self._running or self._spawned.get(pid, 0) is None:
            (os.killpg if request.get("group") else os.kill)(pid, request["signal"])
        port.answer(request["id"], "done")

    def _write(self, port: Port, request: dict[str, Any]) -> None:
        path = Path(request["path"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(request["data"]))
        path.chmod(request["mode"])
        port.answer(request["id"], "done")

    def _read(self, port: Port, request: dict[str, Any]) -> None:
        with Path(request["path"]).open("rb") as file:
            file.seek(request["offset"])
            data = file.read(READ_LIMIT)
        port.answer(request["id"], "content", data=base64.b64encode(data).decode())

    def _ask(self, port: Port, request: dict[str, Any]) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.connect(request["path"])
            sock.sendall(base64.b64decode(request["data"]))
        except OSError:
            sock.close()
            raise
        answer = bytearray()

        def collect() -> None:
            try:
                piece = sock.recv(_READ_SIZE)
            except BlockingIOError:
                return
            except OSError:  # it was reset: what has arrived is the answer
                piece = b""
            answer.extend(piece)
            if not piece:
                self._selector.unregister(sock)
                sock.close()
                port.answer(request["id"], "content", data=base64.b64encode(answer).decode())

        self._selector.register(sock, selectors.EVENT_READ, collect)

    def _set_clock(self, port: Port, request: dict[str, Any]) -> None:
        time.clock_settime(time.CLOCK_REALTIME, request["time"])
        port.answer(request["id"], "done")


def _start(request: dict[str, Any], **streams: Any) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **request.get("environment", {})}
    return subprocess.Popen(request["argv"], start_new_session=True, env=environment, **streams)


def _as_file(data: bytes) -> BinaryIO:
    """Return a file in memory that holds the data. Unlike a pipe, it need not be fed while the command runs."""
    file = os.fdopen(os.memfd_create("stdin"), "w+b", buffering=0)
    file.write(data)
    file.seek(0)
    return file


def _appended(path: str) -> BinaryIO:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return Path(path).open("ab", buffering=0)


def power_off() -> None:
    """End the machine: with ``-no-reboot`` a restart ends QEMU."""
    os.sync()
    Path("/proc/sys/kernel/sysrq").write_text("1")
    Path("/proc/sysrq-trigger").write_text("b")


class Services:
    """The services that the image starts, in order: ``[{"argv": […], "device": "/dev/nsm", "main": false}, …]``.

    Args:
        verdict: Writes a line on the verdict channel.
    """

    def __init__(self, verdict: Callable[[str], None]) -> None:
        self._verdict = verdict
        self._main: int | None = None

    def start(self, services: list[dict[str, Any]]) -> None:
        """Start all of them. A service that creates a device is waited for.

        Raises:
            TimeoutError: The device does not appear.
        """
        for service in services:
            child = subprocess.Popen(service["argv"], stdin=subprocess.DEVNULL, start_new_session=True)
            child.returncode = 0  # reaped by the agent
            if service.get("main"):
                self._main = child.pid
            device = service.get("device")
            end = time.monotonic() + _DEVICE_DEADLINE
            while device and not Path(device).exists():
                if time.monotonic() > end:
                    raise TimeoutError(f"{service['argv'][0]} has not created {device}")
                time.sleep(0.02)

    def exited(self, pid: int, code: int) -> None:
        """End the machine with its entry process, as an enclave does."""
        if pid == self._main:
            self._verdict(f"exit {code}")
            power_off()


def open_port(name: str) -> Port:
    """Return the virtio-serial port of a name, found as the kernel lists it.

    Raises:
        FileNotFoundError: The machine has none of that name.
    """
    for entry in Path("/sys/class/virtio-ports").iterdir():
        if (entry / "name").read_text().strip() == name:
            return Port(os.open(f"/dev/{entry.name}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
    raise FileNotFoundError(f"no virtio-serial port is called {name}")


def write_verdict(line: str) -> None:
    """Send one line to the host immediately."""
    descriptor = os.open(VERDICT_PORT, os.O_WRONLY | os.O_NOCTTY)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def main() -> None:
    """Run as process 1."""
    try:
        services = Services(write_verdict)
        agent = Agent([open_port(PORT_NAME), open_port(SHELL_PORT_NAME)], services.exited)
        if Path(SERVICES_FILE).exists():
            services.start(json.loads(Path(SERVICES_FILE).read_text()))
        uptime = Path("/proc/uptime").read_text().split()[0]
        write_verdict(f"ready {uptime} {calibrate():.6f}")
        agent.serve()
    except BaseException as error:  # noqa: BLE001 (process 1 has nobody above it; the verdict tells the host)
        traceback.print_exc()
        write_verdict(f"failed {type(error).__name__}: {error}".replace("\n", " "))
        power_off()


if __name__ == "__main__":
    main()
