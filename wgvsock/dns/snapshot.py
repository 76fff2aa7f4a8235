"""The state that a forwarder reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from wgvsock.addresses import IpAddress


@dataclass(frozen=True, slots=True)
class ForwarderSnapshot:
    """A forwarder at one moment.

    Attributes:
        listen: The addresses that the forwarder listens on.
        servers: The name servers that the relay asks.
        silent: Those of `servers` that recently did not answer in time.
        in_flight: Number of queries that await an answer.
        queries: Number of queries by result: ``answered``, ``failed`` (SERVFAIL: no server answered, or the answer
            could not be pinned), ``refused_name``, ``refused_address``, ``refused_type``, ``malformed``, ``dropped``
            (too many at once).
        upstream: See `Upstreams.counts`.
    """

    listen: tuple[IpAddress, ...]
    servers: tuple[IpAddress, ...]
    silent: tuple[IpAddress, ...]
    in_flight: int
    queries: Mapping[str, int]
    upstream: Mapping[str, int]
