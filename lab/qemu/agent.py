"""The first process of a laboratory guest: starts commands for the host and reaps what ends. Standard library alone.

Two channels, so that neither depends on the vsock that is being tested:

* the second serial port carries the verdict: ``ready UPTIME LOOP`` once the guest can work (seconds since the kernel
  started, seconds that `calibrate` took), or ``failed REASON``, or ``exit CODE`` when the guest's own service ended;
* a virtio-serial port carries the requests of `lab.qemu.channel.Channel`, one JSON object a line each way.

A request is ``{"id": n, "op": …}``; every answer repeats the id:

* ``start``: argv, environment, stdin (base64) -> started (pid), then any number of stdout and stderr (data), then
  exit (code)
* ``signal``: pid, signal, group -> done
* ``write``: path, mode, data -> done          * ``read``: path -> content (data)
* ``clock``: time (Unix, seconds) -> done        * ``poweroff`` -> nothing: the machine goes

An image can bring its own services in /etc/wgvsock/guest.json (`lab.eif.boot` writes it); they are started first.
"""

from __future__ import annotations

import base64
import json
import os
import selectors
import signal
import subprocess
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

PORT_NAME: Final = "wgvsock.agent"
VERDICT_PORT: Final = "/dev/ttyS1"
SERVICES_FILE: Final = "/etc/wgvsock/guest.json"
CALIBRATION_ROUNDS: Final = 100_000

_READ_SIZE: Final = 65536
_LONGEST_LINE: Final = 64 << 20  # bytes; a file written in one request is base64 in one line
_DEVICE_DEADLINE: Final = 30.0  # seconds a service may take to make the device that others wait for


def calibrate() -> float:
    """Seconds for a fixed amount of interpreter work: the host does the same, and the ratio scales its deadlines."""
    start = time.perf_counter()
    total = 0
    for number in range(CALIBRATION_ROUNDS):
        total += number & 7
    return time.perf_counter() - start


