"""A capture is streamed to every client of the control socket. A slow reader loses packets, others do not."""

from __future__ import annotations

import asyncio
import json
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.unit.relay.enclaves.test_attendant import arrival, packet
from tests.unit.service_pair import ServicePair
from wgvsock.addresses import Cid, HybridVsockAddress, Port, VsockAddress
from wgvsock.relay.enclaves.capture import Recorder
from wgvsock.testing import without_waiting
from wgvsock.tunnel.pcap import FILE_HEADER, RECORD_HEADER_SIZE


async def ask(pair: ServicePair, query: str) -> tuple[Any, asyncio.StreamWriter, bytes]:
    reader, writer = await asyncio.open_unix_connection(str(pair.folder / "relay/relay.sock"))
    writer.write(f"GET /capture?{query} HTTP/1.1\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    return reader, writer, head


async def next_packet(reader: Any) -> bytes:
    header = await reader.readexactly(RECORD_HEADER_SIZE)
    return bytes(await reader.readexactly(struct.unpack("<IIII", header)[2]))


@without_waiting
async def test_inner_and_outer_packets_are_streamed(tmp_path: Path) -> None:
    pair = ServicePair(tmp_path)
    await pair.up()
    relay, enclave = pair.relay_tuns[0], pair.enclave_tuns[0]
    header, out = bytes(relay.packet_headroom), packet("198.51.100.10", "10.73.0.2")
    for layer in ("inner", "outer"):
        reader, writer, head = await ask(pair, f"layer={layer}")
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert await reader.readexactly(len(FILE_HEADER)) == FILE_HEADER
        relay.inject(header + out)
        await arrival(pair, enclave)
        found = await next_packet(reader)
        if layer == "inner":
            assert found == out
        else:
            assert (found[9], found[28]) == (17, 4)  # UDP, transport data
        busy, other, refused = await ask(pair, "layer=inner&enclave=enclave")
        assert refused.startswith(b"HTTP/1.1 409")
        assert json.loads(await busy.read())["busy"] is True
        other.close()
        writer.close()
        await pair.until(lambda: not pair.relay._captures._tasks, "the end of the capture")
    await pair.down()


@without_waiting
async def test_an_enclave_that_is_not_there(tmp_path: Path) -> None:
    pair = ServicePair(tmp_path)
    await pair.up()
    reader, writer, head = await ask(pair, "enclave=x")
    assert head.startswith(b"HTTP/1.1 404")
    assert json.loads(await reader.read())["enclaves"] == ["enclave"]
    writer.close()
    await pair.down()


@without_waiting
async def test_a_relay_that_stops_ends_its_captures(tmp_path: Path) -> None:
    pair = ServicePair(tmp_path)
    await pair.up()
    reader, writer, _ = await ask(pair, "layer=outer")
    await reader.readexactly(len(FILE_HEADER))
    await pair.down()
    await reader.read()
    writer.close()


def link(address: Any) -> Any:
    return SimpleNamespace(address=address)


@without_waiting
async def test_what_waits_is_bounded() -> None:
    recorder = Recorder("inner", 10, lambda: 0, limit=1000)
    for _ in range(20):
        recorder.inner(memoryview(bytes(110)), outgoing=True)
    recorder.outer(link(None), memoryview(b""), outgoing=True)  # not asked for
    assert 5 <= recorder.packets < 10
    assert recorder.dropped == 20 - recorder.packets
    assert len(recorder.take()) == recorder.packets * (RECORD_HEADER_SIZE + 100)
    recorder.inner(memoryview(bytes(110)), outgoing=True)
    assert recorder.arrived.is_set()


@without_waiting
async def test_ends_are_shown_as_cids() -> None:
    recorder = Recorder("outer", 0, lambda: 0, limit=100)
    recorder.inner(memoryview(bytes(10)), outgoing=True)  # not asked for
    recorder.outer(link(VsockAddress(Cid(16), Port(51820))), memoryview(b"\4"), outgoing=False)
    found = recorder.take()[RECORD_HEADER_SIZE:]
    assert (found[12:16], found[16:20]) == (bytes((0, 0, 0, 16)), bytes((0, 0, 0, 3)))
    other = link(HybridVsockAddress("/x", Port(1)))
    recorder.outer(other, memoryview(bytes(90)), outgoing=True)  # it alone is too much
    recorder.outer(other, memoryview(bytes(72)), outgoing=True)
    recorder.outer(other, memoryview(bytes(5)), outgoing=True)  # there is no room left
    assert (recorder.packets, recorder.dropped) == (2, 2)
