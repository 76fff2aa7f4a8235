"""Refused documents are kept, a few of each kind, and every verdict is a line of the audit."""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from wgvsock.attestation.errors import CoseSignatureError, PcrSetError, RejectedDocumentError
from wgvsock.attestation.evidence import Evidence, Register
from wgvsock.relay import judgements
from wgvsock.relay.errors import AuditError
from wgvsock.relay.judgements import Judgements, find_kept, time_kept

MEASURED, ALLOWED = bytes(48), b"\1" * 48


class House:
    """Judgements of a relay, with a clock of the test's."""

    def __init__(self, folder: Path, audit: str | None = None) -> None:
        self.folder = folder
        self.now = datetime(2026, 11, 27, 18, 22, 33, 123_000, tzinfo=UTC)
        self.shown: list[str] = []
        self.judgements = Judgements(
            str(folder), "relay", audit, wall_clock=lambda: int(self.now.timestamp() * 1e9), show=self.shown.append
        )

    def refuse(
        self, number: int, enclave: str = "wallet", kind: type[RejectedDocumentError] = PcrSetError
    ) -> str | None:
        """Another document, a second later."""
        self.now = self.now.replace(second=number % 60, minute=number // 60)
        error = kind("PCR0 differs from the allowed set")
        pcrs = {0: number.to_bytes(48, "big")}
        registers = (Register(0, MEASURED, ALLOWED),)
        error.evidence = Evidence(b"document %d" % number, "i-0-enc0", pcrs, "v1", 1, registers)
        return self.judgements.refused(enclave, error).kept

    def names(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "refused/relay").iterdir())


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def attested(matched: str = "v1") -> Any:
    from types import SimpleNamespace

    return SimpleNamespace(module_id="i-0-enc0", pcrs={0: ALLOWED}, matched=matched)


def test_a_refused_document_is_kept_for_us_alone_and_found_by_its_name(house: House) -> None:
    name = house.refuse(7)
    assert name == "20261127T180007.123Z-wallet-pcr.set.cbor"
    found = find_kept(str(house.folder), name)
    assert found is not None
    assert found.read_bytes() == b"document 7"
    assert found.stat().st_mode & 0o777 == 0o600
    assert (house.folder / "refused").stat().st_mode & 0o777 == 0o700
    assert time_kept(name) == datetime(2026, 11, 27, 18, 0, 7, 123_000, tzinfo=UTC)


@pytest.mark.parametrize("name", ["../relay.key", "x.cbor", "20261399T999999.123Z-wallet-pcr.set.cbor", "*"])
def test_other_names_find_nothing(house: House, name: str) -> None:
    house.refuse(1)
    assert find_kept(str(house.folder), name) is None
    assert time_kept(name) is None


def test_a_few_of_a_kind_are_kept_and_the_newest(house: House) -> None:
    for number in range(10):
        house.refuse(number)
    house.refuse(11, kind=CoseSignatureError)
    assert [name[9:15] for name in house.names()] == ["180006", "180007", "180008", "180009", "180011"]


def test_in_all_they_are_bounded(house: House) -> None:
    for number in range(judgements.MAX_KEPT + 5):
        house.refuse(number, enclave=f"enclave{number}")
    assert len(house.names()) == judgements.MAX_KEPT
    assert house.names()[0].endswith("enclave5-pcr.set.cbor")


def test_what_is_not_ours_in_the_folder_is_left_alone(house: House) -> None:
    house.refuse(1)
    other = house.folder / "refused/relay/notes.txt"
    other.write_text("")
    for number in range(judgements.MAX_KEPT + 5):
        house.refuse(number, enclave=f"enclave{number}")
    assert other.exists()


