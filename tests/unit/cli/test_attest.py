from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lab.nsm.faults import Faults
from lab.nsm.pki import CertificateDefect, LabAuthority, Level
from lab.nsm.signer import FakeNsm, LabEnclave
from wgvsock.attestation.errors import RejectedDocumentError
from wgvsock.cli import attest
from wgvsock.devices.nsm import NsmClient
from wgvsock.errors import ConfigurationError

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
NONCE = bytes(range(32))


class Lab:
    """An enclave whose documents go to files."""

    def __init__(self, folder: Path) -> None:
        self.authority = LabAuthority(lambda: NOW)
        self.enclave = LabEnclave()
        self.root = self.authority.root_fingerprint.hex()
        self.file = folder / "document.bin"

    def write(self, **faults: Any) -> str:
        self.enclave.faults = Faults(**faults)
        module = NsmClient(FakeNsm(self.authority, self.enclave, clock=lambda: NOW))
        self.file.write_bytes(module.attest(nonce=NONCE, user_data=b"", public_key=b"key"))
        return str(self.file)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("attest"))


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="wgvsock")
    attest.add_parser(parser.add_subparsers(dest="command", required=True))
    return parser.parse_args(["attest", *arguments])


def run(*arguments: str) -> int:
    options = parse(*arguments)
    status = options.run(options)
    assert isinstance(status, int)
    return status


def verify(lab: Lab, file: str, *arguments: str) -> int:
    return run("verify", file, "--at", NOW.isoformat(), "--root-sha256", lab.root, *arguments)


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    answer = json.loads(capsys.readouterr().out)
    assert answer["schema"] == "wgvsock/v1"
    assert isinstance(answer, dict)
    return answer


