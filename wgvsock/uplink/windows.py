"""Adds window scaling (RFC 7323, section 2) to libslirp, which has none.

libslirp 4.7 advertises at most 65,535 bytes. It also sends no window update when its buffer has drained: with segments
of more than half a window, the condition for one in its `tcp_output` is never true. An enclave that sends to a slow
receiver then waits for its window probes, hundreds of milliseconds each. So the engine does both:

* It advertises `HOLD` bytes more than libslirp does, and queues segments that libslirp does not accept yet.
* When a socket accepts data again, it probes libslirp for its window, and the enclave receives the update.

A flow exists from its SYN until libslirp closes its socket, so there are no more flows than sockets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from wgvsock.checksum import changed_checksum, internet_checksum

SHIFT: Final = 2
"""Shift of the window that is advertised to the enclave."""

HOLD: Final = (65_535 << SHIFT) - 65_535
"""Bytes after the stack's window that are queued for one connection: the most that a 16-bit window can express with
that shift. The first queued segment can begin before the end of the stack's window."""

MAX_HELD: Final = 32 << 20
"""Bytes that are queued for all connections, enough for 120 slow receivers. Others are dropped, and sent again."""

_OVERHEAD: Final = 200
"""Bytes of memory for a queued segment beside its data, so that small segments are bounded too."""

_TCP: Final = 6
_FIN, _SYN, _RST, _ACK = 0x01, 0x02, 0x04, 0x10
_SCALE: Final = 3
_HALF: Final = 1 << 31
_MASK: Final = (1 << 32) - 1
_FULL: Final = 65_535

ITSELF: Final = (0, 0)
"""Stands for the relay as the client, which connects through a Unix socket."""

HEAD: Final = 100
"""Bytes of a packet that `Windows.gives` has to see: the longest headers of IPv6 and TCP."""


class _Flow:
    """One connection.

    Attributes:
        fd: Descriptor of the stack's socket.
        shift: The enclave's window shift, or None if it does not scale.
        scaled: Whether both ends have agreed to scale.
        ack: The stack's latest acknowledgement number, or None if it has not sent any.
        edge: The end of the stack's window, as a sequence number.
        head: The enclave's latest IP and TCP header, without options.
        passed: The enclave's latest acknowledgement number that the stack has received.
        called: Whether a client of a published port began the connection.
        own: Whether the relay itself began it, to read the agent's reports.
        held: The queued segments in order, each with its first and last sequence number.
    """

    __slots__ = ("ack", "called", "edge", "fd", "head", "held", "own", "passed", "scaled", "shift")

    def __init__(self, fd: int, shift: int | None, *, called: bool = False, own: bool = False) -> None:
        self.fd = fd
        self.called = called
        self.own = own
        self.shift = shift
        self.scaled = False
        self.ack: int | None = None
        self.edge = 0
        self.head = b""
        self.passed = b""
        self.held: deque[tuple[int, int, bytes]] = deque()


