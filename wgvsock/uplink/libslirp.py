"""A ctypes binding of libslirp, a TCP/IP stack that carries the enclave's connections over ordinary sockets.

The library calls back for each packet that it sends and, in each turn, for each of its sockets. With ctypes, a callback
costs 0.15 µs, half of what cffi takes, and needs no dependency.

Source: libslirp.h of 4.7 (https://gitlab.freedesktop.org/slirp/libslirp). `Config` has the layout of version 4 of the
structure, which every later library accepts.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final

from wgvsock.addresses import IpAddress
from wgvsock.uplink.errors import EngineMissingError
from wgvsock.uplink.orders import network_of_relay

LIBRARY: Final = "libslirp.so.0"

CONFIG_VERSION: Final = 4
"""Version of the structures below. A library older than 4.7 does not know it and refuses it."""

MAX_MTU: Final = 65_521
"""Bytes: libslirp's IF_MTU_MAX, whatever the tunnel's MTU is. libslirp would refuse an IPv6 super-packet above its MTU
as too big. The far end of a connection announces by its MSS how much it accepts."""

POLL_IN: Final = 1
POLL_OUT: Final = 2
POLL_PRI: Final = 4
POLL_ERR: Final = 8
POLL_HUP: Final = 16

FORWARD_UDP: Final = 1
FORWARD_V6_ONLY: Final = 2

_P: Final = ctypes.c_void_p
_Send = ctypes.CFUNCTYPE(ctypes.c_ssize_t, _P, ctypes.c_size_t, _P)
_Complain = ctypes.CFUNCTYPE(None, ctypes.c_char_p, _P)
_Clock = ctypes.CFUNCTYPE(ctypes.c_int64, _P)
_TimerNew = ctypes.CFUNCTYPE(_P, _P, _P, _P)
_TimerFree = ctypes.CFUNCTYPE(None, _P, _P)
_TimerModify = ctypes.CFUNCTYPE(None, _P, ctypes.c_int64, _P)
_Descriptor = ctypes.CFUNCTYPE(None, ctypes.c_int, _P)
_Notify = ctypes.CFUNCTYPE(None, _P)
_AddPoll = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_int, _P)
# `opaque` is 0 and becomes the default of `dict.get`, which the library thus calls without a Python function between.
_Events = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_ssize_t)

_In6Addr = ctypes.c_uint32 * 4
"""struct in6_addr, as 32-bit words to get their alignment. With bytes, the fields after it would have other offsets,
and libslirp would take every IPv6 address for one in its own network."""


class _Callbacks(ctypes.Structure):
    """SlirpCb. The last two fields belong to version 4. Without them, the library would call what follows in memory."""

    _fields_ = (
        ("send_packet", _Send),
        ("guest_error", _Complain),
        ("clock_get_ns", _Clock),
        ("timer_new", _TimerNew),
        ("timer_free", _TimerFree),
        ("timer_mod", _TimerModify),
        ("register_poll_fd", _Descriptor),
        ("unregister_poll_fd", _Descriptor),
        ("notify", _Notify),
        ("init_completed", _P),
        ("timer_new_opaque", _P),
    )


class _Config(ctypes.Structure):
    """SlirpConfig."""

    _fields_ = (
        ("version", ctypes.c_uint32),
        ("restricted", ctypes.c_int),
        ("in_enabled", ctypes.c_bool),
        ("vnetwork", ctypes.c_uint32),
        ("vnetmask", ctypes.c_uint32),
        ("vhost", ctypes.c_uint32),
        ("in6_enabled", ctypes.c_bool),
        ("vprefix_addr6", _In6Addr),
        ("vprefix_len", ctypes.c_uint8),
        ("vhost6", _In6Addr),
        ("vhostname", ctypes.c_char_p),
        ("tftp_server_name", ctypes.c_char_p),
        ("tftp_path", ctypes.c_char_p),
        ("bootfile", ctypes.c_char_p),
        ("vdhcp_start", ctypes.c_uint32),
        ("vnameserver", ctypes.c_uint32),
        ("vnameserver6", _In6Addr),
        ("vdnssearch", _P),
        ("vdomainname", ctypes.c_char_p),
        ("if_mtu", ctypes.c_size_t),
        ("if_mru", ctypes.c_size_t),
        ("disable_host_loopback", ctypes.c_bool),
        ("enable_emu", ctypes.c_bool),
        ("outbound_addr", _P),
        ("outbound_addr6", _P),
        ("disable_dns", ctypes.c_bool),
        ("disable_dhcp", ctypes.c_bool),
    )


_NO_NAME_SERVER: Final = IPv4Address("0.0.0.0")  # noqa: S104 - no address to bind
_NO_NAME_SERVER6: Final = IPv6Address("::")


@dataclass(frozen=True, slots=True)
class Gateway:
    """The relay's tunnel addresses. libslirp redirects packets for them to this machine's loopback.

    Attributes:
        ipv4: The IPv4 address; None if the tunnel has no IPv4.
        ipv6: The IPv6 address; None if the tunnel has no IPv6.
    """

    ipv4: IPv4Address | None
    ipv6: IPv6Address | None


class Slirp:
    """One stack.

    Args:
        gateway: The relay's tunnel addresses.
        send: Called with each frame from the stack: its address in memory and its length in bytes. The memory is valid
            only during the call.
        opened: Called with each descriptor that the stack starts to use.
        closed: Called with each descriptor that the stack is about to close.
        wait_for: Called in `fill` with each descriptor, its events (`POLL_IN` and so on), and an unused value. It
            returns the descriptor. This runs for each connection in each turn.
        clock: Returns monotonic nanoseconds.
        library: Name or path of the shared library.

    Raises:
        EngineMissingError: The library is missing, or its version is not supported.
    """

    def __init__(
        self,
        gateway: Gateway,
        *,
        send: Callable[[int, int], None],
        opened: Callable[[int], None],
        closed: Callable[[int], None],
        wait_for: Callable[[int, int, int | None], int],
        clock: Callable[[], int],
        library: str = LIBRARY,
    ) -> None:
        self._library = load(library)
        self.version = str(self._library.slirp_version_string().decode())
        self.complaints = 0

        def send_packet(frame: int, length: int, _opaque: int | None) -> int:
            send(frame, length)
            return length

        def complain(_message: bytes, _opaque: int | None) -> None:
            self.complaints += 1

        self._callbacks = _Callbacks(
            send_packet=_Send(send_packet),
            guest_error=_Complain(complain),
            clock_get_ns=_Clock(lambda _: clock()),
            timer_new=_TimerNew(lambda *_: 1),  # only for router advertisements, which go nowhere
            timer_free=_TimerFree(lambda *_: None),
            timer_mod=_TimerModify(lambda *_: None),
            register_poll_fd=_Descriptor(lambda fd, _: opened(fd)),
            unregister_poll_fd=_Descriptor(lambda fd, _: closed(fd)),
            notify=_Notify(lambda _: None),
        )
        config = _config(gateway)
        self._stack = _P(self._library.slirp_new(ctypes.byref(config), ctypes.byref(self._callbacks), None))
        if not self._stack:
            raise EngineMissingError(
                "cannot use libslirp",
                why=f"version {self.version} refuses its configuration",
                fix="install 4.7 or later",
            )
        self._wait_for = _AddPoll(wait_for)
        self._timeout = ctypes.c_uint32()
        self._ready: dict[int, int] = {}
        self._events = _Events(self._ready.get)

    def input(self, frame: int, length: int) -> None:
        """Pass a frame from the enclave to the stack.

        Args:
            frame: Its address in memory.
            length: Its length in bytes.
        """
        self._library.slirp_input(self._stack, frame, length)

    def fill(self, longest: int) -> int:
        """Report the descriptors to wait for, by calling `wait_for`.

        Args:
            longest: Milliseconds that the caller wants to wait.

        Returns:
            Milliseconds that the caller may wait, because of the stack's timers.
        """
        self._timeout.value = longest
        self._library.slirp_pollfds_fill(self._stack, ctypes.byref(self._timeout), self._wait_for, None)
        return self._timeout.value

    def poll(self, ready: dict[int, int]) -> None:
        """Serve the descriptors that are ready, and all timers.

        Args:
            ready: The events of each descriptor, as a sum of `POLL_IN` and so on.
        """
        self._ready.update(ready)
        self._library.slirp_pollfds_poll(self._stack, 0, self._events, None)
        self._ready.clear()

    def forward(self, protocol: str, port: int, address: IpAddress, address_port: int) -> int:
        """Forward a port of this machine to the enclave, which sees the client's address.

        Args:
            protocol: ``tcp`` or ``udp``.
            port: The port of this machine, on all addresses of the same IP version as `address`.
            address: The enclave's address.
            address_port: The enclave's port.

        Returns:
            0, or an errno.
        """
        anywhere = _any(address.version)
        return self._forward(_sockaddr(anywhere, port), _sockaddr(address, address_port), _flags(protocol, address))

    def forward_unix(self, path: str, address: IpAddress, address_port: int) -> int:
        """Forward a Unix socket to a TCP port of the enclave, which sees the gateway as the client.

        Args:
            path: Path of the socket.
            address: The enclave's address.
            address_port: The enclave's port.

        Returns:
            0, or an errno.
        """
        local = struct.pack("=H108s", socket.AF_UNIX, path.encode())
        return self._forward(local, _sockaddr(address, address_port), 0)

    def unforward(self, protocol: str, port: int, address: IpAddress) -> None:
        """Stop forwarding a port. Its established connections continue."""
        local = _sockaddr(_any(address.version), port)
        self._library.slirp_remove_hostxfwd(self._stack, local, len(local), _flags(protocol, address))

    def close(self) -> None:
        """Destroy the stack and its connections. Idempotent."""
        if self._stack:
            self._library.slirp_cleanup(self._stack)
            self._stack = _P()

    def _forward(self, local: bytes, remote: bytes, flags: int) -> int:
        failed = self._library.slirp_add_hostxfwd(self._stack, local, len(local), remote, len(remote), flags)
        return ctypes.get_errno() if failed else 0


def load(name: str = LIBRARY) -> Any:
    """Load the library and declare the types of its functions.

    Args:
        name: Name or path of the shared library.

    Raises:
        EngineMissingError: The library is missing, or lacks a function.
    """
    try:
        library = ctypes.CDLL(name, use_errno=True)
        library.slirp_version_string.restype = ctypes.c_char_p
        library.slirp_new.restype = _P
        library.slirp_new.argtypes = (_P, _P, _P)
        library.slirp_input.argtypes = (_P, _P, ctypes.c_int)
        library.slirp_pollfds_fill.argtypes = (_P, _P, _AddPoll, _P)
        library.slirp_pollfds_poll.argtypes = (_P, ctypes.c_int, _Events, _P)
        library.slirp_add_hostxfwd.argtypes = (_P, _P, ctypes.c_uint, _P, ctypes.c_uint, ctypes.c_int)
        library.slirp_remove_hostxfwd.argtypes = (_P, _P, ctypes.c_uint, ctypes.c_int)
        library.slirp_cleanup.argtypes = (_P,)
    except (OSError, AttributeError) as error:
        raise EngineMissingError(
            "cannot use libslirp", why=str(error)[:200], fix="install it (Debian: libslirp0, 4.7 or later)"
        ) from None
    return library


def _config(gateway: Gateway) -> _Config:
    ipv4, ipv6 = gateway.ipv4, gateway.ipv6
    config = _Config(
        version=CONFIG_VERSION,
        in_enabled=ipv4 is not None,
        in6_enabled=ipv6 is not None,
        vnameserver=_word(_NO_NAME_SERVER),
        vnameserver6=_words(_NO_NAME_SERVER6),
        if_mtu=MAX_MTU,
        if_mru=MAX_MTU,
        disable_host_loopback=False,
        enable_emu=False,
        disable_dns=True,
        disable_dhcp=True,
    )
    if ipv4 is not None:
        network = network_of_relay(ipv4)
        config.vnetwork, config.vnetmask = _word(network.network_address), _word(network.netmask)
        config.vhost = config.vdhcp_start = _word(ipv4)
    if ipv6 is not None:
        config.vprefix_addr6 = config.vhost6 = _words(ipv6)
        config.vprefix_len = 128
    return config


def _word(address: IPv4Address) -> int:
    (word,) = struct.unpack("=I", address.packed)
    return int(word)


def _words(address: IPv6Address) -> Any:
    return _In6Addr(*struct.unpack("=4I", address.packed))


def _any(version: int) -> IpAddress:
    return IPv4Address(0) if version == 4 else IPv6Address(0)


def _flags(protocol: str, address: IpAddress) -> int:
    return (FORWARD_UDP if protocol == "udp" else 0) | (FORWARD_V6_ONLY if address.version == 6 else 0)


def _sockaddr(address: IpAddress, port: int) -> bytes:
    """The C structure sockaddr_in or sockaddr_in6."""
    if address.version == 4:
        return struct.pack("=H", socket.AF_INET) + struct.pack(">H4s8x", port, address.packed)
    return struct.pack("=H", socket.AF_INET6) + struct.pack(">HI16sI", port, 0, address.packed, 0)
