"""The cross-platform configuration protocol as bytes: requests in, values out, answers back; no I/O.

The protocol is "Configuration Protocol" of https://www.wireguard.com/xplatform/. A client writes ``get=1`` or
``set=1``, then lines of ``key=value``, then an empty line; the answer ends in ``errno=N`` and an empty line, where N is
0 or a negative error number. A connection carries any number of requests.

Where the text leaves a choice, the answer is that of wireguard-go 0.0.20220316 (Debian 12), compared by
tests/e2e/test_wg_uapi.py, with one deliberate difference: a request is read to its end before any of it is applied, so
that a bad line changes nothing, where wireguard-go has already applied the lines before it.
"""

from __future__ import annotations

import errno
import ipaddress
from dataclasses import dataclass, field, replace
from typing import Final

from wgvsock.errors import RemoteProtocolError
from wgvsock.uapi.errors import UapiError

KEY_LENGTH: Final = 32
NO_KEY: Final = bytes(KEY_LENGTH)
"""All zeros: no private key, no preshared key."""

MAX_LINE: Final = 4096
"""Bytes; the longest line that means something (an allowed IP, a key in hex) has under 100."""

MAX_REQUEST: Final = 16 << 20
"""Bytes of one request: room for every peer of `MAX_PEERS` with a key, a preshared key, an endpoint and an address."""

MAX_PEERS: Final = 1 << 16
"""wireguard-go's MaxPeers."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class AllowedIpChange:
    """One ``allowed_ip`` line; ``allowed_ip=-10.0.0.0/8`` takes a network away (wireguard-tools since 2025)."""

    network: Network
    remove: bool = False


@dataclass(frozen=True, slots=True)
class PeerChange:
    """What a set request says of one peer; None leaves a setting as it is."""

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
    """A whole set request; None leaves a setting as it is."""

    private_key: bytes | None = field(default=None, repr=False)
    listen_port: int | None = None
    fwmark: int | None = None
    replace_peers: bool = False
    peers: tuple[PeerChange, ...] = ()


@dataclass(frozen=True, slots=True)
class GetRequest:
    """The client wants the device's state."""


@dataclass(frozen=True, slots=True)
class RejectedRequest:
    """A request that ended, but cannot be carried out; it is answered with the error, and the connection goes on."""

    error: UapiError


Request = GetRequest | DeviceChange | RejectedRequest


@dataclass(frozen=True, slots=True)
class PeerState:
    """What a get request answers of one peer."""

    public_key: bytes
    preshared_key: bytes = field(repr=False)
    endpoint: str | None
    last_handshake: int
    """Unix time in nanoseconds; 0 before the first handshake."""
    rx_bytes: int
    tx_bytes: int
    persistent_keepalive: int
    """Seconds; 0 is off."""
    allowed_ips: tuple[Network, ...]


@dataclass(frozen=True, slots=True)
class DeviceState:
    """What a get request answers; zero numbers are left out, as wireguard-go does."""

    private_key: bytes | None = field(repr=False)
    listen_port: int
    fwmark: int
    peers: tuple[PeerState, ...]


def format_state(state: DeviceState) -> bytes:
    """The lines of a get request's answer, without the status that `format_status` ends it with."""
    lines: list[str] = []
    if state.private_key is not None:
        lines.append(f"private_key={state.private_key.hex()}")
    if state.listen_port:
        lines.append(f"listen_port={state.listen_port}")
    if state.fwmark:
        lines.append(f"fwmark={state.fwmark}")
    for peer in state.peers:
        lines += _peer_lines(peer)
    return "".join(f"{line}\n" for line in lines).encode()


def format_status(number: int) -> bytes:
    """The end of every answer; `number` is 0 or a positive error number."""
    return b"errno=%d\n\n" % -number


