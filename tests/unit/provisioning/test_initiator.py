"""The relay's side: the order of its checks, its reports, and what a man in the middle achieves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.nsm.faults import Faults
from lab.nsm.signer import LabEnclave
from lab.watch.meddler import Interceptor
from lab.watch.tap import Kind
from wgvsock.attestation.errors import RejectedDocumentError
from wgvsock.attestation.policy import Expectations, PcrSet, Policy
from wgvsock.attestation.verifier import Verifier
from wgvsock.provisioning import (
    AttestationNeeded,
    ConfigurationOffered,
    EnclaveProvisioned,
    ExchangeEnded,
    LinkState,
    ProvisioningFailed,
    RelayEvent,
    RelayProvisioning,
    RelayState,
)
from wgvsock.provisioning.errors import (
    ConfigRejectedError,
    ConnectionLostError,
    ExchangeError,
    WireCode,
    error_from_wire,
)
from wgvsock.provisioning.frames import encode_frame
from wgvsock.provisioning.messages import (
    CLEAR_ERRORS,
    Error,
    Hello,
    Request,
    Response,
    Result,
    decode_hello,
    decode_request,
    decode_result,
)
from wgvsock.provisioning.transcript import Ephemeral
from wgvsock.testing.clock import SeededRandom
from wgvsock.testing.provisioning import RELAY_PUBLIC_KEY, TUNNEL_CONFIG, Connection, EnclaveHalf, ProvisioningPair

ENCLAVE_KEY = bytes(range(100, 132))
MALLORY_KEY = b"m" * 32
MALLORY = Ephemeral(b"mallory's ephemeral private key.")
PCRS = {index: bytes((index + 1,)) * 48 for index in range(3)}
VERIFIER = Verifier(Policy(pcr_sets=(PcrSet(PCRS),)))
HELLO = Hello(b"n" * 32, Ephemeral(b"e" * 32).public, ("framing/native", "profile/plain"))

MakePair = Callable[..., ProvisioningPair]


def _frame(message: Hello | Request | Response | Error | Result) -> bytes:
    """The message in the clear."""
    return encode_frame(message.encode())


def _greeted(**options: Any) -> tuple[RelayProvisioning, EnclaveHalf]:
    """A relay that has answered `HELLO`, and the enclave's half of what it agreed on."""
    relay = _relay(**options)
    relay.receive_data(_frame(HELLO), relay._end_by - 9.0)
    return relay, EnclaveHalf(HELLO.encode(), relay.data_to_send()[4:])


def _relay(now: float = 0.0, **options: Any) -> RelayProvisioning:
    """A relay without an enclave, whom no document satisfies."""
    usual: dict[str, Any] = {
        "config": TUNNEL_CONFIG,
        "relay_public_key": RELAY_PUBLIC_KEY,
        "verifier": VERIFIER,
        "expectations": Expectations(user_data=b""),
        "epoch_ms": 1,
        "random": SeededRandom("relay"),
        "utc_now": lambda: datetime(2027, 1, 15, tzinfo=UTC),
        "now": now,
    }
    return RelayProvisioning(**usual | options)


def _error(outcome: RelayEvent | None) -> ExchangeError | RejectedDocumentError:
    assert isinstance(outcome, ProvisioningFailed)
    assert isinstance(outcome.error, ExchangeError | RejectedDocumentError)
    return outcome.error


def _code(outcome: RelayEvent | None) -> WireCode:
    error = _error(outcome)
    assert isinstance(error, ExchangeError)
    return error.wire_code


def _state(pair: ProvisioningPair) -> LinkState:
    return pair.enclave.state


def _result(connection: Connection) -> int:
    """The code of the RESULT that the relay sent last."""
    return decode_result(connection.opened_by_enclave[-1]).code


# The way of a good exchange.


