"""Containers run in any root directory that a CI provides: a chroot with only /proc, or read-only control groups."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab.container import engine as engines
from lab.netns import root
from tests.deploy.conftest import ROOT

pytestmark = pytest.mark.slow

ASK = (sys.executable, "-c", "from lab.container.engine import why_none_runs; print('said:', why_none_runs())")
ENTER = """
import subprocess
from lab.netns import namespaces

namespaces.create("wgv-root-x")
print(subprocess.run([*namespaces.enter("wgv-root-x"), "true"], capture_output=True, text=True))
namespaces.remove("wgv-root-x")
"""
READ_ONLY = """
while read -r _ folder kind _; do
    case $kind in cgroup*) mount -o remount,bind,ro "$folder" ;; esac
done < /proc/self/mounts
exec "$@"
"""
CHROOT = """
root=$1; shift
mkdir -p "$root"/{usr,etc,proc,sys,dev,tmp,var/tmp,run} "$root$CHECKOUT" "$root$PREFIX"
for name in bin sbin lib lib64; do [ ! -L /$name ] || ln -s "$(readlink /$name)" "$root/$name"; done
for folder in /usr /etc "$CHECKOUT" "$PREFIX"; do mount --rbind "$folder" "$root$folder"; done
ln -s /run "$root/var/run"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/dev"
for node in null:3 zero:5 random:8 urandom:9; do mknod -m 666 "$root/dev/${node%:*}" c 1 "${node#*:}"; done
exec chroot "$root" env --chdir "$CHECKOUT" "$@"
"""


@pytest.fixture(autouse=True)
def containers() -> None:
    if (lacks := engines.unavailable()) is not None:
        pytest.skip(str(lacks))


def run(script: str, *arguments: str) -> str:
    """Return the output of a script in a temporary mount namespace."""
    argv = [*root.command(control_groups=True), "bash", "-euc", script, "bash", *arguments]
    environment = {**os.environ, "CHECKOUT": str(ROOT), "PREFIX": sys.prefix, "TMPDIR": "/tmp"}  # noqa: S108
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    return done.stdout + done.stderr


def test_where_control_groups_are_read_only() -> None:
    assert run(READ_ONLY, *ASK) == "said: \n"


def test_in_a_chroot_that_has_proc_and_no_more(tmp_path: Path) -> None:
    # No mount point at /, no /dev/shm, no /sys.
    assert run(CHROOT, str(tmp_path / "root"), *ASK) == "said: \n"


def test_namespaces_are_entered_in_such_a_chroot(tmp_path: Path) -> None:
    said = run(CHROOT, str(tmp_path / "root"), sys.executable, "-c", ENTER)
    assert "returncode=0, stdout='', stderr=''" in said
    assert "lab/netns/root.py" in said  # else it was no chroot


def test_nothing_is_left_mounted() -> None:
    before = Path("/proc/self/mountinfo").read_text()
    assert engines.why_none_runs.__wrapped__() == ""
    assert Path("/proc/self/mountinfo").read_text() == before
