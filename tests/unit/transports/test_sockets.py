import asyncio
import errno
import socket
from pathlib import Path
from typing import cast

import pytest

from wgvsock.addresses import Cid, HybridVsockAddress, Port, StreamAddress, TcpAddress, UnixAddress, VsockAddress
from wgvsock.testing import without_waiting
from wgvsock.transports import sockets
from wgvsock.transports.errors import ConnectError, ListenError
from wgvsock.transports.sockets import (
    PRESSURE_PAUSE,
    accept_now,
    connect_stream,
    listen_stream,
    peer_address,
    send_all,
)
from wgvsock.transports.unix import unix_socket

VSOCK = VsockAddress(Cid(16), Port(51820))


def soon(seconds: float = 5) -> float:
    return asyncio.get_running_loop().time() + seconds


def bound(listener: socket.socket, address: StreamAddress) -> StreamAddress:
    """The address that a listener on port 0 really has."""
    return TcpAddress(address.host, Port(listener.getsockname()[1])) if isinstance(address, TcpAddress) else address


async def accept(listener: socket.socket) -> tuple[socket.socket, StreamAddress]:
    """The next connection."""
    come = asyncio.Event()
    asyncio.get_running_loop().add_reader(listener, come.set)
    await come.wait()
    asyncio.get_running_loop().remove_reader(listener)
    accepted = sockets.accept_now(listener)
    assert accepted is not None
    return accepted


async def exchange(address: StreamAddress) -> tuple[StreamAddress, StreamAddress]:
    """Connect, accept, carry a byte each way. Returns what each end calls the other."""
    loop = asyncio.get_running_loop()
    with listen_stream(address) as listener:
        there = bound(listener, address)
        connected, (accepted, name) = await asyncio.gather(connect_stream(there, deadline=soon()), accept(listener))
        with connected, accepted:
            for sock in (connected, accepted):
                assert not sock.getblocking()
            await loop.sock_sendall(connected, b"1")
            assert await loop.sock_recv(accepted, 9) == b"1"
            await loop.sock_sendall(accepted, b"2")
            assert await loop.sock_recv(connected, 9) == b"2"
            return peer_address(connected), name


@without_waiting
async def test_tcp_both_ways() -> None:
    remote, local = await exchange(TcpAddress("127.0.0.1", Port(0)))
    assert isinstance(remote, TcpAddress)
    assert isinstance(local, TcpAddress)
    assert remote.host == local.host == "127.0.0.1"


def test_unix_both_ways(tmp_path: Path) -> None:
    @without_waiting
    async def scenario() -> None:
        address = UnixAddress(str(tmp_path / "s"))
        assert await exchange(address) == (address, address)

    scenario()


def test_both_ends_of_a_unix_stream_take_a_whole_batch(tmp_path: Path) -> None:
    @without_waiting
    async def scenario() -> None:
        address = UnixAddress(str(tmp_path / "s"))
        with listen_stream(address) as listener, await connect_stream(address, deadline=soon()) as connected:
            accepted, _ = await accept(listener)
            with accepted:
                sizes = {s.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) for s in (connected, accepted)}
        assert len(sizes) == 1

    scenario()


def test_a_hybrid_listener_is_where_the_monitor_delivers(tmp_path: Path) -> None:
    @without_waiting
    async def scenario() -> None:
        with listen_stream(HybridVsockAddress(str(tmp_path / "v"), Port(51820))):
            (await connect_stream(UnixAddress(str(tmp_path / "v_51820")), deadline=soon())).close()

    scenario()


def test_a_hybrid_dial_asks_the_monitor(tmp_path: Path) -> None:
    @without_waiting
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        path = str(tmp_path / "v")
        with listen_stream(UnixAddress(path)) as listener:

            async def monitor() -> bytes:
                sock, _ = await accept(listener)
                with sock:
                    asked = await loop.sock_recv(sock, 100)
                    await loop.sock_sendall(sock, b"OK 7\nstream")
                return asked

            dialled, asked = await asyncio.gather(
                connect_stream(HybridVsockAddress(path, Port(51820)), deadline=soon()), monitor()
            )
            with dialled:
                assert asked == b"CONNECT 51820\n"
                assert await loop.sock_recv(dialled, 100) == b"stream"

    scenario()