def test_the_outcome_holds_what_was_attested_and_agreed(pair: ProvisioningPair) -> None:
    connection = pair.connect()
    outcome = connection.run()
    assert isinstance(outcome, EnclaveProvisioned)
    assert outcome.attested.wireguard_public_key == ENCLAVE_KEY
    assert outcome.capabilities == outcome.config.capabilities == ("framing/native", "profile/gso")
    assert replace(outcome.config, capabilities=()) == TUNNEL_CONFIG
    assert pair.in_force is not None
    assert pair.in_force.preshared_key == outcome.preshared_key
    assert pair.in_force.relay_public_key == RELAY_PUBLIC_KEY
    assert _result(connection) == 0
    assert connection.relay.closed
    assert connection.exchange.closed
    assert connection.relay.next_event() is None


def test_the_sizes_of_the_messages(pair: ProvisioningPair) -> None:
    connection = pair.connect(signing_seed=None)
    connection.run()
    hello, response = (len(data) - 4 for data in connection.sent_by_enclave)
    request, result = (len(data) - 4 for data in connection.sent_by_relay)
    assert (hello, result) == (133, 23)
    assert 250 < request < 300
    assert 4000 < response < 4800
    signed = pair.connect()
    signed.run()
    assert len(signed.sent_by_relay[0]) - 4 == request + 67 + 35  # keys 8 and 9


def test_one_byte_at_a_time_makes_no_difference(pair: ProvisioningPair) -> None:
    connection = pair.connect()
    outcome = None
    for _ in range(6):
        pair.drain()
        for byte in connection.exchange.data_to_send():
            connection.relay.receive_data(bytes((byte,)), pair.clock.now)
        for byte in connection.relay.data_to_send():
            connection.exchange.receive_data(bytes((byte,)), pair.clock.now)
        outcome = outcome or connection.relay.next_event()
    assert isinstance(outcome, EnclaveProvisioned)


def test_the_relay_picks_what_it_prefers(pair: ProvisioningPair) -> None:
    outcome = pair.provision(capabilities=("framing/compat", "profile/gso", "profile/plain"))
    assert isinstance(outcome, EnclaveProvisioned)
    assert outcome.capabilities == ("framing/compat", "profile/plain")


def test_the_key_that_is_attested_is_the_one_that_was_applied(make_pair: MakePair) -> None:
    # With the commitment in PCR16 off, the enclave may rotate its key; the relay takes what the document says.
    pair = make_pair()
    pair.wireguard_public_key = b"k" * 32
    outcome = pair.provision(expectations=replace(pair.expectations, wireguard_key_pcr=None))
    assert isinstance(outcome, EnclaveProvisioned)
    assert outcome.attested.wireguard_public_key == b"k" * 32


# What the enclave refuses reaches the operator.


@pytest.mark.parametrize(
    ("code", "greeted"),
    [(code, True) for code in WireCode if code is not WireCode.OK] + [(code, False) for code in sorted(CLEAR_ERRORS)],
)
def test_every_error_of_the_enclave_becomes_its_class(code: WireCode, greeted: bool) -> None:
    error_message = Error(code, "a rule was broken")
    if greeted:
        relay, enclave = _greeted()
        relay.receive_data(encode_frame(enclave.response(error_message.encode())), 0.0)
    else:
        relay = _relay()
        relay.receive_data(_frame(error_message), 0.0)
    error = _error(relay.next_event())
    assert type(error) is type(error_from_wire(code, ""))
    assert error.why == "the enclave reported 'a rule was broken'"
    assert relay.closed
    assert not relay.data_to_send()


def test_an_error_may_say_nothing_more() -> None:
    relay = _relay()
    relay.receive_data(_frame(Error(WireCode.BUSY)), 0.0)
    assert not _error(relay.next_event()).why


# What the relay refuses, and tells the enclave.


