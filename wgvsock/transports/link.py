"""One stream as a `Link`: framed datagrams out of one buffer, framed datagrams into one buffer.

The same class carries vsock, hybrid, Unix and TCP streams; only the size of a single send differs. Sending: datagrams
are sealed straight into the send buffer, one behind the other, and handed to the kernel together. What the kernel does
not take waits in the buffer, `writable` turns False, and the tunnel stops reading its TUN: the queue then stands where
TCP sees it. Receiving: one read of up to 256 KiB, all its frames at once. Receiving never waits for sending, so two
links with full buffers cannot block each other.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from wgvsock.addresses import StreamAddress, VsockAddress
from wgvsock.errors import FramingError
from wgvsock.framing import FrameDecoder, Framing, codec_for
from wgvsock.transports.base import DatagramsReceived, Link
from wgvsock.transports.vsock import MAX_SEND

SEND_BUFFER_SIZE: Final = 512 * 1024
"""Bytes: the tunnel's batch of 256 KiB, one more super-packet, and room for handshakes while the stream is blocked."""

STALL_TIMEOUT: Final = 5.0
"""Seconds in which a blocked stream has to take at least one byte. Both directions of a vsock stream can lock up with
full queues on some hosts; a new stream is the only way out, and WireGuard does not notice the change."""

_UNLIMITED: Final = 1 << 30

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LinkCallbacks:
    """What a link reports, and to whom; all run in the event loop."""

    on_datagrams: DatagramsReceived
    on_writable: Callable[[Link], None]
    on_connected: Callable[[Link], None]
    on_authenticated: Callable[[StreamLink], None]
    on_closed: Callable[[StreamLink], None]


class StreamLink:
    """One way to one remote over a stream, and the endpoint that the WireGuard core stores for it.

    A link of the dialling side outlives its streams: `attach` gives it the next one. While it has none, datagrams are
    lost, as on a network: whoever is told `on_connected` begins with a fresh handshake initiation, and a second one
    that had waited would reach the remote in the same instant and be refused as a flood.

    Args:
        address: The remote.
        framing: Which framing the streams carry.
        callbacks: What to report to.
        dialled: Whether this side makes its streams, and will make the next one.
    """

    def __init__(self, address: StreamAddress, framing: Framing, callbacks: LinkCallbacks, *, dialled: bool) -> None:
        self.address = address
        self.dialled = dialled
        self.writable = False
        self.authenticated = False
        self._framing = framing
        self._codec = codec_for(framing)
        self._header_length = self._codec.header_length
        self._callbacks = callbacks
        self._loop = asyncio.get_running_loop()
        self._max_send = MAX_SEND if isinstance(address, VsockAddress) else _UNLIMITED
        self._socket: socket.socket | None = None
        self._decoder = FrameDecoder(framing)
        self._buffer = memoryview(bytearray(SEND_BUFFER_SIZE))
        self._start = 0  # the first byte that the kernel has not taken
        self._end = 0  # behind the last committed byte
        self._watchdog: asyncio.TimerHandle | None = None
        self._progress_at = 0.0  # when the blocked stream last took a byte

    def __repr__(self) -> str:
        return f"<StreamLink {self.address} {'connected' if self._socket else 'disconnected'}>"

    @property
    def connected(self) -> bool:
        """Whether there is a stream now."""
        return self._socket is not None

    # The way out.

    def reserve(self, size: int) -> memoryview | None:
        """See `Link.reserve`."""
        if self._socket is None:
            return None
        room = self._end + self._header_length
        if room + size > SEND_BUFFER_SIZE:
            if not self._start or room + size - self._start > SEND_BUFFER_SIZE:
                return None
            self._move_to_front()
            room = self._end + self._header_length
        return self._buffer[room : room + size]

    def commit(self, length: int) -> None:
        """See `Link.commit`; a datagram that the framing cannot carry is dropped, as one over the MTU of a network."""
        if 0 < length <= self._codec.max_datagram:
            self._codec.write_header(self._buffer, self._end, length)
            self._end += self._header_length + length

    def flush(self) -> None:
        """See `Link.flush`."""
        if self.writable and self._end and self._socket is not None:
            self._send(self._socket)

    def _send(self, sock: socket.socket) -> None:
        """Send until the buffer is empty or the kernel takes no more."""
        start, end, step = self._start, self._end, self._max_send
        try:
            while start < end:
                stop = min(end, start + step)
                start += sock.send(self._buffer[start:stop])
                if start < stop:
                    break
        except BlockingIOError:
            pass
        except OSError as error:
            self.close(error.strerror or str(error))
            return
        if start == end:
            self._start = self._end = 0
            if not self.writable:
                self._unblock(sock)
        else:
            progressed = start > self._start
            self._start = start
            self._block(sock, progressed=progressed)

    def _block(self, sock: socket.socket, *, progressed: bool) -> None:
        if progressed or self.writable:
            self._progress_at = self._loop.time()
        if self.writable:
            self.writable = False
            self._loop.add_writer(sock, self._send, sock)
            if self._watchdog is None:
                self._watchdog = self._loop.call_later(STALL_TIMEOUT, self._check_stall)

    def _unblock(self, sock: socket.socket) -> None:
        self._loop.remove_writer(sock)
        self.writable = True
        self._callbacks.on_writable(self)

    def _check_stall(self) -> None:
        """Runs at most once in `STALL_TIMEOUT`, however often the stream blocks: the timer is left to lapse."""
        self._watchdog = None
        if self.writable or self._socket is None:
            return
        stalled = self._loop.time() - self._progress_at
        if stalled >= STALL_TIMEOUT:
            self.close(f"it took no byte in {STALL_TIMEOUT:g} s")
        else:
            self._watchdog = self._loop.call_later(STALL_TIMEOUT - stalled, self._check_stall)

    def _move_to_front(self) -> None:
        pending = self._end - self._start
        self._buffer[:pending] = self._buffer[self._start : self._end]
        self._start, self._end = 0, pending

    # The way in.

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
            self._callbacks.on_authenticated(self)

    # The stream's life.

    def attach(self, sock: socket.socket) -> None:
        """Carry datagrams over this connected, non-blocking socket from now on; the link owns it."""
        self._socket = sock
        self._decoder = FrameDecoder(self._framing)
        self.authenticated = False
        self.writable = True
        self._loop.add_reader(sock, self._receive, sock)
        self._callbacks.on_writable(self)
        if self._socket is not None:
            self._callbacks.on_connected(self)

    def close(self, why: str) -> None:
        """Close the stream, if there is one, and report it; what was not sent is lost."""
        sock, self._socket = self._socket, None
        if sock is None:
            return
        _log.info("stream %s closed: %s", self.address, why)
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        self._loop.remove_reader(sock)
        self._loop.remove_writer(sock)
        sock.close()
        self._start = self._end = 0
        self.writable = False
        self._callbacks.on_closed(self)
