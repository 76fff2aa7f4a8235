"""One virtual machine: its command line, its channels, its life cycle, and how a failure is detected.

q35 without defaults and an uncompressed kernel boot as fast as microvm and do not hang on a busy host. ``-no-reboot``
and ``panic=-1`` turn every end of the guest into an end of QEMU.
"""

from __future__ import annotations

import contextlib
import math
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from lab.backend import Completed
from lab.deadline import Deadline
from lab.guest.agent import PORT_NAME, SHELL_PORT_NAME, calibrate
from lab.image.build import Image, private_loader
from lab.process import LocalProcess
from lab.qemu.channel import Channel, GuestProcess
from lab.qemu.errors import GuestError, GuestOopsError
from lab.qemu.qmp import Qmp
from wgvsock.addresses import Cid, HybridVsockAddress, Port, StreamAddress

T = TypeVar("T")

BOOT_DEADLINE: Final = 120.0
"""Seconds from QEMU's start to the guest's verdict. Idle it takes 4, on a busy machine 16, nested 135."""

AGENT_SOCKET: Final = "agent.sock"
SHELL_SOCKET: Final = "shell.sock"
GUEST_LOGS: Final = "/run/log"

_CLOCK_AGE: Final = 5.0  # seconds

_TX_BUFFER_SIZE: Final = 32768
"""Bytes of one packet from a 6.12 guest. vhost-device-vsock stalls if its buffer is smaller."""

_OOPS: Final = re.compile(
    r"\[ *\d+\.\d+\].*(Oops:|BUG:|Kernel panic|general protection fault|kernel NULL pointer|unable to handle|"
    r"rcu: INFO: rcu_\w+ detected stalls|soft lockup|invalid opcode:|double fault:)"
)
_PANIC: Final = " panicked at "  # a thread in Rust
_PANIC_ON_EXIT: Final = "Attempted to kill init"
_CONSOLE_TAIL: Final = 3000  # characters of the console in a failure's report
_DEVICE_TAIL: Final = 500  # of the vsock device's output


@dataclass(frozen=True, slots=True)
class VhostUserVsock:
    """A vsock device that vhost-device-vsock serves on a Unix socket."""

    socket: Path


@dataclass(frozen=True, slots=True)
class VhostVsock:
    """A vsock device that the host's kernel serves (/dev/vhost-vsock)."""

    cid: Cid


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """What to boot.

    Attributes:
        name: For messages and file names.
        image: Kernel and ramdisks.
        vsock: The vsock device, if any.
        memory_mib: The image alone needs about 200.
        cpus: Virtual processors.
        accelerator: ``tcg`` or ``kvm``.
        huge_pages: Whether its memory consists of 2 MiB pages, which its host has reserved (/proc/sys/vm/nr_hugepages).
        extra: Further options for QEMU, such as ports for another guest's channels.
    """

    name: str
    image: Image
    vsock: VhostUserVsock | VhostVsock | None = None
    memory_mib: int = 384
    cpus: int = 1
    accelerator: str = "tcg"
    huge_pages: bool = False
    extra: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Tools:
    """The location of QEMU and vhost-device-vsock: the root of the unpacked ``host`` packages."""

    root: Path

    def qemu(self) -> list[str]:
        """Return QEMU with its own C library and firmware files."""
        data = [
            option for folder in ("usr/share/qemu", "usr/share/seabios") for option in ("-L", str(self.root / folder))
        ]
        return [*private_loader(self.root), str(self.root / "usr/bin/qemu-system-x86_64"), *data]

    def vhost_device_vsock(self, cid: int, *, hybrid: Path, vhost: Path) -> list[str]:
        """Return the vsock device's server: guest `cid`, reached through `hybrid`, serving QEMU at `vhost`.

        Only ever with ``uds-path``: it must not reach this machine's own AF_VSOCK.
        """
        vm = f"guest-cid={cid},uds-path={hybrid},socket={vhost},tx-buffer-size={_TX_BUFFER_SIZE}"
        return [*private_loader(self.root), str(self.root / "usr/bin/vhost-device-vsock"), "--vm", vm]


def qemu_arguments(spec: MachineSpec, directory: Path) -> list[str]:
    """Return QEMU's arguments after the program, with every socket and log in `directory`."""
    return [*hardware_arguments(spec, directory / "initrd"), *channel_arguments(directory)]


def channel_arguments(directory: Path) -> list[str]:
    """Return console, verdict, requests, a person's shell and QEMU's control socket, all in `directory`."""
    return [
        *("-serial", f"file:{directory / 'console.log'}", "-serial", f"file:{directory / 'verdict'}"),
        *("-chardev", f"socket,id=agent,path={directory / AGENT_SOCKET},server=on,wait=off"),
        *("-device", f"virtserialport,chardev=agent,name={PORT_NAME}"),
        *("-chardev", f"socket,id=shell,path={directory / SHELL_SOCKET},server=on,wait=off"),
        *("-device", f"virtserialport,chardev=shell,name={SHELL_PORT_NAME}"),
        *("-qmp", f"unix:{directory / 'qmp.sock'},server=on,wait=off"),
    ]


