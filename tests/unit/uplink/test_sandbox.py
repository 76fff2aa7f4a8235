"""What the engine gives up.

Here a separate interpreter runs the filter. A process that enters the sandbox and then tries shows what the kernel
makes of it.
"""

from __future__ import annotations

import ctypes
import json
import resource
import socket
import struct
import subprocess
import sys

import pytest

from wgvsock.uplink import sandbox

_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050001, 0x80000000
X86_64, AARCH64 = 0xC000003E, 0xC00000B7


def judged(code: bytes, architecture: int, number: int, argument: int = 0) -> int:
    """What the filter answers (classic BPF, as far as it is used)."""
    data = {0: number, 4: architecture, 16: argument}
    instructions = list(struct.iter_unpack("=HBBI", code))
    at, accumulator = 0, 0
    while True:
        operation, yes, no, value = instructions[at]
        at += 1
        if operation == 0x20:
            accumulator = data[value]
        elif operation == 0x15:
            at += yes if accumulator == value else no
        else:
            return int(value)


@pytest.mark.parametrize(("machine", "architecture"), [("x86_64", X86_64), ("aarch64", AARCH64)])
def test_what_the_work_takes_is_allowed_and_nothing_else(machine: str, architecture: int) -> None:
    code = sandbox.program(machine)
    assert code is not None
    calls = sandbox._CALLS[machine]
    for name, number in calls.items():
        if name != "socket":
            assert judged(code, architecture, number) == _ALLOW, name
    allowed = set(calls.values())
    for number in range(500):
        if number not in allowed:
            assert judged(code, architecture, number) == _REFUSE


@pytest.mark.parametrize(("machine", "architecture"), [("x86_64", X86_64), ("aarch64", AARCH64)])
def test_sockets_of_two_families_alone(machine: str, architecture: int) -> None:
    code = sandbox.program(machine)
    assert code is not None
    number = sandbox._CALLS[machine]["socket"]
    for family in range(50):
        expected = _ALLOW if family in {socket.AF_INET, socket.AF_INET6} else _REFUSE
        assert judged(code, architecture, number, family) == expected


def test_another_architecture_on_the_same_processor_is_the_end() -> None:
    code = sandbox.program("x86_64")
    assert code is not None
    assert judged(code, 0x40000003, 0) == _KILL


def test_a_machine_that_is_not_known_has_no_filter() -> None:
    assert sandbox.program("riscv64") is None


TRIES = """
import json, os, resource, socket, sys
from wgvsock.uplink import sandbox
sandbox.die_with_parent()
status = os.open("/proc/self/status", os.O_RDONLY)
missing = sandbox.enter(100, descriptors=64)
def tried(call):
    try:
        call()
    except OSError as error:
        return error.errno
    return 0
found = {
    "missing": missing,
    "inet": tried(lambda: socket.socket(socket.AF_INET).close()),
    "unix": tried(lambda: socket.socket(socket.AF_UNIX).close()),
    "vsock": tried(lambda: socket.socket(40).close()),
    "netlink": tried(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close()),
    "file": tried(lambda: os.close(os.open("/etc/passwd", os.O_RDONLY))),
    "program": tried(lambda: os.execv("/bin/true", ["true"])),
    "fork": tried(os.fork),
    "kill": tried(lambda: os.kill(os.getpid(), 0)),
    "status": os.pread(status, 8192, 0).decode(),
}
sys.stderr.write("of an enclave's making")
sys.stdout.write(json.dumps(found))
sys.stdout.flush()
"""


def test_a_process_that_has_entered_it_can_do_next_to_nothing() -> None:
    environment = {"PYTHONPATH": ":".join(sys.path)}  # and no coverage, which would write a file at the end
    done = subprocess.run([sys.executable, "-c", TRIES], capture_output=True, text=True, check=True, env=environment)
    found = json.loads(done.stdout)
    assert done.stderr == ""
    status = dict(line.split(":\t", 1) for line in found.pop("status").splitlines() if ":\t" in line)
    refused = dict.fromkeys(("unix", "vsock", "netlink", "file", "program", "fork", "kill"), 1)
    assert found == {"missing": [], "inet": 0, **refused}
    assert {status[name].strip("0") for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {""}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


def test_a_limit_that_cannot_be_set_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError

    monkeypatch.setattr("wgvsock.uplink.sandbox.resource.setrlimit", refuse)
    assert not sandbox._limit(resource.RLIMIT_CORE, 0)


WHERE_BUFFERS_LIE = """
import ctypes, sys
from wgvsock.uplink import sandbox
told = sandbox.keep_buffers_apart()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
libc.free(libc.malloc(128 << 10))  # after which the C library by itself takes the next ones out of its heap
places = [libc.malloc(128 << 10) for _ in range(64)][-8:]  # behind those that fit into what the heap has left
print(told, {place % 4096 for place in places} == {2 * ctypes.sizeof(ctypes.c_size_t)})
"""


def test_a_large_buffer_is_memory_that_nobody_has_written_to() -> None:
    """A separate page, behind the allocator's two words."""
    done = subprocess.run((sys.executable, "-c", WHERE_BUFFERS_LIE), capture_output=True, text=True, check=True)
    if done.stdout == "False False\n":
        pytest.skip("this C library's malloc cannot be told")
    assert done.stdout == "True True\n"


def test_a_c_library_that_cannot_be_told_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert not sandbox.keep_buffers_apart()
