"""The cross-platform configuration protocol as bytes: parses requests and formats answers, without I/O.

The protocol is "Configuration Protocol" of https://www.wireguard.com/xplatform/. A client writes ``get=1`` or
``set=1``, then lines of ``key=value``, then an empty line. The answer ends with ``errno=N`` and an empty line, where N
is 0 or a negative error number. A connection carries any number of requests.

Where the specification leaves a choice, we answer like wireguard-go 0.0.20220316 (Debian 12), which
tests/e2e/test_wg_uapi.py compares. There is one deliberate difference: a request is read to its end before any of it is
applied. A bad line therefore changes nothing, while wireguard-go has already applied the lines before it.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from wgvsock.addresses import IpNetwork
from wgvsock.errors import RemoteProtocolError
from wgvsock.uapi.errors import UapiError

KEY_LENGTH: Final = 32
NO_KEY: Final = bytes(KEY_LENGTH)
"""All zeros: no private key, no preshared key."""

MAX_LINE: Final = 4096
"""Bytes. The longest meaningful line (an allowed IP, a key in hexadecimal) has fewer than 100."""

MAX_REQUEST: Final = 16 << 20
"""Bytes of one request: enough for `MAX_PEERS` peers, each with a key, a preshared key, an endpoint and an address."""

MAX_PEERS: Final = 1 << 16
"""wireguard-go's MaxPeers."""


@dataclass(frozen=True, slots=True)
class AllowedIpChange:
    """One ``allowed_ip`` line. ``allowed_ip=-10.0.0.0/8`` removes a network (wireguard-tools since 2025)."""

    network: IpNetwork
    remove: bool = False


