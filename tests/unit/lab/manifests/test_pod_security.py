"""Pod Security `restricted`: the overlay passes it as claimed, and each violation is found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lab.manifests.pod_security import is_restricted, mistakes
from lab.manifests.render import has_kubectl, render_ours

Objects = list[dict[str, Any]]

pytestmark = pytest.mark.skipif(not has_kubectl(), reason="there is no kubectl")


@pytest.fixture(scope="module")
def _rendered() -> Objects:
    return render_ours("kustomize/overlays/userspace")


@pytest.fixture
def objects(_rendered: Objects) -> Objects:
    import copy

    return copy.deepcopy(_rendered)


def pod(objects: Objects) -> dict[str, Any]:
    (found,) = [item["spec"]["template"]["spec"] for item in objects if item["kind"] == "Deployment"]
    return dict(found)


def context(objects: Objects) -> dict[str, Any]:
    found: dict[str, Any] = pod(objects)["containers"][0]["securityContext"]
    return found


def test_the_overlay_passes(objects: Objects) -> None:
    assert is_restricted(objects)
    assert list(mistakes(objects)) == []
    assert context(objects)["capabilities"] == {"drop": ["ALL"]}
    assert context(objects)["runAsUser"] == 65532
    assert "tun" not in {volume["name"] for volume in pod(objects)["volumes"]}


BROKEN: list[tuple[str, Callable[[Objects], Any]]] = [
    ("hostPath", lambda o: pod(o)["volumes"].append({"name": "tun", "hostPath": {"path": "/dev/net/tun"}})),
    ("NET_ADMIN", lambda o: context(o)["capabilities"].update(add=["NET_ADMIN"])),
    ("not ALL", lambda o: context(o)["capabilities"].pop("drop")),
    ("allowPrivilegeEscalation", lambda o: context(o).pop("allowPrivilegeEscalation")),
    ("privileged", lambda o: context(o).update(privileged=True)),
    ("runs as root", lambda o: context(o).update(runAsUser=0)),
    ("runAsNonRoot", lambda o: context(o).update(runAsNonRoot=False)),
    ("seccomp", lambda o: context(o)["seccompProfile"].update(type="Unconfined")),
    (
        "sysctl net.ipv4.ip_forward",
        lambda o: pod(o)["securityContext"]["sysctls"].append({"name": "net.ipv4.ip_forward"}),
    ),
]


@pytest.mark.parametrize(("reason", "change"), BROKEN, ids=[reason for reason, _ in BROKEN])
def test_each_way_to_break_it_is_found(objects: Objects, reason: str, change: Callable[[Objects], Any]) -> None:
    change(objects)
    (found,) = mistakes(objects)
    assert reason in found


def test_a_pod_on_the_hosts_network_is_found(objects: Objects) -> None:
    for item in objects:
        if item["kind"] == "Deployment":
            item["spec"]["template"]["spec"]["hostNetwork"] = True
    assert [found.rsplit(": ", 1)[1] for found in mistakes(objects)] == ["hostNetwork"]


def test_another_namespace_asks_for_nothing() -> None:
    objects = render_ours("kustomize/base")
    assert not is_restricted(objects)
    assert list(mistakes(objects)) == []
