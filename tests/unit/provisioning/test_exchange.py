"""One connection at the enclave: every state with every input, deadlines, refusals, garbage in any pieces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wgvsock.errors import LocalProtocolError
from wgvsock.provisioning import (
    AttestationNeeded,
    ConfigurationOffered,
    ConfigurationRolledBack,
    EnclaveEvent,
    EnclaveProvisioning,
    Exchange,
    ExchangeEnded,
    ExchangeState,
    LinkState,
    StrangersTurnedAway,
)
from wgvsock.provisioning.errors import WireCode
from wgvsock.provisioning.exchange import TRANSITIONS, ExchangeInput
from wgvsock.provisioning.frames import encode_frame
from wgvsock.provisioning.messages import (
    CLEAR_ERRORS,
    DOCUMENT_LIMIT,
    Error,
    Hello,
    Request,
    Response,
    Result,
    decode_hello,
    decode_response,
)
from wgvsock.provisioning.transcript import Ephemeral, transcript_hash, user_data
from wgvsock.testing.clock import SeededRandom
from wgvsock.testing.provisioning import RELAY_PUBLIC_KEY, TUNNEL_CONFIG, EnclaveHalf, RelayHalf

WIREGUARD_KEY = bytes(range(100, 132))
CONFIG = replace(TUNNEL_CONFIG, capabilities=("framing/native", "profile/plain"))
REQUEST = Request(b"n" * 32, RELAY_PUBLIC_KEY, 1, CONFIG.to_fields())


def _open(now: float = 0.0) -> tuple[EnclaveProvisioning, Exchange]:
    enclave = EnclaveProvisioning(random=SeededRandom("exchange"))
    return enclave, enclave.accept(now)


HELLO = _open()[1].data_to_send()[4:]  # the same from every first exchange


def _relay(request: bytes = b"") -> RelayHalf:
    """The relay's half in answer to `HELLO`, after this M1, by default after one around `REQUEST`."""
    relay = RelayHalf(HELLO)
    relay.transcript = transcript_hash(HELLO, request or relay.request(REQUEST.encode()))
    return relay


def _frame(message: Hello | Request | Response | Error | Result | bytes) -> bytes:
    """Return the message, or the map in place of a REQUEST, as it is on the wire."""
    match message:
        case Request():
            return encode_frame(RelayHalf(HELLO).request(message.encode()))
        case bytes():
            return encode_frame(RelayHalf(HELLO).request(message))
        case Result():
            return encode_frame(_relay().result(message.encode()))
        case _:
            return encode_frame(message.encode())


def _response(message: Response) -> bytes:
    """M2 around it."""
    _, exchange = _open()
    half = EnclaveHalf(HELLO, _frame(REQUEST)[4:], _private(exchange))
    return half.response(message.encode())


def _private(exchange: Exchange) -> bytes:
    assert exchange._ephemeral._private is not None
    return exchange._ephemeral._private.private_bytes_raw()


def _drain(enclave: EnclaveProvisioning) -> list[EnclaveEvent]:
    enclave.handle_timers(0.0)  # reports on strangers
    events = []
    while (event := enclave.next_event()) is not None:
        events.append(event)
    return events


def _sent(exchange: Exchange) -> list[bytes]:
    """The messages that the exchange has to send."""
    data, messages = exchange.data_to_send(), []
    while data:
        length = int.from_bytes(data[:4], "big")
        messages.append(data[4 : 4 + length])
        data = data[4 + length :]
    return messages


def _refusal(exchange: Exchange, request: bytes = b"", *, clear: bool = False) -> WireCode:
    """Return the code of the only ERROR to be sent in answer to an M1."""
    [message] = _sent(exchange)
    error = decode_response(message if clear else _relay(request).open(message))
    assert isinstance(error, Error)
    assert exchange.closed
    return WireCode(error.code)


