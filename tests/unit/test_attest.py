"""The server at a URL is the enclave, or a check refuses it with the reason: against real TLS on loopback."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from lab.nsm.signer import FakeNsm, LabEnclave
from tests.unit.tls_enclave import Answer, Identity, TlsEnclave, ok, serving
from wgvsock.attest import MAX_ANSWER, FetchError, fetch
from wgvsock.attestation.client import ClientBinding
from wgvsock.attestation.errors import RejectedDocumentError
from wgvsock.devices.nsm import NsmClient
from wgvsock.errors import ConfigurationError
from wgvsock.provisioning.transcript import user_data


@pytest.fixture
def enclave(tmp_path: Path) -> TlsEnclave:
    return TlsEnclave(tmp_path)


def rejected(enclave: TlsEnclave, answer: Answer, identity: Identity | None = None) -> str:
    """The check that refuses this server."""
    with serving(answer, identity or enclave.identity) as url, pytest.raises(RejectedDocumentError) as caught:
        fetch(url, enclave.policy())
    return caught.value.check


def test_an_enclave_is_accepted(enclave: TlsEnclave) -> None:
    asked: list[str] = []
    with serving(enclave.answer, enclave.identity, asked) as url:
        server = fetch(url, enclave.policy())
        fetch(f"{url}/attest?as=x", enclave.policy())
    assert server.document.module_id == enclave.enclave.module_id
    assert server.user_data == b"hello"
    assert server.spki_sha256 == enclave.identity.spki
    assert server.document.nonce == server.nonce
    assert asked[0] == f"/.well-known/nitro-attestation?nonce={server.nonce.hex()}"
    assert asked[1].startswith("/attest?as=x&nonce=")
    assert len({target.rpartition("=")[2] for target in asked}) == 2  # a nonce is used once


def test_base64_is_read_as_well(enclave: TlsEnclave) -> None:
    with serving(lambda nonce: ok(base64.b64encode(enclave.document(nonce)) + b"\n"), enclave.identity) as url:
        assert fetch(url, enclave.policy()).user_data == b"hello"


def test_the_document_may_be_elsewhere_and_names_the_certificate_all_the_same(
    enclave: TlsEnclave, tmp_path: Path
) -> None:
    other = Identity(tmp_path, "other")
    with serving(enclave.answer, None) as documents:
        with serving(lambda _: b"", enclave.identity) as url:
            assert fetch(url, enclave.policy(), document_url=documents).spki_sha256 == enclave.identity.spki
        with serving(lambda _: b"", other) as url, pytest.raises(RejectedDocumentError) as caught:
            fetch(url, enclave.policy(), document_url=documents)
    assert caught.value.check == "tls.certificate"


def test_somebody_between_with_another_certificate(enclave: TlsEnclave, tmp_path: Path) -> None:
    assert rejected(enclave, enclave.answer, Identity(tmp_path, "between")) == "tls.certificate"


def test_a_replayed_document(enclave: TlsEnclave) -> None:
    earlier = enclave.document(bytes(32))
    assert rejected(enclave, lambda _: ok(earlier)) == "nonce.mismatch"


def test_another_image(enclave: TlsEnclave) -> None:
    other = LabEnclave(measurements={index: bytes([index + 1]) * 48 for index in range(5)})
    nsm = NsmClient(FakeNsm(enclave.authority, other))
    binding = ClientBinding(enclave.identity.spki, b"").encode()
    assert rejected(enclave, lambda nonce: ok(nsm.attest(nonce=nonce, user_data=binding))) == "pcr.set"


def test_another_enclave_of_the_same_image(enclave: TlsEnclave) -> None:
    meant = enclave.enclave.module_id
    another = "i-0123456789abcdef0-enc0123456789abcdef"
    with serving(enclave.answer, enclave.identity) as url:
        fetch(url, enclave.policy(), enclave_id=meant, instance_id=meant.partition("-enc")[0])
        with pytest.raises(RejectedDocumentError) as caught:
            fetch(url, enclave.policy(), enclave_id=another)
        assert caught.value.check == "module_id.launched"
        with pytest.raises(RejectedDocumentError) as caught:
            fetch(url, enclave.policy(), instance_id=another.partition("-enc")[0])
        assert caught.value.check == "pcr.instance"
        with pytest.raises(RejectedDocumentError) as caught:
            fetch(url, enclave.policy(), role_arn="arn:aws:iam::123456789012:role/another")
        assert caught.value.check == "pcr.role"
        with pytest.raises(ConfigurationError):
            fetch(url, enclave.policy(), enclave_id="enclave")


def test_a_document_that_was_made_for_provisioning(enclave: TlsEnclave) -> None:
    made = user_data(bytes(48))
    assert rejected(enclave, lambda nonce: ok(enclave.nsm.attest(nonce=nonce, user_data=made))) == "user_data.domain"


def test_an_enclave_that_names_no_certificate(enclave: TlsEnclave) -> None:
    binding = ClientBinding(None, b"").encode()
    assert rejected(enclave, lambda nonce: ok(enclave.nsm.attest(nonce=nonce, user_data=binding))) == "tls.certificate"


def test_what_is_no_document(enclave: TlsEnclave) -> None:
    assert rejected(enclave, lambda _: ok(b"no document")) == "cbor"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "the answer is not HTTP"),
        (b"SSH-2.0\r\n", "the answer is not HTTP"),
        (b"HTTP/1.1 429 Too Many Requests\r\n\r\ntry again", "HTTP status 429: try again"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + bytes(MAX_ANSWER + 1), "longer than"),
    ],
)
def test_an_answer_that_is_none(enclave: TlsEnclave, answer: bytes, why: str) -> None:
    with serving(lambda _: answer, enclave.identity) as url, pytest.raises(FetchError) as caught:
        fetch(url, enclave.policy())
    assert why in caught.value.why


def test_nobody_and_no_tls(enclave: TlsEnclave) -> None:
    with serving(enclave.answer, None) as url, pytest.raises(FetchError):
        fetch(url.replace("http:", "https:"), enclave.policy())
    with pytest.raises(FetchError, match="returned no attestation document"):
        fetch(url.replace("http:", "https:"), enclave.policy())


def test_who_answers_nothing_has_a_time_limit(enclave: TlsEnclave) -> None:
    with serving(enclave.answer, enclave.identity) as url, pytest.raises(FetchError):
        fetch(url, enclave.policy(), timeout=0.0001)


@pytest.mark.parametrize(
    "url", ["", "host", "http://host", "https://", "https://u@host/", "https://host:x", "https://host:0", "https://a b"]
)
def test_what_is_no_url(enclave: TlsEnclave, url: str) -> None:
    with pytest.raises(ConfigurationError):
        fetch(url, enclave.policy())
