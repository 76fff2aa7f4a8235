from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wgvsock.attestation.measurements import (
    merge_pcrs,
    parse_digest,
    parse_fingerprint,
    parse_hex,
    parse_measurements,
    parse_pcr,
    read_measurements,
)
from wgvsock.attestation.policy import AWS_NITRO_ROOT_G1, PcrSet
from wgvsock.errors import ConfigurationError

PCRS = {index: bytes((index + 0xA1,)) * 48 for index in (0, 1, 2)}
HEX = {f"PCR{index}": value.hex() for index, value in PCRS.items()}
ALGORITHM = {"HashAlgorithm": "Sha384 { ... }"}
BUILT = {"Measurements": {**ALGORITHM, **HEX}}  # nitro-cli build-enclave
DESCRIBED = {  # nitro-cli describe-eif
    "EifVersion": 4,
    **BUILT,
    "IsSigned": False,
    "CheckCRC": True,
    "ImageName": "app",
    "Metadata": {"BuildTime": "2026-11-23T12:00:00+00:00", "CustomMetadata": None},
}
LISTED = {"EnclaveName": "app", "EnclaveID": "i-0123456789abcdef0-enc1", "State": "RUNNING", **BUILT}

OPENSSL = "64:1A:03:21:A3:E2:44:EF:E4:56:46:31:95:D6:06:31:7E:D7:CD:CC:3C:17:56:E0:98:93:F3:C6:8F:79:BB:5B"


@given(st.binary(min_size=1, max_size=64), st.booleans(), st.sampled_from(["", "0x", "0X"]), st.sampled_from(["", ":"]))
def test_hexadecimal_as_tools_print_it(value: bytes, upper: bool, prefix: str, between: str) -> None:
    digits = between.join(f"{byte:02x}" for byte in value)
    assert parse_hex(f" {prefix}{digits.upper() if upper else digits}\n", "nonce") == value


@pytest.mark.parametrize(
    "text", ["", "0x", "0", "abc", "zz", "a:b", "ab:", ":ab", "ab:c", "abcd:ef", "ab cd", "\u0660\u0660", "-ab"]
)
def test_what_is_no_hexadecimal(text: str) -> None:
    with pytest.raises(ConfigurationError, match='cannot use "nonce"'):
        parse_hex(text, "nonce")


def test_a_digest_has_its_size() -> None:
    assert parse_digest("AB" * 48, "PCR0", 48) == b"\xab" * 48
    for text in ("ab" * 47, "ab" * 49, "zz" * 48, ""):
        with pytest.raises(ConfigurationError, match='cannot use "PCR0": it is not 96 hexadecimal digits'):
            parse_digest(text, "PCR0", 48)


@pytest.mark.parametrize("text", [OPENSSL, OPENSSL.lower(), AWS_NITRO_ROOT_G1.hex(), "0x" + AWS_NITRO_ROOT_G1.hex()])
def test_a_fingerprint_may_have_colons(text: str) -> None:
    assert parse_fingerprint(text, "root_sha256") == AWS_NITRO_ROOT_G1


@pytest.mark.parametrize("name", ["PCR8", "pcr8", "Pcr8", "8", "PCR08", " PCR8 "])
def test_names_of_a_pcr(name: str) -> None:
    assert parse_pcr(name, "0x" + "Ab" * 48) == (8, b"\xab" * 48)


@pytest.mark.parametrize("name", ["", "PCR", "PCR32", "PCR-1", "PCR999", "PCR\u0661", "RCP0", "\x1b[2J"])
def test_names_of_no_pcr(name: str) -> None:
    with pytest.raises(ConfigurationError, match="is not one of PCR0 to PCR31") as caught:
        parse_pcr(name, "ab" * 48)
    assert caught.value.why.isprintable()


