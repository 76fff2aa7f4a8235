"""A root directory that permits containers: which control groups are missing, and the order of the mounts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab.netns import root
from lab.netns.root import (
    CGROUPS,
    NOT_ALLOWED,
    Kernel,
    command,
    enter,
    give_control_groups,
    hierarchies,
    main,
    writable,
)

VERSION_1 = "9:name=systemd:/\n4:memory:/x\n2:cpu,cpuacct:/a:b\n0::/\n"
MOUNTED = """\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
31 27 0:28 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs rw
32 31 0:29 / /sys/fs/cgroup/systemd rw,relatime shared:4 - cgroup cgroup rw,name=systemd
33 31 0:30 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
34 31 0:31 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
"""


class Noted(Kernel):
    """Records the requests. Nothing is mounted."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def unshare_mounts(self) -> None:
        self.asked.append("unshare")

    def to_top(self) -> None:
        self.asked.append("top")

    def mount(self, source: str, target: str, kind: str = "", *, flags: int = 0, options: str = "") -> None:
        self.asked.append(" ".join(filter(None, (kind or f"{flags:#x}", source, target, options))))


def test_the_trees_of_version_1_are_where_their_names_say() -> None:
    assert hierarchies(VERSION_1) == [
        ("cgroup", "name=systemd", f"{CGROUPS}/systemd"),
        ("cgroup", "memory", f"{CGROUPS}/memory"),
        ("cgroup", "cpu,cpuacct", f"{CGROUPS}/cpu,cpuacct"),
    ]


def test_version_2_alone() -> None:
    assert hierarchies("0::/init.scope\n") == [("cgroup2", "", CGROUPS)]


def test_what_can_be_written() -> None:
    assert writable(MOUNTED) == {folder for _, _, folder in hierarchies(VERSION_1)}
    assert writable(MOUNTED.replace("memory rw,", "memory ro,")) == {f"{CGROUPS}/systemd", f"{CGROUPS}/cpu,cpuacct"}
    hidden = "50 33 0:31 / /sys/fs/cgroup/memory rw,relatime - tmpfs tmpfs rw\n"
    assert f"{CGROUPS}/memory" not in writable(MOUNTED + hidden)


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Noted:
    monkeypatch.setattr("os.fchdir", lambda _: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(root, "CGROUPS", f"{tmp_path}/cgroup")
    return Noted()


def test_out_of_a_chroot_before_anything_is_mounted_and_back_by_way_of_the_bind(noted: Noted, tmp_path: Path) -> None:
    enter(noted)
    assert noted.asked == ["unshare", "top", "0x44000 /", "0x5000 . /", "top"]
    assert Path.cwd() == tmp_path


def test_control_groups_of_the_machine_are_kept(noted: Noted, tmp_path: Path) -> None:
    give_control_groups(noted, VERSION_1, MOUNTED.replace(CGROUPS, f"{tmp_path}/cgroup"))
    assert noted.asked == []


def test_a_chroot_without_any_gets_them(noted: Noted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    groups = tmp_path / "cgroup"
    mount = noted.mount

    def and_make(source: str, target: str, kind: str = "", **more: object) -> None:
        mount(source, target, kind, **more)  # type: ignore[arg-type]
        if kind == "sysfs":
            groups.mkdir()

    monkeypatch.setattr(noted, "mount", and_make)
    give_control_groups(noted, "4:memory:/x\n3:name=systemd:/\n0::/\n", "")
    assert noted.asked == [
        "sysfs sysfs /sys",
        f"tmpfs cgroup {groups} mode=755",
        f"cgroup cgroup {groups}/memory memory",
        f"cgroup cgroup {groups}/systemd name=systemd",
    ]


def test_version_2_that_is_read_only_is_mounted_anew(noted: Noted, tmp_path: Path) -> None:
    groups = tmp_path / "cgroup"
    groups.mkdir()
    give_control_groups(noted, "0::/\n", f"32 31 0:29 / {groups} ro,nosuid - cgroup2 cgroup rw\n")
    assert noted.asked == [f"cgroup2 cgroup {groups}"]


@pytest.mark.parametrize("control_groups", [False, True])
def test_control_groups_are_given_to_who_asks(monkeypatch: pytest.MonkeyPatch, control_groups: bool) -> None:
    done: list[object] = []
    monkeypatch.setattr(root, "enter", lambda _: done.append("entered"))
    monkeypatch.setattr(root, "give_control_groups", lambda *_: done.append("control groups"))
    monkeypatch.setattr("os.execvp", lambda program, words: done.append([program, words]))
    main([*command(control_groups=control_groups)[3:], "podman", "ps"])
    assert done == ["entered", *(["control groups"] if control_groups else []), ["podman", ["podman", "ps"]]]


def test_it_starts_without_what_it_does_not_need() -> None:
    """In a chroot it precedes each command."""
    script = "import sys; sys.path.insert(0, sys.argv[1]); import root; print(*{'pathlib', 'typing'} & {*sys.modules})"
    argv = [sys.executable, "-IS", "-c", script, str(Path(root.__file__).parent)]
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == "\n"


def test_who_may_not_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(_: Kernel) -> None:
        raise PermissionError(1, "unshare: Operation not permitted")

    monkeypatch.setattr(Kernel, "unshare_mounts", refuse)
    assert main(["podman", "ps"]) == NOT_ALLOWED
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == ["error", "why", "fix"]


@pytest.mark.skipif(os.geteuid() == 0, reason="forbidden: to be refused as root")
def test_an_ordinary_user_is_refused_by_the_kernel() -> None:
    done = subprocess.run([sys.executable, "-IS", root.__file__, "true"], capture_output=True, check=False)
    assert done.returncode == 7
    assert b"unshare" in done.stderr
