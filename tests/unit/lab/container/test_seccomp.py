"""The seccomp profile: it matches the lists, allows what was traced, and nothing that affects others."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from lab.container.seccomp import FAMILIES, PROFILE, REVIEWED, profile, text

TRACED = PROFILE.with_name("traced.txt")

OTHERS = [
    "unshare",
    "setns",
    "mount",
    "umount2",
    "pivot_root",
    "chroot",
    "ptrace",
    "process_vm_readv",
    "process_vm_writev",
    "bpf",
    "perf_event_open",
    "keyctl",
    "add_key",
    "request_key",
    "init_module",
    "finit_module",
    "delete_module",
    "kexec_load",
    "reboot",
    "swapon",
    "mknod",
    "mknodat",
    "open_by_handle_at",
    "name_to_handle_at",
    "userfaultfd",
    "io_uring_setup",
    "personality",
    "acct",
    "settimeofday",
    "clock_settime",
    "sethostname",
    "iopl",
    "ioperm",
    "fsopen",
    "fsmount",
    "move_mount",
    "mount_setattr",
    "pidfd_getfd",
    "kcmp",
    "lookup_dcookie",
    "quotactl",
    "setxattr",
    "memfd_create",
]


def allowed(document: dict[str, Any]) -> set[str]:
    return {name for rule in document["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}


def test_the_file_is_what_the_lists_say() -> None:
    assert PROFILE.read_text() == text(), "python -m lab.container.seccomp"


def test_everything_that_was_traced_is_allowed_or_has_a_substitute() -> None:
    traced = {line for line in TRACED.read_text().splitlines() if line and not line.startswith("#")}
    assert len(traced) > 60
    assert traced - allowed(profile()) == {"clone3"}


@pytest.mark.parametrize("name", OTHERS)
def test_nothing_that_is_about_others(name: str) -> None:
    assert name not in allowed(profile())


def test_what_is_not_named_is_not_permitted() -> None:
    document = profile()
    assert (document["defaultAction"], document["defaultErrnoRet"]) == ("SCMP_ACT_ERRNO", 1)
    assert {rule["action"] for rule in document["syscalls"]} == {"SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"}


def test_sockets_of_five_families() -> None:
    rules = [rule for rule in profile()["syscalls"] if rule["names"] == ["socket"]]
    assert [rule["args"] for rule in rules] == [
        [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}] for value in FAMILIES.values()
    ]
    assert {name: getattr(socket, name).value for name in FAMILIES} == FAMILIES


def test_no_process_brings_a_namespace_along() -> None:
    (clone,) = [rule for rule in profile()["syscalls"] if rule["names"] == ["clone"]]
    (condition,) = clone["args"]
    assert (condition["op"], condition["valueTwo"]) == ("SCMP_CMP_MASKED_EQ", 0)
    for flag in (0x02000000, 0x08000000, 0x40000000, 0x00020000, 0x20000000, 0x10000000, 0x04000000):  # sched.h
        assert condition["value"] & flag
    assert not condition["value"] & 0x003D0F00  # a thread's flags
    (clone3,) = [rule for rule in profile()["syscalls"] if rule["names"] == ["clone3"]]
    assert (clone3["action"], clone3["errnoRet"]) == ("SCMP_ACT_ERRNO", 38)


def test_no_name_stands_twice() -> None:
    names = " ".join(REVIEWED.values()).split()
    assert len(names) == len(set(names))


def test_leaving_one_out() -> None:
    assert "ioctl" not in allowed(profile({"ioctl"}))
    assert len(allowed(profile())) - len(allowed(profile({"ioctl"}))) == 1
    less = json.loads(text({"AF_VSOCK"}))["syscalls"]
    assert [rule["comment"] for rule in less if rule["names"] == ["socket"]] == [
        "AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK",
    ]  # fmt: skip