def _in_state(state: ExchangeState) -> tuple[EnclaveProvisioning, Exchange]:
    enclave, exchange = _open()
    steps: list[Callable[[], None]] = [
        lambda: exchange.receive_data(_frame(REQUEST), 0.0),
        lambda: exchange.configuration_applied(WIREGUARD_KEY, 0.0),
        lambda: exchange.attestation_ready(b"document", 0.0),
        lambda: exchange.receive_data(_frame(Result(0)), 0.0),
    ]
    for step in steps:
        if exchange.state is state:
            break
        exchange.data_to_send()
        step()
    assert exchange.state is state
    exchange.data_to_send()
    _drain(enclave)
    return enclave, exchange


# The way of a good exchange.


def test_hello_is_sent_at_once_with_fresh_values() -> None:
    enclave, exchange = _open()
    [message] = _sent(exchange)
    hello = decode_hello(message)
    assert isinstance(hello, Hello)
    assert hello.capabilities == ("framing/native", "framing/compat", "profile/gso", "profile/plain")
    exchange.receive_eof()
    [other] = _sent(enclave.accept(0.0))
    second = decode_hello(other)
    assert isinstance(second, Hello)
    assert {hello.nonce, hello.ephemeral}.isdisjoint({second.nonce, second.ephemeral})


def test_a_request_becomes_a_configuration_then_an_attestation_then_a_response() -> None:
    enclave, exchange = _open()
    [hello] = _sent(exchange)
    exchange.receive_data(_frame(REQUEST), 0.0)
    [offered] = _drain(enclave)
    assert isinstance(offered, ConfigurationOffered)
    assert offered.exchange is exchange
    assert offered.replaces is None
    assert offered.assignment.config == CONFIG
    assert offered.assignment.relay_public_key == RELAY_PUBLIC_KEY
    transcript = transcript_hash(hello, _frame(REQUEST)[4:])
    decoded = decode_hello(hello)
    assert isinstance(decoded, Hello)
    assert offered.assignment.preshared_key == Ephemeral(b"r" * 32).preshared_key(decoded.ephemeral, transcript)

    exchange.configuration_applied(WIREGUARD_KEY, 0.0)
    [needed] = _drain(enclave)
    assert isinstance(needed, AttestationNeeded)
    assert needed.nonce == REQUEST.nonce
    assert needed.public_key[-32:] == WIREGUARD_KEY
    assert len(needed.public_key) == 44
    assert needed.user_data == user_data(transcript)
    assert enclave.state is LinkState.PENDING
    assert not _sent(exchange)

    exchange.attestation_ready(b"document", 0.0)
    assert _sent(exchange) == [_response(Response(b"document"))]
    exchange.receive_data(_frame(Result(0)), 0.0)
    assert _drain(enclave) == [ExchangeEnded(exchange, None)]
    assert exchange.closed


def test_a_result_other_than_zero_takes_the_configuration_back() -> None:
    enclave, exchange = _in_state(ExchangeState.AWAITING_RESULT)
    exchange.receive_data(_frame(Result(32)), 0.0)
    rolled_back, ended = _drain(enclave)
    assert isinstance(rolled_back, ConfigurationRolledBack)
    assert isinstance(ended, ExchangeEnded)
    assert ended.error is not None
    assert ended.error.wire_code is WireCode.ATTESTATION_REJECTED
    assert enclave.state is LinkState.UNPROVISIONED


# Every state with every input.

STEPS: dict[ExchangeInput, Callable[[Exchange], None]] = {
    ExchangeInput.REQUEST: lambda exchange: exchange.receive_data(_frame(REQUEST), 0.0),
    ExchangeInput.APPLIED: lambda exchange: exchange.configuration_applied(WIREGUARD_KEY, 0.0),
    ExchangeInput.DOCUMENT: lambda exchange: exchange.attestation_ready(b"document", 0.0),
    ExchangeInput.RESULT: lambda exchange: exchange.receive_data(_frame(Result(0)), 0.0),
}
FROM_THE_WIRE = {ExchangeInput.REQUEST, ExchangeInput.RESULT}