class Agent:
    """Serves one request channel until the machine goes.

    Args:
        port: The virtio-serial port, a descriptor for reading and writing.
        exited: Told the identifier and exit code of a child that no request has started.
    """

    def __init__(self, port: int, exited: Callable[[int, int], None]) -> None:
        self._port = port
        self._exited = exited
        self._buffer = b""
        self._selector = selectors.DefaultSelector()
        self._children: dict[int, tuple[int, subprocess.Popen[bytes]]] = {}
        self._operations = {
            "start": self._start,
            "signal": self._signal,
            "write": self._write,
            "read": self._read,
            "clock": self._clock,
            "poweroff": self._poweroff,
        }

    def serve(self) -> None:
        """Handle requests and children's output, for ever."""
        wake_up, on_signal = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(on_signal, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector.register(wake_up, selectors.EVENT_READ, lambda: os.read(wake_up, 4096))
        self._selector.register(self._port, selectors.EVENT_READ, self._on_request)
        while True:
            self._reap()
            for key, _ in self._selector.select():
                key.data()

    def _on_request(self) -> None:
        try:
            data = os.read(self._port, _READ_SIZE)
        except BlockingIOError:
            return
        if not data:  # the host's end is not connected yet; the port stays readable meanwhile
            time.sleep(0.05)
            return
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if len(self._buffer) > _LONGEST_LINE:
            self._buffer = b""
        for line in lines:
            self._handle(line)

    def _handle(self, line: bytes) -> None:
        request = json.loads(line)
        try:
            self._operations[request["op"]](request)
        except (OSError, ValueError, KeyError) as error:
            self._answer(request["id"], "error", message=f"{type(error).__name__}: {error}")

    def _answer(self, request: int, event: str, **fields: Any) -> None:
        line = json.dumps({"id": request, "event": event, **fields}).encode() + b"\n"
        view = memoryview(line)
        while view:
            try:
                view = view[os.write(self._port, view) :]
            except BlockingIOError:
                with selectors.DefaultSelector() as wait:
                    wait.register(self._port, selectors.EVENT_WRITE)
                    wait.select()

    def _start(self, request: dict[str, Any]) -> None:
        child = subprocess.Popen(
            request["argv"],
            stdin=subprocess.PIPE if request.get("stdin") else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, **request.get("environment", {})},
        )
        self._children[child.pid] = (request["id"], child)
        self._answer(request["id"], "started", pid=child.pid)
        if child.stdin is not None:
            child.stdin.write(base64.b64decode(request["stdin"]))
            child.stdin.close()
        for name, stream in (("stdout", child.stdout), ("stderr", child.stderr)):
            if stream is not None:
                self._watch(request["id"], name, stream.fileno())

    def _watch(self, request: int, name: str, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._selector.register(descriptor, selectors.EVENT_READ, lambda: self._forward(request, name, descriptor))

    def _forward(self, request: int, name: str, descriptor: int) -> bool:
        """Send on one read's worth of output; False at its end or when nothing waits."""
        try:
            data = os.read(descriptor, _READ_SIZE)
        except BlockingIOError:
            return False
        if not data:
            self._selector.unregister(descriptor)
            return False
        self._answer(request, name, data=base64.b64encode(data).decode())
        return True

    def _reap(self) -> None:
        """Children of requests, and orphans: the first process inherits every one."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            if pid not in self._children:
                self._exited(pid, code)
                continue
            request, child = self._children.pop(pid)
            child.returncode = code
            for name, stream in (("stdout", child.stdout), ("stderr", child.stderr)):
                self._drain(request, name, stream)
            self._answer(request, "exit", code=code)

    def _drain(self, request: int, name: str, stream: Any) -> None:
        """The rest of an ended command's output; what its own children still write is nobody's."""
        while stream.fileno() in self._selector.get_map() and self._forward(request, name, stream.fileno()):
            pass
        if stream.fileno() in self._selector.get_map():
            self._selector.unregister(stream.fileno())
        stream.close()

    def _signal(self, request: dict[str, Any]) -> None:
        if request["pid"] in self._children:
            send = os.killpg if request.get("group") else os.kill
            send(request["pid"], request["signal"])
        self._answer(request["id"], "done")

    def _write(self, request: dict[str, Any]) -> None:
        path = Path(request["path"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(request["data"]))
        path.chmod(request["mode"])
        self._answer(request["id"], "done")

    def _read(self, request: dict[str, Any]) -> None:
        data = Path(request["path"]).read_bytes()
        self._answer(request["id"], "content", data=base64.b64encode(data).decode())

    def _clock(self, request: dict[str, Any]) -> None:
        time.clock_settime(time.CLOCK_REALTIME, request["time"])
        self._answer(request["id"], "done")

    def _poweroff(self, _request: dict[str, Any]) -> None:
        power_off()


def power_off() -> None:
    """End the machine: under ``-no-reboot`` a restart ends QEMU."""
    os.sync()
    Path("/proc/sys/kernel/sysrq").write_text("1")
    Path("/proc/sysrq-trigger").write_text("b")


class Services:
    """What the image starts by itself, in order: ``[{"argv": […], "device": "/dev/nsm", "main": false}, …]``.

    Args:
        verdict: Writes a line on the verdict channel.
    """

    def __init__(self, verdict: Callable[[str], None]) -> None:
        self._verdict = verdict
        self._main: int | None = None

    def start(self, services: list[dict[str, Any]]) -> None:
        """Start all; a service that makes a device is waited for."""
        for service in services:
            child = subprocess.Popen(service["argv"], stdin=subprocess.DEVNULL, start_new_session=True)
            if service.get("main"):
                self._main = child.pid
            device = service.get("device")
            end = time.monotonic() + _DEVICE_DEADLINE
            while device and not Path(device).exists():
                if time.monotonic() > end:
                    raise TimeoutError(f"{service['argv'][0]} has not made {device}")
                time.sleep(0.02)
            child.returncode = 0  # reaped by the agent; keeps Popen from a warning

    def exited(self, pid: int, code: int) -> None:
        """An enclave dies with its entry process."""
        if pid == self._main:
            self._verdict(f"exit {code}")
            power_off()


def open_port() -> int:
    """The virtio-serial port of our name, found as the kernel lists it."""
    for entry in Path("/sys/class/virtio-ports").iterdir():
        if (entry / "name").read_text().strip() == PORT_NAME:
            return os.open(f"/dev/{entry.name}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    raise FileNotFoundError(f"no virtio-serial port is called {PORT_NAME}")


def write_verdict(line: str) -> None:
    """One line to the host, at once."""
    descriptor = os.open(VERDICT_PORT, os.O_WRONLY | os.O_NOCTTY)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def main() -> None:
    """Run as process 1."""
    try:
        services = Services(write_verdict)
        agent = Agent(open_port(), services.exited)
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
