from __future__ import annotations

from collections.abc import Iterator

import pytest

from wgvsock.errors import ProvisioningError
from wgvsock.provisioning.errors import (
    AuthFailedError,
    ConnectionLostError,
    ExchangeError,
    InternalError,
    WireCode,
    error_from_wire,
)


def _family(kind: type[ExchangeError]) -> Iterator[type[ExchangeError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _family(child)


@pytest.mark.parametrize("code", [code for code in WireCode if code is not WireCode.OK])
def test_every_wire_code_has_one_error_that_carries_it(code: WireCode) -> None:
    error = error_from_wire(code, "why")
    assert error.wire_code is code
    assert isinstance(error, ProvisioningError)
    assert error.why == "why"
    assert error.fix
    assert error.what != ExchangeError.summary


def test_the_numbers_are_those_of_the_specification() -> None:
    numbers = {
        "OK": 0, "BAD_FRAME": 1, "BAD_CBOR": 2, "UNSUPPORTED_VERSION": 3, "BAD_FIELD": 4, "CONFIG_REJECTED": 5,
        "AUTH_REQUIRED": 6, "AUTH_FAILED": 7, "ALREADY_PROVISIONED": 8, "STALE_EPOCH": 9, "BUSY": 10,
        "RATE_LIMITED": 11, "NSM_ERROR": 12, "TIMEOUT": 13, "INTERNAL": 14, "SUPERSEDED": 15,
        "ATTESTATION_REJECTED": 32, "BINDING_MISMATCH": 33, "POLICY": 34,
    }  # fmt: skip
    assert {code.name: code.value for code in WireCode} == numbers


@pytest.mark.parametrize("code", [16, 31, 35, 255])
def test_a_code_of_a_later_version_is_an_internal_error_there(code: int) -> None:
    assert type(error_from_wire(code, "")) is InternalError


def test_codes_for_people_are_in_the_range_of_provisioning() -> None:
    assert {kind.code for kind in _family(ExchangeError)} == {f"WGV-E04{digit}" for digit in range(10)}


def test_the_text_says_what_and_why() -> None:
    assert str(AuthFailedError("the signature is invalid")) == (
        "the enclave refused the relay's signature: the signature is invalid"
    )
    assert str(ConnectionLostError()) == "the connection ended before provisioning did"
