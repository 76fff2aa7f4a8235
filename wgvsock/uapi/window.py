"""A read-only control socket: ``wg show`` works on relay and enclave, and reveals no secret.

The keys of a relay and of an enclave belong to the exchange that attested them. The private key and the preshared keys
are therefore not shown, and nothing can be set: ``wg set`` fails with "operation not permitted".
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from wgvsock.uapi.control import peer_state
from wgvsock.uapi.endpoints import Carrier, EndpointText
from wgvsock.uapi.errors import UapiError
from wgvsock.uapi.protocol import NO_KEY, DeviceChange, DeviceState
from wgvsock.uapi.server import UapiServer
from wgvsock.uapi.turns import Turns
from wgvsock.wireguard import Device


class DeviceView:
    """A read-only view of a device. See `wgvsock.uapi.server.Control`.

    Args:
        device: The device to show.
        endpoints: Converts endpoints to text.
        listen_port: Port that its streams arrive on, or 0 if it dials.
        clock: Monotonic seconds.
    """

    def __init__(
        self, device: Device, endpoints: EndpointText, listen_port: int = 0, *, clock: Callable[[], float]
    ) -> None:
        self._device = device
        self._endpoints = endpoints
        self._listen_port = listen_port
        self._clock = clock

    async def state(self) -> DeviceState:
        """Everything except the secrets."""
        turns = Turns(self._clock)
        peers = []
        for peer in list(self._device.peers.values()):
            peers.append(replace(peer_state(peer, self._endpoints), preshared_key=NO_KEY))
            await turns.pause()
        return DeviceState(private_key=None, listen_port=self._listen_port, fwmark=0, peers=tuple(peers))

    async def apply(self, change: DeviceChange) -> NoReturn:
        """Refuse the change.

        Raises:
            UapiError: EPERM, always.
        """
        del change
        raise UapiError(errno.EPERM, "the interface is provisioned, so wg can only show it")


@contextlib.asynccontextmanager
async def shown(
    device: Device, place: tuple[socket.socket, Path] | None, listen_port: int = 0, *, clock: Callable[[], float]
) -> AsyncIterator[None]:
    """Show a device at a control socket while the block runs.

    Args:
        device: The device to show.
        place: A listening socket, which becomes ours, and its path. None shows nothing.
        listen_port: Port that the device's streams arrive on, or 0 if it dials.
        clock: Monotonic seconds.
    """
    if place is None:
        yield
        return
    # How an endpoint is shown depends only on its own kind, not on the carrier.
    view = DeviceView(device, EndpointText(Carrier.VSOCK), listen_port, clock=clock)
    serving = asyncio.ensure_future(UapiServer(view, *place).serve())
    try:
        yield
    finally:
        serving.cancel()
        await asyncio.wait({serving})
