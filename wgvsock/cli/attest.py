"""``wgvsock attest show|verify FILE``: read an attestation document, or put it through the verifier.

stdout is the verdict and the document's fields, stderr what was not checked. Exit status: 0 accepted, 5 rejected (the
failed check is named), 2 usage.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from wgvsock.attestation import verifier
from wgvsock.attestation.document import MAX_DOCUMENT_SIZE, MAX_PCRS, PCR_SIZE, AttestationDocument, parse_document
from wgvsock.attestation.errors import RejectedDocumentError
from wgvsock.attestation.policy import (
    AWS_NITRO_ROOT_G1,
    DEFAULT_MAX_AGE,
    DEFAULT_MAX_FUTURE,
    IMAGE_PCRS,
    check_roots,
    parse_measurements,
)
from wgvsock.cli.output import note, print_json, put
from wgvsock.errors import ConfigurationError

_MAX_PCRS_FILE: Final = 1 << 16
"""Bytes; the output of nitro-cli build-enclave has less than 1000."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_MILLISECOND: Final = 253_402_300_799_999  # of the year 9999, the last that RFC 3339 can write


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to ``wgvsock``."""
    attest = subparsers.add_parser("attest", help="read or verify an attestation document", description=__doc__)
    verbs = attest.add_subparsers(dest="verb", required=True, metavar="show|verify")

    show = verbs.add_parser("show", help="print what a document says, without believing it")
    _add_common(show)
    show.set_defaults(run=run)

    verify = verbs.add_parser("verify", help="check a document; exit 0 accepted, 5 rejected")
    _add_common(verify)
    verify.add_argument("--at", type=_time, metavar="RFC3339", help="verify as of this time (default: now)")
    verify.add_argument("--nonce", type=_hex, metavar="HEX", help="the nonce that the document has to carry")
    verify.add_argument(
        "--pcr", type=_pcr, action="append", default=[], metavar="N=HEX", help="a PCR's value; may be repeated"
    )
    verify.add_argument("--pcrs", metavar="FILE", help="PCRs as nitro-cli build-enclave printed them (JSON)")
    verify.add_argument(
        "--root-sha256",
        type=_hex,
        action="append",
        metavar="HEX",
        help="accept this root certificate in place of AWS's G1; may be repeated",
    )
    verify.add_argument("--allow-debug", action="store_true", help="accept an enclave in debug mode")
    verify.add_argument(
        "--max-age",
        type=_seconds,
        default=DEFAULT_MAX_AGE,
        metavar="S",
        help=f"oldest document to accept, in seconds (default: {DEFAULT_MAX_AGE.total_seconds():g})",
    )
    verify.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry the command out.

    Raises:
        ConfigurationError: A file cannot be read, or an argument is wrong.
        RejectedDocumentError: The document was rejected and no JSON was asked for.
    """
    document = _read(args.file, MAX_DOCUMENT_SIZE)
    return _show(document, args) if args.verb == "show" else _verify(document, args)


def _show(data: bytes, args: argparse.Namespace) -> int:
    try:
        document = parse_document(data)
    except RejectedDocumentError as error:
        return _reject(error, None, args)
    note("these fields were read, not verified")
    if args.json:
        print_json({"ok": True, "verified": False, **_fields(document)})
    else:
        _print_fields(document)
    return 0


def _verify(data: bytes, args: argparse.Namespace) -> int:
    pcrs = _expected_pcrs(args)
    roots = tuple(args.root_sha256 or (AWS_NITRO_ROOT_G1,))
    check_roots(roots)
    document = None
    try:
        # Parsed once more inside the verifier: a rejected document's fields are shown too, if it has any.
        document = parse_document(data)
        _check(data, pcrs, roots, args)
    except RejectedDocumentError as error:
        return _reject(error, document, args)
    _say_what_was_not_checked(pcrs, roots, args)
    if args.json:
        print_json({"ok": True, "check": None, **_fields(document)})
    else:
        put("accepted")
        _print_fields(document)
    return 0


def _check(data: bytes, pcrs: Mapping[int, bytes], roots: tuple[bytes, ...], args: argparse.Namespace) -> None:
    """The verifier's checks in its order; only what the operator left open is left out.

    Services have no such choice: a `Policy` without measurements is refused.
    """
    now = args.at or datetime.now(UTC)
    document = verifier.authenticate(data, accepted_roots=roots, now=now)
    verifier.check_freshness(document, now=now, max_age=args.max_age, max_future=DEFAULT_MAX_FUTURE)
    if args.nonce is not None:
        verifier.check_nonce(document.nonce, args.nonce)
    verifier.check_image_pcrs(document.pcrs, allow_debug=args.allow_debug)
    if pcrs:
        verifier.check_pcr_sets(document.pcrs, [pcrs])


