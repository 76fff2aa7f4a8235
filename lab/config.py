"""The configurations that the laboratory gives to the production Relay and Enclave, identical on every backend."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lab import uplinks
from lab.topology import Node, Service, Topology


def relay_config(
    topology: Topology,
    *,
    enclave_address: str,
    provisioning_address: str,
    root_sha256: str,
    pcrs: Mapping[str, str],
    runtime_directory: str,
) -> dict[str, Any]:
    """Return a complete ``relay.toml``.

    Args:
        topology: The plan.
        enclave_address: Address that the Relay dials for WireGuard.
        provisioning_address: Address that it dials to provision.
        root_sha256: Fingerprint of the laboratory's attestation root, hex: the explicit pin that it needs.
        pcrs: ``PCR0`` to ``PCR2`` of the enclave's image, hex.
        runtime_directory: The pod's runtime directory.
    """
    return {
        "runtime_directory": runtime_directory,
        "log_level": "debug",
        "enclave": {
            "address": enclave_address,
            "provisioning_address": provisioning_address,
            "addresses": [f"{topology.enclave4}/24", f"{topology.enclave6}/64"],
        },
        "interface": {"addresses": [f"{topology.relay4}/24", f"{topology.relay6}/64"]},
        "dns": {"servers": [topology.external4], "search": [topology.zone]},
        "attestation": accepts(root_sha256, pcrs),
        "nat": {"publish": publishes(topology.application)},
        **uplinks.settings(),
    }


def with_first_enclave(status: dict[str, Any]) -> dict[str, Any]:
    """Return a Relay's status with the values of its first enclave at the top: most laboratories have one."""
    enclaves = status.get("enclaves")
    return {**status, **enclaves[0], "name": status["name"], "ready": status["ready"]} if enclaves else status


def fleet_config(
    topology: Topology,
    *,
    addresses: Mapping[Node, tuple[str, str]],
    root_sha256: str,
    pcrs: Mapping[Node, Mapping[str, str]],
    runtime_directory: str,
) -> dict[str, Any]:
    """Return a complete ``relay.toml`` for several enclaves.

    Args:
        topology: The plan, with neighbours.
        addresses: Addresses that the Relay dials for WireGuard and to provision, for each enclave.
        root_sha256: As for `relay_config`.
        pcrs: As for `relay_config`, of each enclave's image.
        runtime_directory: The pod's runtime directory.
    """
    first, *_ = topology.tenants
    whole = relay_config(
        topology,
        enclave_address="",
        provisioning_address="",
        root_sha256=root_sha256,
        pcrs=pcrs[first.node],
        runtime_directory=runtime_directory,
    )
    del whole["enclave"], whole["interface"], whole["nat"], whole["attestation"]
    return whole | {
        "enclaves": [
            {
                "name": tenant.name,
                "address": addresses[tenant.node][0],
                "provisioning_address": addresses[tenant.node][1],
                "interface": tenant.interface,
                "addresses": list(tenant.addresses),
                "relay_addresses": list(tenant.relay_addresses),
                "attestation": accepts(root_sha256, pcrs[tenant.node]),
                "publish": publishes(tenant.application),
            }
            for tenant in topology.tenants
        ]
    }


def accepts(root_sha256: str, pcrs: Mapping[str, str]) -> dict[str, Any]:
    """Return an ``[attestation]`` for the one image with these measurements."""
    return {
        "root_sha256": [root_sha256],
        "pcr_sets": [{f"pcr{number}": pcrs[f"PCR{number}"] for number in (0, 1, 2)}],
    }


def publishes(application: Service) -> list[dict[str, Any]]:
    """Return published ports for every port of an application, each under its own number."""
    ports = (("tcp", application.http_port), ("tcp", application.echo_port), ("udp", application.echo_port))
    return [{"protocol": protocol, "port": port, "enclave_port": port} for protocol, port in ports]


def enclave_config(*, listen: str, provisioning_listen: str, parent_cid: int, runtime_directory: str) -> dict[str, Any]:
    """Return a complete ``enclave.toml``."""
    return {
        "runtime_directory": runtime_directory,
        "log_level": "debug",
        "listen": listen,
        "provisioning_listen": provisioning_listen,
        "parent_cid": parent_cid,
    }


def to_toml(config: Mapping[str, Any]) -> str:
    """Write nested dictionaries as TOML (https://toml.io/en/v1.0.0): values first, then tables and arrays of tables."""
    return "\n".join(_table(config, ())) + "\n"


def _table(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping) and not _is_tables(value)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in plain.items()]  # JSON's scalars and lists are valid TOML
    for key, value in table.items():
        inner = (*path, key)
        if isinstance(value, Mapping):
            lines += ["", f"[{'.'.join(inner)}]", *_table(value, inner)]
        elif _is_tables(value):
            for entry in value:
                lines += ["", f"[[{'.'.join(inner)}]]", *_table(entry, inner)]
    return lines


def _is_tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, Mapping) for entry in value)
