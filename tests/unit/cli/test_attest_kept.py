"""`wgvsock attest verify` accepts a refused document by its name, and a relay's own policy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab.nsm.pki import LabAuthority
from lab.nsm.signer import FakeNsm, LabEnclave
from tests.unit.service_pair import relay_config
from wgvsock import settings
from wgvsock.cli import main
from wgvsock.devices.nsm import NsmClient
from wgvsock.relay.judgements import time_kept

NAME = "20261123T120001.000Z-enclave-pcr.set.cbor"


class Place:
    """A relay's folder with a document that it refused, three days ago."""

    def __init__(self, folder: Path, *, other_image: bool) -> None:
        noon = time_kept(NAME)
        assert noon is not None
        authority = LabAuthority(lambda: noon)
        self.enclave = LabEnclave()
        module = NsmClient(FakeNsm(authority, self.enclave, clock=lambda: noon))
        document = module.attest(nonce=bytes(32), user_data=b"", public_key=b"key")
        allowed = LabEnclave()
        if other_image:
            allowed.measurements = {**allowed.measurements, 0: b"\7" * 48}
        config = relay_config(folder, allowed, authority.root_fingerprint)
        self.file = folder / "relay.toml"
        self.file.write_text(settings.format_toml(config))
        kept = folder / "relay/refused/relay"
        kept.mkdir(parents=True)
        (kept / NAME).write_bytes(document)
        self.allowed = b"\7" * 48


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, other_image=True)


def test_a_refused_document_by_name_against_the_relay_s_policy(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["attest", "verify", NAME, "-c", str(place.file)]) == 5
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "rejected: pcr.set",
        f"PCR0   measured  {place.enclave.measurements[0].hex()}",
        f"       allowed   {place.allowed.hex()}",
        "PCR1   equal",
        "PCR2   equal",
    ]
    assert "why: PCR0 differs from the allowed set" in captured.err


def test_the_same_as_json(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attest", "verify", NAME, "-c", str(place.file), "--json"]) == 5
    answer = json.loads(capsys.readouterr().out)
    assert [register["equal"] for register in answer["registers"]] == [False, True, True]
    assert (answer["check"], answer["sets"]) == ("pcr.set", 1)


def test_it_is_accepted_once_the_policy_has_what_was_measured(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    text = place.file.read_text().replace(place.allowed.hex(), place.enclave.measurements[0].hex())
    place.file.write_text(text)
    assert main(["attest", "verify", NAME, "-c", str(place.file)]) == 0  # as of the time at which it was refused
    assert capsys.readouterr().out.startswith("accepted\n")


def test_arguments_count_for_more_than_the_policy(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    argument = [f"--pcr={index}={place.enclave.measurements[index].hex()}" for index in (0, 1, 2)]
    assert main(["attest", "verify", NAME, "-c", str(place.file), *argument]) == 0
    assert (
        main(["attest", "verify", NAME, "-c", str(place.file), *argument, "--instance-id", "i-00000000000000000"]) == 5
    )
    assert "rejected: pcr.instance" in capsys.readouterr().out


def test_a_file_of_such_a_name_is_a_file(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fails: Callable[..., Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).write_bytes(b"mine")
    failure = fails("attest", "show", NAME, "-c", str(place.file), status=2)
    assert failure.what == f"there is no attestation document in {NAME}"


def test_a_name_that_no_file_can_have(fails: Callable[..., Any]) -> None:
    assert fails("attest", "show", "x" * 5000, status=2).why == "File name too long"


def test_it_is_shown_by_name_too(place: Place, prints_json: Callable[..., dict[str, Any]], capsys: Any) -> None:
    assert main(["attest", "show", NAME, "-c", str(place.file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["module_id"] == place.enclave.module_id


def test_a_name_that_is_not_kept_is_a_file_that_is_not_there(place: Place, fails: Callable[..., Any]) -> None:
    failure = fails("attest", "verify", NAME.replace("0001", "0002"), "-c", str(place.file), status=2)
    assert failure.what.startswith("cannot read ")


@pytest.mark.parametrize("arguments", [[], ["--enclave", "c"]])
def test_which_of_several_policies_has_to_be_said(
    place: Place, arguments: list[str], fails: Callable[..., Any]
) -> None:
    pcrs = "\n".join(f'pcr{index} = "{bytes([index]).hex() * 48}"' for index in (0, 1, 2))
    text = f"""
        [[enclaves]]
        name = "a"
        address = "vsock:16:1"
        attestation.pcr_sets = [{{ {pcrs.replace(chr(10), ", ")} }}]
        [[enclaves]]
        name = "b"
        address = "vsock:17:1"
        attestation.pcr_sets = [{{ {pcrs.replace(chr(10), ", ").replace("00", "01")} }}]
    """
    place.file.write_text(f'runtime_directory = "{place.file.parent / "relay"}"\n' + text)
    failure = fails("attest", "verify", NAME, "-c", str(place.file), *arguments, status=2)
    assert failure.why == "the relay serves a, b"


def test_without_a_configuration_the_usual_directory_is_looked_at(place: Place, monkeypatch: Any) -> None:
    monkeypatch.setattr("wgvsock.cli.attest_kept.RUNTIME_DIRECTORY", str(place.file.parent / "relay"))
    assert main(["attest", "show", NAME]) == 0
