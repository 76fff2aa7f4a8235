"""``python -m lab.container.seccomp``: the seccomp profile of the Relay's pod, from the reviewed lists below.

The default profiles of containerd and Docker refuse AF_VSOCK. podman's allows it, but user namespaces as well. This one
allows the calls of a Relay and those that other versions of the C library, Python or nft would make instead. It allows
nothing about other processes, mounts, modules or namespaces. ``deploy/seccomp/traced.txt`` lists the observed calls.
"""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

PROFILE: Final = Path(__file__).parents[2] / "deploy/seccomp/wgvsock.json"

REVIEWED: Final[dict[str, str]] = {
    "memory": "brk madvise mmap mprotect mremap munmap membarrier mincore",
    "files": """
        access close close_range dup dup2 dup3 faccessat faccessat2 fcntl fstat fstatfs getcwd getdents
        getdents64 ioctl lseek lstat newfstatat open openat openat2 pread64 preadv preadv2 pwrite64 pwritev
        pwritev2 read readlink readlinkat readv stat statfs statx umask write writev
    """,
    "own files, in /run": """
        chmod chown fchmod fchmodat fchown fchownat fdatasync flock fsync ftruncate link linkat mkdir
        mkdirat rename renameat renameat2 rmdir symlink symlinkat truncate unlink unlinkat utimensat
    """,
    "watching resolv.conf": "inotify_add_watch inotify_init1 inotify_rm_watch",
    "the event loop": """
        epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd2 pipe pipe2 poll
        ppoll pselect6 select timerfd_create timerfd_settime
    """,
    "sockets, of the families below": """
        accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg
        sendfile sendmmsg sendmsg sendto setsockopt shutdown
    """,
    "own processes": """
        execve exit exit_group fork kill pidfd_open pidfd_send_signal tgkill tkill vfork wait4 waitid
    """,
    "threads": """
        futex get_robust_list gettid rseq sched_getaffinity sched_getparam sched_getscheduler sched_yield
        set_robust_list set_tid_address
    """,
    "signals": """
        pause restart_syscall rt_sigaction rt_sigpending rt_sigprocmask rt_sigreturn rt_sigsuspend
        rt_sigtimedwait sigaltstack signalfd4
    """,
    "time": "clock_getres clock_gettime clock_nanosleep gettimeofday nanosleep time",
    "identity and environment": """
        arch_prctl capget getegid geteuid getgid getgroups getpgid getpgrp getpid getppid getrandom
        getresgid getresuid getrlimit getrusage getsid getuid prctl prlimit64 setpgid setrlimit setsid
        sysinfo times uname
    """,
    "the last part of runc's setup": "capset setgid setgroups setuid",
}
"""Names by their purpose. The runtime leaves out those that a processor's kernel does not have."""

FAMILIES: Final = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10, "AF_NETLINK": 16, "AF_VSOCK": 40}
"""The socket families of a Relay. AF_PACKET would see the pod's traffic, AF_ALG reaches the kernel's ciphers."""

_NEW_NAMESPACES: Final = 0x7E020000
"""CLONE_NEW* of clone(2): cgroup, ipc, net, ns, pid, user, uts."""


def profile(without: Collection[str] = ()) -> dict[str, Any]:
    """Return the profile in the form that runtimes read.

    Args:
        without: Names of calls or of families to leave out. Tests use it to show that each is needed.
    """
    rules: list[dict[str, Any]] = [
        {"names": names, "action": "SCMP_ACT_ALLOW", "comment": what}
        for what, words in REVIEWED.items()
        if (names := [name for name in words.split() if name not in without])
    ]
    rules += [
        _when("socket", value, family, operator="SCMP_CMP_EQ")
        for family, value in FAMILIES.items()
        if family not in without
    ]
    rules.append(_when("socketpair", FAMILIES["AF_UNIX"], "AF_UNIX alone", operator="SCMP_CMP_EQ"))
    rules.append(_when("clone", _NEW_NAMESPACES, "threads and processes, no namespace", operator="SCMP_CMP_MASKED_EQ"))
    rules.append(
        {
            "names": ["clone3"],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": errno.ENOSYS,
            "comment": "its flags are behind a pointer; the C library then falls back to clone",
        }
    )
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.EPERM,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
        "syscalls": rules,
    }


def _when(name: str, value: int, comment: str, *, operator: str) -> dict[str, Any]:
    condition = {"index": 0, "value": value, "op": operator}
    if operator == "SCMP_CMP_MASKED_EQ":  # value is the mask, valueTwo the masked argument
        condition["valueTwo"] = 0
    return {"names": [name], "action": "SCMP_ACT_ALLOW", "args": [condition], "comment": comment}


def text(without: Collection[str] = ()) -> str:
    """Write the file."""
    return json.dumps(profile(without), indent=2) + "\n"


if __name__ == "__main__":
    PROFILE.write_text(text())
    sys.stdout.write(f"{PROFILE}: {sum(len(rule['names']) for rule in profile()['syscalls'])} names\n")
