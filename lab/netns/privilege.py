"""May this process build network namespaces, and if not, can it in a user namespace of its own?"""

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

from lab.backend import Unavailable
from lab.errors import LabUnavailableError

TUN: Final = "/dev/net/tun"
INSIDE: Final = "WGVSOCK_LAB_USER_NAMESPACE"
"""Set in the environment of a process that `reenter` has started."""

_CLONE_NEWNET: Final = 0x40000000
_TOOLS: Final = {"ip": "iproute2", "mount": "mount", "unshare": "util-linux"}


def unavailable() -> Unavailable | None:
    """What keeps this process from building the laboratory, or None."""
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
    return None


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
    """Make one, in a thread whose end is its end."""
    outcome: list[int] = []
    libc = ctypes.CDLL(None, use_errno=True)
    thread = threading.Thread(target=lambda: outcome.append(libc.unshare(_CLONE_NEWNET)))
    thread.start()
    thread.join()
    return outcome == [0]


def inside_user_namespace() -> bool:
    """Whether this process is one that `reenter` started."""
    return INSIDE in os.environ


def reenter(argv: Sequence[str]) -> NoReturn:
    """Become the same command, as root of a new user namespace with mounts and a network of its own.

    Raises:
        LabUnavailableError: The kernel or a policy forbids user namespaces.
    """
    enter = ["unshare", "--user", "--map-root-user", "--net", "--mount"]
    trial = subprocess.run([*enter, "true"], capture_output=True, text=True, check=False)
    if trial.returncode != 0:
        raise LabUnavailableError(
            "cannot make a user namespace",
            why=trial.stderr.strip(),
            fix="run as root, or allow them: sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, "
            "kernel.apparmor_restrict_unprivileged_userns",
        )
    # /run/netns has to be ours: a tmpfs hides the machine's /run from this process and its children alone.
    script = 'mount -t tmpfs tmpfs /run && exec "$@"'
    os.environ[INSIDE] = "1"
    os.execvp("unshare", [*enter, "sh", "-c", script, "sh", sys.executable, *argv])  # noqa: S606 (becomes it, no shell)
