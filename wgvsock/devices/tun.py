"""The TUN device, opened with our own ioctls (linux/if_tun.h): closing the descriptor removes the interface.

With a headroom of 10 bytes, a virtio_net_hdr precedes each packet. `Tun.set_offloads` then switches, on the live
descriptor, whether the kernel may hand over super-packets of up to 64 KiB with incomplete checksums.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import socket
import stat
import struct
from pathlib import Path
from typing import Final

from wgvsock.devices.errors import TunForbiddenError, TunGoneError, TunMissingError
from wgvsock.errors import ConfigurationError, SystemSetupError
from wgvsock.virtio_net import HEADER_LENGTH

TUN_PATH: Final = "/dev/net/tun"
_TUN_DEVICE_NUMBER: Final = os.makedev(10, 200)

MAX_NAME: Final = 15
"""Bytes of an interface name: IFNAMSIZ minus the NUL."""

_TUNSETIFF: Final = 0x400454CA
_TUNSETOFFLOAD: Final = 0x400454D0
_TUNGETIFF: Final = 0x800454D2
_TUNSETVNETHDRSZ: Final = 0x400454D8
_TUNSETVNETLE: Final = 0x400454DC

_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000
_IFF_VNET_HDR: Final = 0x4000

_F_CSUM: Final = 0x01
_F_TSO4: Final = 0x02
_F_TSO6: Final = 0x04
_F_TSO_ECN: Final = 0x08
_F_USO4: Final = 0x20
_F_USO6: Final = 0x40

_OFFLOADS: Final = _F_CSUM | _F_TSO4 | _F_TSO6 | _F_TSO_ECN
_UDP_OFFLOADS: Final = _F_USO4 | _F_USO6  # unknown to kernels before 6.2

_IFREQ: Final = struct.Struct("16sH22x")
_INT: Final = struct.Struct("i")
_IFREQ_MTU: Final = struct.Struct("16si20x")
_SIOCSIFMTU: Final = 0x8922


class Tun:
    """A TUN interface. Implements `wgvsock.devices.base.TunDevice`.

    Args:
        fd: A non-blocking descriptor on which TUNSETIFF has been done. The object owns it.

    Attributes:
        packet_headroom: See `TunDevice.packet_headroom`.
        udp_segmentation: See `TunDevice.udp_segmentation`.
        write_error: See `TunDevice.write_error`.
    """

    write_error = 0

    def __init__(self, fd: int) -> None:
        self.packet_headroom = HEADER_LENGTH if _interface(fd)[1] & _IFF_VNET_HDR else 0
        self.udp_segmentation = _knows_udp_segmentation(fd) and self.packet_headroom > 0
        self._file = io.FileIO(fd, "r+")  # its readinto reports "no packet" without the cost of an exception
        self._readinto = self._file.readinto
        self._write = self._file.write

    @property
    def name(self) -> str:
        """The interface's present name.

        Raises:
            TunGoneError: The interface was removed.
        """
        return _interface(self.fileno())[0]

    def fileno(self) -> int:
        """See `TunDevice.fileno`."""
        return self._file.fileno()

    def read_into(self, buffer: memoryview) -> int:
        """See `TunDevice.read_into`."""
        try:
            return self._readinto(buffer) or 0
        except OSError as error:
            raise _gone(error) from None

    def write(self, packet: memoryview) -> bool:
        """See `TunDevice.write`."""
        try:
            if self._write(packet) is not None:
                return True
            self.write_error = errno.EAGAIN
        except OSError as error:  # the interface is down, the packet is malformed, the kernel has no memory
            self.write_error = error.errno or 0
        return False

    def set_offloads(self, enabled: bool) -> None:
        """Allow super-packets, UDP's included if the kernel knows them, and incomplete checksums, or forbid all.

        Packets that are already in the interface's queue keep their form.

        Raises:
            SystemSetupError: The kernel refuses.
        """
        flags = 0
        if enabled:
            flags = _OFFLOADS | _UDP_OFFLOADS if self.udp_segmentation else _OFFLOADS
        try:
            fcntl.ioctl(self._file, _TUNSETOFFLOAD, flags)
        except OSError as error:
            raise TunForbiddenError(
                "cannot change the offloads of the tunnel interface",
                why=error.strerror or str(error),
                fix="use the plain profile",
            ) from None

    def set_mtu(self, mtu: int) -> None:
        """Set the interface's MTU, in bytes (netdevice(7)).

        Raises:
            SystemSetupError: The kernel refuses.
        """
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
                fcntl.ioctl(control, _SIOCSIFMTU, _IFREQ_MTU.pack(self.name.encode(), mtu))
        except OSError as error:
            raise TunForbiddenError(
                f"cannot set the MTU of {self.name} to {mtu}",
                why=error.strerror or str(error),
                fix="choose an MTU from 68 to 65535, and run with CAP_NET_ADMIN",
            ) from None

    def close(self) -> None:
        """See `TunDevice.close`."""
        self._file.close()


def open_tun(name: str, *, packet_headroom: int = 0) -> Tun:
    """Create a TUN interface: down, without addresses, and with offloads off.

    Args:
        name: The interface's name. The kernel replaces ``%d`` in it with a number.
        packet_headroom: 0, or 10 for a virtio_net_hdr in front of each packet.

    Raises:
        ConfigurationError: No interface can have this name.
        SystemSetupError: /dev/net/tun is missing or forbidden, or the name is taken.
    """
    if not 0 < len(name.encode()) <= MAX_NAME or "/" in name or any(c.isspace() for c in name):
        raise ConfigurationError(
            f"no interface can be named {name[:32]!r}",
            why=f"a name has 1 to {MAX_NAME} bytes, without slashes and white space",
            fix="choose another name, such as wg0",
        )
    fd = _open_device()
    try:
        flags = _IFF_TUN | _IFF_NO_PI | (_IFF_VNET_HDR if packet_headroom else 0)
        fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(name.encode(), flags))
        if packet_headroom:
            fcntl.ioctl(fd, _TUNSETVNETHDRSZ, _INT.pack(packet_headroom))
            fcntl.ioctl(fd, _TUNSETVNETLE, _INT.pack(1))
        return Tun(fd)
    except OSError as error:
        os.close(fd)
        raise _refused(name, error) from None


def adopt_tun(fd: int) -> Tun:
    """Use a TUN that another process opened, such as a supervisor that sets WG_TUN_FD. The object then owns it.

    Raises:
        SystemSetupError: The descriptor is not a TUN, or packet information precedes each of its packets.
    """
    try:
        if not _interface(fd)[1] & _IFF_NO_PI:
            raise TunForbiddenError(
                f"cannot use descriptor {fd} as a tunnel interface",
                why="packet information precedes each of its packets",
                fix="open it with IFF_NO_PI",
            )
        os.set_blocking(fd, False)
        return Tun(fd)
    except TunGoneError as error:
        raise TunForbiddenError(
            f"cannot use descriptor {fd} as a tunnel interface", why=error.why, fix="pass an open TUN in WG_TUN_FD"
        ) from None


def _interface(fd: int) -> tuple[str, int]:
    """The interface's present name and IFF_ flags."""
    try:
        answer = fcntl.ioctl(fd, _TUNGETIFF, bytes(_IFREQ.size))
    except OSError as error:
        raise _gone(error) from None
    name, flags = _IFREQ.unpack(answer)
    return name.rstrip(b"\0").decode(), flags