@pytest.mark.parametrize("step", ExchangeInput)
@pytest.mark.parametrize("state", ExchangeState)
def test_every_state_with_every_step(state: ExchangeState, step: ExchangeInput) -> None:
    _, exchange = _in_state(state)
    after = TRANSITIONS.get((state, step))
    if after is None and step not in FROM_THE_WIRE and state is not ExchangeState.CLOSED:
        with pytest.raises(LocalProtocolError):
            STEPS[step](exchange)
        assert exchange.state is state
    else:
        STEPS[step](exchange)
        assert exchange.state is (after or ExchangeState.CLOSED)


@pytest.mark.parametrize(
    "ending",
    [
        lambda exchange: exchange.receive_eof(),
        lambda exchange: exchange.handle_timers(1e9),
        lambda exchange: exchange.configuration_failed(),
        lambda exchange: exchange.attestation_failed(),
        lambda exchange: exchange.receive_data(encode_frame(bytes(300_000)), 0.0),
        *(
            lambda exchange, message=message: exchange.receive_data(_frame(message), 0.0)
            for message in (Hello(bytes(32), bytes(32), ()), Response(b"document"), Error(1))
        ),
    ],
    ids=["eof", "deadline", "not applied", "not attested", "oversize", "HELLO", "RESPONSE", "ERROR"],
)
@pytest.mark.parametrize("state", ExchangeState)
def test_every_state_can_be_ended_early(state: ExchangeState, ending: Callable[[Exchange], None]) -> None:
    enclave, exchange = _in_state(state)
    ending(exchange)
    assert exchange.closed
    events = _drain(enclave)
    if state is ExchangeState.CLOSED:
        assert not events
        return
    if state is ExchangeState.AWAITING_REQUEST:
        assert isinstance(events[-1], StrangersTurnedAway)
    else:
        assert isinstance(events[-1], ExchangeEnded)
        assert events[-1].error is not None
    # Before the document is out, everything is undone at once; afterwards RESULT or time decides.
    rolled_back = [event for event in events if isinstance(event, ConfigurationRolledBack)]
    assert len(rolled_back) == (state in {ExchangeState.APPLYING, ExchangeState.ATTESTING})
    assert enclave.state is (LinkState.PENDING if state is ExchangeState.AWAITING_RESULT else LinkState.UNPROVISIONED)


def test_a_closed_exchange_ignores_what_comes_too_late() -> None:
    enclave, exchange = _in_state(ExchangeState.CLOSED)
    exchange.configuration_applied(WIREGUARD_KEY, 0.0)
    exchange.configuration_failed()
    exchange.attestation_ready(b"document", 0.0)
    exchange.attestation_failed()
    exchange.receive_data(b"anything", 0.0)
    exchange.receive_eof()
    assert not exchange.data_to_send()
    assert not _drain(enclave)
    assert exchange.next_deadline() is None


