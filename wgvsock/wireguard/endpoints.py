"""How cookies and the rate limiter identify an endpoint. To the rest of the core, endpoints are opaque.

An endpoint is an address, or an object with an ``address`` attribute such as a `wgvsock.transports.base.Link`. Anything
else stands for itself. A link over a connected stream also has the attributes ``stream``, the stream's number, and
``trusted``: whether a peer has proved itself over the stream, or we dialled it. A link that determines which of our
addresses to send from has a method ``without_source``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Hashable
from typing import cast

from wgvsock.addresses import TcpAddress, UdpAddress, VsockAddress

_IPV6_SITE_BITS = 64
"""One host can easily own a whole /64, so the limit applies to that."""


def cookie_source(endpoint: Hashable) -> bytes:
    """The bytes that a cookie is bound to: a text of address and port (whitepaper section 5.4.7, A_m')."""
    return repr(_address(endpoint)).encode()


def rate_limit_source(endpoint: Hashable) -> Hashable:
    """The source that the rate limiter counts: a stream, an IPv4 host, an IPv6 /64, a vsock CID, or else the address.

    For a stream it is not the address, because a relay shares that with every other process on its machine.
    """
    stream = _stream(endpoint)
    if stream is not None:
        return ("stream", stream)
    match _address(endpoint):
        case TcpAddress(host=host) | UdpAddress(host=host):
            ip = ipaddress.ip_address(host)
            return ip if ip.version == 4 else int(ip) >> _IPV6_SITE_BITS
        case VsockAddress(cid=cid):
            return cid
        case address:
            return address


def is_connected(endpoint: Hashable) -> bool:
    """Whether it is a connected stream, whose sender receives what is sent there without having to prove it."""
    return _stream(endpoint) is not None


def is_stranger(endpoint: Hashable) -> bool:
    """Whether it is a stream whose peer has not proved itself."""
    return is_connected(endpoint) and not getattr(endpoint, "trusted", False)


def _stream(endpoint: Hashable) -> int | None:
    stream: int | None = getattr(endpoint, "stream", None)
    return stream


def without_source(endpoint: Hashable | None) -> Hashable | None:
    """The same remote without a fixed source address: the present source address may be the one that fails."""
    forget = getattr(endpoint, "without_source", None)
    return endpoint if forget is None else cast("Hashable", forget())


def _address(endpoint: Hashable) -> Hashable:
    address: Hashable = getattr(endpoint, "address", endpoint)
    return address
