"""Documents over HTTP: for clients through the tunnel, for the application on a separate socket."""

from __future__ import annotations

import asyncio
import base64
import os
import stat
from ipaddress import ip_address
from pathlib import Path

import pytest

from lab.nsm.pki import LabAuthority
from lab.nsm.signer import FakeNsm, LabEnclave, utc_now
from wgvsock.attestation.client import WELL_KNOWN, ClientBinding, own_user_data
from wgvsock.attestation.document import parse_document
from wgvsock.devices.nsm import NsmClient
from wgvsock.enclave.documents.endpoint import DocumentEndpoint
from wgvsock.enclave.documents.maker import DocumentMaker
from wgvsock.enclave.documents.settings import AttestationEndpointSettings
from wgvsock.testing import without_waiting
from wgvsock.testing.machine import MemoryMachine
from wgvsock.transports.errors import ListenError

OWN, PORT = ip_address("10.73.0.2"), 8444
NONCE = "ab" * 32


class Agent:
    """An endpoint on a machine in memory, and both paths to it."""

    def __init__(self, folder: Path, *, port: int = PORT, local: bool = True, user: str | None = None) -> None:
        self.machine, self.client = MemoryMachine(), MemoryMachine()
        self.client.other_end = self.machine
        self.socket = str(folder / "attestation.sock")
        settings = AttestationEndpointSettings(port=port, local=local, socket=self.socket)
        nsm = NsmClient(FakeNsm(LabAuthority(utc_now), LabEnclave()))
        maker = DocumentMaker(self.machine, nsm, timeout=1, tls_certificate=None)
        self.endpoint = DocumentEndpoint(self.machine, "wg0", settings, maker, user)
        self.endpoint.listen([OWN])

    def status(self) -> os.stat_result | None:
        """Of the local socket."""
        return os.stat(self.socket) if os.path.exists(self.socket) else None  # noqa: PTH110, PTH116 (no coroutine's)

    async def ask(self, request: str) -> tuple[int, str, bytes]:
        """As a client of the enclave. Returns status, content type and body."""
        sock = await self.client.connect_in_tunnel("wg0", OWN, PORT, seconds=1)
        loop, answer = asyncio.get_running_loop(), b""
        with sock:
            await loop.sock_sendall(sock, f"{request} HTTP/1.1\r\n\r\n".encode())
            while data := await loop.sock_recv(sock, 65536):
                answer += data
        return read(answer)

    async def ask_locally(self, request: str) -> tuple[int, str, bytes]:
        """As the application."""
        reader, writer = await asyncio.open_unix_connection(self.socket)
        writer.write(f"{request} HTTP/1.1\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        return read(answer)


def read(answer: bytes) -> tuple[int, str, bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    return int(lines[0].split()[1]), lines[1].removeprefix("Content-Type: "), body


@without_waiting
async def test_a_client_gets_a_document_with_its_nonce(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    status, kind, body = await agent.ask(f"GET {WELL_KNOWN}?nonce={NONCE}")
    assert (status, kind) == (200, "application/cbor")
    document = parse_document(body)
    assert document.nonce == bytes.fromhex(NONCE)
    assert document.user_data == ClientBinding(None, b"").encode()
    status, kind, body = await agent.ask(f"GET {WELL_KNOWN}?nonce={NONCE}&format=base64")
    assert (status, kind) == (200, "text/plain; charset=us-ascii")
    assert parse_document(base64.b64decode(body)).nonce == bytes.fromhex(NONCE)
    agent.endpoint.close()
    assert not agent.machine.in_tunnel


@pytest.mark.parametrize(
    "query", ["", "?nonce=", "?nonce=ab", f"?nonce={'ab' * 65}", "?nonce=zz", f"?nonce={'ab ' * 30}"]
)
@without_waiting
async def test_a_nonce_that_is_none(tmp_path: Path, query: str) -> None:
    agent = Agent(tmp_path)
    status, _, body = await agent.ask(f"GET {WELL_KNOWN}{query.replace(' ', '%20')}")
    assert status == 400
    assert b"hexadecimal" in body
    agent.endpoint.close()


@pytest.mark.parametrize("request_line", ["PUT /user-data?hex=00", "PUT /public-key?hex=00", "POST /document"])
@without_waiting
async def test_clients_register_nothing(tmp_path: Path, request_line: str) -> None:
    agent = Agent(tmp_path)
    assert (await agent.ask(request_line))[0] == 404
    agent.endpoint.close()


@without_waiting
async def test_the_application_registers_and_gets_documents_of_its_own(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    await agent.endpoint.start()
    assert stat.S_IMODE(getattr(agent.status(), "st_mode", 0)) == 0o600
    assert (await agent.ask_locally("PUT /user-data?hex=6869"))[0] == 200
    assert (await agent.ask_locally("PUT /public-key?hex=6b"))[0] == 200
    document = parse_document((await agent.ask(f"GET {WELL_KNOWN}?nonce={NONCE}"))[2])
    assert (document.user_data, document.public_key) == (ClientBinding(None, b"hi").encode(), b"k")
    document = parse_document((await agent.ask_locally(f"GET {WELL_KNOWN}?nonce={NONCE}"))[2])  # a reverse proxy's way
    assert document.public_key == b"k"
    query = f"nonce={NONCE}&user_data=6869&public_key=6b6b"
    document = parse_document((await agent.ask_locally(f"POST /document?{query}"))[2])
    assert (document.user_data, document.public_key) == (own_user_data(b"hi"), b"kk")
    for wrong, status in (
        ("PUT /user-data?hex=0", 400),
        (f"PUT /user-data?hex={'00' * 401}", 413),
        (f"PUT /public-key?hex={'00' * 513}", 413),
        ("POST /document?nonce=xx", 400),
        (f"POST /document?user_data={'00' * 401}", 413),
    ):
        assert (await agent.ask_locally(wrong))[0] == status
    agent.endpoint.close()
    assert agent.status() is None


@without_waiting
async def test_the_socket_is_the_applications_user_s(tmp_path: Path) -> None:
    if os.getuid():
        pytest.skip("only root gives files away")
    agent = Agent(tmp_path, user="65534:65533")
    await agent.endpoint.start()
    status = agent.status()
    assert status is not None
    assert (status.st_uid, status.st_gid) == (65534, 65533)
    agent.endpoint.close()


@without_waiting
async def test_by_default_nothing_is_served(tmp_path: Path) -> None:
    agent = Agent(tmp_path, port=0, local=False)
    await agent.endpoint.start()
    assert not agent.machine.in_tunnel
    assert agent.status() is None
    agent.endpoint.close()


@without_waiting
async def test_other_addresses_are_followed(tmp_path: Path) -> None:
    agent, other = Agent(tmp_path), ip_address("10.73.0.3")
    agent.endpoint.listen([other])
    agent.endpoint.listen([other])
    assert set(agent.machine.in_tunnel) == {(other, PORT)}
    agent.endpoint.close()


@without_waiting
async def test_an_address_that_cannot_be_bound_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ListenError("cannot listen", why="the test says so", fix="change the test")

    monkeypatch.setattr(MemoryMachine, "listen_in_tunnel", refuse)
    Agent(tmp_path)
    assert "cannot serve documents" in caplog.text
