"""The Linux machine that an Enclave runs on."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import TypeVar

from wgvsock.addresses import IpAddress, Port, StreamAddress, TcpAddress
from wgvsock.devices.nsm import call_in_thread
from wgvsock.machine.base import Listening
from wgvsock.machine.linux import LinuxMachine
from wgvsock.runtime.journal import Performer
from wgvsock.system import clock, processor, resolver
from wgvsock.system.processor import ProcessorTimes
from wgvsock.transports.listener import Listener
from wgvsock.transports.sockets import listen_stream

T = TypeVar("T")


class LinuxEnclaveMachine(LinuxMachine):
    """See `wgvsock.machine.base.EnclaveMachine`."""

    def set_wall_clock(self, unix_time: int) -> None:
        """See `EnclaveMachine.set_wall_clock`."""
        clock.set_wall_clock(unix_time)

    def hardware_clock(self) -> int:
        """See `EnclaveMachine.hardware_clock`."""
        return clock.read_hardware_clock()

    def processor_times(self) -> ProcessorTimes | None:
        """See `EnclaveMachine.processor_times`."""
        return processor.read_times()

    def listen_in_tunnel(
        self, interface: str, address: IpAddress, port: int, on_accepted: Callable[[socket.socket, StreamAddress], None]
    ) -> Listening:
        """See `EnclaveMachine.listen_in_tunnel`."""
        own = TcpAddress(str(address), Port(port))
        return Listener(listen_stream(own, interface=interface), None, on_accepted)

    async def ask_module(self, call: Callable[[], T], *, timeout: float) -> T:  # noqa: ASYNC109 - see `call_in_thread`
        """See `EnclaveMachine.ask_module`."""
        return await call_in_thread(call, timeout=timeout)

    def performers(self) -> Mapping[str, Performer]:
        """See `Machine.performers`."""
        return {**super().performers(), **resolver.performers()}
