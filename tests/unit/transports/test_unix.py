import asyncio
import socket
import stat
from pathlib import Path

import pytest

from wgvsock.addresses import HybridVsockAddress, Port
from wgvsock.testing import without_waiting
from wgvsock.transports.errors import ConnectError
from wgvsock.transports.unix import (
    BUFFER_SIZE,
    bind_unix,
    hybrid_handshake,
    hybrid_listening_path,
    raise_buffer,
    unix_socket,
)


def test_a_whole_batch_fits_into_the_buffer() -> None:
    with unix_socket() as sock:
        assert not sock.getblocking()
        # The kernel doubles what is asked for; an unprivileged process gets what the system allows.
        limit = int(Path("/proc/sys/net/core/wmem_max").read_text())
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) >= min(BUFFER_SIZE, limit) * 2


def test_without_privilege_the_system_s_limit_has_to_do() -> None:
    asked: list[int] = []

    class Unprivileged:
        def setsockopt(self, _level: int, option: int, value: int) -> None:
            if option == 32:
                raise PermissionError(1, "Operation not permitted")
            assert option == socket.SO_SNDBUF
            asked.append(value)

    raise_buffer(Unprivileged())  # type: ignore[arg-type]
    assert asked == [BUFFER_SIZE]


def test_the_socket_file_is_the_owner_s_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with unix_socket() as sock:
        bind_unix(sock, str(path))
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_nobody_listens_on_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with unix_socket() as dead:
        bind_unix(dead, str(path))
    with unix_socket() as sock:
        bind_unix(sock, str(path))
        sock.listen()


def test_a_socket_in_use_is_not_taken_away(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with unix_socket() as owner, unix_socket() as sock:
        bind_unix(owner, path)
        owner.listen()
        with pytest.raises(OSError, match="in use"):
            bind_unix(sock, path)


def test_another_kind_of_socket_is_not_taken_away(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as owner, unix_socket() as sock:
        owner.bind(path)
        with pytest.raises(OSError, match="in use"):
            bind_unix(sock, path)


def test_a_file_of_another_kind_is_not_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with unix_socket() as sock, pytest.raises(OSError, match="in use"):
        bind_unix(sock, str(path))
    assert path.read_text() == "precious"


def test_where_a_monitor_delivers_what_its_guest_dials() -> None:
    assert hybrid_listening_path(HybridVsockAddress("/run/v.sock", Port(51820))) == "/run/v.sock_51820"


async def shake(answer: bytes, *, then: bytes = b"") -> tuple[bytes, bytes]:
    """The requests to the monitor, and what follows its answer on the stream."""
    ours, monitor = socket.socketpair()
    with ours, monitor:
        ours.setblocking(False)
        monitor.send(answer + then)
        if not then:
            monitor.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(1):
            await hybrid_handshake(ours, Port(51820))
        return monitor.recv(100), await asyncio.get_running_loop().sock_recv(ours, 100)


@without_waiting
async def test_the_handshake_leaves_the_stream_behind_it_alone() -> None:
    asked, follows = await shake(b"OK 1073741824\n", then=b"\0\0\0\x94stream")
    assert asked == b"CONNECT 51820\n"
    assert follows == b"\0\0\0\x94stream"


@without_waiting
async def test_a_monitor_refuses_by_closing() -> None:
    with pytest.raises(ConnectError, match="nothing listens there"):
        await shake(b"")


@pytest.mark.parametrize("answer", [b"NO\n", b"\n", b"OK" + b"1" * 40, b"OK " + b"1" * 40, b"O\n"])
def test_anything_else_is_no_monitor(answer: bytes) -> None:
    @without_waiting
    async def scenario() -> None:
        with pytest.raises(ConnectError, match="did not answer CONNECT"):
            await shake(answer, then=b"more")

    scenario()


@without_waiting
async def test_silence_is_bounded_by_the_caller_s_deadline() -> None:
    ours, monitor = socket.socketpair()
    with ours, monitor:
        ours.setblocking(False)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await hybrid_handshake(ours, Port(51820))
