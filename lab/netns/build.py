"""The plan of `lab.topology`, made of network namespaces: ``python -m lab.netns.build up|down --prefix NAME``.

It runs on this machine for the `netns` backend, and inside a guest for the backends whose guest holds several nodes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence

from lab.deadline import Deadline
from lab.netns import namespaces
from lab.topology import TOPOLOGY, Node, Topology


def namespace(prefix: str, node: Node) -> str:
    """Name of a node's namespace: ``wgv-7f3a-pod``."""
    return f"{prefix}-{node}"


def raise_network(topology: Topology, prefix: str, nodes: Collection[Node] = frozenset(Node)) -> None:
    """Make the namespaces of some nodes, the cables between them, addresses, routes and forwarding.

    The enclave's namespace stays as a booting enclave is: a loopback that is down, and nothing else.

    Raises:
        LabError: The kernel refused a step; `remove_network` clears what was made.
    """
    for node in Node:
        if node in nodes:
            namespaces.create(namespace(prefix, node))
            if node is not Node.ENCLAVE:
                namespaces.raise_loopback(namespace(prefix, node))
    for router in topology.routers:
        if router in nodes:
            namespaces.set_sysctl(namespace(prefix, router), "net.ipv4.ip_forward", "1")
            namespaces.set_sysctl(namespace(prefix, router), "net.ipv6.conf.all.forwarding", "1")
    for link in topology.links:
        if {link.left.node, link.right.node} <= set(nodes):
            namespaces.connect(link, lambda nic: namespace(prefix, nic.node))
    for route in topology.routes:
        if route.node in nodes:
            namespaces.add_route(route, namespace(prefix, route.node))


def links_are_up(topology: Topology, prefix: str, nodes: Collection[Node] = frozenset(Node)) -> bool:
    """Whether every cable carries: until then IPv6 neighbours are not resolved."""
    nics = [nic for link in topology.links for nic in (link.left, link.right) if nic.node in nodes]
    return all(namespaces.is_up(nic.name, namespace(prefix, nic.node)) for nic in nics)


def remove_network(prefix: str) -> None:
    """Take the namespaces away, and with them all that is in them; idempotent."""
    for node in Node:
        namespaces.remove(namespace(prefix, node))


def enter(prefix: str, node: Node, directory: str) -> list[str]:
    """What to put in front of a command so that it runs in a node, with an /etc and a /run that are the node's own.

    Args:
        prefix: Of the laboratory's namespaces.
        node: Where to run.
        directory: Holds the node's ``etc`` and ``run``.
    """
    script = 'mount --bind "$0/etc" /etc && mount --bind "$0/run" /run && exec "$@"'
    return ["ip", "netns", "exec", namespace(prefix, node), "sh", "-c", script, directory]


def main(argv: Sequence[str]) -> int:
    """Command line of the module."""
    parser = argparse.ArgumentParser(prog="lab.netns.build")
    parser.add_argument("verb", choices=("up", "down"))
    parser.add_argument("--prefix", required=True)
    parser.add_argument("--nodes", default=",".join(Node), help="comma-separated; default: all")
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