@pytest.mark.parametrize(
    ("faults", "check", "code"),
    [
        ({"truncated_to": 100}, "cbor", WireCode.ATTESTATION_REJECTED),
        ({"trailing_bytes": 1}, "cbor", WireCode.ATTESTATION_REJECTED),
        ({"wrong_root": True}, "chain.root", WireCode.ATTESTATION_REJECTED),
        ({"corrupt_signature": True}, "cose.sig", WireCode.ATTESTATION_REJECTED),
        ({"leaf_module_id": "i-0123456789abcdef0-enc0000000000000001"}, "module_id", WireCode.ATTESTATION_REJECTED),
        ({"clock_offset": -121.0}, "freshness.stale", WireCode.ATTESTATION_REJECTED),
        ({"clock_offset": 31.0}, "freshness.future", WireCode.ATTESTATION_REJECTED),
        ({"payload": {"nonce": bytes(32)}}, "nonce.mismatch", WireCode.ATTESTATION_REJECTED),
        ({"without": ("nonce",)}, "nonce.missing", WireCode.ATTESTATION_REJECTED),
        ({"debug": True}, "pcr.debug", WireCode.ATTESTATION_REJECTED),
        ({"pcrs": {0: b"x" * 48}}, "pcr.set", WireCode.POLICY),
        ({"module_id": "i-0123456789abcdef0-enc0000000000000001"}, "module_id.launched", WireCode.POLICY),
        ({"payload": {"public_key": bytes(44)}}, "public_key", WireCode.BINDING_MISMATCH),
        ({"payload": {"user_data": bytes(64)}}, "user_data", WireCode.BINDING_MISMATCH),
        ({"pcrs": {16: bytes(48)}}, "pcr.key", WireCode.BINDING_MISMATCH),
        ({"without_pcrs": (16,)}, "pcr.key", WireCode.BINDING_MISMATCH),
    ],
    ids=str,
)
def test_a_document_that_fails_a_check(
    pair: ProvisioningPair, lab_enclave: LabEnclave, faults: dict[str, Any], check: str, code: WireCode
) -> None:
    lab_enclave.faults = Faults(**faults)
    connection = pair.connect()
    error = _error(connection.run())
    assert isinstance(error, RejectedDocumentError)
    assert error.check == check
    assert _result(connection) == code
    # The enclave took everything back at once, knows why, and is ready for a correct attempt.
    [ended] = [event for event in pair.events if isinstance(event, ExchangeEnded)]
    assert ended.error is not None
    assert ended.error.wire_code is code
    assert _state(pair) is LinkState.UNPROVISIONED
    assert pair.in_force is None
    lab_enclave.faults = Faults()
    assert isinstance(pair.provision(), EnclaveProvisioned)


@pytest.mark.parametrize(
    ("expected", "check"),
    [
        ({"instance_id": "i-0fedcba9876543210"}, "pcr.instance"),
        ({"role_arn": "arn:aws:iam::123456789012:role/other"}, "pcr.role"),
        ({"pcrs": {8: b"x" * 48}}, "pcr.expected"),
    ],
    ids=["PCR4", "PCR3", "PCR8"],
)
def test_an_enclave_that_is_not_the_expected_one(pair: ProvisioningPair, expected: dict[str, Any], check: str) -> None:
    connection = pair.connect(expectations=replace(pair.expectations, **expected))
    error = _error(connection.run())
    assert isinstance(error, RejectedDocumentError)
    assert error.check == check
    assert _result(connection) == WireCode.POLICY


@pytest.mark.parametrize("top_bit", [0, 0x80], ids=["as sent", "encoded otherwise"])
def test_an_enclave_that_hands_the_relay_s_own_key_back(pair: ProvisioningPair, top_bit: int) -> None:
    pair.wireguard_public_key = RELAY_PUBLIC_KEY[:31] + bytes((RELAY_PUBLIC_KEY[31] | top_bit,))
    connection = pair.connect(expectations=replace(pair.expectations, wireguard_key_pcr=None))
    error = _error(connection.run())
    assert isinstance(error, RejectedDocumentError)
    assert error.check == "public_key.own"
    assert not error.final
    assert _result(connection) == WireCode.BINDING_MISMATCH


