"""kubelet's part: a rendered pod's restrictions and volumes as podman's options, and files as kubelet lays them out.

Nothing in the manifest is repeated here. A field that is not understood is an error, so that no restriction is ignored.
"""

from __future__ import annotations

import base64
import os
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from lab.container.seccomp import PROFILE
from lab.errors import LabError
from lab.manifests.render import Object, find
from lab.manifests.rules import quantity

_UNDERSTOOD: Final = {
    "runAsUser", "runAsGroup", "runAsNonRoot", "allowPrivilegeEscalation", "readOnlyRootFilesystem", "capabilities",
    "seccompProfile",
}  # fmt: skip
"""Fields of a container's securityContext."""

_UNDERSTOOD_OF_POD: Final = {"runAsNonRoot", "fsGroup", "sysctls"}
"""Supported keys of a pod's."""

_READ_BY_GROUP: Final = 0o440
"""What fsGroup adds to the mode of each file of a Secret or ConfigMap (Kubernetes, pkg/volume/volume_linux.go)."""

_DEFAULT_MODE: Final = 0o644
_EMPTY_DIR_MODE: Final = 0o777


class Pod:
    """The one pod of a Deployment, and the objects that its volumes name.

    Args:
        objects: A rendered overlay.
        folder: Receives the volumes.
    """

    def __init__(self, objects: list[Object], folder: Path) -> None:
        (deployment,) = find(objects, "Deployment")
        self.objects = objects
        self.folder = folder
        self.spec: Object = deployment["spec"]["template"]["spec"]
        (self.container,) = self.spec["containers"]

    @property
    def grace(self) -> int:
        """Seconds between SIGTERM and SIGKILL."""
        return int(self.spec["terminationGracePeriodSeconds"])

    @property
    def sysctls(self) -> dict[str, str]:
        """What kubelet sets in the pod's namespace before anything runs in it."""
        return {entry["name"]: entry["value"] for entry in self._context.get("sysctls", ())}

    @property
    def group(self) -> int | None:
        """The fsGroup: the group of the files in volumes."""
        group: int | None = self._context.get("fsGroup")
        return group

    @property
    def _context(self) -> Object:
        context: Object = self.spec.get("securityContext", {})
        return context

    @property
    def settings(self) -> dict[str, Any]:
        """The relay.toml of its ConfigMap."""
        return tomllib.loads(self._data("ConfigMap", self._volume("config")["configMap"]["name"])["relay.toml"])

    @property
    def arguments(self) -> list[str]:
        """The container's arguments, which replace the image's CMD."""
        return list(self.container.get("args", ()))

    def probe(self, kind: str) -> tuple[int, str]:
        """Return port and path of a probe."""
        asked = self.container[kind]["httpGet"]
        ports = {port["name"]: port["containerPort"] for port in self.container["ports"]}
        return ports.get(asked["port"], asked["port"]), asked["path"]

    def restrictions(self, *, profile: Path = PROFILE) -> list[str]:
        """Return the securityContext and the limits as podman's options.

        Args:
            profile: Replaces the profile that the manifest names.

        Raises:
            LabError: The manifest has a restriction that is not understood here, or lacks one.
        """
        context = self.container["securityContext"]
        if unknown := set(context) - _UNDERSTOOD | set(self._context) - _UNDERSTOOD_OF_POD:
            raise LabError(f"securityContext has {', '.join(sorted(unknown))}", why="podman would not be told of it")
        if context.get("runAsNonRoot", self._context.get("runAsNonRoot")) and not context["runAsUser"]:
            raise LabError("the manifest runs as root and forbids it", why="kubelet would not start it")
        if context["seccompProfile"] != {"type": "Localhost", "localhostProfile": f"profiles/{PROFILE.name}"}:
            raise LabError(f"the manifest names {context['seccompProfile']}", why=f"{PROFILE} is the one that ships")
        options = ["--user", f"{context['runAsUser']}:{context['runAsGroup']}", "--security-opt", f"seccomp={profile}"]
        if self.group is not None:
            options += ["--group-add", str(self.group)]
        options += [f"--cap-drop={name}" for name in context["capabilities"].get("drop", ())]
        options += [f"--cap-add={name}" for name in context["capabilities"].get("add", ())]
        if context.get("allowPrivilegeEscalation") is False:
            options += ["--security-opt", "no-new-privileges"]
        if context.get("readOnlyRootFilesystem"):
            options += ["--read-only", "--read-only-tmpfs=false"]  # otherwise podman would add a writable /run and /tmp
        limit = int(quantity(self.container["resources"]["limits"]["memory"]))
        return [*options, "--memory", str(limit), "--memory-swap", str(limit)]

    def volumes(self, content: Mapping[str, Mapping[str, str]]) -> list[str]:
        """Lay out every volume, and return podman's options.

        Args:
            content: Files, by the volume's name, that replace those of a ConfigMap or a Secret with a laboratory's.
        """
        named = {volume["name"]: volume for volume in self.spec["volumes"]}
        options: list[str] = []
        for mount in self.container["volumeMounts"]:
            source = self._source(named[mount["name"]], content.get(mount["name"]))
            read_only = ":ro" if mount.get("readOnly") else ""
            options += ["--volume", f"{source}:{mount['mountPath']}{read_only}"]
        return options

    def _source(self, volume: Object, content: Mapping[str, str] | None) -> Path:
        name = str(volume["name"])
        if "hostPath" in volume:
            return Path(volume["hostPath"]["path"])
        folder = self.folder / name
        if "emptyDir" in volume:
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(_EMPTY_DIR_MODE)
        elif "configMap" in volume:
            mode = volume["configMap"].get("defaultMode", _DEFAULT_MODE)
            project(folder, content or self._data("ConfigMap", volume["configMap"]["name"]), mode, self.group)
        elif "secret" in volume:
            mode = volume["secret"].get("defaultMode", _DEFAULT_MODE)
            project(folder, content or self._data("Secret", volume["secret"]["secretName"]), mode, self.group)
        else:
            raise LabError(f"volume {name} is of a kind that this machine does not support", why=str(sorted(volume)))
        return folder

    def _volume(self, name: str) -> Object:
        volume: Object
        (volume,) = [volume for volume in self.spec["volumes"] if volume["name"] == name]
        return volume

    def _data(self, kind: str, name: str) -> dict[str, str]:
        (item,) = [item for item in find(self.objects, kind) if item["metadata"]["name"] == name]
        data: dict[str, Any] = item["data"]
        if kind == "Secret":
            return {key: base64.b64decode(value).decode() for key, value in data.items()}
        return {key: str(value) for key, value in data.items()}


def project(folder: Path, content: Mapping[str, str], mode: int, group: int | None = None) -> None:
    """Write a ConfigMap or a Secret as kubelet's AtomicWriter does: files behind ``..data``, switched atomically.

    Args:
        folder: The source of the mount.
        content: Text of each file, by name.
        mode: Mode of each file.
        group: The pod's fsGroup, which may read each file.

    Source: Kubernetes, pkg/volume/util/atomic_writer.go.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    fresh = Path(tempfile.mkdtemp(prefix="..2026_", dir=folder))
    fresh.chmod(0o755)
    for name, text in content.items():
        (fresh / name).write_text(text, encoding="utf-8")
        if group is not None:
            os.chown(fresh / name, -1, group)
        (fresh / name).chmod(mode | (_READ_BY_GROUP if group is not None else 0))
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")
    old = folder.joinpath("..data").resolve()
    link = folder / "..data_tmp"
    link.symlink_to(fresh.name)
    link.replace(folder / "..data")
    if old != fresh and old.name.startswith("..2026_"):
        for path in old.iterdir():
            path.unlink()
        old.rmdir()
