"""One stream as a `Link`: sends framed datagrams from one buffer, and receives framed datagrams into another.

The same class carries vsock, hybrid, Unix and TCP streams. Only the size of a single send differs. Sending: datagrams
are sealed straight into the send buffer, one after the other, and handed to the kernel together. Data that the kernel
does not accept waits in the buffer, `writable` turns False, and the tunnel stops reading its TUN. The queue then builds
up where TCP sees it. Receiving: one read of up to 256 KiB, all its frames at once. Receiving never waits for sending,
so two links with full buffers cannot block each other.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from wgvsock.addresses import StreamAddress, VsockAddress
from wgvsock.errors import FramingError
from wgvsock.framing import RECEIVE_BUFFER_SIZE, FrameDecoder, Framing, codec_for
from wgvsock.transports.base import DatagramsReceived, Link
from wgvsock.transports.sockets import PRESSURE_PAUSE, is_pressure
from wgvsock.transports.vsock import MAX_SEND

SEND_BUFFER_SIZE: Final = 512 * 1024
"""Bytes: the tunnel's batch of 256 KiB, one more super-packet, and space for handshakes while the stream is blocked."""

STALL_TIMEOUT: Final = 5.0
"""Seconds within which a blocked stream must accept at least one byte, whatever blocks it. On some hosts, both
directions of a vsock stream can lock up with full queues. Only a new stream helps then, and WireGuard does not notice
the change."""

_STRANGER_BUFFER_SIZE: Final = 0
"""Receive buffer, in bytes, before the peer has proved itself: the framing raises it to its minimum of one frame."""

_UNLIMITED: Final = 1 << 30
_NO_BUFFER: Final = memoryview(b"")
_stream_numbers: Final = itertools.count(1)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LinkCallbacks:
    """A link's callbacks. They run in the event loop."""

    on_datagrams: DatagramsReceived
    on_writable: Callable[[Link], None]
    on_connected: Callable[[Link], None]
    on_authenticated: Callable[[StreamLink], None]
    on_closed: Callable[[StreamLink], None]


