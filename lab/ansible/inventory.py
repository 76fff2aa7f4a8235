#!/usr/bin/env python3
"""Ansible's dynamic inventory of the running laboratory: its machines, how to enter them, and what they run.

``ansible-playbook -i lab/ansible/inventory.py`` runs it with ``--list``. Everything comes from the topology and from
the record that the laboratory has written (`lab.cli.standing`). No machine is asked.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

CHECKOUT: Final = Path(__file__).parents[2]
if __name__ == "__main__":  # Ansible runs it by its path
    sys.path.insert(0, str(CHECKOUT))

from lab.backend import Backend  # noqa: E402
from lab.cli import standing  # noqa: E402 (the path comes first)
from lab.cli.raising import READY_TIMEOUT  # noqa: E402
from lab.ladder import PROBE  # noqa: E402
from lab.topology import Node, Service  # noqa: E402


def inventory(backend: Backend) -> dict[str, Any]:
    """Return groups and host variables, in the form that Ansible reads from an inventory script."""
    topology = backend.topology
    served = topology.service(Node.EXTERNAL)
    hosts = {str(node): _connection(backend, node) for node in backend.topology.nodes}
    hosts[Node.POD] |= _service(backend, Node.POD, "relay", backend.relay_config())
    hosts[Node.ENCLAVE] |= _service(backend, Node.ENCLAVE, "enclave", backend.enclave_config())
    hosts[Node.ENCLAVE] |= _request(topology.external4, served)
    hosts[Node.EXTERNAL] |= _request(topology.pod4, topology.application)
    return {
        "_meta": {"hostvars": hosts},
        "relays": {"hosts": [Node.POD]},
        "enclaves": {"hosts": [Node.ENCLAVE]},
        "routers": {"hosts": list(topology.routers)},
        "servers": {"hosts": [service.node for service in topology.services]},
        "verifiers": {"hosts": [Node.ENCLAVE, Node.EXTERNAL]},
    }


def _connection(backend: Backend, node: Node) -> dict[str, Any]:
    """Return how Ansible enters a machine, and what it finds there."""
    return {
        "ansible_connection": "lab",
        "ansible_python_interpreter": backend.translate(node, [sys.executable])[0],
        "ansible_remote_tmp": "/run/ansible",
        "lab_enter": backend.enter(node),
        "lab_probe": backend.translate(node, PROBE),
        "lab_python": sys.executable,
        "lab_checkout": str(CHECKOUT),
    }


def _service(backend: Backend, node: Node, role: str, config: dict[str, Any]) -> dict[str, Any]:
    """Return the variables of the role wgvsock_service (deploy/ansible)."""
    command = str(Path(sys.executable).with_name("wgvsock"))
    return {
        "wgvsock_role": role,
        "wgvsock_config": config,
        "wgvsock_command": backend.translate(node, [command])[0],
        "wgvsock_service_tasks": str(CHECKOUT / "lab/ansible/service.yml"),
        # A Relay that is ready has completed a handshake, so the Enclave is ready too.
        "wgvsock_ready_timeout": round(backend.deadline(READY_TIMEOUT).seconds) if role == "relay" else 0,
    }


def _request(host: str, service: Service) -> dict[str, Any]:
    """Return the variables of the role verification: the requests and the expected answers."""
    return {
        "verification_url": {"host": host, "port": service.http_port},
        "verification_text": f"hello from {service.node}",
    }


def main(argv: Sequence[str]) -> int:
    """Print the inventory. It already contains the variables of each host."""
    print(json.dumps(inventory(standing.attach()) if "--list" in argv else {}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
