from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lab.netns import namespaces, root
from lab.netns.backend import NetnsBackend
from lab.topology import Node

MACHINE = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
"""
CHROOT = """\
65 44 0:39 / /proc rw,relatime - proc proc rw
66 44 0:40 / /dev rw,relatime - tmpfs tmpfs rw,mode=755
"""


@pytest.fixture
def mountinfo(tmp_path: Path) -> Path:
    return tmp_path / "mountinfo"


def test_a_command_is_run_in_a_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces, "own_root", lambda: ["own", "root"])
    assert namespaces.enter("wgv-7f-pod") == ["own", "root", "ip", "netns", "exec", "wgv-7f-pod"]


def test_so_is_a_command_of_the_laboratory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(namespaces, "own_root", lambda: ["own", "root"])
    assert NetnsBackend("7f", directory=tmp_path).enter(Node.POD)[:6] == [
        *("own", "root"),
        *("ip", "netns", "exec", "wgv-7f-pod"),
    ]


def test_a_machine_s_root_is_taken_as_it_is(mountinfo: Path) -> None:
    mountinfo.write_text(MACHINE)
    assert namespaces.own_root(mountinfo) == []


def test_nor_is_anything_done_where_the_mounts_cannot_be_seen(mountinfo: Path) -> None:
    assert namespaces.own_root(mountinfo) == []


def test_a_chroot_gets_a_root_that_is_a_mount_point(mountinfo: Path) -> None:
    mountinfo.write_text(CHROOT)
    assert namespaces.own_root(mountinfo) == [sys.executable, "-IS", root.__file__]
