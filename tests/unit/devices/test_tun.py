"""A table of ioctls and a socket pair play the kernel. tests/e2e opens real interfaces."""

import errno
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum

import pytest

from wgvsock.devices.errors import TunForbiddenError, TunGoneError, TunMissingError
from wgvsock.devices.tun import Tun, adopt_tun, open_tun
from wgvsock.errors import ConfigurationError, SystemSetupError


class Request(IntEnum):
    """linux/if_tun.h: _IOW('T', number, int), _IOR for TUNGETIFF. Also linux/sockios.h."""

    TUNSETIFF = 0x40045400 | 202
    TUNSETOFFLOAD = 0x40045400 | 208
    TUNGETIFF = 0x80045400 | 210
    TUNSETVNETHDRSZ = 0x40045400 | 216
    TUNSETVNETLE = 0x40045400 | 220
    SIOCSIFMTU = 0x8922


IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 1, 0x1000, 0x4000
CSUM, TSO4, TSO6, TSO_ECN, USO4, USO6 = 1, 2, 4, 8, 0x20, 0x40


@dataclass
class Kernel:
    """A TUN driver."""

    path_exists: bool = True
    open_error: int = 0
    mknod_error: int = 0
    knows_uso: bool = True
    refuses: dict[int, int] = field(default_factory=dict)
    interface: tuple[str, int] = ("", 0)
    offload: list[int] = field(default_factory=list)
    header_size: int | None = None
    little_endian: int | None = None
    mtu: tuple[str, int] | None = None
    nodes: list[tuple[str, int, int]] = field(default_factory=list)
    opened: list[int] = field(default_factory=list)
    ends: list[socket.socket] = field(default_factory=list)

    def open(self, path: str, flags: int) -> int:
        assert path == "/dev/net/tun"
        assert flags & os.O_NONBLOCK
        assert flags & os.O_CLOEXEC
        assert flags & os.O_RDWR
        if not self.path_exists:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if self.open_error:
            raise OSError(self.open_error, os.strerror(self.open_error))
        return self.descriptor()

    def descriptor(self) -> int:
        ours, kernels = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        kernels.setblocking(False)
        self.ends.append(kernels)
        self.opened.append(ours.detach())
        return self.opened[-1]

    def mknod(self, path: str, mode: int, device: int) -> None:
        if self.mknod_error:
            raise OSError(self.mknod_error, os.strerror(self.mknod_error))
        self.nodes.append((path, mode, device))
        self.path_exists = True

    def ioctl(self, _fd: object, request: int, argument: bytes | int = 0) -> bytes | int:
        if code := self.refuses.get(request):
            raise OSError(code, os.strerror(code))
        match request, argument:
            case Request.TUNSETIFF, bytes():
                name, flags = struct.unpack("16sH22x", argument)
                self.interface = (name.rstrip(b"\0").decode().replace("%d", "0"), flags)
            case Request.TUNGETIFF, bytes():
                assert len(argument) == 40
                return struct.pack("16sH22x", self.interface[0].encode(), self.interface[1])
            case Request.TUNSETOFFLOAD, int():
                if argument & (USO4 | USO6) and not self.knows_uso:
                    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
                self.offload.append(argument)
            case Request.TUNSETVNETHDRSZ, bytes():
                (self.header_size,) = struct.unpack("i", argument)
            case Request.TUNSETVNETLE, bytes():
                (self.little_endian,) = struct.unpack("i", argument)
            case Request.SIOCSIFMTU, bytes():
                name, mtu = struct.unpack("16si20x", argument)
                self.mtu = (name.rstrip(b"\0").decode(), mtu)
            case _:
                raise AssertionError(hex(request))
        return 0


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    played = Kernel()
    monkeypatch.setattr(os, "open", played.open)
    monkeypatch.setattr(os, "mknod", played.mknod)
    monkeypatch.setattr(fcntl, "ioctl", played.ioctl)
    monkeypatch.setattr("wgvsock.devices.tun.Path.mkdir", lambda *_, **__: None)
    yield played
    for end in played.ends:
        end.close()


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_a_plain_interface(kernel: Kernel) -> None:
    made = open_tun("wg0")
    assert kernel.interface == ("wg0", IFF_TUN | IFF_NO_PI)
    assert (made.name, made.packet_headroom) == ("wg0", 0)
    assert kernel.offload[-1] == 0
    assert kernel.header_size is None
    made.close()
    assert not is_open(kernel.opened[0])
    made.close()


def test_an_interface_with_virtio_headers_of_ten_little_endian_bytes(kernel: Kernel) -> None:
    made = open_tun("wg%d", packet_headroom=10)
    assert kernel.interface == ("wg0", IFF_TUN | IFF_NO_PI | IFF_VNET_HDR)
    assert made.packet_headroom == 10
    assert (kernel.header_size, kernel.little_endian) == (10, 1)
    assert kernel.offload[-1] == 0
    made.close()


def test_offloads_on_and_off(kernel: Kernel) -> None:
    made = open_tun("wg0", packet_headroom=10)
    assert made.udp_segmentation
    made.set_offloads(True)
    made.set_offloads(False)
    assert kernel.offload[-3:] == [0, CSUM | TSO4 | TSO6 | TSO_ECN | USO4 | USO6, 0]
    made.close()


def test_an_older_kernel_gets_no_udp_segmentation(kernel: Kernel) -> None:
    kernel.knows_uso = False
    made = open_tun("wg0", packet_headroom=10)
    assert not made.udp_segmentation
    made.set_offloads(True)
    assert kernel.offload == [0, CSUM | TSO4 | TSO6 | TSO_ECN]
    made.close()


