"""Reads PCRs and fingerprints in the forms in which people have them, for every configuration and every command.

A digest is hexadecimal in upper or lower case, with or without ``0x``, and with or without colons between its bytes.
PCRs come as the JSON of ``nitro-cli build-enclave`` and ``describe-eif``, as a plain map, or as lines ``PCR0=…``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Final

from wgvsock.attestation.document import MAX_PCRS, PCR_SIZE
from wgvsock.errors import ConfigurationError

FINGERPRINT_SIZE: Final = 32
"""Bytes of a SHA-256 digest."""

_DIGITS: Final = re.compile(r"(?:0x)?([0-9a-f]*|[0-9a-f]{2}(?::[0-9a-f]{2})*)", re.ASCII | re.IGNORECASE)
_PCR_NAME: Final = re.compile(r"(?:PCR)?([0-9]{1,2})", re.ASCII | re.IGNORECASE)
_NO_MEASUREMENT: Final = "HashAlgorithm"  # nitro-cli prints it with the PCRs: "Sha384 { ... }"
_MAX_SHOWN: Final = 32  # characters of a foreign text in an error


def parse_hex(text: str, name: str) -> bytes:
    """Bytes from hexadecimal digits in any of the forms above.

    Args:
        text: The digits. Surrounding space is ignored.
        name: What they are, for the error.

    Raises:
        ConfigurationError: The text is not hexadecimal, or has an odd number of digits.
    """
    match = _DIGITS.fullmatch(text.strip())
    digits = match[1].replace(":", "") if match else ""
    if not digits or len(digits) % 2:
        raise ConfigurationError(
            f'cannot use "{name}"', why="it is not hexadecimal", fix="write two digits for each byte"
        )
    return bytes.fromhex(digits)


def parse_digest(text: str, name: str, size: int) -> bytes:
    """A digest of `size` bytes from its hexadecimal digits.

    Raises:
        ConfigurationError: The text is not hexadecimal, or has another length.
    """
    try:
        value = parse_hex(text, name)
    except ConfigurationError:
        value = b""
    if len(value) != size:
        raise ConfigurationError(
            f'cannot use "{name}"',
            why=f"it is not {2 * size} hexadecimal digits",
            fix="copy the whole digest; 0x in front, colons and upper case are allowed",
        )
    return value


def parse_fingerprint(text: str, name: str) -> bytes:
    """The 32-byte SHA-256 digest of a certificate from the text that openssl and others print.

    Raises:
        ConfigurationError: The text is not such a digest.
    """
    return parse_digest(text, name, FINGERPRINT_SIZE)


def parse_pcr(name: str, value: str) -> tuple[int, bytes]:
    """Index and 48-byte value of one PCR.

    Args:
        name: ``PCR0``, ``pcr0`` or ``0``.
        value: The digest, hexadecimal.

    Raises:
        ConfigurationError: There is no such PCR, or the value is not a SHA-384 digest.
    """
    index = _pcr_index(name)
    if index is None:
        raise _malformed(f"{name.strip()[:_MAX_SHOWN]!a} is not one of PCR0 to PCR{MAX_PCRS - 1}")
    return index, parse_digest(value, name.strip(), PCR_SIZE)


def merge_pcrs(pcrs: Iterable[tuple[int, bytes]]) -> dict[int, bytes]:
    """One map of PCRs (48 bytes each) from several sources. Giving the same value twice is allowed.

    Raises:
        ConfigurationError: Two values were given for one PCR.
    """
    merged: dict[int, bytes] = {}
    for index, value in pcrs:
        if merged.setdefault(index, value) != value:
            raise _malformed(f"two values were given for PCR{index}")
    return merged


def read_measurements(text: str) -> dict[int, bytes]:
    """PCRs (48 bytes each, by index) from a file's text: JSON for `parse_measurements`, or lines ``PCR0=…``.

    Raises:
        ConfigurationError: It is neither, contains no PCR, or gives two values for one.
    """
    if not text.lstrip().startswith(("{", "[")):
        return _not_empty(merge_pcrs(_from_lines(text)))
    try:
        return parse_measurements(json.loads(text, object_pairs_hook=_no_key_twice))
    except (ValueError, RecursionError):
        raise _malformed("it begins like JSON, but is not valid JSON") from None


def parse_measurements(listing: object) -> dict[int, bytes]:
    """PCRs (48 bytes each, by index) from parsed JSON.

    Args:
        listing: The output of ``build-enclave`` or ``describe-eif``, or ``{"PCR0": "…"}``.

    Raises:
        ConfigurationError: It is neither, contains no PCR, or gives two values for one. Or it is a listing of running
            enclaves, which the host can make up.
    """
    if any(isinstance(entry, dict) and "EnclaveID" in entry for entry in _entries(listing)):
        raise ConfigurationError(
            "cannot take PCRs from a listing of running enclaves",
            why="the host makes up what describe-enclaves prints; nothing proves it",
            fix="give what nitro-cli build-enclave printed, or describe-eif for your own copy of the image",
        )
    if not isinstance(listing, dict):
        raise _malformed("there is no object with PCR0, PCR1, …")
    return _not_empty(merge_pcrs(_from_object(listing)))


def _entries(listing: object) -> list[object]:
    return listing if isinstance(listing, list) else [listing]


def _from_object(listing: dict[object, object]) -> Iterator[tuple[int, bytes]]:
    measurements = listing.get("Measurements")
    if measurements is None:
        measurements = listing
    else:  # the other keys describe the image, but a PCR among them must not be overlooked
        yield from _from_map({name: value for name, value in listing.items() if _pcr_index(name) is not None})
    if not isinstance(measurements, dict):
        raise _malformed("its Measurements are not an object")
    yield from _from_map({name: value for name, value in measurements.items() if name != _NO_MEASUREMENT})


def _from_map(pcrs: dict[object, object]) -> Iterator[tuple[int, bytes]]:
    for name, value in pcrs.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise _malformed("a name or a value in it is not text")
        yield parse_pcr(name, value)


def _from_lines(text: str) -> Iterator[tuple[int, bytes]]:
    for line in text.splitlines():
        entry = line.strip()
        if entry and not entry.startswith("#"):
            name, _, value = entry.partition("=" if "=" in entry else ":")
            yield parse_pcr(name, value.strip().strip("\"'"))


def _no_key_twice(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Refuse two values for one key. JSON allows them, and Python would keep the last."""
    found: dict[str, object] = {}
    for key, value in pairs:
        if found.setdefault(key, value) != value:
            raise _malformed(f"two values were given for {key[:_MAX_SHOWN]!a}")
    return found


def _pcr_index(name: object) -> int | None:
    match = _PCR_NAME.fullmatch(name.strip()) if isinstance(name, str) else None
    return int(match[1]) if match and int(match[1]) < MAX_PCRS else None


def _not_empty(pcrs: dict[int, bytes]) -> dict[int, bytes]:
    if not pcrs:
        raise _malformed("it contains no PCR")
    return pcrs


def _malformed(why: str) -> ConfigurationError:
    return ConfigurationError(
        "cannot use the given PCRs",
        why=why,
        fix="give PCRs as nitro-cli build-enclave prints them: 96 hexadecimal digits each",
    )
