"""The configurations that the laboratory gives to the production Relay and Enclave, the same on every backend."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lab.topology import Topology


def relay_config(
    topology: Topology,
    *,
    enclave_address: str,
    provisioning_address: str,
    root_sha256: str,
    pcrs: Mapping[str, str],
    runtime_directory: str,
) -> dict[str, Any]:
    """A complete ``relay.toml``.

    Args:
        topology: The plan.
        enclave_address: Where the Relay dials for WireGuard.
        provisioning_address: Where it dials to provision.
        root_sha256: Fingerprint of the laboratory's attestation root, hex: the explicit pin that it needs.
        pcrs: ``PCR0`` to ``PCR2`` of the enclave's image, hex.
        runtime_directory: Of the pod.
    """
    application = topology.application
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
        "attestation": {
            "root_sha256": [root_sha256],
            "pcr_sets": [{f"pcr{number}": pcrs[f"PCR{number}"] for number in (0, 1, 2)}],
        },
        "nat": {
            "publish": [
                {"protocol": "tcp", "port": application.http_port, "enclave_port": application.http_port},
                {"protocol": "tcp", "port": application.echo_port, "enclave_port": application.echo_port},
                {"protocol": "udp", "port": application.echo_port, "enclave_port": application.echo_port},
            ]
        },
    }


def enclave_config(*, listen: str, provisioning_listen: str, parent_cid: int, runtime_directory: str) -> dict[str, Any]:
    """A complete ``enclave.toml``."""
    return {
        "runtime_directory": runtime_directory,
        "log_level": "debug",
        "listen": listen,
        "provisioning_listen": provisioning_listen,
        "parent_cid": parent_cid,
    }


def to_toml(config: Mapping[str, Any]) -> str:
    """Nested dictionaries as TOML (https://toml.io/en/v1.0.0): values first, then tables, then arrays of tables."""
    return "\n".join(_table(config, ())) + "\n"


def _table(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping) and not _is_tables(value)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in plain.items()]  # JSON's scalars and lists are TOML's too
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