@dataclass(frozen=True, slots=True)
class PeerChange:
    """The part of a set request about one peer. None leaves a setting unchanged. Keys have 32 bytes."""

    public_key: bytes
    remove: bool = False
    update_only: bool = False
    preshared_key: bytes | None = field(default=None, repr=False)
    endpoint: str | None = None
    persistent_keepalive: int | None = None
    replace_allowed_ips: bool = False
    allowed_ips: tuple[AllowedIpChange, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceChange:
    """A whole set request. None leaves a setting unchanged."""

    private_key: bytes | None = field(default=None, repr=False)
    listen_port: int | None = None
    fwmark: int | None = None
    replace_peers: bool = False
    peers: tuple[PeerChange, ...] = ()


@dataclass(frozen=True, slots=True)
class GetRequest:
    """A request for the device's state."""


@dataclass(frozen=True, slots=True)
class RejectedRequest:
    """A complete request that cannot be carried out. The client gets the error, and the connection continues."""

    error: UapiError


Request = GetRequest | DeviceChange | RejectedRequest


@dataclass(frozen=True, slots=True)
class PeerState:
    """What a get request returns about one peer."""

    public_key: bytes
    preshared_key: bytes = field(repr=False)
    endpoint: str | None
    last_handshake: int
    """Unix time in nanoseconds, 0 before the first handshake."""
    rx_bytes: int
    tx_bytes: int
    persistent_keepalive: int
    """Seconds, 0 if off."""
    allowed_ips: tuple[IpNetwork, ...]


@dataclass(frozen=True, slots=True)
class DeviceState:
    """What a get request returns. Numbers that are zero are left out, as in wireguard-go."""

    private_key: bytes | None = field(repr=False)
    listen_port: int
    fwmark: int
    peers: tuple[PeerState, ...]


def format_state(state: DeviceState) -> Iterator[bytes]:
    """Format a get request's answer, without its end, which `format_status` makes.

    Yields:
        The device's lines, then each peer's lines.
    """
    lines: list[str] = []
    if state.private_key is not None:
        lines.append(f"private_key={state.private_key.hex()}")
    if state.listen_port:
        lines.append(f"listen_port={state.listen_port}")
    if state.fwmark:
        lines.append(f"fwmark={state.fwmark}")
    yield _encode(lines)
    for peer in state.peers:
        yield _peer_text(peer)


def format_status(number: int) -> bytes:
    """Format the end of an answer. `number` is 0 or a positive error number."""
    return b"errno=%d\n\n" % -number


def _encode(lines: list[str]) -> bytes:
    return "".join([f"{line}\n" for line in lines]).encode()


def _peer_text(peer: PeerState) -> bytes:
    """Format one peer. Must be fast, because a device may have ten thousand of them."""
    seconds, nanoseconds = divmod(peer.last_handshake, 1_000_000_000)
    endpoint = "" if peer.endpoint is None else f"endpoint={peer.endpoint}\n"
    networks = "".join([f"allowed_ip={_network_text(network)}\n" for network in peer.allowed_ips])
    return (
        f"public_key={peer.public_key.hex()}\npreshared_key={peer.preshared_key.hex()}\n{endpoint}"
        f"last_handshake_time_sec={seconds}\nlast_handshake_time_nsec={nanoseconds}\n"
        f"rx_bytes={peer.rx_bytes}\ntx_bytes={peer.tx_bytes}\n"
        f"persistent_keepalive_interval={peer.persistent_keepalive}\nprotocol_version=1\n{networks}"
    ).encode()


def _network_text(network: IpNetwork) -> str:
    """Format like ``str``, but IPv4 in a quarter of the time: there may be a hundred thousand networks."""
    if network.version == 4:
        return f"{socket.inet_ntoa(int(network.network_address).to_bytes(4))}/{network.prefixlen}"
    return str(network)


class RequestReader:
    """Cuts a connection's bytes into requests, however they are chunked.

    Call ``receive(data)``, then ``next_request()`` until it returns None. About `MAX_LINE` bytes at most are kept
    between two calls.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._set: _SetReader | None = None
        self._get = False

    @property
    def idle(self) -> bool:
        """Whether nothing of the next request has arrived."""
        return not (self._buffer or self._get or self._set)

    def receive(self, data: bytes) -> None:
        """Append bytes that the client wrote."""
        self._buffer += data

    def next_request(self) -> Request | None:
        """The next complete request, or None until more bytes arrive.

        Raises:
            RemoteProtocolError: The client requests neither get nor set. Close the connection: it is unknown where the
                next request begins.
        """
        if self._get:
            return self._finish_get()
        while (line := self._next_line()) is not None:
            if self._set is not None:
                request = self._set.read(line)
                if request is not None:
                    self._set = None
                    return request
            elif line == b"set=1":
                self._set = _SetReader()
            elif line == b"get=1":
                self._get = True
                return self._finish_get()
            else:
                raise RemoteProtocolError("a client of the control socket sent neither get=1 nor set=1")
        return None

    def _finish_get(self) -> Request | None:
        if not self._buffer:
            return None
        self._get = False
        following = self._buffer[0]
        del self._buffer[0]
        if following != ord("\n"):
            return RejectedRequest(UapiError(errno.EINVAL, "get=1 is not followed by an empty line"))
        return GetRequest()

    def _next_line(self) -> bytes | None:
        end = self._buffer.find(b"\n")
        if end < 0:
            # Keep only the beginning of an endless line: enough to see that it is too long.
            del self._buffer[MAX_LINE + 1 :]
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line


class _SetReader:
    """Reads the lines of one set request, up to the empty one."""

    def __init__(self) -> None:
        self._error: UapiError | None = None
        self._size = 0
        self._device = DeviceChange()
        self._peers: list[PeerChange] = []
        self._peer: PeerChange | None = None
        self._allowed_ips: list[AllowedIpChange] = []

    def read(self, line: bytes) -> DeviceChange | RejectedRequest | None:
        # wireguard-go's reader, bufio.Scanner, drops one carriage return at the end of a line.
        line = line.removesuffix(b"\r")
        if not line:
            return self._finish()
        self._size += len(line) + 1
        if self._error is None:
            try:
                self._read_setting(line)
            except UapiError as error:
                # Read and discard the rest, so that the client, which is still writing, gets the answer.
                self._error = error
                self._peers.clear()
        return None

    def _finish(self) -> DeviceChange | RejectedRequest:
        if self._error is not None:
            return RejectedRequest(self._error)
        self._finish_peer()
        return replace(self._device, peers=tuple(self._peers))

    def _finish_peer(self) -> None:
        if self._peer is not None:
            self._peers.append(replace(self._peer, allowed_ips=tuple(self._allowed_ips)))
            self._allowed_ips.clear()

    def _read_setting(self, line: bytes) -> None:
        if len(line) > MAX_LINE or self._size > MAX_REQUEST:
            raise UapiError(errno.EIO, f"a line exceeds {MAX_LINE} bytes, or a request {MAX_REQUEST}")
        key, separator, value = line.decode("ascii", "replace").partition("=")
        if not separator:
            raise UapiError(errno.EPROTO, "a line has no equals sign")
        if key == "public_key":
            self._finish_peer()
            if len(self._peers) == MAX_PEERS:
                raise UapiError(errno.EINVAL, f"a request has more than {MAX_PEERS} peers")
            self._peer = PeerChange(_parse_key(value))
        elif self._peer is None:
            self._device = _with_device_setting(self._device, key, value)
        elif key == "allowed_ip":
            self._allowed_ips.append(_parse_allowed_ip(value))
        else:
            self._peer = _with_peer_setting(self._peer, key, value)
            if key == "replace_allowed_ips":
                self._allowed_ips.clear()  # lines take effect in order: earlier ones are replaced too


def _with_device_setting(device: DeviceChange, key: str, value: str) -> DeviceChange:
    match key:
        case "private_key":
            return replace(device, private_key=_parse_key(value))
        case "listen_port":
            return replace(device, listen_port=_parse_number(value, 0xFFFF))
        case "fwmark":
            return replace(device, fwmark=_parse_number(value, 0xFFFFFFFF))
        case "replace_peers":
            return replace(device, replace_peers=_parse_true(value))
        case _:
            raise UapiError(errno.EINVAL, "a device has no such setting")


def _with_peer_setting(peer: PeerChange, key: str, value: str) -> PeerChange:
    match key:
        case "remove":
            return replace(peer, remove=_parse_true(value))
        case "update_only":
            return replace(peer, update_only=_parse_true(value))
        case "preshared_key":
            return replace(peer, preshared_key=_parse_key(value))
        case "endpoint":
            return replace(peer, endpoint=value)
        case "persistent_keepalive_interval":
            return replace(peer, persistent_keepalive=_parse_number(value, 0xFFFF))
        case "replace_allowed_ips":
            return replace(peer, replace_allowed_ips=_parse_true(value))
        case "protocol_version":
            if value != "1":
                raise UapiError(errno.EINVAL, "protocol_version is not 1")
            return peer
        case _:
            raise UapiError(errno.EINVAL, "a peer has no such setting")


def _parse_key(text: str) -> bytes:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != KEY_LENGTH or len(text) != 2 * KEY_LENGTH:  # fromhex() also accepts spaces
        raise UapiError(errno.EINVAL, f"a key is not {2 * KEY_LENGTH} hexadecimal digits")
    return key


def _parse_number(text: str, limit: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text.lstrip("0")) <= 10 and int(text) <= limit):
        raise UapiError(errno.EINVAL, f"a number is not decimal, or not from 0 to {limit}")
    return int(text)


def _parse_true(text: str) -> bool:
    if text != "true":
        raise UapiError(errno.EINVAL, "a switch is set to something other than true")
    return True


def _parse_allowed_ip(text: str) -> AllowedIpChange:
    address, _, length = text.removeprefix("-").partition("/")
    network: IpNetwork
    try:
        # inet_pton(3) accepts the same texts as `ipaddress`, except zones, which mean nothing inside the tunnel. It
        # takes a tenth of the time, and a request may have 50,000 such lines.
        if ":" in address:
            number = int.from_bytes(socket.inet_pton(socket.AF_INET6, address), "big")
            network = ipaddress.IPv6Network((number, _parse_number(length, 128)), strict=False)
        else:
            number = int.from_bytes(socket.inet_pton(socket.AF_INET, address), "big")
            network = ipaddress.IPv4Network((number, _parse_number(length, 32)), strict=False)
    except (OSError, ValueError):
        raise UapiError(errno.EINVAL, "an allowed IP is not ADDRESS/LENGTH") from None
    return AllowedIpChange(network, remove=text.startswith("-"))