class StreamLink:
    """A link to one remote over a stream, and the endpoint that the WireGuard core stores for it.

    A link of the dialling side outlives its streams: `attach` gives it the next one. While it has none, datagrams are
    lost, as on a network. The receiver of `on_connected` starts with a fresh handshake initiation. A second initiation
    that had been queued would reach the remote at the same moment and be refused as a flood.

    Args:
        address: The remote.
        framing: The framing of the streams.
        callbacks: Receive the link's reports.
        dialled: Whether this side opens the streams, including the next one.

    Attributes:
        stream: Number of the present stream, or of the last one, unique in this process. The core uses it to
            distinguish streams, because they may share an address.
        connected_at: When the present stream, or the last one, was attached, on the loop's clock. None if none was.
        connect_seconds: Seconds that it took to connect.
        max_send: Largest number of bytes in one send.
    """

    def __init__(self, address: StreamAddress, framing: Framing, callbacks: LinkCallbacks, *, dialled: bool) -> None:
        self.address = address
        self.dialled = dialled
        self.writable = False
        self.authenticated = False
        self.stream = 0
        self.connected_at: float | None = None
        self.connect_seconds = 0.0
        self._framing = framing
        self._codec = codec_for(framing)
        self._header_length = self._codec.header_length
        self._callbacks = callbacks
        self._loop = asyncio.get_running_loop()
        self.max_send = MAX_SEND if isinstance(address, VsockAddress) else _UNLIMITED
        self._socket: socket.socket | None = None
        self._decoder: FrameDecoder
        self._buffer = _NO_BUFFER  # until there is something to send: strangers get no answer
        self._start = 0  # the first byte that the kernel has not accepted
        self._end = 0  # after the last committed byte
        self._retry: asyncio.TimerHandle | None = None  # replaces the writable event, which means nothing then
        self._watchdog: asyncio.TimerHandle | None = None
        self._progress_at = 0.0  # when the blocked stream last accepted a byte

    def __repr__(self) -> str:
        return f"<StreamLink {self.address} {'connected' if self._socket else 'disconnected'}>"

    @property
    def connected(self) -> bool:
        """Whether there is a stream."""
        return self._socket is not None

    @property
    def trusted(self) -> bool:
        """Whether a peer has proved itself over the present stream, or we opened it."""
        return self.authenticated or self.dialled

    # Sending.

    def reserve(self, size: int) -> memoryview | None:
        """See `Link.reserve`."""
        if self._socket is None:
            return None
        room = self._end + self._header_length
        if room + size > len(self._buffer):
            if not self._make_room(size):
                return None
            room = self._end + self._header_length
        return self._buffer[room : room + size]

    def commit(self, length: int) -> None:
        """See `Link.commit`. A datagram that is too long for the framing is dropped, as if it exceeded an MTU."""
        if 0 < length <= self._codec.max_datagram:
            self._codec.write_header(self._buffer, self._end, length)
            self._end += self._header_length + length

    def flush(self) -> None:
        """See `Link.flush`."""
        if self.writable and self._end and self._socket is not None:
            self._send(self._socket)

    def _send(self, sock: socket.socket) -> None:
        """Send until the buffer is empty or the kernel accepts no more."""
        start, end, step = self._start, self._end, self.max_send
        out_of_memory = False
        try:
            while start < end:
                stop = min(end, start + step)
                start += sock.send(self._buffer[start:stop])
                if start < stop:
                    break
        except BlockingIOError:
            pass
        except OSError as error:
            if not is_pressure(error):
                self.close(error.strerror or str(error))
                return
            out_of_memory = True
        if start == end:
            self._start = self._end = 0
            if not self.writable:
                self._unblock(sock)
        else:
            progressed = start > self._start
            self._start = start
            self._block(sock, progressed=progressed, out_of_memory=out_of_memory)

    def _block(self, sock: socket.socket, *, progressed: bool, out_of_memory: bool) -> None:
        if progressed or self.writable:
            self._progress_at = self._loop.time()
        was_waiting = not self.writable and self._retry is None
        self._retry = None
        if out_of_memory:
            if was_waiting:
                self._loop.remove_writer(sock)  # it would fire in every iteration of the loop
            self._retry = self._loop.call_later(PRESSURE_PAUSE, self._send, sock)
        elif not was_waiting:
            self._loop.add_writer(sock, self._send, sock)
        if self.writable:
            self.writable = False
            if self._watchdog is None:
                self._watchdog = self._loop.call_later(STALL_TIMEOUT, self._check_stall)

    def _unblock(self, sock: socket.socket) -> None:
        self._retry = None
        self._loop.remove_writer(sock)
        self.writable = True
        self._callbacks.on_writable(self)

    def _check_stall(self) -> None:
        """Check for a stall. Runs at most once per `STALL_TIMEOUT`, however often the stream blocks."""
        self._watchdog = None
        if self.writable or self._socket is None:
            return
        stalled = self._loop.time() - self._progress_at
        if stalled >= STALL_TIMEOUT:
            self.close(f"it accepted no byte in {STALL_TIMEOUT:g} s")
        else:
            self._watchdog = self._loop.call_later(STALL_TIMEOUT - stalled, self._check_stall)

    def _make_room(self, size: int) -> bool:
        """Allocate the buffer, or move its contents to the front, for one more datagram. False if it is full."""
        pending = self._end - self._start
        if pending + self._header_length + size > SEND_BUFFER_SIZE:
            return False
        if not self._buffer:
            self._buffer = memoryview(bytearray(SEND_BUFFER_SIZE))
        self._buffer[:pending] = self._buffer[self._start : self._end]
        self._start, self._end = 0, pending
        return True

    # Receiving.

    def _receive(self, sock: socket.socket) -> None:
        try:
            length = sock.recv_into(self._decoder.receive_buffer())
        except BlockingIOError:
            return
        except OSError as error:
            self.close(error.strerror or str(error))
            return
        if not length:
            self.close("the remote closed it")
            return
        try:
            datagrams = self._decoder.received(length)
        except FramingError as error:
            self.close(str(error))
            return
        if datagrams:
            self._callbacks.on_datagrams(self, datagrams)

    def mark_authenticated(self) -> None:
        """See `Link.mark_authenticated`."""
        if not self.authenticated:
            self.authenticated = True
            if not self.dialled:
                self._decoder.enlarge()
            self._callbacks.on_authenticated(self)

    # Life cycle of the stream.

    def attach(self, sock: socket.socket, connect_seconds: float = 0.0) -> None:
        """Carry datagrams over this connected, non-blocking socket from now on.

        Args:
            sock: The socket. The link owns it.
            connect_seconds: Seconds that it took to connect. 0 if the remote connected.
        """
        self._socket = sock
        self.connected_at, self.connect_seconds = self._loop.time(), connect_seconds
        self._decoder = FrameDecoder(self._framing, RECEIVE_BUFFER_SIZE if self.dialled else _STRANGER_BUFFER_SIZE)
        self.stream = next(_stream_numbers)
        self.authenticated = False
        self.writable = True
        self._loop.add_reader(sock, self._receive, sock)
        self._callbacks.on_writable(self)
        if self._socket is not None:
            self._callbacks.on_connected(self)

    def close(self, why: str) -> None:
        """Close the stream, if there is one, and report it. Unsent data is lost."""
        sock, self._socket = self._socket, None
        if sock is None:
            return
        _log.info("stream %s closed: %s", self.address, why)
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._loop.remove_reader(sock)
        self._loop.remove_writer(sock)
        sock.close()
        self._start = self._end = 0
        self.writable = False
        self._callbacks.on_closed(self)
