"""The engine's loop over the real library, between a pair of sockets and this machine's loopback."""

from __future__ import annotations

import contextlib
import errno
import math
import resource
import select
import socket
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_RR, UDPerror
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.packet import Packet, Raw

from wgvsock.errors import RemoteProtocolError
from wgvsock.uplink import sandbox
from wgvsock.uplink.engine import Engine
from wgvsock.uplink.errors import EngineMissingError
from wgvsock.uplink.libslirp import load
from wgvsock.uplink.orders import Begin, End, Port, Publish, Report, decode_report
from wgvsock.virtio_net import ZERO_HEADER

ENCLAVE = {4: "10.73.0.2", 6: "fd73::2"}
GATEWAY = {4: "10.73.0.1", 6: "fd73::1"}
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
TURNS = 200

FAMILIES = pytest.mark.parametrize("version", [4, 6], ids=["ipv4", "ipv6"])


@pytest.fixture(scope="module", autouse=True)
def _libslirp() -> None:
    try:
        load()
    except EngineMissingError as error:
        pytest.skip(f"{error}: {error.fix}")


class Bench:
    """An engine in this process, which keeps its privileges."""

    def __init__(self) -> None:
        self.packets, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.orders, orders = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for sock in (self.packets, self.orders, theirs, orders):
            sock.setblocking(False)
        self.ends = (theirs, orders)
        self.engine = Engine(theirs, orders)

    def begin(self, **changes: Any) -> None:
        values: dict[str, Any] = {
            "addresses": tuple(map(ip_address, ENCLAVE.values())),
            "gateways": tuple(map(ip_address, GATEWAY.values())),
            "max_connections": 32,
        }
        self.engine.begin(Begin(**values | changes))
        self.engine.listen_to_relay()

    def send(self, packet: Packet | bytes, header: bytes = ZERO_HEADER) -> None:
        self.packets.send(header + bytes(packet))

    def received(self) -> Packet | None:
        try:
            data = self.packets.recv(70_000)
        except BlockingIOError:
            return None
        return IP(data) if data[0] >> 4 == 4 else IPv6(data)

    def until(self, look: Callable[[], Any]) -> Any:
        for _ in range(TURNS):
            if (found := look()) is not None:
                return found
            assert self.engine.turn(longest=20)
        raise AssertionError("nothing came of it")

    def report(self) -> Report:
        def newest() -> Report | None:
            found = None
            while True:
                try:
                    found = decode_report(self.orders.recv(70_000))
                except BlockingIOError:
                    return found

        found: Report = self.until(newest)
        return found

    def close(self) -> None:
        self.engine.close()
        for sock in (self.packets, self.orders, *self.ends):
            sock.close()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(sandbox, "enter", lambda *_, **__: ())
    made = Bench()
    yield made
    made.close()


def network(version: int) -> Packet:
    ends = {"src": ENCLAVE[version], "dst": GATEWAY[version]}
    return IP(**ends) if version == 4 else IPv6(**ends)


@FAMILIES
def test_a_question_reaches_the_forwarder_and_its_answer_the_enclave(bench: Bench, version: int) -> None:
    with socket.socket(FAMILY[version], socket.SOCK_DGRAM) as forwarder:
        forwarder.bind((LOOPBACK[version], 0))
        forwarder.setblocking(False)
        bench.begin(dns_port=forwarder.getsockname()[1])
        bench.send(network(version) / UDP(sport=5000, dport=53) / Raw(b"? question of twenty"))

        def heard() -> tuple[bytes, Any] | None:
            try:
                return forwarder.recvfrom(100)
            except BlockingIOError:
                return None

        question, client = bench.until(heard)
        assert question[2:] == b"question of twenty"
        forwarder.sendto(question[:2] + b"a long answer", client)
        answer = bench.until(bench.received)
    assert (answer.src, answer[UDP].sport, answer[UDP].dport) == (GATEWAY[version], 53, 5000)
    assert bytes(answer[UDP].payload) == b"? a long answer"


