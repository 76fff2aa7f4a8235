"""The ``container`` backend: the Relay is the real image under the manifest's restrictions, the rest is as in `netns`.

podman with runc plays kubelet in the pod's network namespace. The vsock is a folder with two Unix sockets, mounted
beside the manifest's volumes. Apart from that mount the container has only what the manifest names.
"""

from __future__ import annotations

import base64
import functools
import itertools
import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from lab import uplinks
from lab.backend import Completed
from lab.container import engine as engines
from lab.container.engine import Engine
from lab.container.pod import Pod
from lab.container.seccomp import PROFILE
from lab.deadline import Deadline
from lab.errors import LabError, Unavailable
from lab.filters import PacketFilter
from lab.image.oci import archive
from lab.laboratory import LAB
from lab.manifests.render import has_kubectl, render_ours
from lab.netns import build, namespaces
from lab.netns.backend import NetnsBackend
from lab.process import LocalProcess
from lab.topology import Node

OVERLAYS: Final = {"userspace": "kustomize/overlays/userspace"}
OVERLAY: Final = "kustomize/overlays/ipv6"
"""The overlay by uplink, and the default: the laboratory's networks have both IP versions."""

_KILLED: Final = 128 + signal.SIGKILL
_NAME: Final = "wgvsock-relay"
_PYTHON: Final = "/opt/wgvsock/bin/python"


class ContainerProcess(LocalProcess):
    """A container in the foreground of a podman. Signals go to its first process."""

    engine: Engine
    container: str

    def attach(self, engine: Engine, container: str, deadline: Deadline) -> None:
        """Wait until its first process exists, or it has ended."""
        self.engine, self.container = engine, container
        deadline.poll(lambda: self.poll() is not None or self.first_process() is not None, f"{self.name} to start")

    def first_process(self) -> int | None:
        """Its process ID on this machine, or None if it is not running."""
        found = self.engine.inspect(self.container)
        return int(found["State"]["Pid"]) or None if found else None

    def poll(self) -> int | None:
        """Return the exit code as for any command: negative for SIGKILL, which podman reports as 137."""
        code = super().poll()
        return -signal.SIGKILL if code == _KILLED else code

    def signal(self, signum: int) -> None:
        """Send a signal to the Relay."""
        if (pid := self.first_process()) is not None and self.poll() is None:
            os.kill(pid, signum)

    def kill(self) -> None:
        """Send SIGKILL to the whole container, and wait until podman has removed it."""
        if self.poll() is None:
            self.signal(signal.SIGKILL)
            self.wait(Deadline(20))


