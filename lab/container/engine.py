"""podman, as far as kubelet's part needs it: separate storage, and no network that podman would create.

Its default bridge leaves tables, an interface and ``net.ipv4.ip_forward=1`` in the machine's namespace. So
`Engine.create_words` accepts only ``none`` and ``ns:PATH``.
"""

from __future__ import annotations

import functools
import json
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from lab.backend import Completed
from lab.container.seccomp import PROFILE
from lab.errors import LabError, Unavailable
from lab.netns import root

_PROGRAMS: Final = ("podman", "runc", "mmdebstrap")
_DESCRIPTORS: Final = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
_LIMITS: Final = ("--ulimit", f"nofile=1024:{_DESCRIPTORS}", "--ulimit", "nproc=10000:10000")
"""podman otherwise raises these to its own limits, which root in a sandbox may not ("rlimit type 7").

containerd, as installed on nodes, also has a high hard limit and a soft one of 1024.
"""

_LAST_WORDS: Final = 300
"""Characters of podman's output."""

SETTINGS: Final = Path(__file__).parents[2] / "deploy/image/containers.conf"

IN_A_ROOT: Final = (*root.command(control_groups=True), "env", f"CONTAINERS_CONF={SETTINGS}")
"""The prefix that makes podman accept any root directory."""


class Engine:
    """A storage in a folder, and its contents.

    Args:
        folder: Holds the storage. Remove it only with `close`, which lets podman end what runs in it.

    Attributes:
        within: The prefix of podman.
    """

    within: Sequence[str] = IN_A_ROOT

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def missing() -> list[str]:
        """What has to be installed."""
        return [name for name in _PROGRAMS if shutil.which(name) is None]

    def argv(self, *words: str) -> list[str]:
        """Return a podman command on this storage."""
        where = ["--root", str(self.folder / "storage"), "--runroot", str(self.folder / "run")]
        where += ["--tmpdir", str(self.folder / "tmp"), "--runtime", "runc", "--cgroup-manager", "cgroupfs"]
        return [*self.within, "podman", *where, "--events-backend", "none", *words]

    def run(self, *words: str, check: bool = True, timeout: float = 120) -> Completed:
        """Run a podman command to its end.

        Raises:
            LabError: It failed, and `check` is set.
        """
        argv = self.argv(*words)
        done = subprocess.run(argv, capture_output=True, stdin=subprocess.DEVNULL, timeout=timeout, check=False)
        if check and done.returncode:
            raise LabError(f"podman {words[0]} failed", why=done.stderr.decode(errors="replace").strip()[-500:])
        return Completed(tuple(argv), done.returncode, done.stdout, done.stderr)

    def load(self, archive: Path) -> str:
        """Load an image, and return its identifier, which depends on its content."""
        said = self.run("load", "--quiet", "--input", str(archive)).stdout.decode()
        name = said.partition(":")[2].strip().splitlines()[0]
        found: list[dict[str, Any]] = json.loads(self.run("image", "inspect", name).stdout)
        return str(found[0]["Id"])

    def inspect(self, name: str) -> dict[str, Any] | None:
        """Return the inspection of a container or an image, or None if it does not exist."""
        done = self.run("inspect", name, check=False)
        found: list[dict[str, Any]] = json.loads(done.stdout) if done.exit_code == 0 else []
        return found[0] if found else None

    @staticmethod
    def create_words(name: str, network: str, options: Sequence[str], image: str, command: Sequence[str]) -> list[str]:
        """Return the command for a container in the foreground.

        Raises:
            LabError: `network` is one that podman would create.
        """
        if network != "none" and not network.startswith("ns:/"):
            raise LabError(f"no container gets the network {network!r}", why="podman would change this machine for it")
        return ["run", "--name", name, "--network", network, *_LIMITS, *options, image, *command]

    def close(self) -> None:
        """Stop and remove everything."""
        if not self.folder.exists():
            return
        self.run("rm", "--all", "--force", "--time", "0", check=False)
        self.run("rmi", "--all", "--force", check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


def unavailable() -> Unavailable | None:
    """Return what this machine lacks for containers, or None."""
    if missing := Engine.missing():
        return Unavailable("missing", ", ".join(missing), f"apt-get install {' '.join(missing)}")
    if refusal := why_none_runs():
        return Unavailable("forbidden", f"containers: {refusal}", "docker run --privileged, or a virtual machine")
    return None


@functools.cache
def why_none_runs() -> str:
    """Run one container of the machine's own ``true`` under the Relay's kinds of restriction. Empty if it runs.

    No single file shows what keeps containers from running (namespaces, control groups, seccomp, pivot_root,
    overlayfs), so this is tried once per process.

    Returns:
        The end of the engine's own output.
    """
    with tempfile.TemporaryDirectory(prefix="wgvsock-probe-", ignore_cleanup_errors=True) as folder:
        engine = Engine(Path(folder))
        options = ["--rm", "--memory", "64m", "--cap-drop=ALL", "--security-opt", f"seccomp={PROFILE}"]
        options += ["--security-opt", "no-new-privileges"]
        files = Path(folder) / "rootfs"
        (files / "usr").mkdir(parents=True)
        for name in ("bin", "lib", "lib64"):
            path = Path("/") / name
            if path.is_symlink():
                (files / name).symlink_to(path.readlink())
            elif path.exists():
                options += ["--volume", f"{path}:{path}:ro"]
        options += ["--volume", "/usr:/usr:ro", "--rootfs"]
        words = engine.create_words("probe", "none", options, str(files), ["/bin/true"])
        try:
            done = engine.run(*words, check=False)
        except subprocess.TimeoutExpired as error:
            return f"podman did not end within {error.timeout:.0f} s"
        finally:
            engine.close()
    said = " ".join(done.stderr.decode(errors="replace").split())[-_LAST_WORDS:]
    return "" if done.exit_code == 0 else said or f"podman ended with {done.exit_code}"