def test_a_kernel_that_refuses_all_offloads(kernel: Kernel) -> None:
    made = open_tun("wg0", packet_headroom=10)
    kernel.refuses[Request.TUNSETOFFLOAD] = errno.EINVAL
    with pytest.raises(TunForbiddenError, match=r"offloads.*Invalid argument"):
        made.set_offloads(True)
    made.close()


def test_packets_in_and_out(kernel: Kernel) -> None:
    made = open_tun("wg0")
    room = memoryview(bytearray(100))
    assert made.read_into(room) == 0
    kernel.ends[0].send(b"to the tunnel")
    assert made.read_into(room) == 13
    assert bytes(room[:13]) == b"to the tunnel"
    assert made.write(memoryview(b"to the kernel"))
    assert kernel.ends[0].recv(100) == b"to the kernel"
    made.close()


def test_a_packet_that_the_kernel_refuses_is_no_error(kernel: Kernel) -> None:
    made = open_tun("wg0")
    kernel.ends[0].close()
    assert not made.write(memoryview(b"packet"))
    assert made.write_error in {errno.EPIPE, errno.ECONNREFUSED, errno.ECONNRESET}
    made.close()


def test_a_full_queue_is_no_error(kernel: Kernel) -> None:
    made = open_tun("wg0")
    written = 0
    while made.write(memoryview(bytes(1000))):
        written += 1
        assert written < 100_000
    made.close()


def test_an_interface_that_somebody_removed(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    made = open_tun("wg0")

    def fail(*_: object) -> int:
        raise OSError(errno.EBADFD, os.strerror(errno.EBADFD))

    monkeypatch.setattr(made, "_readinto", fail)
    with pytest.raises(TunGoneError, match="bad state"):
        made.read_into(memoryview(bytearray(10)))
    kernel.refuses[Request.TUNGETIFF] = errno.EBADFD
    with pytest.raises(TunGoneError):
        _ = made.name
    made.close()


def test_setting_the_mtu(kernel: Kernel) -> None:
    made = open_tun("wg0")
    made.set_mtu(9001)
    assert kernel.mtu == ("wg0", 9001)
    kernel.refuses[Request.SIOCSIFMTU] = errno.EINVAL
    with pytest.raises(TunForbiddenError, match="cannot set the MTU of wg0 to 7: Invalid argument"):
        made.set_mtu(7)
    made.close()


@pytest.mark.parametrize("name", ["", "sixteen-letters-", "wörld-wide-web-1", "a/b", "a b", "a\n"])
def test_a_name_that_no_interface_can_have(kernel: Kernel, name: str) -> None:
    with pytest.raises(ConfigurationError, match="no interface can be named"):
        open_tun(name)
    assert kernel.opened == []


@pytest.mark.parametrize(
    ("code", "fix"),
    [(errno.EPERM, "CAP_NET_ADMIN"), (errno.EBUSY, "another name"), (errno.EINVAL, "other kind of interface")],
)
def test_an_interface_that_the_kernel_refuses(kernel: Kernel, code: int, fix: str) -> None:
    kernel.refuses[Request.TUNSETIFF] = code
    with pytest.raises(TunForbiddenError, match="cannot create the interface wg0") as raised:
        open_tun("wg0")
    assert fix in raised.value.fix
    assert not is_open(kernel.opened[0])


def test_a_missing_node_is_made(kernel: Kernel) -> None:
    kernel.path_exists = False
    open_tun("wg0").close()
    assert kernel.nodes == [("/dev/net/tun", stat.S_IFCHR | 0o600, os.makedev(10, 200))]


def test_a_missing_node_that_cannot_be_made(kernel: Kernel) -> None:
    kernel.path_exists = False
    kernel.mknod_error = errno.EPERM
    with pytest.raises(TunMissingError, match="does not exist and cannot be created: Operation not permitted"):
        open_tun("wg0")


def test_a_node_that_was_made_but_may_not_be_opened(kernel: Kernel) -> None:
    kernel.path_exists = False
    kernel.open_error = errno.EPERM
    with pytest.raises(TunForbiddenError, match="cannot open /dev/net/tun: Operation not permitted"):
        open_tun("wg0")


@pytest.mark.parametrize(
    ("code", "kind"),
    [(errno.ENODEV, TunMissingError), (errno.ENXIO, TunMissingError), (errno.EACCES, TunForbiddenError)],
)
def test_missing_is_told_from_forbidden(kernel: Kernel, code: int, kind: type[SystemSetupError]) -> None:
    kernel.open_error = code
    with pytest.raises(kind, match="cannot open /dev/net/tun"):
        open_tun("wg0")


def test_adopting_a_descriptor(kernel: Kernel) -> None:
    kernel.interface = ("wg7", IFF_TUN | IFF_NO_PI | IFF_VNET_HDR)
    fd = kernel.descriptor()
    os.set_blocking(fd, True)
    adopted = adopt_tun(fd)
    assert isinstance(adopted, Tun)
    assert (adopted.name, adopted.packet_headroom) == ("wg7", 10)
    assert adopted.read_into(memoryview(bytearray(10))) == 0
    adopted.close()


def test_adopting_what_is_no_tun(kernel: Kernel) -> None:
    kernel.refuses[Request.TUNGETIFF] = errno.EBADFD
    fd = kernel.descriptor()
    with pytest.raises(TunForbiddenError, match=f"cannot use descriptor {fd}"):
        adopt_tun(fd)
    os.close(fd)


def test_adopting_an_interface_with_packet_information(kernel: Kernel) -> None:
    kernel.interface = ("wg7", IFF_TUN)
    fd = kernel.descriptor()
    with pytest.raises(TunForbiddenError, match="packet information"):
        adopt_tun(fd)
    os.close(fd)