def test_accepted(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(lab, lab.write()) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("accepted\n")
    assert lab.enclave.module_id in captured.out
    assert f"PCR0        {lab.enclave.measurements[0].hex()}\n" in captured.out
    assert "PCR5" not in captured.out  # zero


def test_accepted_as_json(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(lab, lab.write(), "--json") == 0
    answer = printed(capsys)
    assert (answer["ok"], answer["check"]) == (True, None)
    assert answer["module_id"] == lab.enclave.module_id
    assert answer["timestamp"] == "2026-11-23T12:00:00.000Z"
    assert answer["timestamp_ms"] == NOW.timestamp() * 1000
    assert answer["pcrs"]["0"] == lab.enclave.measurements[0].hex()
    assert list(answer["pcrs"]) == [str(index) for index in range(16)]
    assert (answer["nonce"], answer["user_data"], answer["public_key"]) == (NONCE.hex(), "", b"key".hex())


def test_rejected_names_the_check(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    file = lab.write(debug=True)
    with pytest.raises(RejectedDocumentError) as caught:
        verify(lab, file)
    assert caught.value.exit_code == 5
    assert capsys.readouterr().out == "rejected: pcr.debug\n"
    assert verify(lab, file, "--json") == 5
    answer = printed(capsys)
    assert (answer["ok"], answer["check"]) == (False, "pcr.debug")
    assert answer["why"]
    assert answer["fix"]
    assert answer["module_id"] == lab.enclave.module_id


def test_rejected_without_a_readable_field(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(lab, lab.write(trailing_bytes=1), "--json") == 5
    answer = printed(capsys)
    assert answer["check"] == "cbor"
    assert "module_id" not in answer


@pytest.mark.parametrize(
    ("faults", "arguments", "check"),
    [
        ({"wrong_root": True}, [], "chain.root"),
        ({"certificates": {Level.LEAF: CertificateDefect.EXPIRED}}, [], "chain.validity"),
        ({"corrupt_signature": True}, [], "cose.sig"),
        ({"leaf_module_id": "i-0-enc0"}, [], "module_id"),
        ({"clock_offset": -121.0}, [], "freshness.stale"),
        ({"clock_offset": -11.0}, ["--max-age", "10"], "freshness.stale"),
        ({"clock_offset": 31.0}, [], "freshness.future"),
        ({"without": ("nonce",)}, ["--nonce", NONCE.hex()], "nonce.missing"),
        ({}, ["--nonce", bytes(32).hex()], "nonce.mismatch"),
        ({"debug": True}, [], "pcr.debug"),
        ({}, ["--pcr", "0=" + "ab" * 48], "pcr.set"),
        ({}, ["--pcr", "31=" + "00" * 48], "pcr.set"),
        ({}, ["--enclave-id", "i-0123456789abcdef0-enc1"], "module_id.launched"),
        ({}, ["--instance-id", "i-0123456789abcdef0"], "pcr.instance"),
        ({}, ["--role-arn", "arn:aws:iam::123456789012:role/other"], "pcr.role"),
    ],
)
def test_each_option_reaches_its_check(
    lab: Lab, capsys: pytest.CaptureFixture[str], faults: Any, arguments: list[str], check: str
) -> None:
    assert verify(lab, lab.write(**faults), "--json", *arguments) == 5
    assert printed(capsys)["check"] == check


@pytest.mark.parametrize(
    ("faults", "arguments"),
    [
        ({}, ["--nonce", NONCE.hex().upper()]),
        ({"clock_offset": -3000.0}, ["--max-age", "3600"]),
        ({"debug": True}, ["--allow-debug"]),
        ({}, ["--root-sha256", "00" * 32]),
        ({"closed_map": True}, []),
    ],
)
def test_each_option_accepts(lab: Lab, faults: Any, arguments: list[str]) -> None:
    assert verify(lab, lab.write(**faults), *arguments) == 0


ROLE = "arn:aws:iam::123456789012:role/relay"


def test_the_enclave_that_is_meant(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    """Check 12, with the EnclaveID as nitro-cli prints it: without the zeros that pad the slot."""
    role = hashlib.sha384(bytes(48) + ROLE.encode()).digest()
    instance, _, slot = "i-0123456789abcdef0-enc00000000000000ab".partition("-enc")
    measured = {3: role, 4: hashlib.sha384(bytes(48) + instance.encode()).digest()}
    file = lab.write(pcrs=measured, module_id=f"{instance}-enc{slot}")
    for enclave_id in (f"{instance}-enc{slot}", f"{instance}-encab"):
        options = ["--enclave-id", enclave_id, "--instance-id", instance, "--role-arn", ROLE, "--json"]
        assert verify(lab, file, *options) == 0
        assert printed(capsys)["not_compared"] == ["PCR0", "PCR1", "PCR2", "nonce", "public_key"]


@pytest.mark.parametrize(
    "options", [["--enclave-id", "mine"], ["--instance-id", "mine"], ["--role-arn", "mine"]], ids=lambda words: words[0]
)
def test_what_could_never_be_measured_is_no_verdict(lab: Lab, options: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        verify(lab, lab.write(), *options)
    assert caught.value.exit_code == 2


def test_a_fingerprint_as_openssl_prints_it(lab: Lab) -> None:
    spaced = ":".join(f"{byte:02X}" for byte in bytes.fromhex(lab.root))
    for root in (spaced, spaced.lower(), "0x" + lab.root):
        assert run("verify", lab.write(), "--at", NOW.isoformat(), "--root-sha256", root) == 0


def test_debug_and_what_was_not_compared_are_said(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(lab, lab.write(debug=True), "--allow-debug", "--json") == 0
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    assert answer["debug"] is True
    assert answer["not_compared"] == ["PCR0", "PCR1", "PCR2", "PCR4", "module_id", "nonce", "public_key"]
    assert "debug mode" in captured.err
    assert "PCR4, module_id, nonce" in captured.err

    pcrs = [word for index in (0, 1, 2, 4) for word in ("--pcr", f"PCR{index}={lab.enclave.measurements[index].hex()}")]
    everything = [*pcrs, "--nonce", NONCE.hex(), "--enclave-id", lab.enclave.module_id]
    assert verify(lab, lab.write(payload={"public_key": None}), "--json", *everything) == 0
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    assert (answer["debug"], answer["not_compared"]) == (False, [])
    assert "compared" not in captured.err


def test_region_and_the_window_in_which_it_verifies(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    file = lab.write()
    assert run("show", file, "--json") == 0
    answer = printed(capsys)
    leaf = lab.authority.chain(lab.enclave.module_id).leaf.certificate
    assert answer["region"] == "lab-nowhere-1"
    assert datetime.fromisoformat(answer["certificates"]["from"]) == leaf.not_valid_before_utc
    assert datetime.fromisoformat(answer["certificates"]["until"]) == leaf.not_valid_after_utc
    assert datetime.fromisoformat(answer["verifies"]["until"]) == NOW + timedelta(seconds=120)
    # The window is what the verifier says of it: its ends are in, a second beside them is not.
    tolerance = timedelta(seconds=1)
    first, last = (datetime.fromisoformat(answer["verifies"][end]) for end in ("from", "until"))
    for at, status in ((first, 0), (last, 0), (first - tolerance, 5), (last + tolerance, 5)):
        assert run("verify", file, "--at", at.isoformat(), "--root-sha256", lab.root, "--json") == status
        capsys.readouterr()
    assert verify(lab, file, "--max-age", "100000", "--json") == 0
    assert printed(capsys)["verifies"]["until"] == answer["certificates"]["until"]
    assert run("show", file) == 0
    assert f"verifies    {answer['verifies']['from']} to {answer['verifies']['until']}\n" in capsys.readouterr().out


def test_a_window_without_any_time_in_it(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    file = lab.write(clock_offset=-100_000)
    assert run("show", file, "--json") == 0
    assert printed(capsys)["verifies"] is None
    assert run("show", file) == 0
    assert "verifies    never" in capsys.readouterr().out


def test_certificates_that_cannot_be_read_have_no_window(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    file = lab.write(payload={"certificate": b"leaf"})
    assert run("show", file, "--json") == 0
    answer = printed(capsys)
    assert (answer["region"], answer["verifies"], answer["certificates"]) == (None, None, None)
    assert run("show", file) == 0
    captured = capsys.readouterr().out
    assert "region      -\n" in captured
    assert "verifies" not in captured


@pytest.mark.parametrize("name", ["elsewhere", "\x1b[31m"])
def test_a_leaf_that_names_no_region(lab: Lab, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert run("show", lab.write(leaf_module_id=name), "--json") == 0
    assert printed(capsys)["region"] is None


def test_a_rejected_chain_names_the_certificate(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(lab, lab.write(certificates={Level.ZONAL: CertificateDefect.EXPIRED}), "--json") == 5
    assert "certificate 3 of 5 (zonal, CN '" in printed(capsys)["why"]


@pytest.mark.parametrize(
    ("write", "form"),
    [
        (bytes, "raw CBOR"),
        (base64.encodebytes, "base64"),
        (lambda data: base64.urlsafe_b64encode(data).rstrip(b"="), "URL-safe base64"),
        (lambda data: data.hex().upper().encode(), "hexadecimal"),
        (
            lambda data: json.dumps({"Recipient": {"AttestationDocument": base64.b64encode(data).decode()}}).encode(),
            "base64 in JSON, 'Recipient', 'AttestationDocument'",
        ),
    ],
    ids=["raw", "base64", "urlsafe", "hex", "json"],
)
def test_the_form_that_was_recognised_is_said(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str], write: Any, form: str
) -> None:
    data = Path(lab.write(payload={"user_data": b"\xfb\xff" * 60})).read_bytes()  # + and / in base64
    file = tmp_path / "document"
    file.write_bytes(write(data))
    assert verify(lab, str(file)) == 0
    assert run("show", str(file)) == 0
    assert capsys.readouterr().err.count(f"the document was read as {form}: {len(data)} bytes") == 2


def test_pcrs_from_nitro_cli(lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {f"PCR{index}": lab.enclave.measurements[index].hex() for index in (0, 1, 2)}
    built = tmp_path / "build.json"
    built.write_text(json.dumps({"Measurements": {"HashAlgorithm": "Sha384 { ... }", **names}}))
    plain = tmp_path / "plain.json"
    plain.write_text(json.dumps(names))
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps(names | {"PCR1": "ab" * 48}))
    document = lab.write()
    assert verify(lab, document, "--pcrs", str(built)) == 0
    assert "the image was not checked" not in capsys.readouterr().err
    assert verify(lab, document, "--pcrs", str(plain), "--pcr", f"4={lab.enclave.measurements[4].hex()}") == 0
    assert verify(lab, document, "--pcrs", str(wrong), "--json") == 5


def test_what_was_not_checked_is_said(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    document = lab.write()
    verify(lab, document)
    said = capsys.readouterr().err
    assert "the image was not checked" in said
    assert "replay" in said
    assert "a root other than AWS's" in said
    verify(lab, document, "--pcr", f"0={lab.enclave.measurements[0].hex()}", "--nonce", NONCE.hex())
    said = capsys.readouterr().err
    assert "no value was given for PCR1, PCR2" in said
    assert "replay" not in said


@pytest.mark.parametrize(
    "contents",
    [
        "",
        "no json",
        "[]",
        "{}",
        '{"PCR0": "ab"}',
        "[" * 100_000,
        '{"PCR0": "zz"}',
        '{"Measurements": 1}',
        "\0",
        " " * 2**21,
    ],
)
def test_unreadable_pcr_files(lab: Lab, tmp_path: Path, contents: str) -> None:
    file = tmp_path / "pcrs.json"
    file.write_text(contents)
    with pytest.raises(ConfigurationError):
        verify(lab, lab.write(), "--pcrs", str(file))


def test_two_values_for_a_pcr_are_refused(lab: Lab) -> None:
    with pytest.raises(ConfigurationError, match="two values"):
        verify(lab, lab.write(), "--pcr", "0=" + "ab" * 48, "--pcr", "0=" + "cd" * 48)


def test_two_values_for_a_pcr_of_the_file_are_refused(lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "pcrs"
    file.write_text("PCR0=" + "ab" * 48)
    with pytest.raises(ConfigurationError, match="two values were given for PCR0"):
        verify(lab, lab.write(), "--pcrs", str(file), "--pcr", "0=" + "cd" * 48)


def test_pcrs_from_standard_input(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "".join(f"pcr{index} = 0x{lab.enclave.measurements[index].hex()}\n" for index in (0, 1, 2))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    assert verify(lab, lab.write(), "--pcrs", "-") == 0
    with pytest.raises(ConfigurationError, match="both from standard input"):
        verify(lab, "-", "--pcrs", "-")


def test_a_listing_of_running_enclaves_is_no_measurement(lab: Lab, tmp_path: Path) -> None:
    names = {f"PCR{index}": lab.enclave.measurements[index].hex() for index in (0, 1, 2)}
    file = tmp_path / "describe-enclaves.json"
    file.write_text(json.dumps([{"EnclaveID": lab.enclave.module_id, "State": "RUNNING", "Measurements": names}]))
    with pytest.raises(ConfigurationError, match="the host makes up"):
        verify(lab, lab.write(), "--pcrs", str(file))


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify"],
        ["frobnicate", "x"],
        ["verify", "x", "--at", "yesterday"],
        ["verify", "x", "--at", "2026-11-23T12:00:00"],
        ["verify", "x", "--nonce", "xyz"],
        ["verify", "x", "--pcr", "0"],
        ["verify", "x", "--pcr", "32=" + "00" * 48],
        ["verify", "x", "--pcr", "-1=" + "00" * 48],
        ["verify", "x", "--pcr", "0=" + "00" * 47],
        ["verify", "x", "--root-sha256", "g1"],
        ["verify", "x", "--root-sha256", "00" * 31],
        ["verify", "x", "--max-age", "-1"],
        ["verify", "x", "--max-age", "nan"],
        ["verify", "x", "--max-age", "1e99"],
    ],
)
def test_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(*arguments)
    assert caught.value.code == 2


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for file in (tmp_path / "absent", tmp_path):
        with pytest.raises(ConfigurationError) as caught:
            run("verify", str(file))
        assert caught.value.exit_code == 2


def test_reading_is_bounded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", "/dev/zero", "--json") == 5
    assert printed(capsys)["check"] == "size"


def test_standard_input(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    document = Path(lab.write()).read_bytes()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(document)))
    assert verify(lab, "-") == 0


def test_show_believes_nothing(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    document = lab.write(corrupt_signature=True, debug=True, wrong_root=True, payload={"nonce": None})
    assert run("show", document) == 0
    captured = capsys.readouterr()
    assert lab.enclave.module_id in captured.out
    assert "nonce       -\n" in captured.out
    assert "not verified" in captured.err
    assert run("show", document, "--json") == 0
    answer = printed(capsys)
    assert answer["verified"] is False
    assert answer["module_id"] == lab.enclave.module_id


def test_show_of_a_time_beyond_the_calendar(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    document = lab.write(payload={"timestamp": (1 << 53) - 1})
    assert run("show", document) == 0
    assert str((1 << 53) - 1) in capsys.readouterr().out
    assert run("show", document, "--json") == 0
    assert printed(capsys)["timestamp"] is None


def test_a_text_without_a_document_is_no_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "garbage"
    for text in (b"", b"garbage", b"{}", b"-----BEGIN CERTIFICATE-----\nMII=\n-----END CERTIFICATE-----\n"):
        file.write_bytes(text)
        for command in (["show"], ["verify"], ["verify", "--json"]):
            with pytest.raises(ConfigurationError, match="no attestation document in") as caught:
                run(command[0], str(file), *command[1:])
            assert caught.value.exit_code == 2
            assert "trust" not in caught.value.fix
    assert capsys.readouterr().out == ""


def test_show_of_garbage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "garbage"
    file.write_bytes(b"\x00garbage")
    with pytest.raises(RejectedDocumentError):
        run("show", str(file))
    assert capsys.readouterr().out == "rejected: cbor\n"
    assert run("show", str(file), "--json") == 5


def test_real_documents(attestation_sample: Any, capsys: pytest.CaptureFixture[str]) -> None:
    file, expected = str(attestation_sample.path), attestation_sample.expected
    status = run("verify", file, "--at", expected["utc"], "--json")
    answer = printed(capsys)
    outcome = expected["expect_at_own_time"]
    assert (status, answer["ok"]) == ((0, True) if outcome == "ok" else (5, False))
    assert answer["check"] == (None if outcome == "ok" else outcome)
    if outcome == "payload.nitrotpm":  # an instance's document: there is no enclave in it to speak of
        assert "module_id" not in answer
        assert run("show", file, "--json") == 5
        assert printed(capsys)["check"] == outcome
        return
    for field in ("module_id", "timestamp_ms", "nonce", "user_data", "public_key"):
        assert answer[field] == expected[field]
    assert answer["debug"] == (not {0, 1, 2} <= set(expected["nonzero_pcrs"]))
    assert answer["region"] == expected.get("region", answer["region"])
    assert {index: value for index, value in answer["pcrs"].items() if int(value, 16)} == expected["pcrs"]
    assert run("verify", file, "--json") == 5
    assert printed(capsys)["check"] == expected["expect_today"]
    too_late = datetime.fromisoformat(expected["utc"]) + timedelta(seconds=121)
    if outcome == "ok":
        assert run("verify", file, "--at", too_late.isoformat(), "--json") == 5
        assert printed(capsys)["check"] == "freshness.stale"