def test_to_say_the_same_twice_is_no_mistake() -> None:
    assert merge_pcrs([(0, b"a"), (1, b"b"), (0, b"a")]) == {0: b"a", 1: b"b"}
    with pytest.raises(ConfigurationError, match="two values were given for PCR0"):
        merge_pcrs([(0, b"a"), (1, b"b"), (0, b"c")])


@pytest.mark.parametrize(
    "listing",
    [
        BUILT,
        DESCRIBED,
        HEX,
        {name.lower(): value for name, value in HEX.items()},
        {name: "0x" + value.upper() for name, value in HEX.items()},
        {name.removeprefix("PCR"): value for name, value in HEX.items()},
        {**BUILT, "PCR0": HEX["PCR0"]},
        {**HEX, "pcr0": HEX["PCR0"]},
    ],
)
def test_measurements_of_nitro_cli_and_plain_ones(listing: dict[str, Any]) -> None:
    assert parse_measurements(listing) == PCRS
    assert read_measurements(json.dumps(listing)) == PCRS
    assert read_measurements("\n  " + json.dumps(listing, indent=4) + "\n") == PCRS
    PcrSet(parse_measurements(listing))


@pytest.mark.parametrize("pattern", ["{}={}", "{} = {}", "{}: {}", '{}="{}"', "{}='0x{}'", "  {}={}\t"])
def test_measurements_in_lines(pattern: str) -> None:
    lines = [pattern.format(name, value) for name, value in HEX.items()]
    assert read_measurements("\n".join(lines)) == PCRS
    assert read_measurements("# built today\r\n\r\n" + "\r\n".join(lines).replace("PCR", "pcr")) == PCRS


@pytest.mark.parametrize(
    "text",
    [
        '{"PCR0": "%s", "PCR0": "%s"}',
        '{"PCR0": "%s", "pcr0": "%s"}',
        '{"PCR0": "%s", "0": "%s"}',
        '{"Measurements": {"PCR0": "%s"}, "PCR0": "%s"}',
        '{"Measurements": {"PCR0": "%s"}, "Measurements": {"PCR0": "%s"}}',
        "PCR0=%s\nPCR0=%s",
        "PCR0=%s\npcr00: %s",
    ],
)
def test_two_values_for_one_register(text: str) -> None:
    same = text % ("ab" * 48, "ab" * 48)
    assert read_measurements(same) == {0: b"\xab" * 48}
    with pytest.raises(ConfigurationError, match="two values"):
        read_measurements(text % ("ab" * 48, "cd" * 48))


@pytest.mark.parametrize("listing", [[LISTED], [LISTED, LISTED], LISTED, [{"EnclaveID": "x"}], [1, LISTED]])
def test_a_listing_of_running_enclaves_is_refused(listing: object) -> None:
    with pytest.raises(ConfigurationError, match="the host makes up") as caught:
        read_measurements(json.dumps(listing))
    assert "build-enclave" in caught.value.fix


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        [],
        [HEX],
        "PCR0",
        {},
        {"Measurements": []},
        {"Measurements": ALGORITHM},
        ALGORITHM,
        {"PCR0": bytes(48)},
        {"PCR0": 0},
        {"PCR0": "zz" * 48},
        {"PCR0": "00" * 47},
        {"PCR32": "00" * 48},
        {"PCR": "00" * 48},
        {"PCR-1": "00" * 48},
        {0: "00" * 48},
        {**HEX, "image": "app"},
        {"Measurements": {**HEX, "image": "app"}},
        {"schema": "wgvsock/v1", "pcrs": {"0": "00" * 48}},  # our own attest show: the document would be held to itself
    ],
)
def test_malformed_measurements(wrong: object) -> None:
    with pytest.raises(ConfigurationError):
        parse_measurements(wrong)


@pytest.mark.parametrize(
    "text", ["", "# nothing", "no measurement", "PCR0", "PCR0=", "[" * 100_000, "{", '{"PCR0": 1e999}']
)
def test_unreadable_texts(text: str) -> None:
    with pytest.raises(ConfigurationError):
        read_measurements(text)
