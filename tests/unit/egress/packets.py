"""Packets of an enclave for the tests, made by Scapy with valid lengths, checksums and extension headers."""

from __future__ import annotations

from typing import Any

from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6

ENCLAVE = {4: "198.18.73.3", 6: "fddc:7f99:d74c::3"}
PEER = {4: "203.0.113.7", 6: "2001:db8::7"}


def out(transport: Any, *, version: int = 4, to: str | None = None, **fields: Any) -> memoryview:
    """From the enclave to another host."""
    layer = IP if version == 4 else IPv6
    return memoryview(bytes(layer(src=ENCLAVE[version], dst=to or PEER[version], **fields) / transport))


def back(transport: Any, *, version: int = 4, of: str | None = None, **fields: Any) -> memoryview:
    """From another host to the enclave."""
    layer = IP if version == 4 else IPv6
    return memoryview(bytes(layer(src=of or PEER[version], dst=ENCLAVE[version], **fields) / transport))


def other(number: int, version: int) -> dict[str, Any]:
    """The field of the IP header that names the next protocol."""
    return {"proto" if version == 4 else "nh": number}
