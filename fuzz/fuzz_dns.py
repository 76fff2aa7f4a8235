"""For any query and any answer of a name server, the forwarder answers or stays silent, and never raises.

Below it, a forwarded query asks for the name that the judge saw, and no address that the judge refused reaches the
enclave.

    python fuzz/fuzz_dns.py -max_total_time=60
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

with atheris.instrument_imports(include=["wgvsock.dns", "dns"]):
    import dns.message

    from wgvsock.addresses import IpAddress
    from wgvsock.dns.forwarder import Forwarder
    from wgvsock.dns.messages import MAX_QUERY, MalformedError, Query, addresses_of, answers, read_answer, read_query
    from wgvsock.dns.sockets import KernelDnsSockets
    from wgvsock.dns.upstream import NoAnswerError

QUERY = dns.message.make_query("www.lab.test", "A", use_edns=0, payload=1232).to_wire()

# Words that mutations should reach immediately.
ANSWERS = (
    b"",
    b"\x81\x80\0\1\0\1\0\0\0\0\3www\3lab\4test\0\0\1\0\1",
    b"\x81\x80\0\1\0\1\0\0\0\0\3www\3lab\4test\0\0\1\0\1\xc0\x0c\0\5\0\1\0\0\0\5",
    b"\x81\x80\0\1\0\2\0\0\0\0\3www\3lab\4test\0\0\1\0\1\xc0\x0c\0\1\0\1\0\0\0\5\0\4\x0a\0\0\1",
    b"\x81\x80\0\1\0\1\0\0\0\0\3www\3lab\4test\0\0\x41\0\1\xc0\x0c\0\x41\0\1\0\0\0\5",
)

CLOSED = frozenset({ip_address("10.0.0.1"), ip_address("169.254.169.254"), ip_address("::ffff:169.254.169.254")})


class Judge:
    """Allows every name."""

    longest = 3600.0

    def __init__(self) -> None:
        self.shown: list[str] = []

    def allows(self, name: str) -> bool:
        """See `wgvsock.dns.judge.NameJudge`."""
        self.shown.append(name)
        return True

    async def pin(self, name: str, found: Sequence[tuple[IpAddress, float]]) -> frozenset[IpAddress]:
        """See `wgvsock.dns.judge.NameJudge`."""
        assert name == self.shown[-1]
        return CLOSED & {address for address, _ in found}


class NameServer:
    """Replaces `Upstreams`, and gives the same answer to every query."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.asked: list[Query] = []

    async def ask(self, query: Query, *, over_tcp: bool) -> bytes:
        """See `wgvsock.dns.upstream.Upstreams.ask`."""
        self.asked.append(query)
        answer = query.wire[:2] + self.answer
        if not answers(query, query.wire[:2], answer):  # the real one ignores these
            raise NoAnswerError(unreachable=over_tcp)
        return answer


def forward(wire: bytes, said: bytes, *, over_tcp: bool) -> None:
    """Forward one query with one answer, and check the two invariants."""
    judge, server = Judge(), NameServer(said)
    forwarder = Forwarder(KernelDnsSockets(), bytes, judge)
    forwarder._upstreams = server  # type: ignore[assignment]  # noqa: SLF001
    told = asyncio.run(forwarder.answer(wire, over_tcp=over_tcp))
    for query in server.asked:
        # With any ID it is the same question, for every parser.
        other = dns.message.from_wire(b"\xff\xff" + query.wire[2:], question_only=True).question[0]
        assert other.name.to_text(omit_final_dot=True).lower() == judge.shown[-1] == query.name
    if told is None or not server.asked:
        return
    assert told[:2] == wire[:2]
    assert over_tcp or len(told) <= server.asked[0].size
    assert CLOSED.isdisjoint(address for address, _ in addresses_of(server.asked[0], read_answer(told)))


def test_one_input(data: bytes) -> None:
    """Mutate the enclave or the name server, as the first byte selects."""
    if len(data) < 2:
        return
    choice, rest = data[0], data[1:]
    if choice & 1:
        forward(rest[: MAX_QUERY + 8], ANSWERS[3], over_tcp=bool(choice & 2))
        forward(QUERY[:12] + rest[:MAX_QUERY], ANSWERS[3], over_tcp=bool(choice & 2))
    else:
        forward(QUERY, ANSWERS[(choice >> 2) % len(ANSWERS)] + rest, over_tcp=bool(choice & 2))
    with contextlib.suppress(MalformedError):
        read_query(rest)


if __name__ == "__main__":
    logging.disable()
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
