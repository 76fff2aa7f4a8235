"""The contents of documents for clients, and that no document passes as one for another use."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.tls_enclave import Identity
from wgvsock.attestation.client import (
    CLIENT_TAG,
    MAX_USER_DATA,
    OWN_TAG,
    ClientBinding,
    check_tls_certificate,
    own_user_data,
    parse_client_binding,
)
from wgvsock.attestation.errors import ClientDomainError, TlsCertificateError
from wgvsock.errors import ConfigurationError
from wgvsock.provisioning.transcript import TAG, user_data

DIGEST = bytes(range(1, 33))


@given(st.none() | st.binary(min_size=32, max_size=32).filter(any), st.binary(max_size=MAX_USER_DATA))
def test_what_is_written_is_read_back(digest: bytes | None, data: bytes) -> None:
    binding = ClientBinding(digest, data)
    encoded = binding.encode()
    assert parse_client_binding(encoded) == binding
    assert len(encoded) <= 512


def test_the_layout_is_what_the_document_says() -> None:
    assert ClientBinding(DIGEST, b"x").encode() == b"wgvsock/client/1\0" + DIGEST + b"x"
    assert ClientBinding(None, b"").encode() == b"wgvsock/client/1\0" + bytes(32)
    assert own_user_data(b"x") == b"wgvsock/own/1\0x"


def test_no_tag_begins_another() -> None:
    tags = [CLIENT_TAG, OWN_TAG, TAG]
    for tag in tags:
        assert sum(other.startswith(tag) or tag.startswith(other) for other in tags) == 1


@given(st.binary(max_size=MAX_USER_DATA))
def test_nothing_that_an_application_gets_is_what_provisioning_accepts(data: bytes) -> None:
    assert not own_user_data(data).startswith(TAG)
    assert not ClientBinding(None, data).encode().startswith(TAG)


@pytest.mark.parametrize(
    "found",
    [
        None,
        b"",
        b"hello",
        user_data(bytes(48)),
        own_user_data(CLIENT_TAG + bytes(32)),
        CLIENT_TAG,
        CLIENT_TAG + bytes(31),
    ],
)
def test_documents_of_other_uses_are_refused(found: bytes | None) -> None:
    with pytest.raises(ClientDomainError) as caught:
        parse_client_binding(found)
    assert caught.value.check == "user_data.domain"


@pytest.mark.parametrize("make", [own_user_data, lambda data: ClientBinding(DIGEST, data).encode()])
def test_too_much_user_data_is_refused(make: object) -> None:
    assert callable(make)
    make(bytes(MAX_USER_DATA))
    with pytest.raises(ConfigurationError):
        make(bytes(MAX_USER_DATA + 1))


def test_a_certificate_of_the_enclaves_key_is_accepted_and_no_other(tmp_path: Path) -> None:
    ours, other = Identity(tmp_path, "ours"), Identity(tmp_path, "other")
    check_tls_certificate(ClientBinding(ours.spki, b""), ours.der)
    for binding, certificate, why in (
        (ClientBinding(ours.spki, b""), other.der, "not the enclave's"),
        (ClientBinding(None, b""), ours.der, "names no TLS certificate"),
        (ClientBinding(ours.spki, b""), b"no certificate", "cannot be read"),
    ):
        with pytest.raises(TlsCertificateError, match=r"tls\.certificate") as caught:
            check_tls_certificate(binding, certificate)
        assert why in caught.value.why
