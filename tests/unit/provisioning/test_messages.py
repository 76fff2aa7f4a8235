from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wgvsock.provisioning.errors import (
    BadCborError,
    BadFieldError,
    BadFrameError,
    ExchangeError,
    UnsupportedVersionError,
    WireCode,
)
from wgvsock.provisioning.messages import (
    CLEAR_ERRORS,
    DOCUMENT_LIMIT,
    HELLO_LIMIT,
    KEY_BYTES,
    REQUEST_LIMIT,
    RESPONSE_LIMIT,
    RESULT_LIMIT,
    ConfigFields,
    Error,
    Hello,
    Message,
    Request,
    Response,
    Result,
    decode_clear_error,
    decode_hello,
    decode_request,
    decode_response,
    decode_result,
    split_request,
)
from wgvsock.provisioning.sealing import TAG_BYTES

CONFIG = ConfigFields(
    addresses=("10.73.0.2/24",),
    gateways=("10.73.0.1",),
    mtu=1500,
    allowed_ips=("0.0.0.0/0",),
    nameservers=(),
    search=(),
    resolver_options=(),
    persistent_keepalive=0,
    capabilities=("framing/native", "profile/plain"),
)
HELLO = Hello(b"n" * 32, b"e" * 32, ("framing/native", "profile/plain"))
REQUEST = Request(b"n" * 32, b"k" * 32, 1_800_000_000_000, CONFIG)
SIGNED = replace(REQUEST, signature=b"s" * 64, signer=b"p" * 32)
RESPONSE = Response(b"document")

DECODERS: dict[str, Callable[[bytes], Message]] = {
    "hello": decode_hello,
    "request": decode_request,
    "response": decode_response,
    "result": decode_result,
}

TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=32)
TEXTS = st.lists(TEXT, max_size=3).map(tuple)
SOME_TEXTS = st.lists(TEXT, min_size=1, max_size=2).map(tuple)
KEY = st.binary(min_size=32, max_size=32)
CONFIGS = st.builds(
    ConfigFields,
    addresses=SOME_TEXTS,
    gateways=SOME_TEXTS,
    mtu=st.integers(1280, 65_535),
    allowed_ips=SOME_TEXTS,
    nameservers=TEXTS,
    search=TEXTS,
    resolver_options=TEXTS,
    persistent_keepalive=st.integers(0, 65_535),
    capabilities=TEXTS,
)
UNSIGNED = st.builds(
    Request,
    nonce=KEY,
    relay_public_key=KEY,
    epoch_ms=st.integers(0, 2**53 - 1),
    config=CONFIGS,
    signature=st.none(),
    signer=st.none(),
    incarnation=st.integers(0, 2**53 - 1),
)


def test_layout_of_hello() -> None:
    assert cbor2.loads(HELLO.encode()) == {
        1: 1, 2: 0, 3: b"n" * 32, 4: b"e" * 32, 5: ["framing/native", "profile/plain"],
    }  # fmt: skip


def test_layout_of_request() -> None:
    config = {
        1: ["10.73.0.2/24"], 2: ["10.73.0.1"], 3: 1500, 4: ["0.0.0.0/0"], 5: [], 6: [], 7: [], 8: 0,
        9: ["framing/native", "profile/plain"],
    }  # fmt: skip
    fields = {1: 1, 2: 1, 3: b"n" * 32, 4: b"k" * 32, 6: 1_800_000_000_000, 7: config, 10: 0}
    assert cbor2.loads(REQUEST.encode()) == fields
    assert cbor2.loads(SIGNED.encode()) == {**fields, 8: b"s" * 64, 9: b"p" * 32}
    assert cbor2.loads(SIGNED.without_signature().encode()) == {**fields, 9: b"p" * 32}


def test_layout_of_response_error_and_result() -> None:
    assert cbor2.loads(RESPONSE.encode()) == {1: 1, 2: 2, 3: b"document"}
    assert cbor2.loads(Error(10).encode()) == {1: 1, 2: 255, 3: 10}
    assert cbor2.loads(Error(5, "a rule").encode()) == {1: 1, 2: 255, 3: 5, 4: "a rule"}
    assert cbor2.loads(Result(0).encode()) == {1: 1, 2: 3, 3: 0}


def test_a_long_detail_is_cut() -> None:
    error = decode_hello(Error(14, "x" * 500).encode())
    assert error == Error(14, "x" * 128)


@given(hello=st.builds(Hello, nonce=KEY, ephemeral=KEY, capabilities=TEXTS))
def test_hello_decodes_to_what_was_encoded(hello: Hello) -> None:
    assert decode_hello(hello.encode()) == hello


@given(request=st.one_of(UNSIGNED, UNSIGNED.map(lambda r: replace(r, signature=b"s" * 64, signer=b"p" * 32))))
def test_request_decodes_to_what_was_encoded(request: Request) -> None:
    assert decode_request(request.encode()) == request


