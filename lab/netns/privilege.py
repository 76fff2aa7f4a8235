"""Whether this process may create network namespaces, and if not, whether it can in a new user namespace."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Final, NoReturn

from lab.errors import LabUnavailableError, Unavailable
from lab.netns.namespaces import CLONE_NEWNET, own_root

TUN: Final = "/dev/net/tun"
INSIDE: Final = "WGVSOCK_LAB_USER_NAMESPACE"
"""Set in the environment of a process that `reenter` has started."""

_TOOLS: Final = {"ip": "iproute2", "mount": "mount", "unshare": "util-linux"}


def unavailable() -> Unavailable | None:
    """Return what keeps this process from building the laboratory, or None."""
    for tool, package in _TOOLS.items():
        if shutil.which(tool) is None:
            return Unavailable("missing", tool, f"install {package}")
    if shutil.which("nft") is None and shutil.which("iptables-restore") is None:
        return Unavailable("missing", "nft (or iptables-restore)", "install nftables")
    if tun := _tun_unavailable():
        return tun
    if not _may_make_namespaces():
        return Unavailable(
            "forbidden",
            "network namespaces (CAP_SYS_ADMIN)",
            "run as root, or inside `unshare --user --map-root-user --net --mount`",
        )
    if (why := _own_root_refused()) is not None:
        return Unavailable(
            "forbidden",
            f"its own mounts in a chroot whose / is not a mount point ({why})",
            "before you enter it: `mount --bind DIR DIR`, and mount proc on DIR/proc",
        )
    return None


def _own_root_refused() -> str | None:
    """Return why a command cannot have its own mounts, or None. See `lab.netns.namespaces.own_root`."""
    enter = own_root()
    if not enter:
        return None
    trial = subprocess.run([*enter, "true"], capture_output=True, text=True, check=False)
    if trial.returncode == 0:
        return None
    for line in trial.stderr.splitlines():
        label, _, text = line.partition(":")
        if label == "why":
            return text.strip()
    return " ".join(trial.stderr.split()) or f"exit {trial.returncode}"


def _tun_unavailable() -> Unavailable | None:
    try:
        _open_tun()
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENODEV, errno.ENXIO}:
            return Unavailable("missing", TUN, "load the tun module, or `mknod /dev/net/tun c 10 200`")
        return Unavailable(
            "forbidden", TUN, "let this user open it: `chmod 0666 /dev/net/tun` is the kernel's own default"
        )
    return None


def _open_tun() -> None:
    os.close(os.open(TUN, os.O_RDWR | os.O_CLOEXEC))


def _may_make_namespaces() -> bool:
    """Create one, in a thread with which it ends."""
    outcome: list[int] = []
    libc = ctypes.CDLL(None, use_errno=True)
    thread = threading.Thread(target=lambda: outcome.append(libc.unshare(CLONE_NEWNET)))
    thread.start()
    thread.join()
    return outcome == [0]


def inside_user_namespace() -> bool:
    """Return whether `reenter` started this process."""
    return INSIDE in os.environ


def reenter(argv: Sequence[str], *, user: bool = True) -> NoReturn:
    """Replace this process by the same command with its own mounts and network.

    Args:
        argv: The command, for Python.
        user: Whether to become root of a new user namespace. False: this process is root, and stays root.

    Raises:
        LabUnavailableError: The kernel or a policy forbids user namespaces.
    """
    enter = ["unshare", "--user", "--map-root-user"] if user else [*own_root(), "unshare"]
    enter += ["--net", "--mount"]
    trial = subprocess.run([*enter, "true"], capture_output=True, text=True, check=False)
    if trial.returncode != 0:
        raise LabUnavailableError(
            f"cannot make a {'user' if user else 'mount'} namespace",
            why=trial.stderr.strip(),
            fix="run as root, or allow them: sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, "
            "kernel.apparmor_restrict_unprivileged_userns",
        )
    # /run/netns has to be writable: a tmpfs hides the machine's /run from this process and its children only.
    script = 'mount -t tmpfs tmpfs /run && exec "$@"'
    os.environ[INSIDE] = "1"
    os.execvp(enter[0], [*enter, "sh", "-c", script, "sh", sys.executable, *argv])  # noqa: S606 (becomes it, no shell)
