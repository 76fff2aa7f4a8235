import asyncio
import errno
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest

from wgvsock.addresses import Cid, Port, StreamAddress, UnixAddress, VsockAddress
from wgvsock.framing import MAX_COMPAT_DATAGRAM, MAX_NATIVE_DATAGRAM, RECEIVE_BUFFER_SIZE, Framing
from wgvsock.testing import without_waiting
from wgvsock.transports.base import Link
from wgvsock.transports.link import SEND_BUFFER_SIZE, STALL_TIMEOUT, LinkCallbacks, StreamLink
from wgvsock.transports.sockets import PRESSURE_PAUSE
from wgvsock.transports.vsock import MAX_SEND

REMOTE = UnixAddress("/remote")


@dataclass
class Recorder:
    """What a link reported, in order."""

    datagrams: list[bytes] = field(default_factory=list)
    events: list[str] = field(default_factory=list)

    def callbacks(self) -> LinkCallbacks:
        return LinkCallbacks(
            on_datagrams=self.received,
            on_writable=lambda _: self.events.append("writable"),
            on_connected=lambda _: self.events.append("connected"),
            on_authenticated=lambda _: self.events.append("authenticated"),
            on_closed=lambda _: self.events.append("closed"),
        )

    def received(self, _link: Link, datagrams: list[memoryview]) -> None:
        self.datagrams += [bytes(datagram) for datagram in datagrams]


@pytest.fixture
def wire() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        yield ours, theirs


def make_link(
    recorder: Recorder, *, address: StreamAddress = REMOTE, framing: Framing = Framing.NATIVE, dialled: bool = True
) -> StreamLink:
    return StreamLink(address, framing, recorder.callbacks(), dialled=dialled)


def put(link: StreamLink, datagram: bytes) -> bool:
    room = link.reserve(len(datagram))
    if room is None:
        return False
    room[: len(datagram)] = datagram
    link.commit(len(datagram))
    return True


def fill(link: StreamLink) -> None:
    """Send until the kernel accepts no more."""
    while link.writable:
        assert put(link, bytes(50_000))
        link.flush()


def take(sock: socket.socket) -> bytes:
    """Return everything that is waiting."""
    data = b""
    while True:
        try:
            piece = sock.recv(1 << 20)
        except BlockingIOError:
            return data
        if not piece:
            return data
        data += piece


async def turn(times: int = 3) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


@without_waiting
async def test_datagrams_of_a_batch_leave_together(wire: tuple[socket.socket, socket.socket]) -> None:
    link = make_link(Recorder())
    link.attach(wire[0])
    assert put(link, b"one")
    assert put(link, b"three")
    assert take(wire[1]) == b""
    link.flush()
    assert take(wire[1]) == b"\0\0\0\3one\0\0\0\5three"
    link.close("done")


@without_waiting
async def test_a_reservation_can_be_taken_back_or_shortened(wire: tuple[socket.socket, socket.socket]) -> None:
    link = make_link(Recorder())
    link.attach(wire[0])
    room = link.reserve(100)
    assert room is not None
    assert len(room) == 100
    link.commit(0)
    room = link.reserve(100)
    assert room is not None
    room[:2] = b"ok"
    link.commit(2)
    link.flush()
    assert take(wire[1]) == b"\0\0\0\2ok"
    link.close("done")


@without_waiting
async def test_both_framings_arrive(wire: tuple[socket.socket, socket.socket]) -> None:
    recorder = Recorder()
    sender, receiver = (make_link(r, framing=Framing.COMPAT) for r in (Recorder(), recorder))
    sender.attach(wire[0])
    receiver.attach(wire[1])
    for datagram in (b"first", b"second"):
        put(sender, datagram)
    sender.flush()
    await turn()
    assert recorder.datagrams == [b"first", b"second"]
    sender.close("done")
    receiver.close("done")


@without_waiting
async def test_backpressure_stops_and_resumes_and_loses_nothing(wire: tuple[socket.socket, socket.socket]) -> None:
    recorder, delivered = Recorder(), Recorder()
    sender, receiver = make_link(recorder), make_link(delivered)
    sender.attach(wire[0])
    recorder.events.clear()
    sent = 0
    while sender.writable:
        assert put(sender, sent.to_bytes(4, "big") * 10_000)
        sender.flush()
        sent += 1
    assert put(sender, b"while blocked")
    sender.flush()
    assert recorder.events == []
    receiver.attach(wire[1])
    while not sender.writable:
        await turn()
    await turn(10)
    assert recorder.events == ["writable"]
    assert delivered.datagrams == [n.to_bytes(4, "big") * 10_000 for n in range(sent)] + [b"while blocked"]
    sender.close("done")
    receiver.close("done")


