"""The restrictions that the engine imposes on itself before it sees the first packet.

It keeps its open descriptors and may create IPv4 and IPv6 sockets. It can no longer open a file, start a program,
inspect a process or create any other kind of socket. An attacker who takes over the engine through its C code therefore
reaches neither the relay's keys nor an enclave's vsock.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import socket
import struct
from collections.abc import Iterable
from typing import Final

MEMORY_BASE: Final = 512 << 20
"""Bytes of address space for the interpreter, the library and what all connections share. 200 MiB are in use."""

MEMORY_PER_CONNECTION: Final = 448 << 10
"""Bytes of address space. For each TCP connection, libslirp 4.7 has two buffers of 128 KiB, and packets of the maximum
size. The measured total is 428 KiB, of which at most 263 KiB are resident."""

_MAPPED_ALONE: Final = 96 << 10
"""Bytes from which on memory is mapped by itself: above libslirp's packets, below its buffers of 128 KiB."""

_M_MMAP_THRESHOLD: Final = -3  # malloc.h
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_SECCOMP: Final = 22
_PR_SET_NO_NEW_PRIVS: Final = 38
_SECCOMP_MODE_FILTER: Final = 2
_CAPABILITY_VERSION_3: Final = 0x20080522
_SIGKILL: Final = 9

_ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000
_KILL: Final = 0x80000000

_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # struct seccomp_data (seccomp(2))

_ARCHITECTURES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

_CALLS: Final[dict[str, dict[str, int]]] = {
    "x86_64": {
        "read": 0, "write": 1, "close": 3, "fstat": 5, "poll": 7, "lseek": 8, "mmap": 9, "mprotect": 10, "munmap": 11,
        "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "ioctl": 16, "pread64": 17,
        "readv": 19, "writev": 20, "sched_yield": 24, "mremap": 25, "madvise": 28, "nanosleep": 35, "getpid": 39,
        "socket": 41, "connect": 42, "accept": 43, "sendto": 44, "recvfrom": 45, "sendmsg": 46, "recvmsg": 47,
        "shutdown": 48, "bind": 49, "listen": 50, "getsockname": 51, "getpeername": 52, "setsockopt": 54,
        "getsockopt": 55, "exit": 60, "fcntl": 72, "sigaltstack": 131, "gettid": 186, "futex": 202,
        "clock_gettime": 228, "exit_group": 231, "epoll_wait": 232, "epoll_ctl": 233, "ppoll": 271, "epoll_pwait": 281,
        "accept4": 288, "getrandom": 318, "restart_syscall": 219, "clock_nanosleep": 230,
    },
    "aarch64": {
        "epoll_ctl": 21, "epoll_pwait": 22, "fcntl": 25, "ioctl": 29, "close": 57, "lseek": 62, "read": 63, "write": 64,
        "readv": 65, "writev": 66, "pread64": 67, "ppoll": 73, "fstat": 80, "exit": 93, "exit_group": 94, "futex": 98,
        "nanosleep": 101, "clock_gettime": 113, "clock_nanosleep": 115, "sched_yield": 124, "restart_syscall": 128,
        "sigaltstack": 132, "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigreturn": 139, "getpid": 172,
        "gettid": 178, "socket": 198, "bind": 200, "listen": 201, "accept": 202, "connect": 203, "getsockname": 204,
        "getpeername": 205, "sendto": 206, "recvfrom": 207, "setsockopt": 208, "getsockopt": 209, "shutdown": 210,
        "sendmsg": 211, "recvmsg": 212, "brk": 214, "munmap": 215, "mremap": 216, "mmap": 222, "mprotect": 226,
        "madvise": 233, "accept4": 242, "getrandom": 278,
    },
}  # fmt: skip
"""System calls that a running engine makes, with their numbers on each architecture (asm/unistd.h)."""

SPARE_DESCRIPTORS: Final = 64
"""Descriptors for everything other than flows and ports: the relay's sockets, the library's, and those of pings."""