def test_the_relay_says_when_its_process_started(pair: ProvisioningPair) -> None:
    connection = pair.connect(incarnation=1_790_000_000_000)
    connection.run()
    assert decode_request(connection.opened_by_enclave[0]).incarnation == 1_790_000_000_000
    assert pair.in_force is not None
    assert pair.in_force.incarnation == 1_790_000_000_000


def test_the_connection_has_to_lead_to_the_launched_enclave_s_cid(pair: ProvisioningPair) -> None:
    connection = pair.connect(connected_cid=16, launched_cid=17)
    assert _code(connection.run()) is WireCode.POLICY
    assert _result(connection) == WireCode.POLICY
    assert _state(pair) is LinkState.UNPROVISIONED
    assert isinstance(pair.provision(connected_cid=16, launched_cid=16), EnclaveProvisioned)


def test_the_module_s_refusal_reaches_the_relay(pair: ProvisioningPair) -> None:
    pair.attests = False
    connection = pair.connect()
    connection.carry_to_relay()
    connection.carry_to_enclave()
    connection.exchange.attestation_failed()
    assert _code(connection.run()) is WireCode.NSM_ERROR
    assert pair.in_force is None


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\xff", WireCode.BAD_CBOR),
        (b"\xa2\x01\x02\x02\x02", WireCode.UNSUPPORTED_VERSION),
        (HELLO.encode(), WireCode.BAD_FIELD),
        (Response(b"garbage").encode(), WireCode.ATTESTATION_REJECTED),
    ],
    ids=["cbor", "version", "field", "document"],
)
def test_a_bad_response_is_answered_with_its_code(data: bytes, code: WireCode) -> None:
    relay, enclave = _greeted()
    relay.receive_data(encode_frame(enclave.response(data)), 0.0)
    assert enclave.open(relay.data_to_send()[4:]) == Result(code).encode()
    assert isinstance(relay.next_event(), ProvisioningFailed)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 4,
        encode_frame(b"\xff"),
        _frame(Response(b"document")),
        *(_frame(Error(code)) for code in WireCode if code not in CLEAR_ERRORS),
    ],
)
def test_what_does_not_open_is_a_bad_frame(data: bytes) -> None:
    """An observer in the middle cannot make the relay believe that the enclave refused it, or has a document."""
    relay, enclave = _greeted()
    relay.receive_data(data, 0.0)
    assert enclave.open(relay.data_to_send()[4:]) == Result(WireCode.BAD_FRAME).encode()
    assert _code(relay.next_event()) is WireCode.BAD_FRAME


@pytest.mark.parametrize("code", sorted(CLEAR_ERRORS))
def test_an_error_of_an_enclave_that_has_no_keys(code: WireCode) -> None:
    relay, _ = _greeted()
    relay.receive_data(_frame(Error(code, "why")), 0.0)
    assert _code(relay.next_event()) is code
    assert not relay.data_to_send()


@pytest.mark.parametrize("code", [code for code in WireCode if code not in CLEAR_ERRORS])
def test_what_is_only_found_with_keys_is_not_believed_before(code: WireCode) -> None:
    relay = _relay()
    relay.receive_data(_frame(Error(code)), 0.0)
    assert _code(relay.next_event()) is WireCode.BAD_FIELD
    assert not relay.data_to_send()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ((257).to_bytes(4, "big"), WireCode.BAD_FRAME),
        (encode_frame(b"\xff"), WireCode.BAD_CBOR),
        (encode_frame(b"\xa2\x01\x02\x02\x00"), WireCode.UNSUPPORTED_VERSION),
        (_frame(Response(b"document")), WireCode.BAD_FIELD),
        (_frame(replace(HELLO, ephemeral=bytes(32))), WireCode.BAD_FIELD),
        (_frame(replace(HELLO, capabilities=())), WireCode.CONFIG_REJECTED),
    ],
    ids=["frame", "cbor", "version", "field", "small order", "nothing in common"],
)
def test_after_a_bad_hello_nothing_is_sent(data: bytes, code: WireCode) -> None:
    relay = _relay()
    relay.receive_data(data, 0.0)
    assert not relay.data_to_send()
    assert _code(relay.next_event()) is code
    assert relay.closed