@without_waiting
async def test_the_send_buffer_is_bounded_and_usable_to_its_end(wire: tuple[socket.socket, socket.socket]) -> None:
    recorder, delivered = Recorder(), Recorder()
    link, receiver = make_link(recorder), make_link(delivered)
    link.attach(wire[0])
    fill(link)
    pending = 0
    while put(link, bytes(10_000)):
        pending += 10_000
        assert pending <= SEND_BUFFER_SIZE
    assert SEND_BUFFER_SIZE - pending < 100_000
    # The kernel takes a part, so there is room again: what is left moves to the front of the buffer.
    wire[1].recv(1 << 20)
    await turn()
    assert put(link, b"x" * 40_000)
    assert take(wire[1])
    link.close("done")
    receiver.close("never connected")


@without_waiting
async def test_a_vsock_stream_gets_small_sends_only() -> None:
    class Socket(socket.socket):
        sizes: list[int] = []  # noqa: RUF012  # of the one instance

        def send(self, data: memoryview, flags: int = 0) -> int:  # type: ignore[override]
            self.sizes.append(len(data))
            return super().send(data, flags)

    ours, theirs = socket.socketpair()
    with theirs:
        watched = Socket(fileno=ours.detach())
        watched.setblocking(False)
        link = make_link(Recorder(), address=VsockAddress(Cid(16), Port(51820)))
        link.attach(watched)
        put(link, bytes(MAX_NATIVE_DATAGRAM))
        link.flush()
        assert len(take_blocking(theirs, MAX_NATIVE_DATAGRAM + 4)) == MAX_NATIVE_DATAGRAM + 4
        assert max(watched.sizes) == MAX_SEND
        link.close("done")