def _peer_lines(peer: PeerState) -> list[str]:
    lines = [f"public_key={peer.public_key.hex()}", f"preshared_key={peer.preshared_key.hex()}"]
    if peer.endpoint is not None:
        lines.append(f"endpoint={peer.endpoint}")
    seconds, nanoseconds = divmod(peer.last_handshake, 1_000_000_000)
    lines += [
        f"last_handshake_time_sec={seconds}",
        f"last_handshake_time_nsec={nanoseconds}",
        f"rx_bytes={peer.rx_bytes}",
        f"tx_bytes={peer.tx_bytes}",
        f"persistent_keepalive_interval={peer.persistent_keepalive}",
        "protocol_version=1",
    ]
    return lines + [f"allowed_ip={network}" for network in peer.allowed_ips]


class RequestReader:
    """Cuts a connection's bytes into requests, however they arrive in chunks.

    ``receive(data)``, then ``next_request()`` until it is None. At most `MAX_LINE` bytes wait between two calls.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._set: _SetReader | None = None
        self._get = False

    @property
    def idle(self) -> bool:
        """True between two requests: nothing of the next one has arrived."""
        return not (self._buffer or self._get or self._set)

    def receive(self, data: bytes) -> None:
        """Append what the client wrote."""
        self._buffer += data

    def next_request(self) -> Request | None:
        """The next whole request, or None until more bytes arrive.

        Raises:
            RemoteProtocolError: The client asks for neither get nor set; the connection has to be closed, as nobody can
                tell where the next request begins.
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
                raise RemoteProtocolError("the control socket's client asks for neither get=1 nor set=1")
        return None

    def _finish_get(self) -> Request | None:
        if not self._buffer:
            return None
        self._get = False
        following = self._buffer[0]
        del self._buffer[0]
        if following != ord("\n"):
            return RejectedRequest(UapiError(errno.EINVAL, "get=1 is followed by something else than an empty line"))
        return GetRequest()

    def _next_line(self) -> bytes | None:
        end = self._buffer.find(b"\n")
        if end < 0:
            # Of an endless line only its beginning is kept: enough to see that it is too long.
            del self._buffer[MAX_LINE + 1 :]
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line


class _SetReader:
    """The lines of one set request, until the empty one."""

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
                # The rest is read and forgotten, so that the client, still writing, gets to see the answer.
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
            raise UapiError(errno.EIO, f"a line is over {MAX_LINE} bytes, or a request over {MAX_REQUEST}")
        key, separator, value = line.decode("ascii", "replace").partition("=")
        if not separator:
            raise UapiError(errno.EPROTO, "a line has no equals sign")
        if key == "public_key":
            self._finish_peer()
            if len(self._peers) == MAX_PEERS:
                raise UapiError(errno.EINVAL, f"a request has over {MAX_PEERS} peers")
            self._peer = PeerChange(_parse_key(value))
        elif self._peer is None:
            self._device = _with_device_setting(self._device, key, value)
        elif key == "allowed_ip":
            self._allowed_ips.append(_parse_allowed_ip(value))
        else:
            self._peer = _with_peer_setting(self._peer, key, value)
            if key == "replace_allowed_ips":
                self._allowed_ips.clear()  # lines take effect in their order: those before it are replaced too


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
    if len(key) != KEY_LENGTH or len(text) != 2 * KEY_LENGTH:  # fromhex() also takes spaces
        raise UapiError(errno.EINVAL, f"a key is not {2 * KEY_LENGTH} hexadecimal digits")
    return key


def _parse_number(text: str, limit: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text.lstrip("0")) <= 10 and int(text) <= limit):
        raise UapiError(errno.EINVAL, f"a number is not decimal, or not in 0 to {limit}")
    return int(text)


def _parse_true(text: str) -> bool:
    if text != "true":
        raise UapiError(errno.EINVAL, "a switch is set to something else than true")
    return True


def _parse_allowed_ip(text: str) -> AllowedIpChange:
    malformed = UapiError(errno.EINVAL, "an allowed IP is not ADDRESS/LENGTH")
    address, _, length = text.removeprefix("-").partition("/")
    if "%" in address:  # a zone means nothing inside the tunnel
        raise malformed
    try:
        bits = _parse_number(length, ipaddress.ip_address(address).max_prefixlen)
        network = ipaddress.ip_network((address, bits), strict=False)
    except ValueError:
        raise malformed from None
    return AllowedIpChange(network, remove=text.startswith("-"))