def test_a_silent_monitor_is_given_up_at_the_deadline(tmp_path: Path) -> None:
    @without_waiting
    async def scenario() -> None:
        path = str(tmp_path / "v")
        with listen_stream(UnixAddress(path)):
            started = asyncio.get_running_loop().time()
            with pytest.raises(ConnectError, match="no answer in time"):
                await connect_stream(HybridVsockAddress(path, Port(1)), deadline=soon(3))
            assert asyncio.get_running_loop().time() - started == pytest.approx(3, abs=0.1)

    scenario()


def test_nobody_there(tmp_path: Path) -> None:
    @without_waiting
    async def scenario() -> None:
        with pytest.raises(ConnectError, match="No such file"):
            await connect_stream(UnixAddress(str(tmp_path / "s")), deadline=soon())

    scenario()


@without_waiting
async def test_a_refusal_that_comes_later() -> None:
    with listen_stream(TcpAddress("127.0.0.1", Port(0))) as listener:
        there = bound(listener, TcpAddress("127.0.0.1", Port(0)))
    with pytest.raises(ConnectError, match="Connection refused"):
        await connect_stream(there, deadline=soon())


def test_cancelling_closes_the_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[socket.socket] = []

    def noting() -> socket.socket:
        made.append(unix_socket())
        return made[-1]

    monkeypatch.setattr(sockets, "unix_socket", noting)

    @without_waiting
    async def scenario() -> None:
        path = str(tmp_path / "v")
        with listen_stream(UnixAddress(path)):
            made.clear()
            task = asyncio.ensure_future(connect_stream(HybridVsockAddress(path, Port(1)), deadline=soon()))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert [sock.fileno() for sock in made] == [-1]

    scenario()