# Refusals, and the code that each sends.


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (_frame(b"\xff"), WireCode.BAD_CBOR),
        (_frame(b"\xa2\x01\x02\x02\x01"), WireCode.UNSUPPORTED_VERSION),
        (_frame(Result(0).encode()), WireCode.BAD_FIELD),
        (_frame(replace(REQUEST, relay_public_key=bytes(32))), WireCode.BAD_FIELD),
        (_frame(replace(REQUEST, signature=bytes(64), signer=b"p" * 32)), WireCode.AUTH_FAILED),
        (
            _frame(replace(REQUEST, config=replace(CONFIG, search=("-",)).to_fields())),
            WireCode.CONFIG_REJECTED,
        ),
        (
            _frame(replace(REQUEST, config=replace(CONFIG, capabilities=()).to_fields())),
            WireCode.CONFIG_REJECTED,
        ),
        (_frame(REQUEST) + b"more", WireCode.BAD_FRAME),
    ],
    ids=str,
)
def test_a_bad_request_is_refused_by_name_and_nothing_is_asked_of_the_shell(data: bytes, code: WireCode) -> None:
    enclave, exchange = _open()
    exchange.data_to_send()
    exchange.receive_data(data, 0.0)
    length = int.from_bytes(data[:4], "big")
    assert _refusal(exchange, data[4 : 4 + length]) is code
    events = _drain(enclave)
    assert not any(isinstance(event, AttestationNeeded) for event in events)
    assert enclave.state is LinkState.UNPROVISIONED
    assert enclave.pending is None


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (bytes(4), WireCode.BAD_FRAME),
        ((8 * 1024 + 1).to_bytes(4, "big"), WireCode.BAD_FRAME),
        (encode_frame(bytes(48)), WireCode.BAD_FRAME),
        (encode_frame(bytes(49)), WireCode.BAD_FIELD),
        (encode_frame(b"\1" + bytes(200)), WireCode.BAD_FIELD),
        (encode_frame(Ephemeral(b"r" * 32).public + bytes(200)), WireCode.BAD_FRAME),
        (encode_frame(REQUEST.encode()), WireCode.BAD_FRAME),
        (_frame(REQUEST)[:-1] + b"?", WireCode.BAD_FRAME),
    ],
    ids=["empty", "too long", "too short", "zero", "small order", "not sealed", "in the clear", "a byte changed"],
)
def test_what_cannot_be_opened_is_answered_in_the_clear(data: bytes, code: WireCode) -> None:
    enclave, exchange = _open()
    exchange.data_to_send()
    exchange.receive_data(data, 0.0)
    assert _refusal(exchange, clear=True) is code
    assert code in CLEAR_ERRORS
    [turned_away] = _drain(enclave)
    assert isinstance(turned_away, StrangersTurnedAway)


def test_nothing_that_the_relay_said_can_be_read_on_the_wire() -> None:
    said = REQUEST.encode()
    wire = _frame(REQUEST)
    assert not any(said[start : start + 8] in wire for start in range(len(said) - 8))


def test_a_request_for_another_hello_does_not_open() -> None:
    """A recording of one exchange is useless in the next one."""
    enclave, first = _open()
    first.receive_eof()
    second = enclave.accept(0.0)
    second.data_to_send()
    second.receive_data(_frame(REQUEST), 0.0)
    assert _refusal(second, clear=True) is WireCode.BAD_FRAME


def test_a_configuration_that_cannot_be_applied_is_an_internal_error() -> None:
    _, exchange = _in_state(ExchangeState.APPLYING)
    exchange.configuration_failed()
    assert _refusal(exchange) is WireCode.INTERNAL


def test_a_module_that_refuses_is_an_nsm_error() -> None:
    _, exchange = _in_state(ExchangeState.ATTESTING)
    exchange.attestation_failed()
    assert _refusal(exchange) is WireCode.NSM_ERROR


@pytest.mark.parametrize("size", [0, DOCUMENT_LIMIT + 1])
def test_a_document_of_impossible_size_is_an_nsm_error(size: int) -> None:
    _, exchange = _in_state(ExchangeState.ATTESTING)
    exchange.attestation_ready(bytes(size), 0.0)
    assert _refusal(exchange) is WireCode.NSM_ERROR


def test_the_largest_document_is_sent() -> None:
    _, exchange = _in_state(ExchangeState.ATTESTING)
    exchange.attestation_ready(bytes(DOCUMENT_LIMIT), 0.0)
    assert _sent(exchange) == [_response(Response(bytes(DOCUMENT_LIMIT)))]


def test_after_the_response_no_error_is_sent() -> None:
    _, exchange = _in_state(ExchangeState.AWAITING_RESULT)
    exchange.receive_data(b"\xff" * 4, 0.0)
    assert exchange.closed
    assert not exchange.data_to_send()


def test_nothing_is_sent_to_a_relay_that_hung_up() -> None:
    _, exchange = _open()
    exchange.receive_eof()
    assert not exchange.data_to_send()


# Deadlines.


