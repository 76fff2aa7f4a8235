"""wgvsock attest fetch and own."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.control_sockets import ControlSockets
from tests.unit.tls_enclave import Identity, TlsEnclave, serving
from wgvsock.cli import main
from wgvsock.enclave.documents.settings import LOCAL_SOCKET
from wgvsock.telemetry.endpoint import Answer, Inquiry


@pytest.fixture
def enclave(tmp_path: Path) -> TlsEnclave:
    return TlsEnclave(tmp_path)


@pytest.fixture
def accepted(enclave: TlsEnclave, tmp_path: Path) -> list[str]:
    """Arguments that accept the enclave's image."""
    measured = {f"PCR{index}": enclave.enclave.measurements[index].hex() for index in (0, 1, 2)}
    path = tmp_path / "build.json"
    path.write_text(json.dumps({"Measurements": {"HashAlgorithm": "Sha384 { ... }", **measured}}))
    return ["--pcrs", str(path), "--root-sha256", enclave.authority.root_fingerprint.hex()]


def test_an_enclave_is_accepted(enclave: TlsEnclave, accepted: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with serving(enclave.answer, enclave.identity) as url:
        assert main(["attest", "fetch", url, *accepted]) == 0
        out, err = capsys.readouterr()
        assert out.startswith(f"accepted\nmodule_id   {enclave.enclave.module_id}\n")
        assert f"spki_sha256 {enclave.identity.spki.hex()}\n" in out
        assert "a root other than AWS's" in err
        assert main(["attest", "fetch", url, *accepted, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["user_data"], found["public_key"]) == (True, b"hello".hex(), None)


def test_somebody_between_is_refused(
    enclave: TlsEnclave, accepted: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(enclave.answer, Identity(tmp_path, "between")) as url:
        assert main(["attest", "fetch", url, *accepted]) == 5
        out, err = capsys.readouterr()
        assert out == "rejected: tls.certificate\n"
        assert "something intercepts the connection" in err
        assert main(["attest", "fetch", url, *accepted, "--json"]) == 5
    assert json.loads(capsys.readouterr().out)["check"] == "tls.certificate"


def test_another_enclave_of_the_image_is_refused(
    enclave: TlsEnclave, accepted: list[str], capsys: pytest.CaptureFixture[str], fails: Callable[..., Any]
) -> None:
    with serving(enclave.answer, enclave.identity) as url:
        meant = enclave.enclave.module_id
        assert main(["attest", "fetch", url, *accepted, "--enclave-id", meant]) == 0
        another = "i-0123456789abcdef0-enc0123456789abcdef"
        assert main(["attest", "fetch", url, *accepted, "--enclave-id", another, "--json"]) == 5
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["check"] == "module_id.launched"
        fails("attest", "fetch", url, *accepted, "--enclave-id", "wallet", status=2)


def test_without_measurements_nothing_is_accepted(fails: Callable[..., Any]) -> None:
    fails("attest", "fetch", "https://127.0.0.1:1", status=2)


def test_nobody_there(fails: Callable[..., Any], accepted: list[str]) -> None:
    assert fails("attest", "fetch", "https://127.0.0.1:1", *accepted, status=6).code == "WGV-E058"


def test_an_application_gets_its_own_document(sockets: ControlSockets, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[dict[str, str]] = []

    async def document(query: Any) -> Answer:
        asked.append(dict(query))
        return Answer(base64.b64encode(b"the document") + b"\n")

    sockets.serve(LOCAL_SOCKET, {("POST", "/document"): Inquiry(document)})
    arguments = ["--nonce", "00ff", "--user-data", "aa", "--public-key", "bb"]
    assert main(["attest", "own", *arguments]) == 0
    assert base64.b64decode(capsys.readouterr().out) == b"the document"
    assert asked == [{"nonce": "00ff", "user_data": "aa", "public_key": "bb", "format": "base64"}]


def test_an_agent_that_gives_none(sockets: ControlSockets, fails: Callable[..., Any]) -> None:
    sockets.serve("/x.sock", {})
    assert fails("attest", "own", "--socket", "/x.sock", status=7).why == "there is nothing here"


def test_no_agent(fails: Callable[..., Any], sockets: ControlSockets) -> None:
    fails("attest", "own", status=3)