@given(document=st.binary(min_size=1, max_size=300), code=st.integers(0, 255))
def test_response_and_result_decode_to_what_was_encoded(document: bytes, code: int) -> None:
    assert decode_response(Response(document).encode()) == Response(document)
    assert decode_result(Result(code).encode()) == Result(code)


def test_an_error_stands_in_for_hello_and_for_response() -> None:
    error = Error(10, "one exchange at a time")
    assert decode_hello(error.encode()) == error
    assert decode_response(error.encode()) == error


def test_the_longest_of_each_kind_fits_its_frame() -> None:
    longest = replace(
        CONFIG,
        addresses=("x" * 255,) * 4,
        gateways=("x" * 255,) * 2,
        allowed_ips=("x" * 255,) * 16,
        search=("x" * 255,) * 6,
    )
    assert KEY_BYTES + len(replace(SIGNED, config=longest).encode()) + TAG_BYTES <= REQUEST_LIMIT
    assert len(Response(bytes(DOCUMENT_LIMIT)).encode()) + TAG_BYTES == 12_313 <= RESPONSE_LIMIT
    assert len(Error(255, "x" * 500).encode()) <= HELLO_LIMIT
    assert len(Result(255).encode()) + TAG_BYTES <= RESULT_LIMIT


def test_a_request_is_a_key_and_something_sealed() -> None:
    message = b"e" * KEY_BYTES + b"t" * TAG_BYTES + b"s"
    assert split_request(message) == (b"e" * KEY_BYTES, b"t" * TAG_BYTES + b"s")
    with pytest.raises(BadFrameError):
        split_request(message[:-1])


@pytest.mark.parametrize("code", WireCode)
def test_which_errors_are_believed_in_the_clear(code: WireCode) -> None:
    if code in CLEAR_ERRORS:
        assert decode_clear_error(Error(code, "why").encode()) == Error(code, "why")
    else:
        with pytest.raises(BadFrameError):
            decode_clear_error(Error(code).encode())


@pytest.mark.parametrize("message", [b"", b"\xff" * 40, RESPONSE.encode()], ids=["nothing", "sealed", "RESPONSE"])
def test_what_is_no_error_in_the_clear(message: bytes) -> None:
    with pytest.raises(BadFrameError):
        decode_clear_error(message)


# What is refused, as changes to the decoded map.

Change = Callable[[dict[Any, Any]], object]


def _without(key: int) -> Change:
    return lambda fields: fields.pop(key)


def _with(**values: Any) -> Change:
    return lambda fields: fields.update({int(key[1:]): value for key, value in values.items()})


def _in_config(change: Change) -> Change:
    return lambda fields: change(fields[7])


BAD_HELLO: Mapping[str, Change] = {
    "no nonce": _without(3),
    "unknown key": _with(k6=0),
    "text key": lambda fields: fields.update({"3": 0}),
    "negative key": lambda fields: fields.update({-1: 0}),
    "short nonce": _with(k3=b"n" * 31),
    "long nonce": _with(k3=b"n" * 33),
    "nonce as text": _with(k3="n" * 32),
    "ephemeral null": _with(k4=None),
    "capabilities no list": _with(k5="framing/native"),
    "nine capabilities": _with(k5=["a"] * 9),
    "capability of 33 bytes": _with(k5=["a" * 33]),
    "capability empty": _with(k5=[""]),
    "capability a number": _with(k5=[1]),
    "capability with newline": _with(k5=["framing/native\n"]),
    "capability not ASCII": _with(k5=["framing/nätive"]),
    "type request": _with(k2=1),
    "type unknown": _with(k2=4),
    "type true": _with(k2=False),
    "type missing": _without(2),
    "version missing": _without(1),
    "version true": _with(k1=True),
    "version negative": _with(k1=-1),
}

BAD_REQUEST: Mapping[str, Change] = {
    "no nonce": _without(3),
    "no relay key": _without(4),
    "no config": _without(7),
    "config a list": _with(k7=[]),
    "epoch negative": _with(k6=-1),
    "epoch of 2^53": _with(k6=2**53),
    "epoch true": _with(k6=True),
    "signature short": _with(k8=b"s" * 63),
    "signature without signer": _without(9),
    "signer without signature": _without(8),
    "an ephemeral": _with(k5=b"e" * 32),
    "no incarnation": _without(10),
    "incarnation negative": _with(k10=-1),
    "incarnation too large": _with(k10=2**53),
    "incarnation bool": _with(k10=True),
    "unknown key": _with(k11=0),
    "no address": _in_config(_with(k1=[])),
    "five addresses": _in_config(_with(k1=["10.0.0.1/8"] * 5)),
    "no gateway": _in_config(_with(k2=[])),
    "three gateways": _in_config(_with(k2=["10.0.0.1"] * 3)),
    "mtu 1279": _in_config(_with(k3=1279)),
    "mtu 65536": _in_config(_with(k3=65_536)),
    "no route": _in_config(_with(k4=[])),
    "17 routes": _in_config(_with(k4=["10.0.0.0/8"] * 17)),
    "four name servers": _in_config(_with(k5=["10.0.0.1"] * 4)),
    "seven search domains": _in_config(_with(k6=["a"] * 7)),
    "nine options": _in_config(_with(k7=["rotate"] * 9)),
    "search domain of 256 bytes": _in_config(_with(k6=["a" * 256])),
    "search domain with newline": _in_config(_with(k6=["a\nnameserver 6.6.6.6"])),
    "keepalive 65536": _in_config(_with(k8=65_536)),
    "no capabilities": _in_config(_without(9)),
    "unknown config key": _in_config(_with(k10=0)),
    "version in config": _in_config(_with(k0=0)),
}

