"""``listen_port`` and ``fwmark`` of a device with a stream carrier."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from wgvsock.addresses import StreamAddress, TcpAddress, UnixAddress
from wgvsock.transports.stream import StreamTransport
from wgvsock.uapi.endpoints import EndpointText

_IPV6: Final = Path("/proc/net/if_inet6")


class StreamSockets:
    """Turns ``listen_port`` into listening addresses. See `wgvsock.uapi.control.Sockets`.

    Args:
        transport: The transport that listens.
        endpoints: Converts a port to this carrier's addresses.
    """

    def __init__(self, transport: StreamTransport, endpoints: EndpointText) -> None:
        self._transport = transport
        self._endpoints = endpoints
        self._listen_port = 0
        self._fwmark = 0

    @property
    def listen_port(self) -> int:
        """See `Sockets.listen_port`."""
        return self._listen_port

    @property
    def fwmark(self) -> int:
        """See `Sockets.fwmark`."""
        return self._fwmark

    async def set_listen_port(self, port: int) -> None:
        """See `Sockets.set_listen_port`. 0 listens nowhere, so that only this side dials. Open streams live on."""
        await self._transport.set_listen(self._bindable_addresses(port))
        self._listen_port = port

    def set_fwmark(self, mark: int) -> None:
        """See `Sockets.set_fwmark`. It is only stored for ``wg`` to show: streams are not marked."""
        self._fwmark = mark

    def _bindable_addresses(self, port: int) -> list[StreamAddress]:
        addresses = []
        for address in self._endpoints.listen_addresses(port):
            if isinstance(address, UnixAddress):
                Path(address.path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if isinstance(address, TcpAddress) and ":" in address.host and not _IPV6.exists():
                continue  # a kernel without IPv6
            addresses.append(address)
        return addresses
