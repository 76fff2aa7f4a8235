"""Answers one enclave's DNS queries by asking the relay's own name servers.

Queries and answers pass unchanged (RFC 5625). There is no cache, so a TTL keeps the meaning that its owner gave it. If
there is a judge, the forwarder answers REFUSED for a name that the judge does not allow. The addresses of an allowed
name are pinned before the enclave learns them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections import Counter
from collections.abc import Callable, Collection
from typing import Final

from dns.edns import EDECode
from dns.rcode import Rcode

from wgvsock.addresses import IpAddress, StreamAddress, TcpAddress
from wgvsock.dns.judge import NameJudge
from wgvsock.dns.messages import (
    MAX_QUERY,
    MalformedError,
    Query,
    addresses_of,
    is_truncated,
    read_answer,
    read_query,
    refusal,
    truncated,
    without,
)
from wgvsock.dns.snapshot import ForwarderSnapshot
from wgvsock.dns.sockets import DnsSockets
from wgvsock.dns.streams import StreamClient
from wgvsock.dns.upstream import NoAnswerError, Upstreams
from wgvsock.errors import WgvsockError
from wgvsock.transports.listener import Listener

MAX_QUERIES: Final = 512
"""Queries in flight. Each costs a file descriptor and up to 64 KB for its answer. The limit has room for 150 look-ups
of both address families at once, and as many that wait for a silent server."""

MAX_CONNECTIONS: Final = 32
"""TCP connections from the enclave. When the limit is reached, a new connection replaces the oldest."""

_AT_ONCE: Final = 32
"""Datagrams read in one turn of the event loop, so that the data plane gets its turn."""

_log = logging.getLogger(__name__)


class Forwarder:
    """The forwarder of one enclave. It runs in the event loop's thread.

    Args:
        sockets: Opens sockets.
        random: Returns as many random bytes as asked for.
        judge: Decides about names; None allows every name.
    """

    def __init__(self, sockets: DnsSockets, random: Callable[[int], bytes], judge: NameJudge | None = None) -> None:
        self.judge = judge
        self.counts: Counter[str] = Counter()
        self._sockets = sockets
        self._upstreams = Upstreams(sockets, random)
        self._tasks: set[asyncio.Task[None]] = set()
        self._listen: tuple[IpAddress, ...] = ()
        self._clients: frozenset[str] = frozenset()
        self._stack = contextlib.ExitStack()
        self._connections: dict[StreamClient, None] = {}  # the oldest first
        self._streamed = 0  # queries in flight that arrived on these connections

    def open(self, addresses: Collection[IpAddress], interface: str, clients: Collection[IpAddress]) -> None:
        """Start answering queries.

        Args:
            addresses: The addresses to listen on.
            interface: The interface on which queries arrive.
            clients: The addresses that get answers. The interface alone is not enough: the kernel counts this machine's
                own packets to the interface's address as arriving on it.

        Raises:
            ListenError: An address cannot be bound.
        """
        loop = asyncio.get_running_loop()
        self._clients = frozenset(map(str, clients))
        with contextlib.ExitStack() as stack:
            for address in addresses:
                datagrams, streams = self._sockets.listen(address, interface)
                stack.callback(datagrams.close)
                loop.add_reader(datagrams, self._heard, datagrams)
                stack.callback(loop.remove_reader, datagrams)
                stack.callback(Listener(streams, None, self._accepted).close)
            self._stack = stack.pop_all()
        self._listen = tuple(addresses)

    def close(self) -> None:
        """Stop without answering the queries in flight. Idempotent."""
        self._stack.close()
        for connection in list(self._connections):
            connection.close()
        for task in self._tasks:
            task.cancel()
        self._listen = ()

    @property
    def servers(self) -> tuple[IpAddress, ...]:
        """The name servers that the relay asks, the preferred one first."""
        return self._upstreams.servers

    @servers.setter
    def servers(self, servers: tuple[IpAddress, ...]) -> None:
        self._upstreams.servers = servers

    def snapshot(self) -> ForwarderSnapshot:
        """The forwarder's state at this moment."""
        return ForwarderSnapshot(
            listen=self._listen,
            servers=self.servers,
            silent=self._upstreams.silent,
            in_flight=self._in_flight,
            queries=Counter(self.counts),
            upstream=Counter(self._upstreams.counts),
        )

    async def answer(self, wire: bytes, *, over_tcp: bool) -> bytes | None:
        """Answer one message.

        Args:
            wire: Any message from the enclave, in wire format.
            over_tcp: Whether it arrived over TCP.

        Returns:
            The answer in wire format, or None if there is none.
        """
        try:
            query = read_query(wire)
        except MalformedError as error:
            self.counts["malformed"] += 1
            return error.reply
        if not query.is_servable:
            self.counts["refused_type"] += 1
            return refusal(query, Rcode.REFUSED, EDECode.NOT_SUPPORTED, "neither ANY nor zone transfers")
        if self.judge is not None and not (query.is_judgeable and self.judge.allows(query.name)):
            self.counts["refused_name"] += 1
            return refusal(query, Rcode.REFUSED, EDECode.PROHIBITED, "the egress policy does not allow this name")
        try:
            answer = await self._upstreams.ask(query, over_tcp=over_tcp)
        except NoAnswerError as error:
            self.counts["failed"] += 1
            reason = EDECode.NETWORK_ERROR if error.unreachable else EDECode.NO_REACHABLE_AUTHORITY
            return refusal(query, Rcode.SERVFAIL, reason, "the relay's name servers do not answer")
        answer = await self._judged(query, answer)
        return answer if over_tcp or len(answer) <= query.size else truncated(answer, query)

    async def _judged(self, query: Query, answer: bytes) -> bytes:
        """An answer without the addresses that the judge refuses."""
        if self.judge is None:
            self.counts["answered"] += 1
            return answer
        try:
            message = read_answer(answer)
            found = addresses_of(query, message)
            refused = await self.judge.pin(query.name, found) if found else frozenset()
            longest = self.judge.longest
            if not refused and all(life <= longest for _, life in found):
                self.counts["answered"] += 1
                return answer
            if not refused.issuperset(address for address, _ in found):
                answer = without(message, refused, longest)
                self.counts["refused_address" if refused else "answered"] += 1
                return answer
        except (MalformedError, WgvsockError) as error:
            if isinstance(error, MalformedError) and is_truncated(answer):  # it may end in the middle of a record
                self.counts["answered"] += 1
                return truncated(answer, query)
            # Without a pin, the enclave's connections to the address would only time out.
            _log.warning("an answer for the enclave was not passed on: %s", error or "it is malformed")
            self.counts["failed"] += 1
            return refusal(query, Rcode.SERVFAIL, EDECode.OTHER, "the relay could not pin the answer")
        self.counts["refused_address"] += 1
        return refusal(query, Rcode.REFUSED, EDECode.PROHIBITED, "the name leads into a closed network")

    # How queries arrive.

    @property
    def _in_flight(self) -> int:
        return len(self._tasks) + self._streamed

    def _has_place(self) -> bool:
        """Whether one more query may be in flight. Queries over the limit are dropped, and the client asks again."""
        if self._in_flight < MAX_QUERIES:
            return True
        self.counts["dropped"] += 1
        return False

    def _heard(self, sock: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            try:
                wire, client = sock.recvfrom(MAX_QUERY + 1)
            except OSError:  # no more datagrams, or an ICMP error about an earlier answer
                return
            if client[0] in self._clients and self._has_place():
                task = asyncio.ensure_future(self._answer_datagram(sock, wire, client))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _answer_datagram(self, sock: socket.socket, wire: bytes, client: tuple[str, int]) -> None:
        answer = await self.answer(wire, over_tcp=False)
        if answer is not None:
            with contextlib.suppress(OSError):  # lost, as on any network
                sock.sendto(answer, client)

    def _accepted(self, sock: socket.socket, client: StreamAddress) -> None:
        if not isinstance(client, TcpAddress) or client.host not in self._clients:
            sock.close()
            return
        if len(self._connections) >= MAX_CONNECTIONS:
            oldest = next(iter(self._connections))
            del self._connections[oldest]
            oldest.close()
        self._connections[StreamClient(sock, self._answer_message, self._forget)] = None

    def _forget(self, connection: StreamClient) -> None:
        self._connections.pop(connection, None)

    async def _answer_message(self, wire: bytes) -> bytes | None:
        if not self._has_place():
            return None
        self._streamed += 1
        try:
            return await self.answer(wire, over_tcp=True)
        finally:
            self._streamed -= 1
