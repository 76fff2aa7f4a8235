"""The image under the base's own manifest, as kustomize renders it: what doctor reports in such a pod."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lab.container.engine import Engine
from lab.container.pod import Pod
from lab.manifests.render import has_kubectl, render_ours

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not has_kubectl(), reason="missing: kubectl (pip install -e '.[deploy]')"),
]


def doctor(
    engine: Engine, image: str, overlay: str, folder: Path, **content: dict[str, str]
) -> tuple[int, dict[str, Any]]:
    """Return exit status and findings, in a pod whose network has only a loopback."""
    pod = Pod(render_ours(overlay), folder)
    options = ["--rm", "--no-hosts", *pod.restrictions(), *pod.volumes(content), "--entrypoint", "/usr/bin/wgvsock"]
    words = engine.create_words("doctor", "none", options, image, ["doctor", "-c", "/etc/wgvsock/relay.toml", "--json"])
    said = engine.run(*words, check=False)
    return said.exit_code, {check["name"]: check for check in json.loads(said.stdout)["checks"]}


def test_doctor_is_content_in_a_pod_without_ipv6(engine: Engine, relay_image: str, tmp_path: Path) -> None:
    status, found = doctor(engine, relay_image, "kustomize/base", tmp_path)
    assert status == 0, found
    assert found["IPv6 forwarding"]["verdict"] == "note"
    assert found["overlay"]["found"].endswith("deploy/kustomize/base")
    assert found["/etc/wgvsock-signing/signing.key"]["verdict"] == "ok"
    assert {found[name]["verdict"] for name in ("/dev/net/tun", "NET_ADMIN", "AF_VSOCK", "packet filter")} == {"ok"}


def test_doctor_names_what_a_launching_pod_lacks_here(engine: Engine, relay_image: str, tmp_path: Path) -> None:
    settings = {"relay.toml": (Path(__file__).parents[2] / "deploy/kustomize/overlays/launch/relay.toml").read_text()}
    status, found = doctor(engine, relay_image, "kustomize/base", tmp_path, config=settings)
    assert status == 7
    assert found["overlay"]["found"].endswith("deploy/kustomize/overlays/launch")
    assert {found[name]["verdict"] for name in ("/dev/nitro_enclaves", "nitro-cli")} == {"missing"}
