from __future__ import annotations

import stat
from collections.abc import Iterable
from pathlib import Path

import pytest

from wgvsock.addresses import StreamAddress, TcpAddress, UnixAddress
from wgvsock.errors import TransportError
from wgvsock.transports.stream import StreamTransport
from wgvsock.uapi import sockets as sockets_module
from wgvsock.uapi.endpoints import Carrier, EndpointText
from wgvsock.uapi.sockets import StreamSockets


class FakeTransport(StreamTransport):
    def __init__(self) -> None:
        super().__init__()
        self.listening: list[StreamAddress] = []
        self.fail = False

    async def set_listen(self, listen: Iterable[StreamAddress]) -> None:
        if self.fail:
            raise TransportError("in use")
        self.listening = list(listen)


@pytest.mark.asyncio
async def test_a_port_is_listened_on_and_let_go() -> None:
    transport = FakeTransport()
    sockets = StreamSockets(transport, EndpointText(Carrier.TCP))
    assert sockets.listen_port == 0
    await sockets.set_listen_port(51820)
    assert sockets.listen_port == 51820
    assert {address.port for address in transport.listening if isinstance(address, TcpAddress)} == {51820}
    await sockets.set_listen_port(0)
    assert (sockets.listen_port, transport.listening) == (0, [])


@pytest.mark.asyncio
async def test_a_refused_port_leaves_the_old_one() -> None:
    transport = FakeTransport()
    sockets = StreamSockets(transport, EndpointText(Carrier.TCP))
    await sockets.set_listen_port(1)
    transport.fail = True
    with pytest.raises(TransportError):
        await sockets.set_listen_port(2)
    assert sockets.listen_port == 1


@pytest.mark.asyncio
@pytest.mark.parametrize(("present", "families"), [(True, [".", ":"]), (False, ["."])])
async def test_a_kernel_without_ipv6_listens_on_ipv4_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, present: bool, families: list[str]
) -> None:
    monkeypatch.setattr(sockets_module, "_IPV6", tmp_path if present else tmp_path / "absent")
    transport = FakeTransport()
    await StreamSockets(transport, EndpointText(Carrier.TCP)).set_listen_port(1)
    hosts = [address.host for address in transport.listening if isinstance(address, TcpAddress)]
    assert [":" if ":" in host else "." for host in hosts] == families


@pytest.mark.asyncio
async def test_the_folder_of_unix_sockets_is_made_for_root_alone(tmp_path: Path) -> None:
    transport = FakeTransport()
    directory = tmp_path / "wgvsock"
    await StreamSockets(transport, EndpointText(Carrier.UNIX, str(directory))).set_listen_port(7)
    assert transport.listening == [UnixAddress(f"{directory}/7.sock")]
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_the_mark_is_remembered() -> None:
    sockets = StreamSockets(FakeTransport(), EndpointText(Carrier.VSOCK))
    assert sockets.fwmark == 0
    sockets.set_fwmark(7)
    assert sockets.fwmark == 7