@FAMILIES
def test_a_connection_that_is_refused_is_reset(bench: Bench, version: int) -> None:
    with socket.create_server((LOOPBACK[version], 0), family=FAMILY[version]) as server:
        port = server.getsockname()[1]
    bench.begin(dns_port=port)
    bench.send(network(version) / TCP(sport=5000, dport=53, flags="S", seq=7))
    answer = bench.until(bench.received)
    assert (str(answer[TCP].flags), answer[TCP].sport, answer[TCP].ack) == ("RA", 53, 8)


@FAMILIES
def test_a_datagram_that_nobody_takes_is_told_once(bench: Bench, version: int) -> None:
    with socket.socket(FAMILY[version], socket.SOCK_DGRAM) as nobody:
        nobody.bind((LOOPBACK[version], 0))
        port = nobody.getsockname()[1]
    bench.begin(dns_port=port)
    bench.send(network(version) / UDP(sport=5000, dport=53) / Raw(b"a question with its header"))
    told = bench.until(bench.received)
    assert (told.src, told.dst) == (GATEWAY[version], ENCLAVE[version])
    assert UDPerror in told
    for _ in range(3):
        bench.engine.turn(longest=0)
    assert bench.received() is None


@FAMILIES
def test_queries_do_not_take_the_places_of_connections(bench: Bench, version: int) -> None:
    """A resolver sends each query from a new port, and libslirp keeps a socket for each of them for four minutes."""
    with socket.socket(FAMILY[version], socket.SOCK_DGRAM) as forwarder:
        forwarder.bind((LOOPBACK[version], 0))
        forwarder.settimeout(5)
        bench.begin(dns_port=forwarder.getsockname()[1], max_connections=16)
        for port in range(5000, 5050):
            bench.send(network(version) / UDP(sport=port, dport=53) / Raw(b"a question with its header"))
            bench.engine.turn(longest=20)
            question, client = forwarder.recvfrom(100)
            forwarder.sendto(question, client)
            answer = bench.until(bench.received)
            assert (answer.src, answer[UDP].sport, answer[UDP].dport) == (GATEWAY[version], 53, port)
        assert (bench.engine.connections, bench.engine.crowded) == (0, 0)


@FAMILIES
def test_the_enclave_hears_when_a_slow_receiver_takes_data_again(bench: Bench, version: int) -> None:
    """libslirp by itself says nothing: its own rule for window updates needs segments of half a window or less."""
    with socket.create_server((LOOPBACK[version], 0), family=FAMILY[version]) as server:
        bench.begin(dns_port=server.getsockname()[1])
        options = [("MSS", 60_000), ("WScale", 7)]
        bench.send(network(version) / TCP(sport=5000, dport=53, flags="S", seq=7, window=65_000, options=options))
        syn_ack = bench.until(bench.received)[TCP]
        scale = dict(syn_ack.options)["WScale"]
        at, edge = 8, 8 + syn_ack.window

        def send(size: int) -> None:
            segment = TCP(sport=5000, dport=53, flags="A", seq=at, ack=syn_ack.seq + 1, window=512)
            bench.send(network(version) / segment / Raw(bytes(size)))

        def hear() -> int | None:
            heard = None
            while (packet := bench.received()) is not None:
                heard = packet[TCP].ack + (packet[TCP].window << scale)
            return heard

        send(0)
        bench.until(lambda: True)
        receiver, _ = server.accept()
        with receiver:
            while edge - at >= 60_000:  # until nobody accepts more
                send(60_000)
                at += 60_000
                for _ in range(3):
                    bench.engine.turn(longest=0)
                edge = max(edge, hear() or 0)
            taken = 0

            def take() -> int | None:
                nonlocal taken
                with contextlib.suppress(BlockingIOError):
                    taken += len(receiver.recv(1 << 20, socket.MSG_DONTWAIT))
                return hear()

            assert bench.until(take) > edge
            for _ in range(TURNS):
                if taken == at - 8:
                    break
                take()
                bench.engine.turn(longest=20)
            assert taken == at - 8


