"""Documents made one at a time, within a rate, and with a tag that separates the uses."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from lab.nsm.pki import LabAuthority
from lab.nsm.signer import FakeNsm, LabEnclave, utc_now
from tests.unit.tls_enclave import Identity
from wgvsock.attestation.client import ClientBinding, own_user_data
from wgvsock.attestation.document import parse_document
from wgvsock.devices.nsm import NsmClient, NsmError
from wgvsock.enclave.documents.maker import BURST, MAX_WAITING, RATE, DocumentMaker
from wgvsock.enclave.errors import DocumentError
from wgvsock.testing import without_waiting
from wgvsock.testing.machine import MemoryMachine

T = TypeVar("T")
NONCE = bytes(range(32))


class SlowMachine(MemoryMachine):
    """A module that takes a second for each answer."""

    def __init__(self) -> None:
        super().__init__()
        self.at_work = self.most_at_work = 0

    async def ask_module(self, call: Callable[[], T], *, timeout: float) -> T:  # noqa: ASYNC109 (the protocol's)
        del timeout
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        await asyncio.sleep(1)
        self.at_work -= 1
        return call()


def maker(machine: MemoryMachine | None = None, certificate: Path | None = None) -> DocumentMaker:
    nsm = NsmClient(FakeNsm(LabAuthority(utc_now), LabEnclave()))
    path = None if certificate is None else str(certificate)
    return DocumentMaker(machine or MemoryMachine(), nsm, timeout=1, tls_certificate=path)


@without_waiting
async def test_a_document_for_clients_names_what_was_registered_and_the_certificate(tmp_path: Path) -> None:
    identity = Identity(tmp_path, "app")
    making = maker(certificate=identity.pem)
    making.register_user_data(b"version 7")
    making.register_public_key(b"key")
    document = parse_document(await making.for_client(NONCE))
    assert document.nonce == NONCE
    assert document.user_data == ClientBinding(identity.spki, b"version 7").encode()
    assert document.public_key == b"key"
    making.register_public_key(b"")
    assert parse_document(await making.for_client(NONCE)).public_key is None


@without_waiting
async def test_an_own_document_is_no_other() -> None:
    document = parse_document(await maker().own(NONCE, b"data", b"key"))
    assert (document.nonce, document.user_data, document.public_key) == (NONCE, own_user_data(b"data"), b"key")
    document = parse_document(await maker().own(None, b"", None))
    assert (document.nonce, document.public_key) == (None, None)


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
@without_waiting
async def test_without_the_certificate_there_is_no_document(
    tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "tls.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DocumentError) as caught:
        await maker(certificate=path).for_client(NONCE)
    assert caught.value.status == 503
    assert "cannot be read" in caplog.text


@without_waiting
async def test_a_fifo_in_the_certificates_place_stops_no_packets(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "tls.pem")
    with pytest.raises(DocumentError) as caught:
        await maker(certificate=tmp_path / "tls.pem").for_client(NONCE)
    assert caught.value.status == 503


@without_waiting
async def test_what_is_too_long_is_refused() -> None:
    making = maker()
    for register, size in ((making.register_user_data, 401), (making.register_public_key, 513)):
        with pytest.raises(DocumentError) as caught:
            register(bytes(size))
        assert caught.value.status == 413
    wrong: list[tuple[Any, ...]] = [(bytes(513), b"", None), (None, bytes(401), None), (None, b"", bytes(513))]
    for fields in wrong:
        with pytest.raises(DocumentError) as caught:
            await making.own(*fields)
        assert caught.value.status == 413


@without_waiting
async def test_two_hundred_at_once_are_few_for_the_module() -> None:
    machine = SlowMachine()
    making = maker(machine)
    outcomes = await asyncio.gather(*(making.for_client(NONCE) for _ in range(200)), return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, DocumentError)]
    assert len(outcomes) - len(refused) == MAX_WAITING
    assert {error.status for error in refused} == {429}
    assert machine.most_at_work == 1
    assert isinstance(await making.for_client(NONCE), bytes)


@without_waiting
async def test_the_rate_is_limited() -> None:
    making = maker()
    made = 0
    for _ in range(100):
        try:
            await making.for_client(NONCE)
            made += 1
        except DocumentError:
            pass
    assert made <= BURST + 1
    await asyncio.sleep(2 / RATE)
    await making.for_client(NONCE)


@without_waiting
async def test_a_module_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(MemoryMachine):
        async def ask_module(self, call: Callable[[], T], *, timeout: float) -> T:  # noqa: ASYNC109 (the protocol's)
            raise NsmError("the module failed", why="the test says so", fix="change the test")

    making = maker(Failing())
    for _ in range(2 * MAX_WAITING):  # none of them goes on waiting
        with pytest.raises(DocumentError) as caught:
            await making.for_client(NONCE)
        assert caught.value.status == 503
    assert "cannot make a document" in caplog.text