@pytest.mark.parametrize("address", [UnixAddress("/s"), HybridVsockAddress("/s", Port(1)), TcpAddress("::1", Port(1))])
def test_no_socket_is_a_transport_error(address: StreamAddress, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of descriptors, or a family that this kernel lacks: the dialling end backs off and retries."""

    def refuse(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    @without_waiting
    async def scenario() -> None:
        with pytest.raises(ConnectError, match="Too many open files"):
            await connect_stream(address, deadline=soon())
        with pytest.raises(ListenError, match="Too many open files"):
            listen_stream(address)

    monkeypatch.setattr(sockets, "unix_socket", refuse)
    monkeypatch.setattr(sockets, "tcp_socket", refuse)
    scenario()


def test_an_address_in_use(tmp_path: Path) -> None:
    address = UnixAddress(str(tmp_path / "s"))
    with listen_stream(address), pytest.raises(ListenError, match=r"cannot listen on unix:.*: Address already in use"):
        listen_stream(address)


class FakeVsock:
    """A vsock socket that records. Unit tests make no real one."""

    family = socket.AF_VSOCK

    def __init__(self, peer: tuple[int, int] = (3, 1000), *, fails: int = 0) -> None:
        self.peer = peer
        self.fails = fails
        self.calls: list[object] = []

    def bind(self, address: tuple[int, int]) -> None:
        self.calls.append(("bind", address))

    def listen(self, backlog: int) -> None:
        self.calls.append(("listen", backlog))

    def connect_ex(self, address: tuple[int, int]) -> int:
        self.calls.append(("connect", address))
        return self.fails

    def setblocking(self, _flag: bool) -> None:
        pass

    def getpeername(self) -> tuple[int, int]:
        if self.fails:
            raise OSError(self.fails, "gone")
        return self.peer

    def close(self) -> None:
        self.calls.append("close")


class FakeListener:
    """Accepts everything. An errno is an error."""

    def __init__(self, *waiting: FakeVsock | int) -> None:
        self.waiting = list(waiting)

    def accept(self) -> tuple[FakeVsock, tuple[int, int]]:
        first = self.waiting.pop(0)
        if isinstance(first, int):
            raise OSError(first, "as the test says")
        return first, first.peer


def test_listening_on_vsock(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeVsock()
    monkeypatch.setattr(sockets, "vsock_socket", lambda: fake)
    listen_stream(VSOCK, backlog=3)
    assert fake.calls == [("bind", (16, 51820)), ("listen", 3)]


def test_connecting_to_vsock(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeVsock()
    monkeypatch.setattr(sockets, "vsock_socket", lambda: fake)

    @without_waiting
    async def scenario() -> None:
        assert await connect_stream(VSOCK, deadline=soon()) is fake  # type: ignore[comparison-overlap]

    scenario()
    assert fake.calls == [("connect", (16, 51820))]


def test_failing_to_connect_to_vsock(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeVsock(fails=errno.ECONNRESET)
    monkeypatch.setattr(sockets, "vsock_socket", lambda: fake)

    @without_waiting
    async def scenario() -> None:
        with pytest.raises(ConnectError, match="cannot connect to vsock:16:51820: Connection reset"):
            await connect_stream(VSOCK, deadline=soon())

    scenario()
    assert fake.calls[-1] == "close"


@pytest.mark.parametrize("allowed", [None, frozenset({Cid(3)})])
def test_an_allowed_cid_is_accepted(allowed: frozenset[Cid] | None) -> None:
    fake = FakeVsock((3, 1000))
    accepted = accept_now(FakeListener(fake), allowed_cids=allowed)  # type: ignore[arg-type]
    assert accepted is not None
    assert accepted[0] is fake  # type: ignore[comparison-overlap]
    assert accepted[1] == VsockAddress(Cid(3), Port(1000))


def test_a_foreign_cid_is_closed_and_named(caplog: pytest.LogCaptureFixture) -> None:
    fake = FakeVsock((77, 1000))
    assert accept_now(FakeListener(fake), allowed_cids=frozenset({Cid(3)})) is None  # type: ignore[arg-type]
    assert fake.calls == ["close"]
    assert caplog.messages == ["refused a connection from CID 77"]


def test_a_connection_that_is_gone_again_is_nothing() -> None:
    assert accept_now(FakeListener(errno.ECONNABORTED)) is None  # type: ignore[arg-type]
    fake = FakeVsock(fails=errno.ENOTCONN)
    assert accept_now(FakeListener(fake)) is None  # type: ignore[arg-type]
    assert fake.calls == ["close"]


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS])
def test_running_out_of_resources_is_the_caller_s_business(code: int) -> None:
    with pytest.raises(OSError, match="as the test says"):
        accept_now(FakeListener(code))  # type: ignore[arg-type]


def test_a_peer_without_name() -> None:
    left, right = socket.socketpair()
    with left, right:
        assert peer_address(left) == UnixAddress("-")


class SlowSocket:
    """Accepts three bytes at a time, with an error before each."""

    def __init__(self, sock: socket.socket, *codes: int) -> None:
        self.sock = sock
        self.codes = list(codes)
        self.taken = b""

    def fileno(self) -> int:
        return self.sock.fileno()

    def send(self, data: memoryview) -> int:
        if self.codes and (code := self.codes.pop(0)):
            raise OSError(code, "as the test says")
        self.taken += data[:3]
        return len(data[:3])


def test_sending_all_waits_out_what_passes() -> None:
    @without_waiting
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            slow = SlowSocket(ours, errno.ENOBUFS, 0, errno.EAGAIN, errno.ENOMEM)
            began = asyncio.get_running_loop().time()
            await send_all(cast("socket.socket", slow), b"a whole message")
            assert slow.taken == b"a whole message"
            assert asyncio.get_running_loop().time() - began == pytest.approx(2 * PRESSURE_PAUSE)
            with pytest.raises(ConnectionResetError):
                await send_all(cast("socket.socket", SlowSocket(ours, 0, errno.ECONNRESET)), b"a whole message")

    scenario()
