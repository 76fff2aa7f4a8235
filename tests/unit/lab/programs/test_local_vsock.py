from __future__ import annotations

import asyncio
import errno
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.programs import local_vsock
from wgvsock.addresses import VMADDR_CID_ANY, Cid, Port, VsockAddress
from wgvsock.transports import sockets
from wgvsock.transports.errors import ConnectError


@pytest.fixture(autouse=True)
def _vsock_is_put_back() -> Iterator[None]:
    before = {name: vars(sockets)[name] for name in ("vsock_socket", "start_connect")}
    yield
    vars(sockets).update(before)


def dial(cid: int, port: int) -> socket.socket:
    async def connect() -> socket.socket:
        deadline = asyncio.get_running_loop().time() + 10
        return await sockets.connect_stream(VsockAddress(Cid(cid), Port(port)), deadline=deadline)

    return asyncio.run(connect())


def test_a_port_of_a_cid_is_a_socket_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "16").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "16/51820"))
        listener.listen()
        local_vsock.replace_vsock(tmp_path)
        with dial(16, 51820) as sock, listener.accept()[0] as accepted:
            sock.send(b"hello")
            assert accepted.recv(5) == b"hello"


def test_where_nobody_listens_it_is_refused_as_vsock_refuses(tmp_path: Path) -> None:
    local_vsock.replace_vsock(tmp_path)
    with pytest.raises(ConnectError) as caught:
        dial(17, 51820)
    assert "reset" in caught.value.why.lower()


def test_a_cid_that_nobody_dials(tmp_path: Path) -> None:
    local_vsock.replace_vsock(tmp_path)
    with socket.socket(socket.AF_UNIX) as sock:
        address = VsockAddress(Cid(VMADDR_CID_ANY), Port(1))
        assert sockets.start_connect(sock, address, to_host=False) == errno.EADDRNOTAVAIL  # type: ignore[attr-defined]


def test_the_service_is_run_with_its_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_service.py").write_text("def main(arguments):\n    return len(arguments)\n")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert local_vsock.main([str(tmp_path), "a_service", "relay", "run"]) == 2
    finally:
        sys.modules.pop("a_service", None)