@pytest.mark.parametrize(
    ("state", "deadline", "code"),
    [
        (ExchangeState.AWAITING_REQUEST, 3.0, WireCode.TIMEOUT),
        (ExchangeState.APPLYING, 10.0, WireCode.TIMEOUT),
        (ExchangeState.ATTESTING, 5.0, WireCode.NSM_ERROR),
    ],
)
def test_each_wait_has_its_deadline(state: ExchangeState, deadline: float, code: WireCode) -> None:
    _, exchange = _in_state(state)
    assert exchange.next_deadline() == deadline
    exchange.handle_timers(deadline - 0.001)
    assert not exchange.closed
    exchange.handle_timers(deadline)
    assert _refusal(exchange, clear=state is ExchangeState.AWAITING_REQUEST) is code


def test_a_missing_result_ends_the_exchange_and_nothing_else() -> None:
    enclave, exchange = _in_state(ExchangeState.AWAITING_RESULT)
    assert exchange.next_deadline() == 3.0
    exchange.handle_timers(3.0)
    assert exchange.closed
    assert not exchange.data_to_send()
    assert enclave.state is LinkState.PENDING


def test_a_trickle_of_bytes_does_not_extend_the_deadline() -> None:
    _, exchange = _open()
    for tenth, byte in enumerate(_frame(REQUEST)[:29]):
        exchange.receive_data(bytes((byte,)), tenth / 10)
    exchange.handle_timers(3.0)
    assert exchange.closed


def test_no_wait_outlives_the_exchange() -> None:
    _, exchange = _open()
    exchange.receive_data(_frame(REQUEST), 2.0)
    exchange.configuration_applied(WIREGUARD_KEY, 9.0)
    assert exchange.next_deadline() == 10.0


# Garbage, however it is cut.


def _trace(chunks: list[bytes]) -> list[object]:
    """Return everything visible of an exchange that receives these chunks, with a shell that answers at once."""
    enclave, exchange = _open()
    seen: list[object] = []
    for chunk in chunks:
        exchange.receive_data(chunk, 0.0)
        while (event := enclave.next_event()) is not None:
            match event:
                case ConfigurationOffered(_, assignment):
                    seen.append(("offered", assignment))
                case AttestationNeeded(_, nonce, public_key, data):
                    seen.append(("attest", nonce, public_key, data))
                case ConfigurationRolledBack(assignment):
                    seen.append(("back", assignment))
                case ExchangeEnded(_, error):
                    seen.append(("ended", str(error)))
    return [*seen, exchange.data_to_send(), exchange.state, enclave.state]


def _cut(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


STREAMS = st.lists(
    st.one_of(
        st.just(_frame(REQUEST)),
        st.just(_frame(replace(REQUEST, config=replace(CONFIG, search=("-",)).to_fields()))),
        st.just(_frame(Result(0))),
        st.binary(max_size=40).map(encode_frame),
        st.binary(max_size=12),
    ),
    max_size=4,
).map(b"".join)


@given(stream=STREAMS, cuts=st.lists(st.integers(0, 1000), max_size=8))
def test_what_happens_does_not_depend_on_how_the_bytes_are_cut(stream: bytes, cuts: list[int]) -> None:
    whole = _trace([stream])
    assert _trace(_cut(stream, cuts)) == whole
    assert _trace([bytes((byte,)) for byte in stream]) == whole


@settings(max_examples=300)
@given(at=st.integers(0, 1000), value=st.integers(0, 255), state=st.sampled_from(ExchangeState))
def test_a_changed_byte_never_raises_and_never_attests_what_was_not_asked(
    at: int, value: int, state: ExchangeState
) -> None:
    enclave, exchange = _in_state(state)
    data = bytearray(_frame(REQUEST))
    data[at % len(data)] = value
    exchange.receive_data(bytes(data), 0.0)
    for event in _drain(enclave):
        if isinstance(event, ConfigurationOffered):
            assert event.assignment.config.to_fields() is not None
            event.assignment.config.validate()


def test_memoryviews_are_bytes_too() -> None:
    _, exchange = _open()
    buffer: Any = bytearray(_frame(REQUEST))
    exchange.receive_data(memoryview(buffer), 0.0)
    buffer[:] = bytes(len(buffer))
    assert exchange.state is ExchangeState.APPLYING