def test_the_same_refusal_again_is_neither_kept_nor_logged_twice(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    first = house.refuse(1)
    lines = len(caplog.records)
    assert lines
    assert house.refuse(1) == first
    assert len(caplog.records) == lines
    assert len(house.names()) == 1


def test_the_log_has_both_values_of_each_register(house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.refuse(1)
    (record,) = [record for record in caplog.records if record.getMessage() == "a measurement differs"]
    assert record.levelno == logging.WARNING
    told = record.wgvsock_fields  # type: ignore[attr-defined]
    assert told == {"enclave": "wallet", "register": "PCR0", "measured": MEASURED.hex(), "allowed": ALLOWED.hex()}


def test_a_register_that_is_not_there_is_logged_as_missing(house: House, caplog: pytest.LogCaptureFixture) -> None:
    error = PcrSetError("PCR8 differs")
    error.evidence = Evidence(b"", "i-0-enc0", {0: MEASURED}, registers=(Register(8, None, ALLOWED),))
    assert house.judgements.refused("wallet", error).kept is None  # no bytes: judged by a new policy
    assert caplog.records[0].wgvsock_fields["measured"] == "missing"  # type: ignore[attr-defined]


def test_what_a_new_policy_refused_is_kept_as_soon_as_there_is_a_document(house: House) -> None:
    error = PcrSetError("PCR0 differs from the allowed set")
    error.evidence = Evidence(b"", "i-0-enc0", {0: (1).to_bytes(48, "big")})
    assert house.judgements.refused("wallet", error).kept is None
    assert house.judgements.refused("wallet", error).kept is None
    assert house.refuse(1) is not None


def test_a_document_that_cannot_be_kept_is_no_reason_to_stop(house: House, caplog: pytest.LogCaptureFixture) -> None:
    (house.folder / "refused").symlink_to(house.folder)
    assert house.refuse(1) is None
    assert any("could not be saved" in record.getMessage() for record in caplog.records)


def test_the_audit_has_a_line_for_each_document(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    house = House(tmp_path, str(file))
    house.judgements.open()
    name = house.refuse(1)
    house.refuse(1)
    house.judgements.accepted("wallet", attested())
    refused, again, accepted = map(json.loads, file.read_text().splitlines())
    assert refused == again
    assert (refused["outcome"], refused["check"], refused["policy"], refused["document"]) == (
        "refused", "pcr.set", None, name
    )  # fmt: skip
    assert (refused["time"], refused["module_id"]) == ("2026-11-27T18:00:01.123Z", "i-0-enc0")
    assert (accepted["outcome"], accepted["policy"], accepted["pcrs"]) == ("accepted", "v1", {"PCR0": ALLOWED.hex()})
    assert (accepted["relay"], accepted["enclave"], accepted["schema"]) == ("relay", "wallet", "wgvsock/v1")
    assert file.stat().st_mode & 0o777 == 0o600


def test_the_audit_goes_on_in_a_new_file_when_the_old_one_was_moved(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    house = House(tmp_path, str(file))
    house.judgements.accepted("wallet", attested())
    file.rename(tmp_path / "audit.1")
    house.judgements.accepted("wallet", attested())
    assert len(file.read_text().splitlines()) == 1


def test_the_audit_on_standard_output(tmp_path: Path) -> None:
    house = House(tmp_path, "stdout")
    house.judgements.open()
    house.judgements.accepted("wallet", attested())
    (line,) = house.shown
    assert json.loads(line)["outcome"] == "accepted"


def test_without_an_audit_nothing_is_written(house: House) -> None:
    house.judgements.open()
    house.judgements.accepted("wallet", attested())
    assert list(house.folder.iterdir()) == []
    assert house.shown == []


def test_an_audit_that_cannot_be_written_stops_the_start_and_no_running_relay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    link = tmp_path / "audit.jsonl"
    link.symlink_to(os.devnull)
    house = House(tmp_path, str(link))
    with pytest.raises(AuditError):
        house.judgements.open()
    house.judgements.accepted("wallet", attested())
    assert caplog.records[-1].levelno == logging.ERROR