def test_the_relay_checks_its_own_configuration_first() -> None:
    with pytest.raises(ConfigRejectedError):
        _relay(config=replace(TUNNEL_CONFIG, mtu=100))


# The end of the stream, and time.


@pytest.mark.parametrize("greeted", [False, True])
def test_an_enclave_that_hangs_up(greeted: bool) -> None:
    relay = _relay()
    if greeted:
        relay.receive_data(_frame(HELLO), 0.0)
    relay.data_to_send()
    relay.receive_eof()
    assert isinstance(_error(relay.next_event()), ConnectionLostError)
    assert not relay.data_to_send()
    assert relay.next_deadline() is None


def test_once_closed_nothing_changes_the_outcome(pair: ProvisioningPair) -> None:
    connection = pair.connect()
    assert isinstance(connection.run(), EnclaveProvisioned)
    relay = connection.relay
    relay.receive_eof()
    relay.receive_data(b"more", 0.0)
    relay.handle_timers(1e9)
    assert relay.next_event() is None
    assert not relay.data_to_send()


def test_hello_is_due_in_three_seconds() -> None:
    relay = _relay(now=50.0)
    assert relay.next_deadline() == 53.0
    relay.handle_timers(52.9)
    assert relay.state is RelayState.AWAITING_HELLO
    relay.handle_timers(53.0)
    assert _code(relay.next_event()) is WireCode.TIMEOUT
    assert not relay.data_to_send()


def test_the_response_may_take_the_whole_exchange_and_the_enclave_hears_when_it_does_not_come() -> None:
    relay, enclave = _greeted()
    assert relay.next_deadline() == 10.0
    relay.handle_timers(10.0)
    assert _code(relay.next_event()) is WireCode.TIMEOUT
    assert enclave.open(relay.data_to_send()[4:]) == Result(WireCode.TIMEOUT).encode()


def test_a_response_that_has_begun_has_three_seconds_to_end() -> None:
    relay, enclave = _greeted()
    response = encode_frame(enclave.response(Response(b"document").encode()))
    relay.receive_data(response[:2], 4.0)
    assert relay.next_deadline() == 7.0
    relay.receive_data(response[2:6], 6.0)
    assert relay.next_deadline() == 7.0


# A man in the middle. `Connection.to_…` changes what passes; he may also speak for either side.


def _intercept(connection: Connection, change: Callable[[str, bytes], bytes], seed: bytes | None = None) -> Interceptor:
    """Insert an active attacker, who agrees on keys with each side."""
    interceptor = Interceptor(change, seed)

    def way(kind: Kind, *names: str) -> Callable[[bytes], bytes]:
        due = iter(names)
        return lambda data: b"".join(interceptor(kind, next(due), data[4:]))

    connection.to_relay = way(Kind.TO_RELAY, "HELLO", "RESPONSE")
    connection.to_enclave = way(Kind.TO_ENCLAVE, "REQUEST", "RESULT")
    return interceptor


def _rewritten(change: Callable[[Request], Request]) -> Callable[[str, bytes], bytes]:
    """Change a REQUEST in transit, but not its signature, as an attacker without the key has to."""

    def rewrite(name: str, message: bytes) -> bytes:
        if name != "REQUEST":
            return message
        return change(replace(decode_request(message), signature=None, signer=None)).encode()

    return rewrite