class Windows:
    """The flows of one stack.

    Args:
        put: Passes a packet of the enclave to the stack. `gives` does not call it.
        caller: Returns IP version and port of a socket's peer, or `ITSELF`, or None if it has no peer.

    Attributes:
        held: Bytes of memory for queued segments.
    """

    def __init__(self, put: Callable[[bytes], None], caller: Callable[[int], tuple[int, int] | None]) -> None:
        self.held = 0
        self._put = put
        self._caller = caller
        self._called: dict[tuple[int, int], int] = {}  # clients' sockets, until the stack sends their SYN
        self._flows: dict[bytes, _Flow] = {}
        self._keys: dict[int, bytes] = {}
        self._beginning: tuple[bytes, int | None] | None = None  # the enclave's SYN that the stack processes now
        self._ready: list[_Flow] = []
        self._probed: _Flow | None = None

    @property
    def connections(self) -> int:
        """Number of TCP connections, without the relay's own."""
        return sum(not flow.own for flow in self._flows.values())

    # The stack's sockets.

    def opened(self, fd: int) -> None:
        """Note a socket that the stack has opened, for the SYN that it processes or one that it is about to send."""
        if self._beginning is not None:
            (key, shift), self._beginning = self._beginning, None
            self._add(key, _Flow(fd, shift))
        elif (caller := self._caller(fd)) is not None:
            self._called[caller] = fd

    def closed(self, fd: int) -> None:
        """Forget a socket that the stack closes."""
        if (key := self._keys.pop(fd, None)) is not None:
            self._forget(self._flows.pop(key))
        elif self._called:
            self._called = {caller: other for caller, other in self._called.items() if other != fd}

    def end(self, address: bytes, port: int) -> list[bytes]:
        """Reset the connections of a published port, as the enclave would.

        Args:
            address: The enclave's address, packed.
            port: The enclave's port.

        Returns:
            The resets for the enclave, as packets.
        """
        at = len(address)
        return self._end(
            flow
            for key, flow in self._flows.items()
            if flow.called and key[:at] == address and int.from_bytes(key[2 * at : 2 * at + 2], "big") == port
        )

    def end_all(self) -> list[bytes]:
        """Reset all connections. Returns the resets for the enclave, as packets."""
        return self._end(self._flows.values())

    def _end(self, flows: Iterable[_Flow]) -> list[bytes]:
        told: list[bytes] = []
        for flow in tuple(flows):
            if flow.ack is not None and flow.head:
                told.append(_reset(flow.head))
                self._put(_bare(flow.head, flow.ack, flags=_RST | _ACK))
        return told

    def drained(self, fds: Iterable[int]) -> None:
        """Probe the windows that were not fully open, of sockets that have accepted data."""
        for fd in fds:
            if (key := self._keys.get(fd)) is None:
                continue
            flow = self._flows[key]
            if flow.ack is not None and flow.head and flow.edge - flow.ack & _MASK < _FULL:
                self._probed = flow
                # Old and of another window: no acknowledgement that would be counted as a duplicate.
                self._put(_bare(flow.head, flow.ack - 1 & _MASK, other_window=True))
                self._probed = None
        self.feed()

    # The enclave's packets.

    def keeps(self, packet: memoryview) -> bool:
        """Process a plain packet of the enclave before the stack receives it, and unscale its window in place.

        Returns:
            Whether the packet was queued, so that the stack must not receive it now.
        """
        self._beginning = None
        if (at := _transport(packet)) == 0:
            return False
        key = bytes(packet[at - (8 if at == 20 else 32) : at + 4])
        flags = packet[at + 13]
        flow = self._flows.get(key)
        if flags & _SYN:
            self._begins(packet, at, key, flow)
            return False
        if flow is None:
            return False
        if flow.scaled and flow.shift:
            window = min(_FULL, int.from_bytes(packet[at + 14 : at + 16], "big") << flow.shift)
            _patch(packet, at + 14, window.to_bytes(2, "big"), at + 16)
        flow.head = bytes(packet[: at + 20])
        payload = len(packet) - at - max(20, (packet[at + 12] >> 4) * 4)
        if flow.ack is None or not flow.scaled or payload < 0:
            return False
        begin = int.from_bytes(packet[at + 4 : at + 8], "big")
        if not payload and not flags & _FIN:
            if flow.held and 0 < begin - flow.ack & _MASK < _HALF:  # not in the stack's window yet, and says more
                _patch(packet, at + 4, flow.ack.to_bytes(4, "big"), at + 16)
            flow.passed = flow.head[at + 8 : at + 12]
            return False
        end = begin + payload & _MASK
        if flow.held:
            if begin - flow.held[0][0] & _MASK >= _HALF:  # sent again: the stack has had it
                return False
        elif flow.edge - end & _MASK < _HALF:
            flow.passed = flow.head[at + 8 : at + 12]
            return False
        self._keep(flow, begin, end, bytes(packet))
        if flow.head[at + 8 : at + 12] != flow.passed:  # what it acknowledges does not wait
            flow.passed = flow.head[at + 8 : at + 12]
            self._put(_bare(flow.head, flow.ack))
        return True

    def feed(self) -> None:
        """Pass queued segments that fit into the window to the stack. To be called after each call of the stack."""
        self._beginning = None
        while self._ready:
            flow = self._ready.pop()
            while flow.held and flow.edge - flow.held[0][1] & _MASK < _HALF:
                _, _, packet = flow.held.popleft()
                self.held -= len(packet) + _OVERHEAD
                self._put(packet)

    # The stack's packets.

    def gives(self, head: bytes) -> bytes | None:
        """Process a packet from the stack.

        Args:
            head: The packet's first bytes, up to `HEAD`.

        Returns:
            The bytes to send in their place. They are longer if an option was added to a SYN. None if the packet
            answers a probe and has no news.
        """
        if (at := _transport(head)) == 0:
            return head
        addresses = head[16:20] + head[12:16] if at == 20 else head[24:40] + head[8:24]
        key = addresses + head[at + 2 : at + 4] + head[at : at + 2]
        flags = head[at + 13]
        if flags & _SYN and not flags & _ACK:  # for a client of a published port, perhaps once more
            caller = (head[0] >> 4, int.from_bytes(head[at : at + 2], "big"))
            fd = self._called.pop(caller, None)
            if own := fd is None:
                fd = self._called.pop(ITSELF, None)
            if fd is not None:
                self._add(key, _Flow(fd, None, called=True, own=own))
        flow = self._flows.get(key)
        if flow is None or flags & _RST:
            return head
        moved = self._moves(flow, head, at) if flags & _ACK else False
        if flags & _SYN:
            if flags & _ACK and flow.shift is None:
                return head
            flow.scaled = bool(flags & _ACK)
            return _with_scale(head, at)
        if flow is self._probed and not moved and _is_empty(head, at):
            return None
        if not flow.scaled or flow.ack is None:
            return head
        changed = bytearray(head)
        window = min(_FULL, (flow.edge - flow.ack & _MASK) + HOLD >> SHIFT)
        _patch(memoryview(changed), at + 14, window.to_bytes(2, "big"), at + 16)
        return bytes(changed)

    # Parts of those.

    def _add(self, key: bytes, flow: _Flow) -> None:
        if (old := self._flows.get(key)) is not None:  # of which the stack is not done yet
            del self._keys[old.fd]
            self._forget(old)
        self._flows[key] = flow
        self._keys[flow.fd] = key

    def _forget(self, flow: _Flow) -> None:
        self.held -= sum(len(packet) + _OVERHEAD for _, _, packet in flow.held)
        flow.held.clear()

    def _begins(self, packet: memoryview, at: int, key: bytes, flow: _Flow | None) -> None:
        shift = _scale_of(bytes(packet[at + 20 : at + (packet[at + 12] >> 4) * 4]))
        if not packet[at + 13] & _ACK:
            self._beginning = (key, shift)
        elif flow is not None:
            flow.shift, flow.scaled = shift, shift is not None
            flow.head = bytes(packet[: at + 20])

    def _keep(self, flow: _Flow, begin: int, end: int, packet: bytes) -> None:
        """What is kept already, comes out of order or is too much is lost here, and sent again."""
        offered = end - flow.edge & _MASK <= HOLD
        held = self.held + len(packet) + _OVERHEAD
        if offered and held <= MAX_HELD and (not flow.held or begin == flow.held[-1][1]):
            flow.held.append((begin, end, packet))
            self.held = held

    def _moves(self, flow: _Flow, head: bytes, at: int) -> bool:
        """Note acknowledgement and window. Returns whether the window ends later than before."""
        ack = int.from_bytes(head[at + 8 : at + 12], "big")
        edge = ack + int.from_bytes(head[at + 14 : at + 16], "big") & _MASK
        first = flow.ack is None
        flow.ack = ack
        if first or 0 < edge - flow.edge & _MASK < _HALF:
            flow.edge = edge
            if flow.held:
                self._ready.append(flow)
            return True
        return False