def _knows_udp_segmentation(fd: int) -> bool:
    """Whether the kernel knows UDP super-packets. Leaves the offloads off."""
    try:
        fcntl.ioctl(fd, _TUNSETOFFLOAD, _F_CSUM | _UDP_OFFLOADS)
    except OSError:
        known = False
    else:
        known = True
    fcntl.ioctl(fd, _TUNSETOFFLOAD, 0)
    return known


def _open_device() -> int:
    flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(TUN_PATH, flags)
    except FileNotFoundError:
        _make_device_node()
    except OSError as error:
        raise _cannot_open(error) from None
    try:
        return os.open(TUN_PATH, flags)
    except OSError as error:
        raise _cannot_open(error) from None


def _make_device_node() -> None:
    """Create the node: some container runtimes omit it although the kernel has the driver and we may use it."""
    try:
        Path(TUN_PATH).parent.mkdir(exist_ok=True)
        os.mknod(TUN_PATH, stat.S_IFCHR | 0o600, _TUN_DEVICE_NUMBER)
    except OSError as error:
        raise TunMissingError(
            f"cannot open {TUN_PATH}",
            why=f"it does not exist and cannot be created: {error.strerror}",
            fix="give the container the device /dev/net/tun",
        ) from None


def _cannot_open(error: OSError) -> SystemSetupError:
    if error.errno in {errno.ENODEV, errno.ENXIO}:
        return TunMissingError(
            f"cannot open {TUN_PATH}", why="the kernel has no TUN driver", fix="load the module: modprobe tun"
        )
    return TunForbiddenError(
        f"cannot open {TUN_PATH}",
        why=error.strerror or str(error),
        fix="allow the device 10:200 in this container, and give the process CAP_NET_ADMIN",
    )


def _refused(name: str, error: OSError) -> TunForbiddenError:
    fixes = {
        errno.EPERM: "run with CAP_NET_ADMIN",
        errno.EBUSY: "stop the process that uses the interface, or choose another name",
    }
    return TunForbiddenError(
        f"cannot create the interface {name}",
        why=error.strerror or str(error),
        fix=fixes.get(error.errno or 0, "check that no other kind of interface has the name"),
    )


def _gone(error: OSError) -> TunGoneError:
    return TunGoneError(
        "the tunnel interface is gone",
        why=error.strerror or str(error),
        fix="do not remove it while wgvsock is running",
    )
