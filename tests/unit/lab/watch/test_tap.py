from __future__ import annotations

import asyncio
import io
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from lab.errors import LabError
from lab.guest.packets import PcapReader
from lab.watch import tap as tap_module
from lab.watch.tap import PSEUDO_HEADER, Kind, Recording, Tap, TapControl, TapRoute, _Connection
from wgvsock.addresses import Cid, HybridVsockAddress, Port, UnixAddress, VsockAddress

ROUTE = TapRoute(51820, UnixAddress("/relay-side"), UnixAddress("/enclave-side"))


@pytest.fixture
def recording() -> Recording:
    ticks = iter(range(1, 1000))
    return Recording(io.BytesIO(), clock=lambda: float(next(ticks)))


def records(recording: Recording) -> list[tuple[Kind, bytes]]:
    stream = io.BytesIO(recording._stream.getvalue())  # type: ignore[attr-defined]
    return [(Kind(PSEUDO_HEADER.unpack_from(r)[2]), r[PSEUDO_HEADER.size :]) for _, r in PcapReader(stream).records()]


class Joined:
    """A tap's connection between two socket pairs: `relay` and `enclave` are the outer ends."""

    def __init__(self, relay: socket.socket, enclave: socket.socket) -> None:
        self.relay, self.enclave = relay, enclave

    async def send(self, sock: socket.socket, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(sock, data)

    async def receive(self, sock: socket.socket, size: int = 65536) -> bytes:
        async with asyncio.timeout(10):
            return await asyncio.get_running_loop().sock_recv(sock, size)


@asynccontextmanager
async def joined(
    tap: Tap,
    monkeypatch: pytest.MonkeyPatch,
    dialled: list[object] | None = None,
    reachable: asyncio.Event | None = None,
) -> AsyncIterator[Joined]:
    relay, relay_inner = socket.socketpair()
    enclave, enclave_inner = socket.socketpair()
    for sock in (relay, enclave, relay_inner, enclave_inner):
        sock.setblocking(False)

    async def connect(address: object) -> socket.socket:
        if dialled is not None:
            dialled.append(address)
        if reachable is not None:
            await reachable.wait()
        return enclave_inner

    monkeypatch.setattr(tap_module, "dial", connect)
    connection = _Connection(tap, ROUTE)
    await asyncio.get_running_loop().create_connection(lambda: connection.relay, sock=relay_inner)
    try:
        yield Joined(relay, enclave)
    finally:
        connection.close()
        relay.close()
        enclave.close()
        await asyncio.sleep(0)


def silent(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b"nothing may come"
    except BlockingIOError:
        return True


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.asyncio
async def test_both_directions_pass_and_are_recorded(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    tap = Tap([ROUTE], recording)
    async with joined(tap, monkeypatch) as ends:
        await ends.send(ends.relay, b"to the enclave")
        assert await ends.receive(ends.enclave) == b"to the enclave"
        await ends.send(ends.enclave, b"to the relay")
        assert await ends.receive(ends.relay) == b"to the relay"
        assert tap.status()["connections"] == [{"number": 1, "port": 51820}]
    assert records(recording) == [
        (Kind.OPENED, b""),
        (Kind.TO_ENCLAVE, b"to the enclave"),
        (Kind.TO_RELAY, b"to the relay"),
        (Kind.CLOSED, b""),
    ]
    assert recording.bytes == len(b"to the enclave" + b"to the relay")


@pytest.mark.asyncio
async def test_what_the_relay_says_before_the_enclave_is_reached_is_kept(
    recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    reachable = asyncio.Event()
    async with joined(Tap([ROUTE], recording), monkeypatch, reachable=reachable) as ends:
        await ends.send(ends.relay, b"at once")
        await settle()
        assert records(recording) == []
        reachable.set()
        assert await ends.receive(ends.enclave) == b"at once"
    assert records(recording)[:2] == [(Kind.OPENED, b""), (Kind.TO_ENCLAVE, b"at once")]


@pytest.mark.asyncio
async def test_one_end_closing_closes_the_other(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    tap = Tap([ROUTE], recording)
    async with joined(tap, monkeypatch) as ends:
        await ends.send(ends.relay, b"x")
        await ends.receive(ends.enclave)
        ends.relay.close()
        assert await ends.receive(ends.enclave) == b""
        assert tap.status()["connections"] == []


@pytest.mark.asyncio
async def test_stall_stops_reading_until_resume(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    tap = Tap([ROUTE], recording)
    async with joined(tap, monkeypatch) as ends:
        await ends.send(ends.relay, b"before")
        await ends.receive(ends.enclave)
        tap.command({"verb": "stall"})
        await ends.send(ends.relay, b"after")
        await settle()
        assert silent(ends.enclave)
        assert tap.status()["faults"] == ["stall"]
        tap.command({"verb": "resume"})
        assert await ends.receive(ends.enclave) == b"after"


@pytest.mark.asyncio
async def test_hold_swallows_and_resume_lets_go_in_order(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    tap = Tap([ROUTE], recording)
    async with joined(tap, monkeypatch) as ends:
        tap.command({"verb": "hold"})
        for part in (b"one ", b"two ", b"three"):
            await ends.send(ends.relay, part)
            await settle()
        assert silent(ends.enclave)
        tap.command({"verb": "resume"})
        received = b""
        while len(received) < 13:
            received += await ends.receive(ends.enclave)
        assert received == b"one two three"


@pytest.mark.asyncio
async def test_delay_keeps_order(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    tap = Tap([ROUTE], recording)
    async with joined(tap, monkeypatch) as ends:
        loop = asyncio.get_running_loop()
        tap.command({"verb": "delay", "seconds": 0.02})
        begin = loop.time()
        await ends.send(ends.relay, b"a")
        await settle()
        await ends.send(ends.relay, b"b")
        received = b""
        while len(received) < 2:
            received += await ends.receive(ends.enclave)
        assert received == b"ab"
        assert loop.time() - begin >= 0.02


@pytest.mark.asyncio
async def test_flip_changes_one_bit_once(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    tap = Tap([ROUTE], recording)
    async with joined(tap, monkeypatch) as ends:
        tap.command({"verb": "flip", "port": None, "to": "enclave", "offset": 2})
        await ends.send(ends.relay, b"ab")  # too short for the offset
        assert await ends.receive(ends.enclave) == b"ab"
        await ends.send(ends.relay, b"abc")
        assert await ends.receive(ends.enclave) == b"abb"
        await ends.send(ends.relay, b"abc")
        assert await ends.receive(ends.enclave) == b"abc"


@pytest.mark.parametrize(
    ("flip", "data"),
    [
        ({"port": 51821, "to": "enclave"}, b"abc"),
        ({"port": 51820, "to": "relay"}, b"abc"),
        ({"port": 51820, "to": "enclave"}, b"`bc"),
    ],
)
def test_flip_is_for_one_port_and_one_direction(recording: Recording, flip: dict[str, Any], data: bytes) -> None:
    tap = Tap([ROUTE], recording)
    assert tap.command({"verb": "flip", "offset": 0, **flip})["ok"]
    assert tap.damage(51820, Kind.TO_ENCLAVE, b"abc") == data


@pytest.mark.asyncio
async def test_drop_cuts_every_connection(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    tap = Tap([ROUTE], recording)
    async with joined(tap, monkeypatch) as ends:
        await settle()
        tap.command({"verb": "drop"})
        assert await ends.receive(ends.relay) == b""
        assert await ends.receive(ends.enclave) == b""


@pytest.mark.asyncio
async def test_refuse_cuts_at_once(recording: Recording) -> None:
    tap = Tap([ROUTE], recording)
    tap.command({"verb": "refuse"})
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours:
        await asyncio.get_running_loop().create_connection(lambda: tap._accept(ROUTE), sock=theirs)
        assert await asyncio.get_running_loop().sock_recv(ours, 1) == b""


@pytest.mark.asyncio
async def test_an_enclave_that_is_reached_after_the_drop_is_left(
    recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    tap, reachable = Tap([ROUTE], recording), asyncio.Event()
    async with joined(tap, monkeypatch, reachable=reachable) as ends:
        tap.command({"verb": "drop"})
        reachable.set()
        assert await ends.receive(ends.enclave) == b""
    assert records(recording) == []


@pytest.mark.asyncio
async def test_an_enclave_that_does_not_listen_ends_the_dial(
    recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(address: object) -> socket.socket:
        raise ConnectionRefusedError

    monkeypatch.setattr(tap_module, "dial", refuse)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours:
        connection = _Connection(Tap([ROUTE], recording), ROUTE)
        await asyncio.get_running_loop().create_connection(lambda: connection.relay, sock=theirs)
        assert await asyncio.get_running_loop().sock_recv(ours, 1) == b""
    assert records(recording) == []


@pytest.mark.asyncio
async def test_a_slow_receiver_stops_the_sender(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    tap = Tap([ROUTE], recording)
    async with joined(tap, monkeypatch) as ends:
        await ends.send(ends.relay, b"x")
        await ends.receive(ends.enclave)
        sent = 0
        while sent < 64 << 20:
            try:
                sent += ends.relay.send(bytes(1 << 16))
            except BlockingIOError:
                await settle()
                try:
                    sent += ends.relay.send(bytes(1 << 16))
                except BlockingIOError:
                    break
        assert sent < 16 << 20
        received = 0
        while received < sent:
            received += len(await ends.receive(ends.enclave, 1 << 20))
        assert received == sent


@pytest.mark.asyncio
async def test_a_rerouted_port_is_dialled_elsewhere_from_then_on(
    recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    dialled: list[object] = []
    tap = Tap([ROUTE], recording)
    assert tap.command({"verb": "reroute", "port": 51820, "upstream": "unix:/elsewhere"})["ok"]
    async with joined(tap, monkeypatch, dialled) as ends:
        await ends.send(ends.relay, b"data")
        assert await ends.receive(ends.enclave) == b"data"
    assert dialled == [UnixAddress("/elsewhere")]


@pytest.mark.asyncio
async def test_every_user_may_dial_it_as_a_vsock(recording: Recording, tmp_path: Path) -> None:
    listen = tmp_path / "51820"
    tap = Tap([TapRoute(51820, UnixAddress(str(listen)), UnixAddress("/enclave-side"))], recording)
    await tap.start()
    assert listen.stat().st_mode & 0o777 == 0o666
    for server in tap._servers:
        server.close()


def test_recording_can_be_switched_off(recording: Recording) -> None:
    tap = Tap([ROUTE], recording)
    tap.command({"verb": "record", "on": False})
    recording.note(1, 51820, Kind.TO_ENCLAVE, b"unseen")
    assert records(recording) == []
    assert not tap.status()["recording"]


@pytest.mark.parametrize("request_", [{}, {"verb": "explode"}, {"verb": "delay", "seconds": "1"}])
def test_unknown_requests_are_refused(recording: Recording, request_: dict[str, Any]) -> None:
    assert not Tap([ROUTE], recording).command(request_)["ok"]


def test_routes_read_back() -> None:
    text = "51821=unix:/a/51821=hybrid:/b/v.sock:51821"
    assert str(TapRoute.parse(text)) == text


class Answering:
    """The tap's end of a control connection, which records the request and gives one answer."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.ours, self._theirs = socket.socketpair()
        self.request: dict[str, Any] = {}
        self._answer = answer
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with self._theirs, self._theirs.makefile("rwb") as stream:
            self.request = json.loads(stream.readline())
            stream.write(json.dumps(self._answer).encode() + b"\n")

    def join(self) -> None:
        self._thread.join(10)


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TapControl]:
    client = TapControl(UnixAddress(str(tmp_path / "tap.sock")), tmp_path / "vsock.pcap")
    yield client
    client.close()


def ask(
    control: TapControl, monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any], verb: str, **arguments: Any
) -> Any:
    end = Answering(answer)
    monkeypatch.setattr(tap_module, "_control_socket", lambda path: end.ours)
    try:
        result = getattr(control, verb)(**arguments)
    finally:
        end.join()
    return end.request, result


@pytest.mark.parametrize(
    ("verb", "arguments", "request_"),
    [
        ("stall", {}, {"verb": "stall"}),
        ("hold", {}, {"verb": "hold"}),
        ("drop", {}, {"verb": "drop"}),
        ("refuse", {}, {"verb": "refuse"}),
        ("resume", {}, {"verb": "resume"}),
        ("delay", {"seconds": 0.5}, {"verb": "delay", "seconds": 0.5}),
        ("record", {"on": False}, {"verb": "record", "on": False}),
        (
            "reroute",
            {"port": 51820, "upstream": VsockAddress(Cid(17), Port(51820))},
            {"verb": "reroute", "port": 51820, "upstream": "vsock:17:51820"},
        ),
        (
            "flip",
            {"to": "relay", "offset": 3, "port": 51820},
            {"verb": "flip", "to": "relay", "offset": 3, "port": 51820},
        ),
    ],
)
def test_the_client_asks_for_each_fault(
    control: TapControl,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    arguments: dict[str, Any],
    request_: dict[str, Any],
) -> None:
    asked, _ = ask(control, monkeypatch, {"ok": True}, verb, **arguments)
    assert asked == request_


def test_status_is_passed_on_and_a_refusal_raised(control: TapControl, monkeypatch: pytest.MonkeyPatch) -> None:
    _, status = ask(control, monkeypatch, {"ok": True, "accepted": 3}, "status")
    assert status == {"accepted": 3}
    with pytest.raises(LabError, match="unknown request"):
        ask(control, monkeypatch, {"ok": False, "error": "unknown request"}, "stall")


def test_the_client_reads_the_recording_as_it_grows(control: TapControl) -> None:
    with control.recording.open("wb", buffering=0) as stream:
        recording = Recording(stream, clock=lambda: 2.5)
        recording.note(1, 51820, Kind.OPENED)
        assert [chunk.kind for chunk in control.chunks()] == [Kind.OPENED]
        recording.note(1, 51820, Kind.TO_RELAY, b"data")
        assert [(chunk.time, chunk.kind, chunk.data) for chunk in control.chunks()] == [
            (2.5, Kind.OPENED, b""),
            (2.5, Kind.TO_RELAY, b"data"),
        ]


def test_times_are_corrected_by_what_is_known_of_the_tap_s_clock(control: TapControl) -> None:
    with control.recording.open("wb", buffering=0) as stream:
        Recording(stream, clock=lambda: 2.5).note(1, 51820, Kind.OPENED)
    control.clock_offset = 0.25
    assert [chunk.time for chunk in control.chunks()] == [2.75]


@contextmanager
def asked_monitor(tmp_path: Path) -> Iterator[tuple[Future[socket.socket], socket.socket]]:
    """Connect to the control socket of a tap in a guest. The second is the monitor's end, which was just asked."""
    with socket.socket(socket.AF_UNIX) as monitor, ThreadPoolExecutor(1) as pool:
        monitor.bind(str(tmp_path / "u"))
        monitor.listen()
        connecting = pool.submit(tap_module._control_socket, HybridVsockAddress(str(tmp_path / "u"), Port(9100)))
        theirs, _ = monitor.accept()
        with theirs:
            assert theirs.recv(100) == b"CONNECT 9100\n"
            yield connecting, theirs


def test_a_tap_in_a_guest_is_reached_through_the_guest_s_monitor(tmp_path: Path) -> None:
    with asked_monitor(tmp_path) as (connecting, theirs):
        theirs.sendall(b"OK 1073741824\n" + b'{"ok": true}\n')
        with connecting.result(10) as ours:
            assert ours.recv(100) == b'{"ok": true}\n'


def test_a_monitor_hangs_up_where_nobody_listens_in_the_guest(tmp_path: Path) -> None:
    with asked_monitor(tmp_path) as (connecting, theirs):
        theirs.close()
        with pytest.raises(LabError, match="nothing listens there"):
            connecting.result(10)


@pytest.mark.parametrize("kind", [UnixAddress, lambda path: HybridVsockAddress(path, Port(9100))])
def test_a_tap_that_is_gone_is_an_error_of_the_laboratory(kind: Any, tmp_path: Path) -> None:
    control = TapControl(kind(str(tmp_path / "gone")), tmp_path / "vsock.pcap")
    with pytest.raises(LabError, match="cannot reach the tap"):
        control.status()