def _transport(packet: memoryview | bytes) -> int:
    """Offset of the TCP header in a plain packet, or 0 if it has none."""
    if packet[0] >> 4 == 4:
        return 20 if packet[9] == _TCP else 0
    return 40 if packet[6] == _TCP else 0


def _is_empty(head: bytes, at: int) -> bool:
    """Whether a segment has neither data nor an end."""
    whole = int.from_bytes(head[2:4], "big") if at == 20 else 40 + int.from_bytes(head[4:6], "big")
    return whole == at + (head[at + 12] >> 4) * 4 and not head[at + 13] & _FIN


def _scale_of(options: bytes) -> int | None:
    """The window shift in the options of a SYN, at most 14 (RFC 7323, section 2.3), or None if there is none."""
    at = 0
    while at < len(options) and options[at]:
        if options[at] == 1:
            at += 1
            continue
        length = options[at + 1] if at + 1 < len(options) else 0
        if length < 2:
            break
        if options[at] == _SCALE and length == 3 and at + 2 < len(options):
            return min(options[at + 2], 14)
        at += length
    return None


def _patch(packet: memoryview, at: int, new: bytes, checksum_at: int) -> None:
    """Change words in a TCP header, and its checksum with them."""
    old = bytes(packet[at : at + len(new)])
    if old == new:
        return
    packet[at : at + len(new)] = new
    checksum = changed_checksum(packet[checksum_at : checksum_at + 2], old, new)
    packet[checksum_at : checksum_at + 2] = checksum.to_bytes(2, "big")


