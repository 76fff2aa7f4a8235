"""What podman receives of a manifest: all of it, or an error where something would be ignored."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest

from lab.container.pod import Pod, project
from lab.container.seccomp import PROFILE
from lab.errors import LabError
from tests.unit.lab.manifests.conftest import objects as base

objects = base


@pytest.fixture
def pod(objects: list[dict[str, Any]], tmp_path: Path) -> Pod:
    return Pod(objects, tmp_path / "volumes")


def test_the_restrictions_of_the_manifest(pod: Pod) -> None:
    words = pod.restrictions()
    assert words == [
        *("--user", "0:0", "--security-opt", f"seccomp={PROFILE}", "--cap-drop=ALL", "--cap-add=NET_ADMIN"),
        *("--security-opt", "no-new-privileges", "--read-only", "--read-only-tmpfs=false"),
        *("--memory", str(192 * 2**20), "--memory-swap", str(192 * 2**20)),
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("privileged", True),
        ("procMount", "Unmasked"),
        ("seLinuxOptions", {}),
        ("seccompProfile", {"type": "Unconfined"}),
    ],
)
def test_what_is_not_understood_is_an_error(key: str, value: object, pod: Pod) -> None:
    pod.container["securityContext"][key] = value
    with pytest.raises(LabError):
        pod.restrictions()


def test_a_manifest_without_a_limit_or_a_user_is_an_error(pod: Pod) -> None:
    spoilt = copy.deepcopy(pod.container)
    del pod.container["resources"]["limits"]["memory"]
    with pytest.raises(KeyError):
        pod.restrictions()
    del spoilt["securityContext"]["runAsUser"]
    pod.container = spoilt
    with pytest.raises(KeyError):
        pod.restrictions()


def test_a_looser_manifest_is_a_looser_container(pod: Pod) -> None:
    context = pod.container["securityContext"]
    context["readOnlyRootFilesystem"], context["allowPrivilegeEscalation"] = False, True
    context["capabilities"]["add"].append("SYS_ADMIN")
    words = pod.restrictions(profile=Path("/p.json"))
    assert "--read-only" not in words
    assert "no-new-privileges" not in words
    assert {"--cap-add=SYS_ADMIN", "seccomp=/p.json"} <= set(words)


def test_the_volumes(pod: Pod, tmp_path: Path) -> None:
    folder = tmp_path / "volumes"
    assert pod.volumes({"config": {"relay.toml": "x = 1\n"}})[1::2] == [
        f"{folder}/config:/etc/wgvsock:ro",
        f"{folder}/signing:/etc/wgvsock-signing:ro",
        f"{folder}/run:/run",
        "/dev/net/tun:/dev/net/tun",
    ]
    assert (folder / "config/relay.toml").read_text() == "x = 1\n"  # the laboratory's in place of the manifest's
    assert (folder / "signing/signing.key").stat().st_mode & 0o777 == 0o400
    assert len((folder / "signing/signing.key").read_text()) == 44
    assert (folder / "run").stat().st_mode & 0o777 == 0o777  # an emptyDir


def test_a_pod_of_another_user_than_root(pod: Pod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chowned: list[tuple[str, int, int]] = []
    monkeypatch.setattr(os, "chown", lambda path, user, group: chowned.append((Path(path).name, user, group)))
    pod.spec["securityContext"] |= {"fsGroup": 65532, "runAsNonRoot": True}
    pod.container["securityContext"] |= {"runAsUser": 65532, "runAsGroup": 65532, "runAsNonRoot": True}
    words = pod.restrictions()
    assert words[:2] == ["--user", "65532:65532"]
    assert words[words.index("--group-add") + 1] == "65532"
    pod.volumes({})
    assert ("signing.key", -1, 65532) in chowned
    assert (tmp_path / "volumes/signing/signing.key").stat().st_mode & 0o777 == 0o440  # kubelet lets the group read


def test_what_kubelet_would_not_start_is_an_error(pod: Pod) -> None:
    pod.spec["securityContext"]["runAsNonRoot"] = True
    with pytest.raises(LabError, match="runs as root and forbids it"):
        pod.restrictions()
    pod.spec["securityContext"] = {"supplementalGroups": [1]}
    with pytest.raises(LabError, match="supplementalGroups"):
        pod.restrictions()


def test_the_settings_of_its_config_map(pod: Pod) -> None:
    assert pod.settings["enclave"]["address"] == "vsock:16:51820"


def test_a_volume_of_another_kind_is_an_error(pod: Pod) -> None:
    pod.spec["volumes"][0] = {"name": "config", "nfs": {"server": "x"}}
    with pytest.raises(LabError, match="volume config"):
        pod.volumes({})


def test_probes_and_arguments(pod: Pod) -> None:
    assert pod.probe("readinessProbe") == (9808, "/ready")
    assert pod.probe("livenessProbe") == (9808, "/live")
    assert pod.arguments == ["--config", "/etc/wgvsock/relay.toml"]
    assert pod.grace == 60
    assert pod.sysctls == {"net.ipv4.ip_unprivileged_port_start": "53"}
    pod.spec["securityContext"] = {"sysctls": [{"name": "net.x", "value": "1"}]}
    assert pod.sysctls == {"net.x": "1"}


def test_a_projected_file_is_a_link_to_a_link(tmp_path: Path) -> None:
    """As the AtomicWriter of kubelet does it: a watcher of the file sees nothing, one of ``..data`` does."""
    project(tmp_path / "v", {"a": "1", "b": "2"}, 0o440)
    assert (tmp_path / "v/a").readlink() == Path("..data/a")
    first = (tmp_path / "v/..data").readlink()
    project(tmp_path / "v", {"a": "3", "b": "4"}, 0o400)
    assert (tmp_path / "v/..data").readlink() != first
    assert not (tmp_path / "v" / first).exists()
    assert [(tmp_path / "v" / name).read_text() for name in "ab"] == ["3", "4"]
    assert (tmp_path / "v/a").stat().st_mode & 0o777 == 0o400
