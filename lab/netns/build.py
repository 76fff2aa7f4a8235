"""The plan of `lab.topology`, built from network namespaces: ``python -m lab.netns.build up|down --prefix NAME``.

It runs on this machine for the `netns` backend, and inside a guest for the backends whose guest holds several nodes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence
from typing import Final

from lab.deadline import Deadline
from lab.netns import namespaces
from lab.topology import TOPOLOGY, Node, Topology

ENCLAVES: Final = frozenset({Node.ENCLAVE, Node.SECOND})


def namespace(prefix: str, node: Node) -> str:
    """Return the name of a node's namespace: ``wgv-7f3a-pod``."""
    return f"{prefix}-{node}"


def raise_network(topology: Topology, prefix: str, nodes: Collection[Node] | None = None) -> None:
    """Create the namespaces of some or all nodes, the cables between them, addresses, routes and forwarding.

    An enclave's namespace stays as in a booting enclave: with only a loopback that is down.

    Raises:
        LabError: The kernel refused a step. `remove_network` removes what was created.
    """
    nodes = topology.nodes if nodes is None else nodes
    for node in topology.nodes:
        if node in nodes:
            namespaces.create(namespace(prefix, node))
            if node not in ENCLAVES:
                namespaces.raise_loopback(namespace(prefix, node))
    for router in topology.routers:
        if router in nodes:
            namespaces.set_sysctl(namespace(prefix, router), "net.ipv4.ip_forward", "1")
            namespaces.set_sysctl(namespace(prefix, router), "net.ipv6.conf.all.forwarding", "1")
    if Node.POD in nodes:
        _allow_pings(namespace(prefix, Node.POD))
    for link in topology.links:
        if {link.left.node, link.right.node} <= set(nodes):
            namespaces.connect(link, lambda nic: namespace(prefix, nic.node))
    for route in topology.routes:
        if route.node in nodes:
            namespaces.add_route(route, namespace(prefix, route.node))


def _allow_pings(pod: str) -> None:
    """As container runtimes do for a pod: containerd's enable_unprivileged_icmp, CRI-O's default_sysctls."""
    try:
        namespaces.set_sysctl(pod, "net.ipv4.ping_group_range", "0 2147483647")
    except OSError:  # a user namespace has only the groups that were mapped, and root's is one
        namespaces.set_sysctl(pod, "net.ipv4.ping_group_range", "0 0")


def links_are_up(topology: Topology, prefix: str, nodes: Collection[Node] | None = None) -> bool:
    """Return whether every cable has a carrier. Before that, IPv6 neighbours are not resolved."""
    nodes = topology.nodes if nodes is None else nodes
    nics = [nic for link in topology.links for nic in (link.left, link.right) if nic.node in nodes]
    return all(namespaces.is_up(nic.name, namespace(prefix, nic.node)) for nic in nics)


def remove_network(prefix: str) -> None:
    """Remove the namespaces and everything in them. Idempotent."""
    for node in Node:
        namespaces.remove(namespace(prefix, node))


def enter(prefix: str, node: Node, directory: str) -> list[str]:
    """Return the prefix that makes a command run in a node, with the node's own /etc and /run.

    It is for the machine, this one or a guest, that holds the namespaces. See `lab.netns.namespaces.own_root` for this
    one.

    Args:
        prefix: Of the laboratory's namespaces.
        node: The node to run in.
        directory: Holds the node's ``etc`` and ``run``.
    """
    script = 'mount --bind "$0/etc" /etc && mount --bind "$0/run" /run && exec "$@"'
    return ["ip", "netns", "exec", namespace(prefix, node), "sh", "-c", script, directory]


def main(argv: Sequence[str]) -> int:
    """Run the module."""
    parser = argparse.ArgumentParser(prog="lab.netns.build")
    parser.add_argument("verb", choices=("up", "down"))
    parser.add_argument("--prefix", required=True)
    parser.add_argument("--nodes", default=",".join(TOPOLOGY.nodes), help="comma-separated; default: all")
    arguments = parser.parse_args(argv)
    if arguments.verb == "up":
        nodes = {Node(name) for name in arguments.nodes.split(",")}
        raise_network(TOPOLOGY, arguments.prefix, nodes)
        Deadline(60).poll(lambda: links_are_up(TOPOLOGY, arguments.prefix, nodes), "the links to come up")
    else:
        remove_network(arguments.prefix)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
