from __future__ import annotations

import errno
import os
import shutil
import subprocess

import pytest

from lab.errors import LabUnavailableError
from lab.netns import privilege


@pytest.fixture(autouse=True)
def everything_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda tool: f"/usr/bin/{tool}")
    monkeypatch.setattr(privilege, "_open_tun", lambda: None)
    monkeypatch.setattr(privilege, "_may_make_namespaces", lambda: True)
    monkeypatch.setattr(privilege, "own_root", list)


def test_nothing_lacks() -> None:
    assert privilege.unavailable() is None


@pytest.mark.parametrize(("tool", "package"), [("ip", "iproute2"), ("mount", "mount"), ("unshare", "util-linux")])
def test_a_missing_tool_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch, tool: str, package: str) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name == tool else "/there")
    reason = privilege.unavailable()
    assert reason is not None
    assert (reason.kind, reason.what) == ("missing", tool)
    assert package in reason.fix


def test_one_packet_filter_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "nft" else "/there")
    assert privilege.unavailable() is None
    monkeypatch.setattr(shutil, "which", lambda name: None if name in {"nft", "iptables-restore"} else "/there")
    reason = privilege.unavailable()
    assert reason is not None
    assert reason.kind == "missing"


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOENT, "missing"), (errno.ENODEV, "missing"), (errno.EACCES, "forbidden")]
)
def test_a_tun_that_cannot_be_opened_is_named(monkeypatch: pytest.MonkeyPatch, number: int, kind: str) -> None:
    def refuse() -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(privilege, "_open_tun", refuse)
    reason = privilege.unavailable()
    assert reason is not None
    assert (reason.kind, reason.what) == (kind, "/dev/net/tun")


def test_no_right_to_make_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privilege, "_may_make_namespaces", lambda: False)
    assert str(privilege.unavailable()).startswith("forbidden: network namespaces")


@pytest.mark.parametrize(("status", "lacks"), [(0, False), (1, True)])
def test_a_chroot_that_allows_no_mounts_is_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, status: int, lacks: bool
) -> None:
    monkeypatch.setattr(privilege, "own_root", lambda: ["root.py"])
    said = "error: cannot run true\nwhy:   [Errno 1] setns: Operation not permitted\nfix:   be root\n"
    monkeypatch.setattr(
        subprocess,
        "run",
        lambda argv, **_: subprocess.CompletedProcess(argv, status, "", said),
    )
    reason = privilege.unavailable()
    assert (reason is not None) is lacks
    if reason is not None:
        assert reason.kind == "forbidden"
        assert "not a mount point ([Errno 1] setns: Operation not permitted)" in reason.what
        assert "mount --bind DIR DIR" in reason.fix


def test_reentering_where_user_namespaces_are_forbidden_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        subprocess,
        "run",
        lambda argv, **_: subprocess.CompletedProcess(argv, 1, "", "unshare: Operation not permitted"),
    )
    with pytest.raises(LabUnavailableError, match="not permitted"):
        privilege.reenter(["-m", "lab", "demo"])


def test_reentering_becomes_the_same_command_with_a_run_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class BecameError(Exception):
        pass

    became: list[str] = []

    def become(path: str, argv: list[str]) -> None:
        became.extend(argv)
        raise BecameError

    monkeypatch.setattr(subprocess, "run", lambda argv, **_: subprocess.CompletedProcess(argv, 0, "", ""))
    monkeypatch.setattr(os, "execvp", become)
    monkeypatch.delenv(privilege.INSIDE, raising=False)
    with pytest.raises(BecameError):
        privilege.reenter(["-m", "lab", "demo"])
    assert became[:5] == ["unshare", "--user", "--map-root-user", "--net", "--mount"]
    assert became[-3:] == ["-m", "lab", "demo"]
    assert privilege.inside_user_namespace()
    monkeypatch.delenv(privilege.INSIDE)