def hardware_arguments(spec: MachineSpec, initrd: Path) -> list[str]:
    """Return processor, memory, devices and what is booted."""
    acceleration = (
        ["-accel", "tcg,thread=multi", "-cpu", "max"]
        if spec.accelerator == "tcg"
        else ["-accel", "kvm", "-cpu", "host"]
    )
    size = f"{spec.memory_mib}M"
    memory = (
        f"memory-backend-memfd,id=mem0,size={size},share=on{',hugetlb=on,hugetlbsize=2M' if spec.huge_pages else ''}"
    )
    devices: list[str] = []
    match spec.vsock:
        case VhostUserVsock(path):
            devices = ["-chardev", f"socket,id=vsock,path={path}", "-device", "vhost-user-vsock-pci,chardev=vsock"]
        case VhostVsock(cid):
            devices = ["-device", f"vhost-vsock-pci,guest-cid={cid}"]
        case None:
            pass
    return [
        *acceleration,
        *("-M", "q35,memory-backend=mem0", "-object", memory),
        *("-m", size, "-smp", str(spec.cpus), "-nodefaults", "-display", "none", "-vga", "none", "-no-reboot"),
        *("-device", "virtio-serial-pci"),
        *("-kernel", str(spec.image.kernel), "-initrd", str(initrd), "-append", spec.image.command_line),
        *devices,
        *spec.extra,
    ]


def find_oops(console: str) -> str | None:
    """Return the line in which the guest's kernel reported an internal error, or None.

    The panic that follows the end of process 1 is an end of the agent, not an error of the kernel.
    """
    for line in console.splitlines():
        if _OOPS.search(line) and _PANIC_ON_EXIT not in line:
            return line.strip()
    return None