class ContainerBackend(NetnsBackend):
    """See `lab.backend.Backend`.

    Attributes:
        image: Identifier of the Relay's image.
        profile: The seccomp profile, which a test may break.
        dropped: Capabilities of the manifest that a test removes.
        left_out: Volumes of the manifest that a test leaves out.
    """

    name = "container"
    takes = "a minute or two: the images are built first"

    def __init__(self, identity: str, **options: Any) -> None:
        super().__init__(identity, **options)
        self.engine = Engine(self.directory / "engine")
        self.profile = PROFILE
        self.dropped: tuple[str, ...] = ()
        self.left_out: tuple[str, ...] = ()
        self.image = self.signing_key = ""
        self._number = itertools.count(os.getpid() * 1000)  # not a name that another process gave
        if self.filter is not PacketFilter.NFT:
            raise LabError(f"the image has no {self.filter}", why="it holds only nft", fix="leave FILTER out")

    @classmethod
    def unavailable(cls) -> Unavailable | None:
        """What `netns` needs, plus root and podman."""
        if os.geteuid() != 0:
            return Unavailable("forbidden", "containers of root", "run it as root")
        if not has_kubectl():
            return Unavailable("missing", "kubectl, which renders the manifest", "pip install -e '.[deploy]'")
        return super().unavailable() or engines.unavailable()

    @classmethod
    def prepare(cls) -> None:
        """Build the image, unless the cache has this checkout's."""
        archive("relay")

    def up(self) -> None:
        """Start everything, load the image, and set the pod's namespace up as kubelet would."""
        super().up()
        self.image = self.engine.load(archive("relay"))
        self.new_signing_key()
        for name, value in self.pod.sysctls.items():
            namespaces.set_sysctl(build.namespace(self.prefix, Node.POD), name, value)

    @functools.cached_property
    def pod(self) -> Pod:
        """The manifest's settings."""
        return Pod(render_ours(OVERLAYS.get(uplinks.asked_for(), OVERLAY)), self.directory / "volumes")

    def state(self) -> dict[str, Any]:
        """Return what `attach` needs, as JSON values."""
        return {**super().state(), "image": self.image, "signing_key": self.signing_key}

    def adopt(self, state: Mapping[str, Any]) -> None:
        """Take over what another process of the laboratory started, with the image that it has loaded."""
        super().adopt(state)
        self.image, self.signing_key = state["image"], state["signing_key"]

    def down(self) -> None:
        """Stop the containers first, because their mounts are in the laboratory's folder."""
        for process in self._processes:
            if isinstance(process, ContainerProcess):
                process.kill()
        self.engine.close()
        super().down()

    def relay_config(self) -> dict[str, Any]:
        """Return the configuration as the pod's ConfigMap has it: with the Secret's key and the port of the probes."""
        port, _ = self.pod.probe("readinessProbe")
        config = super().relay_config()
        if "uplink" in config:  # with the manifest's bounds, which suit its memory limit
            config["uplink"] = {**self.pod.settings.get("uplink", {}), **config["uplink"]}
        return {
            **config,
            "provisioning": {"signing_key_file": "/etc/wgvsock-signing/signing.key"},
            "health": {"listen": f"tcp:0.0.0.0:{port}"},
        }

    def start_relay(
        self, config: Mapping[str, Any] | None = None, *, timings: Mapping[str, float] | None = None
    ) -> LocalProcess:
        """Run a container of the image in the pod's namespace, as kubelet would."""
        written = self.write_config(Node.POD, config if config is not None else self.relay_config())
        options = self.pod.restrictions(profile=self.profile)
        options = [option for option in options if option.removeprefix("--cap-add=") not in self.dropped]
        options += self._volumes({"config": {"relay.toml": Path(written).read_text(encoding="utf-8")}})
        command = self.pod.arguments
        if timings:  # the image's own Python and wgvsock, with the laboratory's WireGuard timers
            options += ["--volume", f"{LAB}:/opt/lab/lab:ro", "--env", "PYTHONPATH=/opt/lab"]
            options += ["--entrypoint", _PYTHON]
            command = ["-m", "lab.programs.relay", *command, "--timings", json.dumps(timings)]
        return self._run(options, command)

    def new_signing_key(self) -> None:
        """Do what an installer does once."""
        self.signing_key = base64.b64encode(os.urandom(32)).decode() + "\n"

    def replace_pod(self) -> None:
        """Reproduce the replacement of a pod: its emptyDir is gone, ConfigMap and Secret remain."""
        for path in (self.directory / Node.POD / "run/wgvsock").glob("*"):
            path.unlink()

    def execute(self, *command: str) -> Completed:
        """Run a command in the Relay's container, as ``kubectl exec`` does."""
        process = self.process("relay")
        if not isinstance(process, ContainerProcess):
            raise LabError("no container is running")
        return self.engine.run("exec", process.container, *command, check=False)

    def _volumes(self, content: Mapping[str, Mapping[str, str]]) -> list[str]:
        run = self.directory / Node.POD / "run"
        run.chmod(0o777)
        (self.pod.folder / "run").parent.mkdir(exist_ok=True)
        if not (self.pod.folder / "run").exists():
            (self.pod.folder / "run").symlink_to(run)  # the pod's /run, in which the laboratory looks for the socket
        words = self.pod.volumes({"signing": {"signing.key": self.signing_key}, **content})
        named = {mount["mountPath"]: mount["name"] for mount in self.pod.container["volumeMounts"]}
        mounts = [word for word in words if word != "--volume"]
        kept = [word for word in mounts if named[word.split(":")[1]] not in self.left_out]
        kept += [f"{self.directory / 'relay-side'}:{self.directory / 'relay-side'}"]  # replaces the vsock
        kept += [f"{self.directory / Node.POD / 'etc/resolv.conf'}:/etc/resolv.conf"]
        return list(itertools.chain.from_iterable(("--volume", mount) for mount in kept))

    def _run(self, options: list[str], command: list[str]) -> LocalProcess:
        container = f"{_NAME}-{next(self._number)}"
        network = f"ns:/run/netns/{build.namespace(self.prefix, Node.POD)}"
        words = self.engine.create_words(
            container, network, ["--rm", "--no-hosts", "--hostname", _NAME, *options], self.image, command
        )
        log = self.directory / "logs/relay.log"
        here = ("env", "--chdir", str(self.engine.folder))  # where conmon leaves a file after running out of memory
        process = ContainerProcess.start("relay", [*here, *self.engine.argv(*words)], log=log)
        self._processes.append(process)
        process.attach(self.engine, container, self.deadline(20))
        return process