def divide(max_connections: int, max_ports: int) -> tuple[int, int]:
    """Divide the descriptors that this process may have.

    Args:
        max_connections: Sockets for flows that are wanted. There are fewer if the process may not have enough.
        max_ports: Sockets that listen, at most.

    Returns:
        Descriptors for flows, and for everything else.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        return max_connections, SPARE_DESCRIPTORS + max_ports
    spare = SPARE_DESCRIPTORS + min(max_ports, most // 4)
    return max(1, min(max_connections, most - spare)), spare


def enter(max_connections: int, *, descriptors: int) -> tuple[str, ...]:
    """Give up every privilege that the engine does not need, for good.

    Args:
        max_connections: Maximum number of sockets for flows, which determines the memory limit.
        descriptors: Maximum number of open descriptors.

    Returns:
        The restrictions that could not be applied, by name.
    """
    _fall_silent()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)  # no process of this user can inspect it, not even another engine
    steps = {
        "no_new_privs": libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0,
        "memory": _limit(resource.RLIMIT_AS, MEMORY_BASE + max_connections * MEMORY_PER_CONNECTION),
        "descriptors": _limit(resource.RLIMIT_NOFILE, descriptors),
        "core": _limit(resource.RLIMIT_CORE, 0),
        "capabilities": libc.capset(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), bytes(24)) == 0,
        "seccomp": _filter_calls(libc),
    }
    return tuple(name for name, done in steps.items() if not done)


def _fall_silent() -> None:
    """Discard standard error, which is the relay's: libslirp writes complaints about the enclave's packets there."""
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)


def keep_buffers_apart() -> bool:
    """Have each large buffer be memory that nobody has written to, which takes none until it is.

    Of itself the C library raises the bound as soon as a buffer is freed, and makes buffers of memory that packets have
    lain in. Each idle connection took 171 KiB so, and takes 20.

    Returns:
        Whether this C library can be told.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_M_MMAP_THRESHOLD, _MAPPED_ALONE) == 1


def program(machine: str, families: Iterable[int] = (socket.AF_INET, socket.AF_INET6)) -> bytes | None:
    """Build the filter of system calls.

    Args:
        machine: The architecture, as ``uname -m`` prints it.
        families: The address families of sockets that may be created.

    Returns:
        Instructions of classic BPF, 8 bytes each, or None if the architecture is unknown.
    """
    calls, architecture = _CALLS.get(machine), _ARCHITECTURES.get(machine)
    if calls is None or architecture is None:
        return None
    families = tuple(families)
    plain = sorted(number for name, number in calls.items() if name != "socket")
    refuse = struct.pack("=HBBI", _RETURN, 0, 0, _ERRNO | errno.EPERM)
    allow = struct.pack("=HBBI", _RETURN, 0, 0, _ALLOW)
    # Each comparison is followed by its own return, because a jump spans 255 instructions at most.
    code = [
        struct.pack("=HBBI", _LOAD, 0, 0, _ARCHITECTURE),
        struct.pack("=HBBI", _EQUAL, 1, 0, architecture),
        struct.pack("=HBBI", _RETURN, 0, 0, _KILL),
        struct.pack("=HBBI", _LOAD, 0, 0, _NUMBER),
    ]
    for number in plain:
        code += [struct.pack("=HBBI", _EQUAL, 0, 1, number), allow]
    code += [struct.pack("=HBBI", _EQUAL, 1, 0, calls["socket"]), refuse]
    code += [struct.pack("=HBBI", _LOAD, 0, 0, _FIRST_ARGUMENT)]
    for family in families:
        code += [struct.pack("=HBBI", _EQUAL, 0, 1, family), allow]
    return b"".join([*code, refuse])


def _filter_calls(libc: ctypes.CDLL) -> bool:
    code = program(platform.machine())
    if code is None:
        return False
    instructions = ctypes.create_string_buffer(code, len(code))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    whole = Program(len(code) // 8, ctypes.addressof(instructions))
    return bool(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(whole), 0, 0) == 0)


def _limit(kind: int, value: int) -> bool:
    _, most = resource.getrlimit(kind)
    if most != resource.RLIM_INFINITY:
        value = min(value, most)
    try:
        resource.setrlimit(kind, (value, value))
    except (OSError, ValueError):
        return False
    return True