@FAMILIES
def test_who_calls_a_published_port_is_led_to_the_enclave(bench: Bench, version: int) -> None:
    with socket.create_server((LOOPBACK[version], 0), family=FAMILY[version]) as free:
        port = free.getsockname()[1]
    bench.begin()
    published = Port("tcp", port, ip_address(ENCLAVE[version]), 8443)
    bench.orders.send(Publish((published,)).encode())
    for _ in range(3):
        bench.engine.turn(longest=0)
    with socket.create_connection((LOOPBACK[version], port), timeout=5) as client:
        call = bench.until(bench.received)
        assert (str(call[TCP].flags), call.dst, call[TCP].dport) == ("S", ENCLAVE[version], 8443)
        # A caller from this machine's loopback is the gateway for the enclave.
        assert call.src == GATEWAY[version]
        assert client.getpeername()[1] == port
        assert bench.engine.connections == 1
        back = network(version)
        back.dst = call.src
        answer = TCP(sport=8443, dport=call[TCP].sport, flags="SA", seq=7, ack=call[TCP].seq + 1)
        bench.send(back / answer)
        assert str(bench.until(bench.received)[TCP].flags) == "A"
        bench.orders.send(Publish(draining=True).encode())  # a successor takes the port, and this connection goes on
        for _ in range(3):
            bench.engine.turn(longest=0)
        assert bench.engine.connections == 1
        assert bench.received() is None
        bench.orders.send(Publish((published,)).encode())
        bench.orders.send(Publish().encode())  # which ends its connections, too
        assert str(bench.until(bench.received)[TCP].flags) == "R"
        assert bench.engine.connections == 0
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
    with socket.socket(FAMILY[version]) as late, pytest.raises(ConnectionRefusedError):
        late.connect((LOOPBACK[version], port))