class Machine:
    """A machine that is started, used and stopped. Its folder keeps console, verdict and sockets.

    Args:
        spec: What to boot.
        tools: Location of QEMU.
        directory: Created by `start`. The path has to be short, because Unix socket paths end at 107 bytes.
    """

    def __init__(self, spec: MachineSpec, tools: Tools, directory: Path) -> None:
        self.spec = spec
        self.directory = directory
        self.scale = 1.0
        self.boot_seconds = 0.0
        self._tools = tools
        self._qemu: LocalProcess | None = None
        self._channel: Channel | None = None
        self._clock = -math.inf, (0.0, 0.0)  # when it was compared with this clock, and the result

    def start(self) -> None:
        """Start QEMU. Returns before the guest has booted."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "initrd").open("wb") as initrd:
            for ramdisk in self.spec.image.ramdisks:
                with ramdisk.open("rb") as part:
                    shutil.copyfileobj(part, initrd)
        (self.directory / "verdict").unlink(missing_ok=True)
        command = [*self._tools.qemu(), *qemu_arguments(self.spec, self.directory)]
        self._qemu = LocalProcess.start(f"QEMU {self.spec.name}", command, log=self.directory / "qemu.log")

    def describe(self) -> dict[str, Any]:
        """Return what `adopt` needs, as JSON values."""
        qemu = self._qemu.describe() if self._qemu is not None else None
        return {"qemu": qemu, "scale": self.scale}

    def adopt(self, description: Mapping[str, Any]) -> None:
        """Take over the machine that another process of the laboratory started in this folder."""
        self._qemu = LocalProcess.adopt(description["qemu"]) if description["qemu"] else None
        self.scale = description["scale"]

    def wait_ready(self, deadline: Deadline | None = None) -> None:
        """Wait until the guest's agent has reported ``ready``. Then its speed is known and its clock is set.

        Raises:
            GuestOopsError: The guest's kernel failed.
            GuestError: The guest reported ``failed``, or QEMU ended.
            LabTimeoutError: There was no verdict.
        """
        deadline = deadline or Deadline(BOOT_DEADLINE)
        total = deadline.remaining
        words = self._watch(deadline, self._verdict_words, f"the verdict of the guest {self.spec.name}")
        if words[0] != "ready":
            raise self._failure(" ".join(words))
        self.boot_seconds = total - deadline.remaining
        self.scale = max(1.0, float(words[2]) / calibrate())
        self.channel().set_clock(time.time())

    def channel(self) -> Channel:
        """The channel for running things in the guest, opened at the first use.

        Raises:
            GuestError: It is not up.
        """
        if self._channel is None:
            if self.exit_code() is not None:
                raise GuestError(f"the guest {self.spec.name} is not up")
            sock = self._watch(Deadline(10), lambda: connected(self.directory / AGENT_SOCKET), "its channel")
            self._channel = Channel(sock, self.spec.name)
        return self._channel

    def clock_offset(self) -> tuple[float, float]:
        """See `Channel.clock_offset`. Measured again when it has grown old, because the two clocks drift."""
        measured, offset = self._clock
        if time.monotonic() - measured > _CLOCK_AGE:
            offset = self.channel().clock_offset()
            self._clock = time.monotonic(), offset
        return offset

    def hang_up(self) -> None:
        """Close the channel, which serves one process at a time. The next use reopens it. Idempotent."""
        if self._channel is not None:
            self._channel.close()
        self._channel = None

    def run(self, argv: Sequence[str], *, deadline: Deadline | None = None, stdin: bytes = b"") -> Completed:
        """Run a command in the guest to its end. The default deadline is 10 s of the guest's time.

        Raises:
            GuestOopsError: The guest's kernel failed meanwhile.
            LabError: It did not end, or the guest is gone.
        """
        try:
            return self.channel().run(argv, deadline=deadline or Deadline(10, scale=self.scale), stdin=stdin)
        finally:
            self.check()

    def spawn(
        self,
        argv: Sequence[str],
        *,
        name: str,
        log: Path,
        stdin: bool = False,
        stdout: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> GuestProcess:
        """Start a command in the guest and leave it running.

        Args:
            argv: The command.
            name: For messages.
            log: The file for its output on this machine.
            stdin: Whether to connect its standard input.
            stdout: A file of the guest for its standard output alone.
            environment: Added to the guest's.
        """
        # Never shared with another command, even of another process of the laboratory: its "ready" would be in it.
        remote_log = f"{GUEST_LOGS}/{name.replace(' ', '-')}-{secrets.token_hex(4)}.log"
        files = {"stdout": stdout or remote_log, "stderr": remote_log}
        pid = self.channel().spawn(argv, stdin=stdin, environment=environment, **files)
        offset = log.stat().st_size if log.exists() else 0
        return GuestProcess(name, log, self.channel, pid=pid, remote_log=remote_log, offset=offset, stdin=stdin)

    def adopt_process(self, description: Mapping[str, Any], log: Path) -> GuestProcess:
        """Return a command in the guest that another process of the laboratory spawned (`GuestProcess.describe`)."""
        name, pid, remote_log, offset = (description[key] for key in ("name", "pid", "remote_log", "offset"))
        return GuestProcess(name, log, self.channel, pid=pid, remote_log=remote_log, offset=offset)

    def check(self) -> None:
        """Check that the guest's kernel is well.

        Raises:
            GuestOopsError: It reported an internal error.
        """
        if line := find_oops(self.console()):
            raise GuestOopsError(
                f"the kernel of the guest {self.spec.name} failed",
                why=f"{line} (QEMU {self.version()}, kernel {self.spec.image.kernel.name})",
                fix="usually an emulator's fault: run it again; if it persists, see docs/lab.md on pins",
            )

    def console(self) -> str:
        """Return the output of the guest's kernel and services."""
        path = self.directory / "console.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def version(self) -> str:
        """QEMU's version as it prints it."""
        done = subprocess.run([*self._tools.qemu(), "--version"], capture_output=True, text=True, check=False)
        return done.stdout.partition("version ")[2].split("\n", maxsplit=1)[0].strip()

    @contextlib.contextmanager
    def qmp(self) -> Iterator[Qmp]:
        """Open a session with QEMU's control socket."""
        deadline = Deadline(10)
        session = Qmp(deadline.poll(lambda: connected(self.directory / "qmp.sock"), "QEMU's control socket"))
        try:
            yield session
        finally:
            session.close()

    def pause(self) -> None:
        """Stop the guest, its clock and its side of the vsock.

        This sends a signal to QEMU. QEMU's own ``stop`` stops the vsock device too, which vhost-device-vsock does not
        survive.
        """
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Resume a paused guest."""
        self._signal(signal.SIGCONT)

    def _signal(self, signum: int) -> None:
        if self._qemu is not None:
            self._qemu.signal(signum)

    @property
    def pid(self) -> int:
        """QEMU's process ID, or 0 if it was never started."""
        return self._qemu.pid if self._qemu is not None else 0

    def exit_code(self) -> int | None:
        """Return QEMU's exit code, or None while it runs, or -1 if it was never started."""
        return self._qemu.poll() if self._qemu is not None else -1

    def kill(self) -> None:
        """End the machine like a power cut. Idempotent."""
        if self._qemu is not None:
            self._qemu.kill()
        self.hang_up()

    def _verdict_words(self) -> list[str] | None:
        path = self.directory / "verdict"
        line, newline, _ = (path.read_text() if path.exists() else "").partition("\n")
        return line.split() if newline else None

    def _watch(self, deadline: Deadline, look: Callable[[], T | None], what: str) -> T:
        """Wait for something, while checking that QEMU runs and the kernel is well."""

        def look_and_check() -> T | None:
            seen = look()
            self.check()
            if not seen and (code := self.exit_code()) is not None:
                raise self._failure(f"QEMU ended with {code}")
            return seen

        return deadline.poll(look_and_check, what)

    def _failure(self, why: str) -> GuestError:
        emulator = self._qemu.output().strip() if self._qemu is not None else ""
        tail = "\n".join(filter(None, (why, emulator, self.console()[-_CONSOLE_TAIL:])))
        return GuestError(f"the guest {self.spec.name} failed", why=tail)