def _say_what_was_not_checked(pcrs: Mapping[int, bytes], roots: tuple[bytes, ...], args: argparse.Namespace) -> None:
    missing = [f"PCR{index}" for index in IMAGE_PCRS if index not in pcrs]
    if not pcrs:
        note("no PCRs were given, so the image was not compared: this may be anybody's enclave (--pcrs, --pcr)")
    elif missing:
        note(f"{', '.join(missing)} not given and not compared: one alone does not identify an image")
    if args.nonce is None:
        note("no nonce was given, so this may be a replay (--nonce)")
    if roots != (AWS_NITRO_ROOT_G1,):
        note("a root other than AWS's G1 was accepted, as --root-sha256 asked for")


def _reject(error: RejectedDocumentError, document: AttestationDocument | None, args: argparse.Namespace) -> int:
    """The verdict goes to stdout in either form; without JSON the three-line error follows on stderr."""
    if not args.json:
        put(f"rejected: {error.check}")
        raise error
    fields = _fields(document) if document else {}
    print_json({"ok": False, "check": error.check, "why": error.why, "fix": error.fix, **fields})
    return error.exit_code


def _fields(document: AttestationDocument) -> dict[str, Any]:
    return {
        "module_id": document.module_id,
        "timestamp": _rfc3339(document.timestamp_ms),
        "timestamp_ms": document.timestamp_ms,
        "pcrs": {str(index): document.pcrs[index].hex() for index in sorted(document.pcrs)},
        "nonce": _hex_or_none(document.nonce),
        "user_data": _hex_or_none(document.user_data),
        "public_key": _hex_or_none(document.public_key),
    }


def _print_fields(document: AttestationDocument) -> None:
    fields = _fields(document)
    put(f"module_id   {fields['module_id']}")
    put(f"timestamp   {fields['timestamp'] or fields['timestamp_ms']}")
    for index, value in fields["pcrs"].items():
        if value != bytes(PCR_SIZE).hex():
            put(f"PCR{index:<9}{value}")
    for name in ("nonce", "user_data", "public_key"):
        put(f"{name:<12}{'-' if fields[name] is None else fields[name]}")


def _expected_pcrs(args: argparse.Namespace) -> dict[int, bytes]:
    pcrs: dict[int, bytes] = {}
    if args.pcrs is not None:
        try:
            pcrs = parse_measurements(json.loads(_read(args.pcrs, _MAX_PCRS_FILE)))
        except (ValueError, RecursionError) as error:
            raise ConfigurationError(f"cannot read PCRs from {args.pcrs}", why="it is no JSON") from error
    for index, value in args.pcr:
        if pcrs.setdefault(index, value) != value:
            raise ConfigurationError("cannot compare the PCRs", why=f"two values were given for PCR{index}")
    return pcrs


def _read(name: str, limit: int) -> bytes:
    """At most one byte more than `limit`, so that too large a file is noticed and never held."""
    try:
        if name == "-":
            return sys.stdin.buffer.read(limit + 1)
        with Path(name).open("rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        raise ConfigurationError(f"cannot read {name}", why=error.strerror or "", fix="name a file, or -") from error


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the document as the module returned it (CBOR); - is stdin")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = datetime.min  # noqa: DTZ901 - naive like a text without an offset, and refused with it
    if time.tzinfo is None:
        raise argparse.ArgumentTypeError("a time looks like 2026-11-23T12:00:00Z, with its offset")
    return time


def _hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise argparse.ArgumentTypeError("not hexadecimal") from None


def _pcr(text: str) -> tuple[int, bytes]:
    index, _, value = text.partition("=")
    if not (index.isdecimal() and index.isascii() and len(index) <= 2 and int(index) < MAX_PCRS):
        raise argparse.ArgumentTypeError(f"a PCR looks like 0=HEX, with an index from 0 to {MAX_PCRS - 1}")
    digest = _hex(value)
    if len(digest) != PCR_SIZE:
        raise argparse.ArgumentTypeError(f"a PCR has {2 * PCR_SIZE} hexadecimal digits")
    return int(index), digest


def _seconds(text: str) -> timedelta:
    try:
        seconds = timedelta(seconds=float(text))
    except (ValueError, OverflowError):
        seconds = timedelta(-1)
    if seconds < timedelta(0):
        raise argparse.ArgumentTypeError("not a number of seconds")
    return seconds


def _rfc3339(milliseconds: int) -> str | None:
    if milliseconds > _LAST_MILLISECOND:
        return None
    moment = _EPOCH + timedelta(milliseconds=milliseconds)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _hex_or_none(value: bytes | None) -> str | None:
    return None if value is None else value.hex()
