"""Rules of an API server, and of wgvsock, that schemas cannot express. Each has a name and finds one kind of mistake.

A real API server found twelve of twelve broken manifests, the schemas three, kubectl's dry run on the client none.
Source of each rule: the validation of Kubernetes (pkg/apis/core/validation), and docs/configuration.md for the last.
"""

from __future__ import annotations

import base64
import ipaddress
import itertools
import re
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Final

from lab.manifests.render import Object, find
from wgvsock.errors import WgvsockError

Finder = Callable[[list[Object]], Iterator[str]]

_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_UNITS: Final[dict[str, Decimal | int]] = {"": 1, "m": Decimal("0.001"), "k": 1000, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY: Final = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_HUGEPAGES: Final = "hugepages-"
_PORT_START: Final = "net.ipv4.ip_unprivileged_port_start"
_FIRST_FREE_PORT: Final = 1024
_NAME_SERVER_PORT: Final = 53
_LEAST_GRACE: Final = 60
"""Seconds: 10 to drain and revert changes, plus nitro-cli's limit for one enclave."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One kind of mistake.

    Attributes:
        name: The name that is reported for a broken manifest.
        find: Yields a line for each place.
    """

    name: str
    find: Finder


RULES: Final[dict[str, Rule]] = {}


def rule(name: str) -> Callable[[Finder], Finder]:
    """Register a function as the rule of that name."""

    def register(finder: Finder) -> Finder:
        RULES[name] = Rule(name, finder)
        return finder

    return register


def check(objects: list[Object]) -> list[str]:
    """Return ``NAME: where and what`` for each mistake."""
    return [f"{name}: {found}" for name, one in RULES.items() for found in one.find(objects)]


def quantity(text: object) -> Decimal:
    """Return a resource quantity as a number, or NaN if it is invalid."""
    parts = re.fullmatch(r"([0-9.]+)([A-Za-z]{0,2})", str(text))
    scale = {**_UNITS, **_BINARY}.get(parts[2]) if parts else None
    try:
        return Decimal("nan") if parts is None or scale is None else Decimal(parts[1]) * scale
    except InvalidOperation:
        return Decimal("nan")


def pods(objects: list[Object]) -> Iterator[tuple[str, Object, Object]]:
    """Yield name of the workload, the workload, and its pod's spec."""
    for item in objects:
        if item["kind"] in {"Deployment", "StatefulSet", "DaemonSet"}:
            yield f"{item['kind']}/{item['metadata']['name']}", item, item["spec"]["template"]["spec"]


def containers(objects: list[Object]) -> Iterator[tuple[str, Object, Object]]:
    """Yield its place, the container, and the spec of its pod."""
    for where, _, pod in pods(objects):
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            yield f"{where} container {container.get('name', '?')}", container, pod


def _resources(container: Object) -> Iterator[tuple[str, str, Any]]:
    for side in ("requests", "limits"):
        for name, amount in container.get("resources", {}).get(side, {}).items():
            yield side, name, amount


@rule("hugepages-multiple")
def _(objects: list[Object]) -> Iterator[str]:
    for where, container, _pod in containers(objects):
        for side, name, amount in _resources(container):
            if name.startswith(_HUGEPAGES) and (
                not quantity(amount).is_finite() or quantity(amount) % quantity(name.removeprefix(_HUGEPAGES))
            ):
                yield f"{where}: {side} {name} {amount} is no multiple of the page"


@rule("hugepages-equal")
def _(objects: list[Object]) -> Iterator[str]:
    for where, container, _pod in containers(objects):
        resources = container.get("resources", {})
        for name in {name for _, name, _ in _resources(container) if name.startswith(_HUGEPAGES) or "/" in name}:
            asked, limit = (resources.get(side, {}).get(name) for side in ("requests", "limits"))
            if limit is None or (asked not in {None, limit} and quantity(asked) != quantity(limit)):
                yield f"{where}: {name} is requested as {asked} and limited to {limit}"


@rule("hugepages-volume")
def _(objects: list[Object]) -> Iterator[str]:
    for where, container, pod in containers(objects):
        media = {volume.get("emptyDir", {}).get("medium", "").lower() for volume in pod.get("volumes", ())}
        for name in {name for _, name, _ in _resources(container) if name.startswith(_HUGEPAGES)}:
            if name.lower() not in media and "hugepages" not in media:
                yield f"{where}: no emptyDir of the medium {name.replace('hugepages', 'HugePages')}"


@rule("extended-resource-integer")
def _(objects: list[Object]) -> Iterator[str]:
    for where, container, _pod in containers(objects):
        for side, name, amount in _resources(container):
            if "/" in name and not re.fullmatch(r"[0-9]+", str(amount)):
                yield f"{where}: {side} {name} {amount} is no whole number"


@rule("volume-name")
def _(objects: list[Object]) -> Iterator[str]:
    for where, _, pod in pods(objects):
        names = [volume["name"] for volume in pod.get("volumes", ())]
        yield from (f"{where}: volume {name!r} is no DNS label" for name in names if not _LABEL.fullmatch(name))
        yield from (f"{where}: two volumes {name}" for name in sorted({n for n in names if names.count(n) > 1}))
    for where, container, pod in containers(objects):
        names = [volume["name"] for volume in pod.get("volumes", ())]
        for mount in container.get("volumeMounts", ()):
            if mount["name"] not in names:
                yield f"{where}: mounts {mount['name']}, which is no volume"


@rule("selector-labels")
def _(objects: list[Object]) -> Iterator[str]:
    made = []
    for where, item, _ in pods(objects):
        labels = item["spec"]["template"]["metadata"].get("labels", {})
        made.append(labels)
        if not _selects(item["spec"]["selector"].get("matchLabels", {}), labels):
            yield f"{where}: its selector does not match its pods' labels"
    if not made:
        return
    for item in objects:
        selector = _selector(item)
        if selector and not any(_selects(selector, labels) for labels in made):
            yield f"{item['kind']}/{item['metadata']['name']}: selects no pod of these"


def _selector(item: Object) -> Object | None:
    """Return the labels by which an object selects pods, or None if its kind selects none."""
    spec = item.get("spec", {})
    where = {"Service": spec, "PodDisruptionBudget": spec.get("selector"), "NetworkPolicy": spec.get("podSelector")}
    chosen: Object = where.get(item["kind"]) or {}
    return chosen.get("selector" if item["kind"] == "Service" else "matchLabels")


def _selects(selector: Object, labels: Object) -> bool:
    return bool(selector) and selector.items() <= labels.items()


@rule("port-name")
def _(objects: list[Object]) -> Iterator[str]:
    for where, container, _pod in containers(objects):
        names = [port.get("name", "") for port in container.get("ports", ())]
        for name in filter(None, names):
            if len(name) > 15 or not _LABEL.fullmatch(name) or not re.search("[a-z]", name) or "--" in name:
                yield f"{where}: port name {name!r} is longer than 15 characters, or no service name"
        yield from (f"{where}: two ports {name}" for name in sorted({n for n in names if n and names.count(n) > 1}))


@rule("cidr")
def _(objects: list[Object]) -> Iterator[str]:
    for item in find(objects, "NetworkPolicy"):
        for block in _blocks(item["spec"]):
            where = f"NetworkPolicy/{item['metadata']['name']}"
            try:
                whole = ipaddress.ip_network(block["cidr"])
                for part in map(ipaddress.ip_network, block.get("except", ())):
                    if type(part) is not type(whole) or not part.subnet_of(whole) or part == whole:  # type: ignore[arg-type]
                        yield f"{where}: except {part} is no part of {whole}"
            except ValueError as error:
                yield f"{where}: {error}"


def _blocks(value: object) -> Iterator[Object]:
    """Every ipBlock in a tree."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "ipBlock":
                yield inner
            else:
                yield from _blocks(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _blocks(inner)


@rule("seccomp-profile")
def _(objects: list[Object]) -> Iterator[str]:
    for where, container, _pod in containers(objects):
        profile = container.get("securityContext", {}).get("seccompProfile", {})
        path = str(profile.get("localhostProfile", ""))
        if profile.get("type") != "Localhost":
            yield f"{where}: the profile is {profile.get('type')}, and the runtimes' own ones forbid AF_VSOCK"
        elif not path or path.startswith("/") or ".." in path.split("/"):
            yield f"{where}: localhostProfile {path!r} is no path below kubelet's seccomp folder"


@rule("recreate")
def _(objects: list[Object]) -> Iterator[str]:
    for where, item, _ in pods(objects):
        strategy = item["spec"].get("strategy", {})
        if strategy.get("type") != "Recreate":
            yield f"{where}: two Relays at once would claim one enclave's vsock, CPUs and hugepages"
        elif "rollingUpdate" in strategy:
            yield f"{where}: rollingUpdate is forbidden beside Recreate"


@rule("reference")
def _(objects: list[Object]) -> Iterator[str]:
    for where, _, pod in pods(objects):
        for volume in pod.get("volumes", ()):
            for key, kind, name_key in (("configMap", "ConfigMap", "name"), ("secret", "Secret", "secretName")):
                if (source := volume.get(key)) is None:
                    continue
                data = _data(objects, kind, source.get(name_key))
                if data is None:
                    yield f"{where}: there is no {kind} {source.get(name_key)}"
                    continue
                wanted = [item["key"] for item in source.get("items", ())]
                yield from (f"{where}: {kind} {source[name_key]} has no key {k}" for k in wanted if k not in data)
        for container in pod["containers"]:
            yield from _paths(objects, f"{where} container {container['name']}", container, pod)


def _paths(objects: list[Object], where: str, container: Object, pod: Object) -> Iterator[str]:
    """Every file that the configuration and the arguments name has to be in a mount."""
    for path in (configured := _relay_paths(objects, container, pod)):
        if _file(objects, container, pod, path) is None:
            yield f"{where}: {path} is in no Secret or ConfigMap that is mounted"
    if not configured:
        yield f"{where}: there is no --config FILE among its arguments"


def _relay_paths(objects: list[Object], container: Object, pod: Object) -> list[str]:
    path = _config_path(container)
    text = None if path is None else _file(objects, container, pod, path)
    found = [] if path is None else [path]
    try:
        keys = tomllib.loads(text or "").get("provisioning", {})
    except tomllib.TOMLDecodeError:
        return found  # left to another rule
    return [*found, *([keys["signing_key_file"]] if "signing_key_file" in keys else [])]


def _config_path(container: Object) -> str | None:
    words = [*container.get("command", ()), *container.get("args", ())]
    return next((one for flag, one in itertools.pairwise(words) if flag in {"--config", "-c"}), None)


def _data(objects: list[Object], kind: str, name: object) -> Object | None:
    found = [item for item in find(objects, kind) if item["metadata"]["name"] == name]
    return {**found[0].get("data", {}), **found[0].get("stringData", {})} if found else None


def _file(objects: list[Object], container: Object, pod: Object, path: str) -> str | None:
    """Return the content of a file that a mount puts into the container."""
    volumes = {volume["name"]: volume for volume in pod.get("volumes", ())}
    for mount in container.get("volumeMounts", ()):
        volume = volumes.get(mount["name"], {})
        folder, _, name = path.rpartition("/")
        if folder != mount["mountPath"]:
            continue
        if (source := volume.get("configMap")) is not None:
            return (_data(objects, "ConfigMap", source.get("name")) or {}).get(name)
        if (source := volume.get("secret")) is not None:
            secret = (_data(objects, "Secret", source.get("secretName")) or {}).get(name)
            return None if secret is None else base64.b64decode(secret).decode(errors="replace")
    return None


@rule("secret-mode")
def _(objects: list[Object]) -> Iterator[str]:
    for where, _, pod in pods(objects):
        for volume in pod.get("volumes", ()):
            mode = volume.get("secret", {"defaultMode": 0}).get("defaultMode", 0o644)
            if mode & 0o037:
                yield f"{where}: the mode {mode:04o} of {volume['name']} lets others read it, and the Relay refuses it"


@rule("probe-port")
def _(objects: list[Object]) -> Iterator[str]:
    for where, container, pod in containers(objects):
        ports = {port.get("name"): port["containerPort"] for port in container.get("ports", ())}
        listens = _health_port(objects, container, pod)
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            wanted = container.get(kind, {}).get("httpGet", {}).get("port")
            number = ports.get(wanted) if isinstance(wanted, str) else wanted
            if number is None:
                yield f"{where}: {kind} uses port {wanted!r}, which is not one of its ports"
            elif listens is not None and number != listens:
                yield f"{where}: {kind} asks port {number}, and health.listen is {listens}"


def _health_port(objects: list[Object], container: Object, pod: Object) -> int | None:
    config = _config(objects, container, pod)
    listen = str(config.get("health", {}).get("listen", ""))
    return int(listen.rpartition(":")[2]) if re.fullmatch(r"tcp:.*:\d+", listen) else None


def _config(objects: list[Object], container: Object, pod: Object) -> dict[str, Any]:
    try:
        return tomllib.loads(_file(objects, container, pod, _config_path(container) or "") or "")
    except tomllib.TOMLDecodeError:
        return {}


@rule("config-check")
def _(objects: list[Object]) -> Iterator[str]:
    from wgvsock.relay import config

    for where, container, pod in containers(objects):
        if (text := _file(objects, container, pod, _config_path(container) or "")) is None:
            continue
        with tempfile.NamedTemporaryFile("w", prefix="relay-", suffix=".toml") as file:
            Path(file.name).write_text(text, encoding="utf-8")
            try:
                config.load(file.name)
            except WgvsockError as error:
                yield f"{where}: {str(error).replace(file.name, 'relay.toml')}: {error.fix}"


@rule("published-port")
def _(objects: list[Object]) -> Iterator[str]:
    for where, container, pod in containers(objects):
        config = _config(objects, container, pod)
        tables = [config.get("nat", {}), *config.get("enclaves", ())]
        published = {(p["protocol"].upper(), p["port"]) for table in tables for p in table.get("publish", ())}
        offered = {(p.get("protocol", "TCP"), p["containerPort"]) for p in container.get("ports", ())}
        allowed = {
            (port.get("protocol", "TCP"), port.get("port"))
            for policy in find(objects, "NetworkPolicy")
            for way in policy["spec"].get("ingress", ())
            for port in way.get("ports", ())
        }
        for what, there in (("the container's ports", offered), ("the NetworkPolicy", allowed)):
            for protocol, port in sorted(published - there):
                yield f"{where}: {protocol} {port} is published, and not among {what}"


@rule("name-server-port")
def _(objects: list[Object]) -> Iterator[str]:
    for where, container, pod in containers(objects):
        config = _config(objects, container, pod)
        tables = [config, *config.get("enclaves", ())]
        names = any("name" in one for table in tables for one in table.get("egress", {}).get("allow", ()))
        if not names and not any(table.get("dns", {}).get("forward") for table in tables):
            continue
        added = container.get("securityContext", {}).get("capabilities", {}).get("add", ())
        switches = {entry["name"]: entry["value"] for entry in pod.get("securityContext", {}).get("sysctls", ())}
        if "NET_BIND_SERVICE" not in added and int(switches.get(_PORT_START, _FIRST_FREE_PORT)) > _NAME_SERVER_PORT:
            yield f"{where}: names are looked up at port 53: add NET_BIND_SERVICE, or set {_PORT_START} to 53"


@rule("grace-period")
def _(objects: list[Object]) -> Iterator[str]:
    for where, _, pod in pods(objects):
        seconds = pod.get("terminationGracePeriodSeconds", 30)
        if seconds < _LEAST_GRACE:
            yield f"{where}: {seconds} s are less than what the Relay and nitro-cli may take to stop"