class GuestVsock(Protocol):
    """The host's side of a guest's vsock: `VsockDevice`, or `lab.qemu.vhost.KernelVsockDevice`."""

    @property
    def specification(self) -> VhostUserVsock | VhostVsock:
        """Return QEMU's options for the device."""
        ...

    def start(self, deadline: Deadline) -> None:
        """Prepare for QEMU.

        Raises:
            LabError: That failed.
        """
        ...

    def check(self) -> None:
        """Check that it serves.

        Raises:
            LabError: It does not, and the guest has no vsock until its next start.
        """
        ...

    def address(self, port: Port) -> StreamAddress:
        """Return the address at which the host reaches a port of the guest."""
        ...

    def serve(self, port: Port, path: Path) -> None:
        """Forward the guest's connections to its host's `port` to a Unix socket, which may be created later."""
        ...

    def stop(self) -> None:
        """End what `start` and `serve` have started. Idempotent."""
        ...

    def describe(self) -> dict[str, Any] | None:
        """Return what `adopt` needs, as JSON values."""
        ...

    def adopt(self, description: Mapping[str, Any] | None) -> None:
        """Take over what another process of the laboratory started."""
        ...


class VsockDevice:
    """A vhost-device-vsock process for one guest. See `GuestVsock`.

    Args:
        tools: Its location.
        cid: The guest's.
        directory: For its sockets.
    """

    def __init__(self, tools: Tools, cid: int, directory: Path) -> None:
        self.cid = cid
        self.vhost = directory / "vhost.sock"
        self._tools = tools
        self._directory = directory
        self._process: LocalProcess | None = None

    @property
    def hybrid(self) -> Path:
        """Connect here and send ``CONNECT port`` to reach the guest. Its connections arrive at the path + ``_port``."""
        return self._directory / "u"

    @property
    def specification(self) -> VhostUserVsock:
        """Return QEMU's options for the device."""
        return VhostUserVsock(self.vhost)

    def address(self, port: Port) -> HybridVsockAddress:
        """Return the address at which the host reaches a port of the guest."""
        return HybridVsockAddress(str(self.hybrid), port)

    def serve(self, port: Port, path: Path) -> None:
        """Forward the guest's connections to a Unix socket, with a link at the path that the device uses."""
        link = Path(f"{self.hybrid}_{port}")
        link.unlink(missing_ok=True)
        link.symlink_to(path)

    def start(self, deadline: Deadline) -> None:
        """Start it and wait until QEMU can connect.

        Raises:
            GuestError: It ended.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        for path in (self.hybrid, self.vhost):
            path.unlink(missing_ok=True)
        command = self._tools.vhost_device_vsock(self.cid, hybrid=self.hybrid, vhost=self.vhost)
        log = self._directory / "vsock.log"
        process = LocalProcess.start("vhost-device-vsock", command, log=log, environment={"RUST_LOG": "warn"})
        self._process = process

        def look() -> bool:
            self.check()
            return self.vhost.exists()

        deadline.poll(look, "the vsock device's socket")

    def check(self) -> None:
        """Check that it serves. Its process stays when the only thread that serves the guest has panicked.

        Raises:
            GuestError: It does not, and the guest has no vsock until its next start.
        """
        if self._process is None:
            return
        output = self._process.output()
        if self._process.poll() is not None or _PANIC in output:
            raise GuestError("the vsock device ended", why=output.strip()[-_DEVICE_TAIL:])

    def describe(self) -> dict[str, Any] | None:
        """Return what `adopt` needs, as JSON values."""
        return self._process.describe() if self._process is not None else None

    def adopt(self, description: Mapping[str, Any] | None) -> None:
        """Take over the process that another process of the laboratory started."""
        self._process = LocalProcess.adopt(description) if description else None

    def stop(self) -> None:
        """End it. Idempotent."""
        if self._process is not None:
            self._process.kill()
        for path in (self.hybrid, self.vhost):
            path.unlink(missing_ok=True)


def connected(path: Path) -> socket.socket | None:
    """Return a socket connected to a path, or None while nothing listens there."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    return sock