def _rewrite_hello(change: Callable[[Hello], Hello]) -> Callable[[bytes], bytes]:
    def rewrite(data: bytes) -> bytes:
        try:
            hello = decode_hello(data[4:])
        except ExchangeError:
            return data  # RESPONSE passes
        return _frame(change(hello)) if isinstance(hello, Hello) else data

    return rewrite


REQUEST_CHANGES: dict[str, Callable[[Request], Request]] = {
    "signature stripped": lambda request: request,
    "relay key": lambda request: replace(request, relay_public_key=MALLORY_KEY),
    "epoch": lambda request: replace(request, epoch_ms=request.epoch_ms + 1),
    "incarnation": lambda request: replace(request, incarnation=request.incarnation + 1),
    "name server": lambda request: replace(request, config=replace(request.config, nameservers=("198.51.100.66",))),
    "profile": lambda request: replace(
        request, config=replace(request.config, capabilities=("framing/native", "profile/plain"))
    ),
}

HELLO_CHANGES: dict[str, Callable[[Hello], Hello]] = {
    "nonce": lambda hello: replace(hello, nonce=bytes(32)),
    "ephemeral": lambda hello: replace(hello, ephemeral=MALLORY.public),
    "capabilities": lambda hello: replace(hello, capabilities=("framing/compat", "profile/plain")),
    "order of capabilities": lambda hello: replace(hello, capabilities=hello.capabilities[::-1]),
}


@pytest.mark.parametrize("change", REQUEST_CHANGES.values(), ids=REQUEST_CHANGES)
def test_a_changed_request_does_not_end_in_a_provisioned_enclave(
    pair: ProvisioningPair, change: Callable[[Request], Request]
) -> None:
    connection = pair.connect()
    interceptor = _intercept(connection, _rewritten(change))
    error = _error(connection.run())
    assert isinstance(error, RejectedDocumentError)
    assert error.check == "user_data"
    assert interceptor.message("RESULT")[3] == WireCode.BINDING_MISMATCH
    assert _state(pair) is LinkState.UNPROVISIONED


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("change", HELLO_CHANGES.values(), ids=HELLO_CHANGES)
def test_a_changed_hello_does_not_either(
    pair: ProvisioningPair, change: Callable[[Hello], Hello], signed: bool
) -> None:
    options = {} if signed else {"signing_seed": None}
    connection = pair.connect(**options)
    connection.to_relay = _rewrite_hello(change)
    assert _code(connection.run()) is WireCode.BAD_FRAME  # the keys depend on HELLO: the enclave cannot open REQUEST
    assert _state(pair) is LinkState.UNPROVISIONED


@pytest.mark.parametrize("signed", [True, False])
def test_who_reads_along_by_agreeing_on_keys_with_both_is_found_out(pair: ProvisioningPair, signed: bool) -> None:
    options = {} if signed else {"signing_seed": None}
    connection = pair.connect(**options)
    interceptor = _intercept(connection, lambda name, message: message)
    error = _error(connection.run())
    # What it gets: the relay's settings. Never a provisioned enclave, and of a signed request no document either.
    assert interceptor.message("REQUEST")[7][1] == list(map(str, TUNNEL_CONFIG.addresses))
    if signed:  # the signature covers HELLO, so that the enclave notices first
        assert isinstance(error, ExchangeError)
        assert error.wire_code is WireCode.AUTH_FAILED
    else:
        assert isinstance(error, RejectedDocumentError)
        assert error.check == "user_data"
    assert _state(pair) is LinkState.UNPROVISIONED


def test_not_even_a_signature_of_the_attacker_s_own_helps(pair: ProvisioningPair) -> None:
    connection = pair.connect()
    _intercept(connection, lambda name, message: message, b"m" * 32)
    error = _error(connection.run())
    assert isinstance(error, RejectedDocumentError)
    assert error.check == "user_data"


