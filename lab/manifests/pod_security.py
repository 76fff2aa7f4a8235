"""Pod Security `restricted`, as far as a wgvsock workload can violate it.

The admission controller requires it in a namespace with the label ``pod-security.kubernetes.io/enforce: restricted``.
It is not part of any schema. Source: Kubernetes' Pod Security Standards, and its policy checks of version 1.35.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from lab.manifests.render import Object, find

ENFORCE: Final = "pod-security.kubernetes.io/enforce"

_VOLUMES: Final = frozenset(
    {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
)
_SYSCTLS: Final = frozenset(
    {
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.ping_group_range",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_syncookies",
    }
)
_OF_THE_HOST: Final = ("hostNetwork", "hostPID", "hostIPC")


def is_restricted(objects: list[Object]) -> bool:
    """Return whether the namespace enforces it."""
    return any(item["metadata"].get("labels", {}).get(ENFORCE) == "restricted" for item in find(objects, "Namespace"))


def mistakes(objects: list[Object]) -> Iterator[str]:
    """Yield ``pod-security: where and what`` for each reason to refuse a pod, if the namespace is such a one."""
    if not is_restricted(objects):
        return
    for item in find(objects, "Deployment"):
        where, pod = f"pod-security: Deployment/{item['metadata']['name']}", item["spec"]["template"]["spec"]
        context = pod.get("securityContext", {})
        yield from (f"{where}: {name}" for name in _OF_THE_HOST if pod.get(name))
        for volume in pod.get("volumes", ()):
            yield from (f"{where}: volume {volume['name']}: {kind}" for kind in volume.keys() - {"name"} - _VOLUMES)
        for entry in context.get("sysctls", ()):
            if entry["name"] not in _SYSCTLS:
                yield f"{where}: sysctl {entry['name']}"
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            for reason in _of_container({**context, **container.get("securityContext", {})}):
                yield f"{where} container {container['name']}: {reason}"


def _of_container(context: Object) -> Iterator[str]:
    """Yield the reasons in a container's security context, including what it inherits from the pod's."""
    capabilities = context.get("capabilities", {})
    if context.get("privileged"):
        yield "privileged"
    if context.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation is not false"
    if "ALL" not in capabilities.get("drop", ()):
        yield "not ALL capabilities are dropped"
    for name in capabilities.get("add", ()):
        if name != "NET_BIND_SERVICE":
            yield f"adds the capability {name}"
    if context.get("runAsNonRoot") is not True:
        yield "runAsNonRoot is not true"
    if context.get("runAsUser") == 0:
        yield "runs as root"
    if context.get("seccompProfile", {}).get("type") not in {"RuntimeDefault", "Localhost"}:
        yield "no seccomp profile"