def take_blocking(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += sock.recv(size - len(data))
    return data


@without_waiting
async def test_a_stream_that_takes_nothing_is_given_up(wire: tuple[socket.socket, socket.socket]) -> None:
    recorder = Recorder()
    link = make_link(recorder)
    link.attach(wire[0])
    fill(link)
    await asyncio.sleep(STALL_TIMEOUT - 0.1)
    assert "closed" not in recorder.events
    await asyncio.sleep(0.2)
    assert recorder.events[-1] == "closed"
    assert not link.connected
    assert not link.writable


@without_waiting
async def test_a_slow_stream_is_not_given_up(wire: tuple[socket.socket, socket.socket]) -> None:
    recorder = Recorder()
    link = make_link(recorder)
    link.attach(wire[0])
    fill(link)
    for _ in range(5):
        await asyncio.sleep(STALL_TIMEOUT - 1)
        take(wire[1])
        await turn()
        fill(link)
    assert "closed" not in recorder.events
    take(wire[1])
    await asyncio.sleep(STALL_TIMEOUT * 3)
    assert "closed" not in recorder.events
    link.close("done")


@without_waiting
async def test_the_remote_s_end_of_stream_closes(wire: tuple[socket.socket, socket.socket]) -> None:
    recorder = Recorder()
    link = make_link(recorder)
    link.attach(wire[0])
    wire[1].close()
    await turn()
    assert recorder.events == ["writable", "connected", "closed"]
    assert wire[0].fileno() == -1


@without_waiting
async def test_a_broken_frame_closes(wire: tuple[socket.socket, socket.socket]) -> None:
    recorder = Recorder()
    link = make_link(recorder)
    link.attach(wire[0])
    wire[1].send(b"\xff\xff\xff\xff")
    await turn()
    assert recorder.events[-1] == "closed"
    assert recorder.datagrams == []


class FailingSocket(socket.socket):
    """Fails like a stream that was reset, or has no data after all."""

    error = errno.ECONNRESET

    def send(self, *_: object) -> int:
        raise OSError(self.error, "as the test says")

    def recv_into(self, *_: object) -> int:
        raise OSError(self.error, "as the test says")


class PoorSocket(socket.socket):
    """Has no memory for the first sends, as vsock's kernel side may. The last codes stay."""

    codes: list[int]
    attempts: list[float]

    def send(self, data: memoryview, flags: int = 0) -> int:  # type: ignore[override]
        self.attempts.append(asyncio.get_running_loop().time())
        if self.codes:
            code = self.codes[0] if len(self.codes) == 1 else self.codes.pop(0)
            if code:
                raise OSError(code, "as the test says")
        return super().send(data, flags)


def poor(sock: socket.socket, *codes: int) -> PoorSocket:
    made = PoorSocket(fileno=sock.detach())
    made.setblocking(False)
    made.codes, made.attempts = list(codes), []
    return made


@pytest.mark.parametrize("code", [errno.ENOBUFS, errno.ENOMEM])
def test_a_kernel_without_memory_is_back_pressure(code: int) -> None:
    @without_waiting
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.setblocking(False)
            sock = poor(ours, 0, code, code, errno.EAGAIN, code, 0)
            recorder = Recorder()
            link = make_link(recorder)
            link.attach(sock)
            recorder.events.clear()
            put(link, b"first")
            link.flush()
            put(link, b"second")
            link.flush()
            assert not link.writable
            assert recorder.events == []
            # The socket is writable all along: only the timer may try again, and the event after an EAGAIN.
            await asyncio.sleep(PRESSURE_PAUSE / 2)
            assert len(sock.attempts) == 2
            await asyncio.sleep(1)
            assert [round(b - a, 3) for a, b in pairwise(sock.attempts[1:])] == [0.01, 0.01, 0.0, 0.01]
            assert link.writable
            assert recorder.events == ["writable"]
            assert take(theirs) == b"\0\0\0\5first\0\0\0\6second"
            put(link, b"third")
            link.flush()
            assert take(theirs) == b"\0\0\0\5third"
            link.close("done")

    scenario()


@pytest.mark.parametrize("code", [errno.ENOBUFS, errno.ENOMEM])
def test_a_kernel_that_never_has_memory_again_ends_the_stream(code: int) -> None:
    @without_waiting
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            sock = poor(ours, code)
            recorder = Recorder()
            link = make_link(recorder)
            link.attach(sock)
            put(link, b"x")
            link.flush()
            await asyncio.sleep(STALL_TIMEOUT - 0.1)
            assert recorder.events == ["writable", "connected"]
            await asyncio.sleep(1)
            assert recorder.events[-1] == "closed"
            attempts = len(sock.attempts)
            assert attempts <= STALL_TIMEOUT / PRESSURE_PAUSE + 1
            await asyncio.sleep(1)
            assert len(sock.attempts) == attempts

    scenario()


@pytest.mark.parametrize("code", [errno.ECONNRESET, errno.EPIPE])
@pytest.mark.parametrize("way", ["in", "out"])
def test_an_error_of_the_socket_closes(way: str, code: int) -> None:
    @without_waiting
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            failing = FailingSocket(fileno=ours.detach())
            failing.error = code
            recorder = Recorder()
            link = make_link(recorder)
            link.attach(failing)
            if way == "out":
                put(link, b"x")
                link.flush()
            else:
                theirs.send(b"x")
                await turn()
            assert recorder.events == ["writable", "connected", "closed"]

    scenario()


@without_waiting
async def test_a_spurious_wakeup_is_nothing() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        failing = FailingSocket(fileno=ours.detach())
        failing.error = errno.EAGAIN
        recorder = Recorder()
        link = make_link(recorder)
        link.attach(failing)
        theirs.send(b"x")
        await turn()
        assert recorder.events == ["writable", "connected"]
        link.close("done")


@without_waiting
async def test_while_there_is_no_stream_nothing_is_kept(wire: tuple[socket.socket, socket.socket]) -> None:
    recorder = Recorder()
    link = make_link(recorder)
    assert not link.connected
    assert not link.writable
    assert link.reserve(100) is None
    link.flush()
    link.attach(wire[0])
    assert take(wire[1]) == b""
    assert recorder.events == ["writable", "connected"]
    link.close("done")
    assert link.reserve(100) is None


@without_waiting
async def test_a_datagram_that_the_framing_cannot_carry_is_dropped(wire: tuple[socket.socket, socket.socket]) -> None:
    link = make_link(Recorder(), framing=Framing.COMPAT)
    link.attach(wire[0])
    put(link, bytes(MAX_COMPAT_DATAGRAM + 1))
    link.flush()
    assert take(wire[1]) == b""
    link.close("done")


@without_waiting
async def test_a_stream_that_breaks_as_it_is_reported_writable_is_not_reported_connected() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        recorder = Recorder()
        link = make_link(recorder)

        def write(_link: Link) -> None:
            link.close("the first write failed")

        link = StreamLink(REMOTE, Framing.NATIVE, replace(recorder.callbacks(), on_writable=write), dialled=True)
        link.attach(ours)
        assert recorder.events == ["closed"]


@without_waiting
async def test_the_next_stream_starts_clean(wire: tuple[socket.socket, socket.socket]) -> None:
    recorder = Recorder()
    link = make_link(recorder)
    link.attach(wire[0])
    link.mark_authenticated()
    wire[1].send(b"\0\0\0\x09half of")
    fill(link)
    await turn()
    link.close("test")
    recorder.events.clear()
    ours, theirs = socket.socketpair()
    with theirs:
        ours.setblocking(False)
        link.attach(ours)
        assert not link.authenticated
        assert recorder.events == ["writable", "connected"]
        theirs.send(b"\0\0\0\4whole"[:8])
        await turn()
        assert recorder.datagrams == [b"whol"]
        put(link, b"new")
        link.flush()
        theirs.setblocking(False)
        assert take(theirs) == b"\0\0\0\3new"
        link.close("done")


@without_waiting
async def test_each_stream_has_a_number_of_its_own(wire: tuple[socket.socket, socket.socket]) -> None:
    first, second = make_link(Recorder(), dialled=False), make_link(Recorder())
    first.attach(wire[0])
    second.attach(wire[1])
    numbers = [first.stream, second.stream]
    second.close("done")
    ours, theirs = socket.socketpair()
    with theirs:
        second.attach(ours)
        numbers.append(second.stream)
        assert len(set(numbers)) == 3
        first.close("done")
        second.close("done")


@without_waiting
async def test_who_dialled_us_is_trusted_when_he_has_proved_himself(wire: tuple[socket.socket, socket.socket]) -> None:
    dialled, accepted = make_link(Recorder()), make_link(Recorder(), dialled=False)
    dialled.attach(wire[0])
    accepted.attach(wire[1])
    assert (dialled.trusted, accepted.trusted) == (True, False)
    accepted.mark_authenticated()
    assert accepted.trusted
    dialled.close("done")
    accepted.close("done")


@without_waiting
async def test_a_stranger_s_stream_carries_whole_frames_and_grows_when_he_has_proved_himself(
    wire: tuple[socket.socket, socket.socket],
) -> None:
    recorder = Recorder()
    link, sender = make_link(recorder, dialled=False), make_link(Recorder())
    link.attach(wire[0])
    sender.attach(wire[1])
    sent = [b"x" * MAX_NATIVE_DATAGRAM, b"y" * 50_000, b"z" * MAX_NATIVE_DATAGRAM]
    for datagram in sent:
        assert put(sender, datagram)
    sender.flush()
    while not recorder.datagrams:
        await turn(1)
    link.mark_authenticated()  # with half a frame in the buffer
    while len(recorder.datagrams) < len(sent):
        await turn(1)
    assert recorder.datagrams == sent
    assert len(link._decoder.receive_buffer()) == RECEIVE_BUFFER_SIZE
    link.close("done")
    sender.close("done")


@without_waiting
async def test_authentication_is_reported_once(wire: tuple[socket.socket, socket.socket]) -> None:
    recorder = Recorder()
    link = make_link(recorder)
    link.attach(wire[0])
    link.mark_authenticated()
    link.mark_authenticated()
    assert recorder.events.count("authenticated") == 1
    link.close("done")
    link.close("again")
    assert recorder.events.count("closed") == 1


@without_waiting
async def test_text_names_the_remote_and_the_state(wire: tuple[socket.socket, socket.socket]) -> None:
    link = make_link(Recorder())
    assert repr(link) == "<StreamLink unix:/remote disconnected>"
    link.attach(wire[0])
    assert repr(link) == "<StreamLink unix:/remote connected>"
    link.close("done")