BAD_RESPONSE: Mapping[str, Change] = {
    "no document": _without(3),
    "empty document": _with(k3=b""),
    "document too long": _with(k3=bytes(DOCUMENT_LIMIT + 1)),
    "unknown key": _with(k4=0),
    "type result": _with(k2=3),
}

BAD_ERROR: Mapping[str, Change] = {
    "code 0": _with(k3=0),
    "code 256": _with(k3=256),
    "detail empty": _with(k4=""),
    "detail long": _with(k4="x" * 129),
    "detail with escape": _with(k4="\x1b[2J"),
    "detail bytes": _with(k4=b"x"),
    "unknown key": _with(k5=0),
}

BAD_RESULT: Mapping[str, Change] = {
    "no code": _without(3),
    "code 256": _with(k3=256),
    "code text": _with(k3="0"),
    "unknown key": _with(k4=""),
    "type response": _with(k2=2),
}


def _cases(name: str, message: Message, changes: Mapping[str, Change]) -> list[Any]:
    return [pytest.param(name, message, change, id=f"{name}: {title}") for title, change in changes.items()]


@pytest.mark.parametrize(
    ("decoder", "message", "change"),
    [
        *_cases("hello", HELLO, BAD_HELLO),
        *_cases("request", SIGNED, BAD_REQUEST),
        *_cases("response", RESPONSE, BAD_RESPONSE),
        *_cases("response", Error(5, "why"), BAD_ERROR),
        *_cases("result", Result(0), BAD_RESULT),
    ],
)
def test_a_field_that_is_not_as_specified_is_refused(decoder: str, message: Message, change: Change) -> None:
    fields = cbor2.loads(message.encode())
    change(fields)
    with pytest.raises(BadFieldError):
        DECODERS[decoder](cbor2.dumps(fields, canonical=True))


@pytest.mark.parametrize("decoder", DECODERS)
def test_another_version_is_told_from_garbage(decoder: str) -> None:
    later = cbor2.dumps({1: 2, 2: 77, "shape": "unknown"})
    with pytest.raises(UnsupportedVersionError):
        DECODERS[decoder](later)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(
    "message", [b"\xa0\xa0", b"\xff", b"\xbf\xff", b"\xa1\x01\xf9\x00\x00", b"\xc0\xa0"], ids=bytes.hex
)
def test_what_is_no_strict_cbor_is_refused(decoder: str, message: bytes) -> None:
    with pytest.raises(BadCborError):
        DECODERS[decoder](message)


@pytest.mark.parametrize("decoder", DECODERS)
def test_what_is_no_map_is_refused(decoder: str) -> None:
    with pytest.raises(BadFieldError):
        DECODERS[decoder](cbor2.dumps([1, 2]))


def test_a_message_has_one_encoding() -> None:
    fields = cbor2.loads(REQUEST.encode())
    reordered = cbor2.dumps(dict(reversed(fields.items())))
    assert cbor2.loads(reordered) == fields
    with pytest.raises(BadCborError):
        decode_request(reordered)


def test_the_order_inside_the_configuration_counts_too() -> None:
    fields = cbor2.loads(REQUEST.encode())
    fields[7] = dict(reversed(fields[7].items()))
    with pytest.raises(BadCborError):
        decode_request(cbor2.dumps(fields))


@given(data=st.binary(max_size=300), decoder=st.sampled_from(list(DECODERS)))
def test_garbage_is_refused_with_an_error_of_the_protocol(data: bytes, decoder: str) -> None:
    with pytest.raises(ExchangeError):
        DECODERS[decoder](data)


@given(at=st.integers(0, 10_000), value=st.integers(0, 255))
def test_a_changed_byte_is_refused_or_read_back_exactly(at: int, value: int) -> None:
    message = bytearray(SIGNED.encode())
    message[at % len(message)] = value
    try:
        request = decode_request(bytes(message))
    except ExchangeError:
        return
    assert request.encode() == message