def test_at_the_end_the_enclave_and_the_world_are_told(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        bench.begin(dns_port=server.getsockname()[1])
        bench.send(network(4) / TCP(sport=5000, dport=53, flags="S", seq=7))
        syn_ack = bench.until(bench.received)
        bench.send(network(4) / TCP(sport=5000, dport=53, flags="A", seq=8, ack=syn_ack[TCP].seq + 1))
        bench.engine.turn(longest=20)
        client, _ = server.accept()
        with client:
            bench.orders.send(End().encode())
            for _ in range(TURNS):
                if not bench.engine.turn(longest=20):
                    break
            told = bench.received()
            assert told is not None
            assert (str(told[TCP].flags), told[TCP].seq, told[TCP].sport) == ("R", syn_ack[TCP].seq + 1, 53)
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""


@FAMILIES
def test_a_datagram_to_a_published_port_is_answered(bench: Bench, version: int) -> None:
    with socket.socket(FAMILY[version], socket.SOCK_DGRAM) as client:
        client.bind((LOOPBACK[version], 0))
        port = client.getsockname()[1]  # nobody's, as a TCP and a UDP port
        bench.begin()
    bench.engine.publish(Publish((Port("udp", port, ip_address(ENCLAVE[version]), 7007),)))
    with socket.socket(FAMILY[version], socket.SOCK_DGRAM) as client:
        client.setblocking(False)
        client.sendto(b"question", (LOOPBACK[version], port))
        question = bench.until(bench.received)
        assert (question.dst, question[UDP].dport, bytes(question[UDP].payload)) == (
            ENCLAVE[version],
            7007,
            b"question",
        )
        back = network(version)
        back.dst = question.src
        bench.send(back / UDP(sport=7007, dport=question[UDP].sport) / Raw(b"answer"))

        def heard() -> tuple[bytes, Any] | None:
            try:
                return client.recvfrom(100)
            except BlockingIOError:
                return None

        answer, sender = bench.until(heard)
    assert (answer, sender[:2]) == (b"answer", (LOOPBACK[version], port))


def test_the_enclave_learns_who_sends_a_datagram(bench: Bench) -> None:
    """For UDP, libslirp does not take 127.0.0.2 for loopback, so it represents any address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.2", 0))
        port = free.getsockname()[1]
    bench.begin()
    assert bench.engine.publish(Publish((Port("udp", port, ip_address(ENCLAVE[4]), 7007),))) == {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind(("127.0.0.2", 0))
        client.connect(("127.0.0.2", port))
        client.send(b"question")
        assert bench.until(bench.received).src == "127.0.0.2"


def test_a_port_that_is_taken_is_told_and_bound_when_it_is_free(bench: Bench) -> None:
    bench.begin()
    with socket.create_server(("", 0)) as other:
        published = Port("tcp", other.getsockname()[1], ip_address(ENCLAVE[4]), 80)
        assert bench.engine.publish(Publish((published,))) == {str(published): errno.EADDRINUSE}
    assert bench.engine.publish(Publish((published,))) == {}


def test_a_port_that_becomes_free_is_bound_without_waiting_for_a_report(bench: Bench) -> None:
    bench.begin()
    bench.report()
    bench.engine._report_at = math.inf
    with socket.create_server(("", 0)) as other:
        published = Port("tcp", other.getsockname()[1], ip_address(ENCLAVE[4]), 80)
        bench.engine.publish(Publish((published,)))
    bench.until(lambda: len(bench.engine._ports) or None)
    assert bench.report().published == 1
    socket.create_connection(("127.0.0.1", published.port), timeout=5).close()


CALLERS = 20


@FAMILIES
def test_clients_that_call_at_once_wait_to_be_accepted(bench: Bench, version: int) -> None:
    published = _published(bench, version)
    bench.engine.turn(longest=0)
    with contextlib.ExitStack() as stack:
        callers = [_call(stack, version, published.port) for _ in range(CALLERS)]
        connected = select.select([], callers, [], 0)[1]  # loopback answers a call before it returns
    assert len(connected) == CALLERS


@FAMILIES
def test_clients_wait_while_there_are_too_many_flows(bench: Bench, version: int) -> None:
    published = _published(bench, version, max_connections=2)
    with contextlib.ExitStack() as stack:
        for accepted in (1, 2, 2):
            _call(stack, version, published.port)
            for _ in range(5):
                bench.engine.turn(longest=0)
            assert bench.engine.connections == accepted
    bench.engine.publish(Publish())
    bench.engine.turn(longest=0)
    assert not bench.engine._listening


def test_the_relay_reaches_the_agent_when_there_are_too_many_flows(bench: Bench, tmp_path: Path) -> None:
    published = _published(bench, 4, max_connections=1, reports=str(tmp_path / "reports"), report_port=51822)
    with contextlib.ExitStack() as stack:
        _call(stack, 4, published.port)
        assert bench.until(bench.received)[TCP].dport == 80
        relay = stack.enter_context(socket.socket(socket.AF_UNIX))
        relay.connect(str(tmp_path / "reports"))
        assert bench.until(bench.received)[TCP].dport == 51822


def _published(bench: Bench, version: int, **changes: Any) -> Port:
    bench.begin(**changes)
    with socket.create_server(("", 0), family=FAMILY[version]) as free:
        published = Port("tcp", free.getsockname()[1], ip_address(ENCLAVE[version]), 80)
    assert bench.engine.publish(Publish((published,))) == {}
    return published


def _call(stack: contextlib.ExitStack, version: int, port: int) -> socket.socket:
    caller = stack.enter_context(socket.socket(FAMILY[version], socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
    assert caller.connect_ex((LOOPBACK[version], port)) in {0, errno.EINPROGRESS}
    return caller


def test_new_flows_are_let_down_when_there_are_too_many(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        bench.begin(max_connections=2, dns_port=server.getsockname()[1])
        for port in range(5000, 5004):
            bench.send(network(4) / TCP(sport=port, dport=53, flags="S"))
            for _ in range(3):
                bench.engine.turn(longest=0)
        assert bench.engine.connections == 2
    assert bench.engine.crowded == 2


@pytest.mark.parametrize(("most", "limit"), [(resource.RLIM_INFINITY, 4096), (20_000, 4096), (1024, 704), (16, 1)])
def test_there_are_as_many_flows_as_descriptors_allow(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, most: int, limit: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (most, most))
    bench.begin(max_connections=4096)
    assert bench.engine._limit == limit


def test_datagrams_of_a_flow_pass_when_there_are_too_many(bench: Bench) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as forwarder,
    ):
        for sock in (server, forwarder):
            sock.bind(("127.0.0.1", 0))
            sock.setblocking(False)
        bench.begin(max_connections=1, dns_port=forwarder.getsockname()[1])
        for port in (5000, 5001, 5000):
            bench.send(network(4) / UDP(sport=port, dport=server.getsockname()[1]) / Raw(b"datagram"))
            for _ in range(3):
                bench.engine.turn(longest=0)
        bench.send(network(4) / UDP(sport=5002, dport=53) / Raw(b"a question with its header"))
        bench.engine.turn(longest=0)
        assert (bench.engine.connections, bench.engine.crowded) == (1, 1)
        assert [server.recv(100), server.recv(100)] == [b"datagram"] * 2
        assert forwarder.recv(100)[2:] == b"question with its header"  # which needs no socket


def test_an_echo_to_the_gateway_is_answered_by_it(bench: Bench) -> None:
    bench.begin()
    bench.send(network(4) / ICMP(type=8, id=9, seq=1) / Raw(b"ping"))
    assert bench.until(bench.received)[ICMP].type == 0
    bench.send(network(6) / ICMPv6EchoRequest(id=9, seq=1, data=b"ping"))
    assert bench.until(bench.received)[ICMPv6EchoReply].data == b"ping"


@pytest.mark.parametrize(
    "packet",
    [
        IP(src=ENCLAVE[4], dst=GATEWAY[4], flags="MF") / UDP(dport=53) / Raw(bytes(8)),
        IP(src=ENCLAVE[4], dst=GATEWAY[4], frag=1) / Raw(bytes(8)),
        IP(src=ENCLAVE[4], dst=GATEWAY[4], options=[IPOption_RR()]) / UDP(dport=53),
        IP(src=ENCLAVE[4], dst=GATEWAY[4], proto=132) / Raw(bytes(20)),
        IP(src=ENCLAVE[4], dst=GATEWAY[4], len=21) / UDP(dport=53),
        IPv6(src=ENCLAVE[6], dst=GATEWAY[6]) / IPv6ExtHdrFragment() / UDP(dport=53),
        IPv6(src=ENCLAVE[6], dst=GATEWAY[6]) / IPv6ExtHdrHopByHop() / UDP(dport=53),
        IPv6(src=ENCLAVE[6], dst=GATEWAY[6], plen=7) / UDP(dport=53),
    ],
)
def test_fragments_and_other_odd_packets_do_not_reach_the_stack(
    bench: Bench, packet: Packet, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.begin()
    monkeypatch.setattr(bench.engine._slirp, "input", lambda *_: pytest.fail("it reached the stack"))
    bench.send(packet)
    assert bench.engine.turn(longest=0)
    assert bench.engine.odd == 1


@pytest.mark.parametrize(
    "packet", [b"", bytes(21), b"\x45" + bytes(19), b"\x60" + bytes(39), b"\xf0" * 40, b"\x45" * 60]
)
def test_what_is_no_packet_is_dropped(bench: Bench, packet: bytes) -> None:
    bench.begin()
    bench.send(packet)
    assert bench.engine.turn(longest=0)
    assert bench.received() is None


def test_the_engine_ends_with_the_relay(bench: Bench) -> None:
    bench.begin()
    bench.packets.close()
    assert not bench.engine.turn(longest=0)


def test_orders_end_it_as_well(bench: Bench) -> None:
    bench.begin()
    bench.orders.close()
    assert not bench.engine.turn(longest=0)


def test_what_comes_first_has_to_be_an_order_to_begin(bench: Bench) -> None:
    bench.orders.send(Publish().encode())
    with pytest.raises(RemoteProtocolError, match="not told to begin"):
        bench.engine.run()


def test_it_reports_what_it_is(bench: Bench) -> None:
    bench.begin()
    report = bench.report()
    assert report.version.startswith("4.")
    assert report.resident > 0
    assert report.connections == 0
