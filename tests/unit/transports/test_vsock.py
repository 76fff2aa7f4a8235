import ctypes
import errno
import os
import socket
import struct

import pytest

from wgvsock.addresses import Cid, Port, VsockAddress
from wgvsock.transports import vsock
from wgvsock.transports.errors import VsockUnavailableError

ENCLAVE = VsockAddress(Cid(16), Port(51820))


class FakeSocket:
    """Replaces an AF_VSOCK socket: unit tests never connect one."""

    def __init__(self, family: int, kind: int) -> None:
        self.family, self.kind = family, kind
        self.options: list[tuple[int, int, int]] = []
        self.connected_to: list[tuple[int, int]] = []
        self.refuses_options = False

    def setsockopt(self, level: int, option: int, value: int) -> None:
        if not isinstance(value, int):  # as Python's own for this family (Modules/socketmodule.c, sock_setsockopt)
            raise TypeError("setsockopt() argument 3 must be int, not bytes")
        if self.refuses_options:
            raise OSError(errno.ENOPROTOOPT, "as the test says")
        self.options.append((level, option, value))

    def connect_ex(self, address: tuple[int, int]) -> int:
        self.connected_to.append(address)
        return errno.EINPROGRESS

    def fileno(self) -> int:
        return 77


def test_the_buffer_s_limit_is_raised_before_the_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wgvsock.transports.vsock.socket.socket", FakeSocket)
    sock = vsock.vsock_socket()
    assert isinstance(sock, FakeSocket)
    size = 1 << 20
    assert sock.options == [
        (socket.AF_VSOCK, socket.SO_VM_SOCKETS_BUFFER_MAX_SIZE, size),
        (socket.AF_VSOCK, socket.SO_VM_SOCKETS_BUFFER_SIZE, size),
    ]
    assert sock.family == socket.AF_VSOCK
    assert sock.kind & socket.SOCK_NONBLOCK


def test_a_transport_without_buffers_is_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeSocket, "setsockopt", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOPROTOOPT, "no")))
    monkeypatch.setattr("wgvsock.transports.vsock.socket.socket", FakeSocket)
    assert vsock.vsock_socket() is not None


def test_no_vsock_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr("wgvsock.transports.vsock.socket.socket", refuse)
    with pytest.raises(VsockUnavailableError, match="cannot open AF_VSOCK: Operation not permitted"):
        vsock.vsock_socket()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_no_descriptor_left_is_not_the_end_of_vsock(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("wgvsock.transports.vsock.socket.socket", refuse)
    with pytest.raises(OSError, match=os.strerror(number)):
        vsock.vsock_socket()


def test_connecting_without_flags() -> None:
    sock = FakeSocket(socket.AF_VSOCK, 0)
    assert vsock.start_connect(sock, ENCLAVE, to_host=False) == errno.EINPROGRESS  # type: ignore[arg-type]
    assert sock.connected_to == [(16, 51820)]


@pytest.mark.parametrize("to_host", [False, True])
@pytest.mark.parametrize("cid", [-5, 0, 2**32 - 1, 2**32 + 16, 2**70])
def test_a_cid_that_nobody_dials_never_reaches_the_socket(cid: int, to_host: bool) -> None:
    sock = FakeSocket(socket.AF_VSOCK, 0)
    address = VsockAddress(cid, Port(51820))  # type: ignore[arg-type] # no `Cid` holds most of them
    assert vsock.start_connect(sock, address, to_host=to_host) == errno.EADDRNOTAVAIL  # type: ignore[arg-type]
    assert sock.connected_to == []


@pytest.mark.parametrize("to_host", [False, True])
def test_no_test_reaches_this_machine_s_vsock(to_host: bool) -> None:
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock, pytest.raises(RuntimeError, match="lab guest"):
        vsock.start_connect(sock, ENCLAVE, to_host=to_host)


@pytest.mark.parametrize("name", [(2**32 + 16, 51820), (-5, 51820), (16, 2**32 + 1), (2**70, 51820)])
def test_no_test_has_python_cut_an_address(name: tuple[int, int]) -> None:
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
        with pytest.raises(RuntimeError, match="would not be told in full"):
            sock.connect_ex(name)
        with pytest.raises(RuntimeError, match="would not be told in full"):
            sock.bind(name)


@pytest.mark.parametrize("code", [0, errno.EINPROGRESS, errno.ENODEV])
def test_connecting_to_the_host(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    calls = []

    class Library:
        def __init__(self, name: str | None, *, use_errno: bool) -> None:
            assert name is None
            assert use_errno

        def connect(self, fd: int, address: bytes, length: int) -> int:
            calls.append((fd, address, length))
            ctypes.set_errno(code)
            return -1 if code else 0

    monkeypatch.setattr(ctypes, "CDLL", Library)
    sock = FakeSocket(socket.AF_VSOCK, 0)
    assert vsock.start_connect(sock, ENCLAVE, to_host=True) == code  # type: ignore[arg-type]
    # struct sockaddr_vm of linux/vm_sockets.h: family, reserved, port, cid, flags, 3 zero bytes
    assert calls == [(77, struct.pack("=HHIIBBBB", 40, 0, 51820, 16, 1, 0, 0, 0), 16)]
    assert sock.connected_to == []


def test_names_of_peers() -> None:
    assert vsock.vsock_address((3, 1234)) == VsockAddress(Cid(3), Port(1234))


def test_a_listener_s_connections_can_be_given_less() -> None:
    sock = FakeSocket(socket.AF_VSOCK, socket.SOCK_STREAM)
    vsock.limit_buffer(sock, 32 * 1024)  # type: ignore[arg-type] # see FakeSocket
    assert sock.options == [(socket.AF_VSOCK, socket.SO_VM_SOCKETS_BUFFER_SIZE, 32 * 1024)]
    sock.refuses_options = True
    vsock.limit_buffer(sock, 32 * 1024)  # type: ignore[arg-type]
    other = FakeSocket(socket.AF_UNIX, socket.SOCK_STREAM)
    vsock.limit_buffer(other, 32 * 1024)  # type: ignore[arg-type]
    assert other.options == []
