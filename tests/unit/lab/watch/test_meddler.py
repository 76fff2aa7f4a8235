from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import cbor2
import pytest

from lab.nsm.pki import LabAuthority
from lab.nsm.signer import FakeNsm, LabEnclave, utc_now
from lab.watch.meddler import PATIENCE, Interceptor, Meddler, SwappedResponse, frame, untouched
from lab.watch.tap import Kind
from wgvsock.attestation.verifier import authenticate
from wgvsock.provisioning.messages import Error, Hello, Request, Response, Result, decode_request
from wgvsock.provisioning.pin import public_key_of, verify_request
from wgvsock.provisioning.transcript import Ephemeral, binding_hash, user_data
from wgvsock.testing.provisioning import TUNNEL_CONFIG, EnclaveHalf, RelayHalf

HELLO = cbor2.dumps({1: 1, 2: 0})


class Between(Meddler):
    """A meddler between two socket pairs, without a listener."""

    def __init__(self, relay: socket.socket, enclave: socket.socket) -> None:
        self.meddle = untouched
        self._patience = PATIENCE
        self.seen: list[tuple[Kind, str, bytes]] = []
        self.thread = threading.Thread(target=self.join, args=(relay, enclave))


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket, Between]]:
    relay, relay_inner = socket.socketpair()
    enclave, enclave_inner = socket.socketpair()
    meddler = Between(relay_inner, enclave_inner)
    relay.settimeout(10)
    enclave.settimeout(10)
    yield relay, enclave, meddler
    for sock in (relay, enclave):
        sock.close()
    meddler.thread.join(10)
    relay_inner.close()
    enclave_inner.close()
    assert not meddler.thread.is_alive()


def test_frames_pass_untouched_in_both_directions(ends: tuple[socket.socket, socket.socket, Between]) -> None:
    relay, enclave, meddler = ends
    meddler.thread.start()
    enclave.sendall(frame(HELLO))
    assert relay.recv(100) == frame(HELLO)
    relay.sendall(frame(b"\xff"))
    assert enclave.recv(100) == frame(b"\xff")
    assert meddler.seen == [(Kind.TO_RELAY, "HELLO", HELLO), (Kind.TO_ENCLAVE, "REQUEST", b"\xff")]


def test_a_frame_can_be_changed_doubled_or_dropped(ends: tuple[socket.socket, socket.socket, Between]) -> None:
    relay, enclave, meddler = ends
    answers = iter([[frame(b"other")], [frame(b"a"), frame(b"b")], [], [b"raw"]])
    meddler.meddle = lambda kind, name, payload: next(answers)
    meddler.thread.start()
    relay.sendall(frame(b"1") + frame(b"2") + frame(b"3") + frame(b"4"))
    expected = frame(b"other") + frame(b"a") + frame(b"b") + b"raw"
    received = b""
    while len(received) < len(expected):
        received += enclave.recv(100)
    assert received == expected


def test_when_one_end_closes_so_does_the_other(ends: tuple[socket.socket, socket.socket, Between]) -> None:
    relay, enclave, meddler = ends
    meddler.thread.start()
    relay.sendall(frame(HELLO))
    relay.close()
    with enclave.makefile("rb") as stream:
        assert stream.read() == frame(HELLO)


