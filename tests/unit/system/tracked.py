"""An enclave with two published ports, and a client: the starting point for tests of flows."""

from __future__ import annotations

from ipaddress import ip_address

from wgvsock.system.filter.rules import PublishedPort
from wgvsock.system.flows import Flow, WantedFlows

ENCLAVE = ip_address("10.73.0.2")
POD = ip_address("10.20.0.10")
OTHER_POD = ip_address("10.20.0.11")
CLIENT = ip_address("198.51.100.10")
DNS = PublishedPort("udp", 53, ENCLAVE, 5353)
WEB = PublishedPort("tcp", 80, ENCLAVE, 8080)
WANTED = WantedFlows(
    published=frozenset({DNS, WEB}),
    arrivals=frozenset({POD}),
    local=frozenset({POD, OTHER_POD}),
    enclave=frozenset({ENCLAVE}),
)
UDP_CLIENT = Flow(17, CLIENT, 4000, POD, 53, POD, 53, CLIENT, 0)
