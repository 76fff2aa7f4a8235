"""The overlays as they would be applied: valid for three versions of Kubernetes, and mistakes are named."""

from __future__ import annotations

import copy
import importlib
import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.errors import LabError
from lab.manifests.render import KUSTOMIZE, find, overlays, render, render_ours
from tests.deploy.conftest import ROOT
from tests.unit.lab.manifests.test_rules import BROKEN, Break

pytest.importorskip("kubernetes_validate", reason="missing: kubernetes-validate (pip install -e '.[deploy]')")
manifests = importlib.import_module("lab.manifests.__main__")

pytestmark = pytest.mark.slow

EXAMPLES = sorted(path.parent.name for path in (ROOT / "examples").glob("*/overlay"))

RESTRICTED = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True}
ROOT_WITH_NET_ADMIN = {"user": 0, "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]}, "host": ["/dev/net/tun"]}
NOBODY = {"user": 65532, "capabilities": {"drop": ["ALL"]}, "host": []}


@pytest.fixture(scope="session")
def rendered() -> dict[str, list[dict[str, Any]]]:
    return {name: render_ours(name) for name in overlays()}


def test_the_overlays_are_there() -> None:
    kinds = {"base", *(f"overlays/{name}" for name in ("ipv6", "several", "launch", "debug", "userspace"))}
    assert {f"kustomize/{kind}" for kind in kinds} | {"monitoring"} <= set(overlays())


@pytest.mark.parametrize("overlay", overlays())
def test_an_overlay_has_no_mistake(overlay: str, rendered: dict[str, list[dict[str, Any]]]) -> None:
    assert manifests.mistakes(rendered[overlay]) == []


@pytest.mark.parametrize("overlay", [name for name in overlays() if name.startswith("kustomize")])
def test_no_overlay_loosens_the_restrictions(overlay: str, rendered: dict[str, list[dict[str, Any]]]) -> None:
    (deployment,) = find(rendered[overlay], "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    (relay,) = pod["containers"]
    context = relay["securityContext"]
    assert {key: context[key] for key in RESTRICTED} == RESTRICTED
    given = NOBODY if overlay.endswith("/userspace") else ROOT_WITH_NET_ADMIN
    assert (context["runAsUser"], context["runAsGroup"]) == (given["user"], given["user"])
    assert context["capabilities"] == given["capabilities"]
    assert "privileged" not in context
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert pod["automountServiceAccountToken"] is False
    assert [v["hostPath"]["path"] for v in pod["volumes"] if "hostPath" in v] == given["host"]
    assert relay["resources"]["limits"]["memory"]
    assert "preStop" not in json.dumps(relay)


@pytest.mark.parametrize(("name", "damage"), BROKEN, ids=[f"{name}-{n}" for n, (name, _) in enumerate(BROKEN)])
def test_a_broken_manifest_is_found(name: str, damage: Break, rendered: dict[str, list[dict[str, Any]]]) -> None:
    objects = copy.deepcopy(rendered["kustomize/base"])
    for item in objects:  # the generated names of the base are what the damage looks for
        if item["kind"] in {"ConfigMap", "Secret"}:
            assert item["metadata"]["name"].startswith("wgvsock-")
    damage(objects)
    assert any(line.startswith(f"{name}: ") for line in manifests.mistakes(objects))


def test_a_field_that_no_version_has_is_found_by_the_schemas(rendered: dict[str, list[dict[str, Any]]]) -> None:
    objects = copy.deepcopy(rendered["kustomize/base"])
    (deployment,) = find(objects, "Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    found = manifests.schema_mistakes(objects)
    assert [line.partition(":")[0] for line in found] == [f"schema {minor}" for minor in manifests.MINORS]


def test_the_command_fails_on_a_broken_overlay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({"resources": ["relay.yaml"]}))
    (deployment,) = find(render_ours("kustomize/base"), "Deployment")
    deployment["spec"]["strategy"] = {"type": "RollingUpdate"}
    (tmp_path / "relay.yaml").write_text(yaml.safe_dump(deployment))
    assert manifests.main([str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "  recreate: Deployment/wgvsock-relay" in said
    assert "  reference: Deployment/wgvsock-relay: there is no ConfigMap" in said


def test_the_command_passes_what_ships(capsys: pytest.CaptureFixture[str]) -> None:
    assert manifests.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(overlays())
    assert all(line.endswith(": ok") for line in lines)


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_s_overlay_has_no_mistake(example: str, tmp_path: Path) -> None:
    for folder in ("deploy", "examples"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (tmp_path / "deploy/kustomize/base/signing.key").write_text("A" * 43 + "=\n")
    objects = render(tmp_path / "examples" / example / "overlay")
    assert manifests.mistakes(objects) == []
    (deployment,) = find(objects, "Deployment")
    ports = deployment["spec"]["template"]["spec"]["containers"][0]["ports"]
    settings = tomllib.loads((ROOT / "examples" / example / "overlay/relay.toml").read_text())
    published = [port["port"] for port in settings["nat"]["publish"]]
    assert [port["containerPort"] for port in ports] == [*published, int(settings["health"]["listen"].split(":")[-1])]


def test_an_overlay_that_cannot_be_rendered(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="cannot be rendered"):
        render(tmp_path)


def test_without_a_signing_key_kustomize_says_so(tmp_path: Path) -> None:
    base = shutil.copytree(KUSTOMIZE / "base", tmp_path / "base", ignore=shutil.ignore_patterns("signing.key"))
    with pytest.raises(LabError) as caught:
        render(base)
    assert "signing.key" in caught.value.why
