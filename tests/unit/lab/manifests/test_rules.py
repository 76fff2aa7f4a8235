"""Each rule finds its kind of mistake, and no other rule does. The manifests of this project have none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lab.manifests.render import find
from lab.manifests.rules import RULES, check, quantity

Objects = list[dict[str, Any]]
Break = Callable[[Objects], object]


def one(objects: Objects, kind: str) -> dict[str, Any]:
    (found,) = find(objects, kind)
    return found


def spec(objects: Objects) -> dict[str, Any]:
    found: dict[str, Any] = one(objects, "Deployment")["spec"]
    return found


def pod(objects: Objects) -> dict[str, Any]:
    found: dict[str, Any] = spec(objects)["template"]["spec"]
    return found


def relay(objects: Objects) -> dict[str, Any]:
    found: dict[str, Any] = pod(objects)["containers"][0]
    return found


def volume(objects: Objects, name: str) -> dict[str, Any]:
    return next(found for found in pod(objects)["volumes"] if found["name"] == name)


def ask(objects: Objects, name: str, requests: str, limits: str) -> None:
    resources = relay(objects)["resources"]
    resources["requests"][name], resources["limits"][name] = requests, limits


def hugepages(objects: Objects, requests: str, limits: str) -> None:
    ask(objects, "hugepages-2Mi", requests, limits)
    pod(objects)["volumes"].append({"name": "pages", "emptyDir": {"medium": "HugePages-2Mi"}})


def settings(objects: Objects, old: str, new: str) -> None:
    data = one(objects, "ConfigMap")["data"]
    assert old in data["relay.toml"]
    data["relay.toml"] = data["relay.toml"].replace(old, new)


def block(objects: Objects, **changed: object) -> None:
    one(objects, "NetworkPolicy")["spec"]["egress"][1]["to"][0]["ipBlock"].update(changed)


def forward(objects: Objects) -> Objects:
    settings(objects, "[provisioning]", "[dns]\nforward = true\n[provisioning]")
    return objects


def allow_name(objects: Objects) -> Objects:
    settings(objects, "[provisioning]", '[[egress.allow]]\nname = "kms.example"\nports = [443]\n[provisioning]')
    return objects


BROKEN: list[tuple[str, Break]] = [
    ("hugepages-multiple", lambda o: hugepages(o, "513Mi", "513Mi")),
    ("hugepages-multiple", lambda o: hugepages(o, "much", "much")),
    ("hugepages-equal", lambda o: hugepages(o, "256Mi", "512Mi")),
    ("hugepages-equal", lambda o: ask(o, "aws.ec2.nitro/nitro_enclaves", "1", "2")),
    ("hugepages-volume", lambda o: ask(o, "hugepages-2Mi", "512Mi", "512Mi")),
    ("extended-resource-integer", lambda o: ask(o, "aws.ec2.nitro/nitro_enclaves", "0.5", "0.5")),
    ("volume-name", lambda o: pod(o)["volumes"].append({"name": "Spare_Room", "emptyDir": {}})),
    ("volume-name", lambda o: pod(o)["volumes"].append({"name": "run", "emptyDir": {}})),
    ("volume-name", lambda o: relay(o)["volumeMounts"].append({"name": "rnu", "mountPath": "/x"})),
    ("selector-labels", lambda o: spec(o)["selector"].update(matchLabels={"app": "other"})),
    ("selector-labels", lambda o: one(o, "Service")["spec"].update(selector={"app": "other"})),
    ("selector-labels", lambda o: one(o, "NetworkPolicy")["spec"]["podSelector"].update(matchLabels={"a": "b"})),
    ("selector-labels", lambda o: one(o, "PodDisruptionBudget")["spec"]["selector"].update(matchLabels={"a": "b"})),
    ("port-name", lambda o: relay(o)["ports"].append({"name": "wireguard-metrics", "containerPort": 1})),
    ("port-name", lambda o: relay(o)["ports"].append({"name": "https", "containerPort": 1})),
    ("cidr", lambda o: block(o, cidr="10.0.0.1/8")),
    ("cidr", lambda o: block(o, **{"except": ["fe80::/10"]})),
    ("cidr", lambda o: block(o, cidr="everything", **{"except": []})),
    ("seccomp-profile", lambda o: relay(o)["securityContext"]["seccompProfile"].update(localhostProfile="/etc/w.json")),
    ("seccomp-profile", lambda o: relay(o)["securityContext"]["seccompProfile"].update(localhostProfile="../w.json")),
    ("seccomp-profile", lambda o: relay(o)["securityContext"].update(seccompProfile={"type": "RuntimeDefault"})),
    ("recreate", lambda o: spec(o)["strategy"].update(rollingUpdate={"maxSurge": 1})),
    ("recreate", lambda o: spec(o)["strategy"].update(type="RollingUpdate")),
    ("reference", lambda o: volume(o, "signing")["secret"].update(secretName="wgvsock-singing")),
    ("reference", lambda o: volume(o, "config")["configMap"].update(name="wgvsock-realy")),
    ("reference", lambda o: one(o, "Secret")["data"].update({"seed": one(o, "Secret")["data"].pop("signing.key")})),
    ("reference", lambda o: volume(o, "config")["configMap"].update(items=[{"key": "other.toml", "path": "x"}])),
    ("reference", lambda o: settings(o, "/etc/wgvsock-signing/", "/etc/elsewhere/")),
    ("probe-port", lambda o: relay(o)["readinessProbe"]["httpGet"].update(port="metrics")),
    ("probe-port", lambda o: relay(o)["livenessProbe"]["httpGet"].update(port=9809)),
    ("probe-port", lambda o: settings(o, "0.0.0.0:9808", "0.0.0.0:9100")),
    ("config-check", lambda o: settings(o, "[provisioning]", 'nmae = "x"\n[provisioning]')),
    ("config-check", lambda o: settings(o, "pcr0", "pcr0 =")),
    ("secret-mode", lambda o: volume(o, "signing")["secret"].pop("defaultMode")),
    ("published-port", lambda o: settings(o, "port = 443", "port = 444")),
    ("name-server-port", lambda o: pod(forward(o)).pop("securityContext")),
    ("name-server-port", lambda o: pod(allow_name(o))["securityContext"].pop("sysctls")),
    ("grace-period", lambda o: pod(o).pop("terminationGracePeriodSeconds")),
]  # fmt: skip


def test_what_ships_has_no_mistake(objects: Objects) -> None:
    assert check(objects) == []


@pytest.mark.parametrize(("name", "damage"), BROKEN, ids=[f"{name}-{n}" for n, (name, _) in enumerate(BROKEN)])
def test_a_mistake_is_found_by_its_own_rule(name: str, damage: Break, objects: Objects) -> None:
    damage(objects)
    found = check(objects)
    assert {line.partition(":")[0] for line in found} == {name}, found


def test_every_rule_has_its_mistake() -> None:
    assert {name for name, _ in BROKEN} == set(RULES)
    assert len(RULES) >= 12


@pytest.mark.parametrize(
    ("text", "value"), [("1", 1), ("250m", 0.25), ("512Mi", 512 * 2**20), ("1Gi", 2**30), ("2k", 2000), ("0.5", 0.5)]
)
def test_quantities(text: str, value: float) -> None:
    assert quantity(text) == value


@pytest.mark.parametrize("text", ["", "Mi", "1Zi", "1.2.3", "-1", None])
def test_what_is_no_quantity(text: object) -> None:
    assert not quantity(text).is_finite()


def test_hugepages_as_they_should_be(objects: Objects) -> None:
    hugepages(objects, "512Mi", "512Mi")
    ask(objects, "aws.ec2.nitro/nitro_enclaves", "1", "1")
    assert check(objects) == []


def test_names_may_be_looked_up_with_the_sysctl_or_with_the_capability(objects: Objects) -> None:
    forward(objects)
    assert check(objects) == []
    pod(objects)["securityContext"].pop("sysctls")
    relay(objects)["securityContext"]["capabilities"]["add"].append("NET_BIND_SERVICE")
    assert check(objects) == []
