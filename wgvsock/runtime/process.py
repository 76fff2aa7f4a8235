"""What a process sets up first: blocked signals until there are handlers, no core dumps, enough descriptors.

Keep this module light: it is imported before everything else.
"""

from __future__ import annotations

import signal
from typing import Final

HELD: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2})
"""Signals that services handle, and that would end a process without handlers."""

DESCRIPTORS: Final = 65536
"""Enough for a relay of many enclaves, each with 512 look-ups and 32 connections for them."""

_PR_SET_DUMPABLE: Final = 4
"""prctl(2): 0 means no core dump, not even to a program that core_pattern names, and no ptrace except by root."""


def hold_signals() -> None:
    """Block signals until `release_signals`. They are then delivered even to process 1, which would have lost them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD)


def release_signals() -> None:
    """Unblock signals. Pending ones are delivered first."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)


def allow_descriptors() -> None:
    """Raise the limit on descriptors as far as permitted, up to `DESCRIPTORS`.

    The usual limit of 1024 exists only for programs that use select(2) (systemd.exec(5)).
    """
    import resource

    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if most == resource.RLIM_INFINITY else min(DESCRIPTORS, most)
    if now != resource.RLIM_INFINITY and now < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def forbid_core_dumps() -> None:
    """Keep the kernel from writing this process's memory, with its keys, to a core dump.

    RLIMIT_CORE applies only to files. A program that core_pattern pipes to still gets a dump unless the process is not
    dumpable. Setting that takes ctypes, which an enclave's image may lack, but nothing in an enclave sets up such a
    program. Our child processes inherit the limit, can raise it, and are dumpable like any other program (execve(2)).
    """
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))
    try:
        import ctypes
    except ImportError:
        return
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
