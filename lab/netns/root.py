"""``root.py [--control-groups] COMMAND...``: runs a command below a root that is a mount point, on any machine.

``ip netns exec`` makes ``/`` a slave mount, so that its mounts stay invisible outside. A container runtime changes its
root with pivot_root(2), and unpacks images below a root that it remounts. All of that requires that ``/`` is a mount
point, which it is not in a chroot. So the command gets its own mount namespace, in which its root is bound over the
namespace's. Containers also require writable control groups, which a chroot lacks and a container has read-only: they
are mounted anew if the machine's are not usable. All mounts end with the namespace.

Standard library only, because ``deploy/image/build`` also runs it by its path. In a chroot it precedes each command of
the laboratory, so it imports only what it needs: with pathlib and dataclasses it takes twice as long to start.
"""

from __future__ import annotations

import ctypes
import os
import sys

TYPE_CHECKING = False  # typing's own would cost as much as everything else
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

# Source: linux/mount.h and linux/sched.h.
_MS_BIND: Final = 1 << 12
_MS_REC: Final = 1 << 14
_MS_PRIVATE: Final = 1 << 18
_CLONE_NEWNS: Final = 1 << 17

CONTROL_GROUPS: Final = "--control-groups"
CGROUPS: Final = "/sys/fs/cgroup"
NOT_ALLOWED: Final = 7
"""Exit status, the same as the product's when the machine forbids something."""


class Kernel:
    """The system calls that Python 3.11 lacks."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)

    def unshare_mounts(self) -> None:
        """Enter a new mount namespace."""
        self._check("unshare", self._libc.unshare(_CLONE_NEWNS))

    def to_top(self) -> None:
        """Make the top of the namespace's root this process's root, as setns(2) does, and change to it."""
        namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._check("setns", self._libc.setns(namespace, _CLONE_NEWNS))
        finally:
            os.close(namespace)

    def mount(self, source: str, target: str, kind: str = "", *, flags: int = 0, options: str = "") -> None:
        """Mount something. An empty word means none."""
        words = [word.encode() or None for word in (source, target, kind)]
        done = self._libc.mount(*words, ctypes.c_ulong(flags), options.encode() or None)
        self._check(f"mount {kind or source} on {target}", done)

    @staticmethod
    def _check(what: str, returned: int) -> None:
        if returned:
            number = ctypes.get_errno()
            raise OSError(number, f"{what}: {os.strerror(number)}")


def command(*, control_groups: bool = False) -> list[str]:
    """Return the prefix that gives a command such a root.

    Args:
        control_groups: Whether to add writable control groups.
    """
    return [sys.executable, "-IS", __file__, *([CONTROL_GROUPS] if control_groups else [])]


def enter(kernel: Kernel) -> None:
    """Make this process's root a mount point.

    Raises:
        OSError: The kernel refuses.
    """
    here = os.getcwd()
    kernel.unshare_mounts()
    root = os.open("/", os.O_PATH | os.O_DIRECTORY)  # of the new namespace, perhaps a chroot
    kernel.to_top()  # out of the chroot: the namespace's root can be named, so no mount from here spreads elsewhere
    kernel.mount("", "/", flags=_MS_REC | _MS_PRIVATE)
    os.fchdir(root)
    kernel.mount(".", "/", flags=_MS_BIND | _MS_REC)
    kernel.to_top()
    os.close(root)
    os.chdir(here)


def hierarchies(own_groups: str) -> list[tuple[str, str, str]]:
    """Return every control group hierarchy of a process. Version 2 counts only if there is no other.

    Args:
        own_groups: /proc/self/cgroup (cgroups(7)).

    Returns:
        For each its kind, ``cgroup`` or ``cgroup2``, its controllers as in the mount option, and its mount point.
    """
    named = [line.split(":", 2)[1] for line in own_groups.splitlines()]
    first = [("cgroup", name, f"{CGROUPS}/{name.removeprefix('name=')}") for name in named if name not in {"", "name="}]
    return first or [("cgroup2", "", CGROUPS)]


def writable(mountinfo: str) -> set[str]:
    """Return the folders with a mounted, writable control group hierarchy.

    Args:
        mountinfo: /proc/self/mountinfo (proc(5)).
    """
    found: set[str] = set()
    for line in mountinfo.splitlines():
        mount, _, filesystem = line.partition(" - ")
        folder, options = mount.split()[4:6]
        kind = filesystem.split()[0]
        if kind.startswith("cgroup") and "rw" in options.split(","):
            found.add(folder)
        else:
            found.discard(folder)  # a mount on top hides what is below
    return found


def give_control_groups(kernel: Kernel, own_groups: str, mountinfo: str) -> None:
    """Mount writable control groups if there are none.

    Args:
        kernel: In a separate mount namespace.
        own_groups: /proc/self/cgroup.
        mountinfo: /proc/self/mountinfo.

    Raises:
        OSError: The kernel refuses.
    """
    wanted = hierarchies(own_groups)
    if {folder for _, _, folder in wanted} <= writable(mountinfo):
        return
    if not os.access(CGROUPS, os.F_OK):
        kernel.mount("sysfs", "/sys", "sysfs")
    if len(wanted) > 1:
        kernel.mount("cgroup", CGROUPS, "tmpfs", options="mode=755")
    for kind, controllers, folder in wanted:
        if not os.access(folder, os.F_OK):
            os.mkdir(folder)
        kernel.mount("cgroup", folder, kind, options=controllers)


def _content(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def main(words: Sequence[str]) -> int:
    """Replace this process by the command. Returns only if that fails."""
    control_groups = words[0] == CONTROL_GROUPS
    program, *arguments = words[1:] if control_groups else words
    try:
        kernel = Kernel()
        enter(kernel)
        if control_groups:
            give_control_groups(kernel, _content("/proc/self/cgroup"), _content("/proc/self/mountinfo"))
        os.execvp(program, [program, *arguments])  # noqa: S606 (no shell is wanted)
    except OSError as error:
        sys.stderr.write(f"error: cannot run {program} in a separate root directory\nwhy:   {error}\n")
        sys.stderr.write("fix:   be root with CAP_SYS_ADMIN: docker run --privileged, or a virtual machine\n")
    return NOT_ALLOWED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
