"""What cookies and the rate limiter know an endpoint by. To the rest of the core endpoints are opaque.

An endpoint is an address or anything with an ``address`` attribute, such as a `wgvsock.transports.base.Link`; anything
else stands for itself.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Hashable

from wgvsock.addresses import TcpAddress, UdpAddress, VsockAddress

_IPV6_SITE_BITS = 64
"""One host easily holds a whole /64, so that is what is limited."""


def cookie_source(endpoint: Hashable) -> bytes:
    """The bytes that a cookie is bound to: address and port (whitepaper section 5.4.7, A_m')."""
    return repr(_address(endpoint)).encode()


def rate_limit_source(endpoint: Hashable) -> Hashable:
    """Whom the rate limiter counts: an IPv4 host, an IPv6 /64, a vsock CID, else the address."""
    match _address(endpoint):
        case TcpAddress(host=host) | UdpAddress(host=host):
            ip = ipaddress.ip_address(host)
            return ip if ip.version == 4 else int(ip) >> _IPV6_SITE_BITS
        case VsockAddress(cid=cid):
            return cid
        case address:
            return address


def _address(endpoint: Hashable) -> Hashable:
    address: Hashable = getattr(endpoint, "address", endpoint)
    return address