def test_the_attack_on_the_paper_s_flow_fails(pair: ProvisioningPair) -> None:
    """Mallory provisions the enclave with her own key, and forwards its document under the relay's own nonce."""
    connection = pair.connect(signing_seed=None)
    _intercept(connection, _rewritten(lambda request: replace(request, relay_public_key=MALLORY_KEY)))
    for _ in range(2):
        connection.carry_to_relay()
        connection.carry_to_enclave()
    [offered] = [event for event in pair.events if isinstance(event, ConfigurationOffered)]
    assert offered.assignment.relay_public_key == MALLORY_KEY
    error = _error(connection.relay.next_event())
    assert isinstance(error, RejectedDocumentError)
    assert error.check == "user_data"


def test_the_document_of_another_exchange_is_refused(pair: ProvisioningPair) -> None:
    first = pair.connect()
    first.run()
    recorded = first.sent_by_enclave[1]
    second = pair.connect()
    second.to_relay = lambda data: recorded if len(data) > 1000 else data
    assert _code(second.run()) is WireCode.BAD_FRAME


def test_the_document_of_another_exchange_is_refused_from_who_can_seal_it_as_well(pair: ProvisioningPair) -> None:
    first = pair.connect()
    recorded = _intercept(first, lambda name, message: message, b"m" * 32)
    first.run()
    document = recorded.message("RESPONSE")[3]
    second = pair.connect()
    _intercept(second, lambda name, message: Response(document).encode() if name == "RESPONSE" else message, b"m" * 32)
    error = _error(second.run())
    assert isinstance(error, RejectedDocumentError)
    assert error.check == "nonce.mismatch"


@pytest.mark.parametrize("signed", [True, False])
def test_a_replayed_request_does_not_even_open(pair: ProvisioningPair, signed: bool) -> None:
    first = pair.connect(**({} if signed else {"signing_seed": None}))
    first.run()
    pair.enclave.handle_timers(pair.clock.advance(30.0))
    pair.drain()
    replay = pair.connect()
    replay.exchange.receive_data(first.sent_by_relay[0], pair.clock.now)
    assert replay.exchange.closed
    assert _state(pair) is LinkState.UNPROVISIONED


def test_an_old_document_is_refused_by_the_clock(pair: ProvisioningPair) -> None:
    def late() -> Any:
        return pair.utc_now() + timedelta(seconds=121)

    error = _error(pair.provision(utc_now=late))
    assert isinstance(error, RejectedDocumentError)
    assert error.check == "freshness.stale"


def test_exactly_what_the_request_asked_for_is_attested(pair: ProvisioningPair) -> None:
    connection = pair.connect()
    connection.run()
    request = decode_request(connection.opened_by_enclave[0])
    [needed] = [event for event in pair.events if isinstance(event, AttestationNeeded)]
    assert needed.nonce == request.nonce


# Garbage, however it is cut.


def _trace(chunks: list[bytes]) -> list[object]:
    relay = _relay()
    for chunk in chunks:
        relay.receive_data(chunk, 0.0)
    event = relay.next_event()
    outcome = str(event.error) if isinstance(event, ProvisioningFailed) else event
    return [outcome, relay.data_to_send(), relay.state]


STREAMS = st.lists(
    st.one_of(
        st.just(_frame(HELLO)),
        st.just(_frame(Response(b"document"))),
        st.just(_frame(Error(10))),
        st.binary(max_size=40).map(encode_frame),
        st.binary(max_size=12),
    ),
    max_size=4,
).map(b"".join)


@given(stream=STREAMS, cuts=st.lists(st.integers(0, 1000), max_size=8))
def test_what_happens_does_not_depend_on_how_the_bytes_are_cut(stream: bytes, cuts: list[int]) -> None:
    whole = _trace([stream])
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    assert _trace([stream[start:end] for start, end in pairwise(edges)]) == whole
    assert _trace([bytes((byte,)) for byte in stream]) == whole
