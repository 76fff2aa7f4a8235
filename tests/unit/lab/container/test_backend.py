"""The container's process as the laboratory sees it, and what prevents the backend from running."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.backends import BACKENDS
from lab.container import backend as backend_module
from lab.container.backend import ContainerBackend, ContainerProcess
from lab.container.engine import Engine
from lab.deadline import Deadline
from lab.errors import LabError
from lab.manifests.render import KUSTOMIZE
from lab.netns.backend import NetnsBackend
from lab.process import LocalProcess


class OneContainer(Engine):
    """An engine whose only container's first process is a given one."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.pid = 0

    def inspect(self, name: str) -> dict[str, dict[str, int]] | None:
        return {"State": {"Pid": self.pid}} if name == "relay-1" else None


def run(tmp_path: Path, script: str) -> tuple[ContainerProcess, OneContainer]:
    process = ContainerProcess.start("relay", [sys.executable, "-c", script], log=tmp_path / "log")
    engine = OneContainer(tmp_path)
    engine.pid = process.pid
    process.attach(engine, "relay-1", Deadline(10))
    return process, engine


def test_signals_go_to_the_first_process(tmp_path: Path) -> None:
    script = "import signal, sys; signal.signal(signal.SIGUSR1, lambda *_: sys.exit(3)); print('up'); signal.pause()"
    process, _ = run(tmp_path, script)
    process.wait_for_line("up", Deadline(10))
    process.signal(signal.SIGUSR1)
    assert process.wait(Deadline(10)) == 3


def test_podman_s_137_is_a_sigkill(tmp_path: Path) -> None:
    process, _ = run(tmp_path, "raise SystemExit(137)")
    assert process.wait(Deadline(10)) == -signal.SIGKILL


def test_kill(tmp_path: Path) -> None:
    process, engine = run(tmp_path, "import signal; signal.pause()")
    process.kill()
    process.kill()
    assert process.poll() == -signal.SIGKILL
    engine.pid = 0
    assert process.first_process() is None
    process.container = "gone"
    assert process.first_process() is None


def test_a_backend_among_the_others() -> None:
    assert BACKENDS["container"].name == ContainerBackend.name


def test_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.container.backend.os.geteuid", lambda: 1000)
    assert str(ContainerBackend.unavailable()) == "forbidden: containers of root (run it as root)"
    monkeypatch.setattr("lab.container.backend.os.geteuid", lambda: 0)
    monkeypatch.setattr("lab.container.backend.has_kubectl", lambda: False)
    assert "kubectl" in str(ContainerBackend.unavailable())
    monkeypatch.setattr("lab.container.backend.has_kubectl", lambda: True)
    monkeypatch.setattr(NetnsBackend, "unavailable", lambda: None)
    monkeypatch.setenv("PATH", os.devnull)
    assert "podman, runc, mmdebstrap" in str(ContainerBackend.unavailable())


@pytest.mark.parametrize(
    ("uplink", "overlay", "settings"),
    [
        ("", "kustomize/overlays/ipv6", None),
        ("kernel", "kustomize/overlays/ipv6", {"mode": "kernel"}),
        ("userspace", "kustomize/overlays/userspace", {"mode": "userspace", "max_connections": 1024}),
    ],
)
def test_the_uplink_chooses_the_manifest(
    uplink: str, overlay: str, settings: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def render(chosen: str) -> list[dict[str, Any]]:
        assert chosen == overlay
        spec = yaml.safe_load((KUSTOMIZE / "base/deployment.yaml").read_text())
        folder = KUSTOMIZE / ("overlays/userspace" if uplink == "userspace" else "base")
        data = {"relay.toml": (folder / "relay.toml").read_text()}
        return [spec, {"kind": "ConfigMap", "metadata": {"name": "wgvsock-relay"}, "data": data}]

    monkeypatch.setenv("UPLINK", uplink)
    monkeypatch.setattr(backend_module, "render_ours", render)
    backend = ContainerBackend("x", directory=tmp_path)
    backend.enclave_measurements = {f"PCR{number}": "00" for number in range(3)}
    assert backend.relay_config().get("uplink") == settings


def test_the_image_holds_nft_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FILTER", "iptables")
    with pytest.raises(LabError, match="the image has no iptables"):
        ContainerBackend("x", directory=tmp_path)


def test_a_pod_that_is_replaced_loses_its_run(tmp_path: Path) -> None:
    backend = ContainerBackend("x", directory=tmp_path)
    run = tmp_path / "pod/run/wgvsock"
    run.mkdir(parents=True)
    (run / "relay.json").touch()
    backend.replace_pod()
    assert list(run.iterdir()) == []
    with pytest.raises(LabError, match="no container is running"):
        backend.execute("wgvsock", "version")
    assert backend.process("relay") is None
    assert issubclass(ContainerProcess, LocalProcess)