def test_an_interceptor_reads_and_changes_what_is_sealed() -> None:
    seed = b"s" * 32
    hello = Hello(b"n" * 32, Ephemeral(b"e" * 32).public, ("framing/native",)).encode()
    request = Request(b"N" * 32, b"k" * 32, 7, TUNNEL_CONFIG.to_fields())
    changes = {"RESPONSE": Response(b"other").encode(), "RESULT": Result(33).encode()}
    interceptor = Interceptor(changes.get, seed)

    [given] = interceptor(Kind.TO_RELAY, "HELLO", hello)
    relay = RelayHalf(given[4:])
    assert relay.remote != Ephemeral(b"e" * 32).public
    [passed] = interceptor(Kind.TO_ENCLAVE, "REQUEST", relay.request(request.encode()))
    enclave = EnclaveHalf(hello, passed[4:])
    verify_request(public_key_of(seed), binding_hash(hello, passed[4:36]), decode_request(enclave.request))
    assert interceptor.transcript == relay.transcript != enclave.transcript
    [passed] = interceptor(Kind.TO_RELAY, "RESPONSE", enclave.response(Response(b"document").encode()))
    assert relay.open(passed[4:]) == changes["RESPONSE"]
    [passed] = interceptor(Kind.TO_ENCLAVE, "RESULT", relay.result(Result(0).encode()))
    assert enclave.open(passed[4:]) == changes["RESULT"]

    assert [name for name, _ in interceptor.seen] == ["HELLO", "REQUEST", "RESPONSE", "RESULT"]
    assert interceptor.message("RESPONSE")[3] == b"document"
    assert interceptor.message("REQUEST")[3] == b"N" * 32


def test_an_interceptor_lets_errors_pass() -> None:
    error = Error(10).encode()
    interceptor = Interceptor()
    assert interceptor(Kind.TO_RELAY, "ERROR", error) == [frame(error)]
    assert interceptor(Kind.TO_RELAY, "HELLO", error) == [frame(error)]


def test_a_sealed_error_is_called_one() -> None:
    hello = Hello(b"n" * 32, Ephemeral(b"e" * 32).public, ()).encode()
    interceptor = Interceptor(lambda name, message: b"changed" if name == "RESPONSE" else message)
    [given] = interceptor(Kind.TO_RELAY, "HELLO", hello)
    relay = RelayHalf(given[4:])
    [passed] = interceptor(Kind.TO_ENCLAVE, "REQUEST", relay.request(b"request"))
    error = Error(10).encode()
    [passed] = interceptor(Kind.TO_RELAY, "RESPONSE", EnclaveHalf(hello, passed[4:]).response(error))
    assert relay.open(passed[4:]) == error
    assert interceptor.seen[-1] == ("ERROR", error)


def test_without_a_seed_the_relay_s_signature_stays() -> None:
    hello = Hello(b"n" * 32, Ephemeral(b"e" * 32).public, ()).encode()
    interceptor = Interceptor()
    [given] = interceptor(Kind.TO_RELAY, "HELLO", hello)
    [passed] = interceptor(Kind.TO_ENCLAVE, "REQUEST", RelayHalf(given[4:]).request(b"as it is"))
    assert EnclaveHalf(hello, passed[4:]).request == b"as it is"


@pytest.mark.parametrize("answer", [Response(b"document"), Error(8)], ids=["RESPONSE", "ERROR"])
def test_an_answer_is_swapped_for_a_genuine_document_of_another_enclave(answer: Response | Error) -> None:
    authority = LabAuthority(utc_now)
    theirs = FakeNsm(authority, LabEnclave())
    swap = SwappedResponse(theirs.request, b"theirs")
    hello = Hello(b"n" * 32, Ephemeral(b"e" * 32).public, ()).encode()
    [given] = swap(Kind.TO_RELAY, "HELLO", hello)
    relay = RelayHalf(given[4:])
    request = Request(b"N" * 32, b"k" * 32, 7, TUNNEL_CONFIG.to_fields()).encode()
    [passed] = swap(Kind.TO_ENCLAVE, "REQUEST", relay.request(request))
    [swapped] = swap(Kind.TO_RELAY, "RESPONSE", EnclaveHalf(hello, passed[4:]).response(answer.encode()))
    message = cbor2.loads(relay.open(swapped[4:]))
    genuine = authenticate(message[3], accepted_roots=[authority.root_fingerprint], now=utc_now())
    assert (genuine.nonce, genuine.public_key) == (b"N" * 32, b"theirs")
    assert genuine.user_data == user_data(relay.transcript)