def _sealed(packet: bytearray, at: int) -> bytes:
    """A packet of another length, with its lengths and checksums."""
    if at == 20:
        packet[2:4] = len(packet).to_bytes(2, "big")
        packet[10:12] = bytes(2)
        packet[10:12] = internet_checksum(bytes(packet[:20])).to_bytes(2, "big")
        addresses = packet[12:20]
    else:
        packet[4:6] = (len(packet) - 40).to_bytes(2, "big")
        addresses = packet[8:40]
    packet[at + 16 : at + 18] = bytes(2)
    pseudo = addresses + (len(packet) - at).to_bytes(4, "big") + _TCP.to_bytes(4, "big")
    packet[at + 16 : at + 18] = internet_checksum(bytes(pseudo + packet[at:])).to_bytes(2, "big")
    return bytes(packet)


def _with_scale(syn: bytes, at: int) -> bytes:
    """A SYN with the option, and one byte of padding in front."""
    packet = bytearray(syn + bytes((1, _SCALE, 3, SHIFT)))
    packet[at + 12] += 1 << 4
    return _sealed(packet, at)


def _bare(head: bytes, sequence: int, *, other_window: bool = False, flags: int = _ACK) -> bytes:
    """An acknowledgement and nothing else, like a segment with this header."""
    packet = bytearray(head)
    at = len(head) - 20
    packet[at + 4 : at + 8] = sequence.to_bytes(4, "big")
    packet[at + 12], packet[at + 13] = 5 << 4, flags
    packet[at + 15] ^= other_window
    packet[at + 18 : at + 20] = bytes(2)
    return _sealed(packet, at)


def _reset(head: bytes) -> bytes:
    """What ends a connection for the enclave that has sent this header last."""
    packet, at = bytearray(head), len(head) - 20
    source, size = at - (8 if at == 20 else 32), 4 if at == 20 else 16
    packet[source:at] = head[source + size : at] + head[source : source + size]
    packet[at : at + 4] = head[at + 2 : at + 4] + head[at : at + 2]
    packet[at + 4 : at + 12] = head[at + 8 : at + 12] + bytes(4)  # what it has acknowledged is what it waits for
    packet[at + 12], packet[at + 13] = 5 << 4, _RST
    packet[at + 14 : at + 16] = packet[at + 18 : at + 20] = bytes(2)
    return _sealed(packet, at)
