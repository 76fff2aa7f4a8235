"""``wgvsock attest show|verify FILE``: print an attestation document, or verify it.

`wgvsock.cli.attest_fetch` has the verbs that fetch one.

stdout has the verdict and the document's fields. stderr says in which form the document was found, and what was not
checked. Exit status: 0 accepted, 5 rejected (the failed check is named), 2 wrong usage or a file without a document.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from wgvsock.attestation import verifier
from wgvsock.attestation.certificates import read_validity
from wgvsock.attestation.document import PCR_SIZE, AttestationDocument, parse_document
from wgvsock.attestation.errors import ChainParseError, MeasurementError, RejectedDocumentError
from wgvsock.attestation.evidence import AllowedSet, Evidence
from wgvsock.attestation.measurements import parse_hex
from wgvsock.attestation.policy import (
    AWS_NITRO_ROOT_G1,
    DEFAULT_MAX_AGE,
    DEFAULT_MAX_FUTURE,
    IMAGE_PCRS,
    INSTANCE_PCR,
    ROLE_PCR,
    Expectations,
)
from wgvsock.attestation.verifier import EPOCH, MILLISECOND
from wgvsock.cli import attest_fetch
from wgvsock.cli.attest_arguments import add_identity, add_policy, checked, expected_pcrs, read
from wgvsock.cli.attest_kept import add_relay, kept_document, registers_as_text, relay_policy, time_kept
from wgvsock.cli.document_text import find_document
from wgvsock.cli.output import note, print_json, put, put_lines

_OF_ENCLAVE: Final = ("enclave_id", "instance_id", "role_arn")
"""Expectations that an argument overrides."""

_LAST_MILLISECOND: Final = 253_402_300_799_999  # of the year 9999, the last that RFC 3339 can express


@dataclass(frozen=True, slots=True)
class _Expected:
    """What the operator expects of the document. Anything left open is not compared."""

    sets: list[AllowedSet]
    roots: tuple[bytes, ...]
    nonce: bytes | None
    enclave: Expectations
    max_age: timedelta
    allow_debug: bool
    now: datetime

    def check(self, data: bytes) -> None:
        """Make the verifier's checks in their order, except for what the operator left open.

        Services have no such choice: a `Policy` without measurements is refused.

        Raises:
            RejectedDocumentError: The class names the check that failed first.
        """
        document = verifier.authenticate(data, accepted_roots=self.roots, now=self.now)
        verifier.check_freshness(document, now=self.now, max_age=self.max_age, max_future=DEFAULT_MAX_FUTURE)
        if self.nonce is not None:
            verifier.check_nonce(document.nonce, self.nonce)
        verifier.check_image_pcrs(document.pcrs, allow_debug=self.allow_debug)
        if self.sets:
            verifier.check_pcr_sets(document.pcrs, self.sets)
        verifier.check_identity(document, self.enclave)

    @property
    def compared(self) -> set[int]:
        """Indexes of the PCRs that every allowed set has."""
        return set.intersection(*(set(values) for _, values in self.sets)) if self.sets else set()

    def beside(self, document: AttestationDocument) -> Evidence:
        """What the document says next to what is expected, even if its signer is not trusted."""
        return verifier.gather(document, self.sets, self.enclave)

    def not_compared(self, document: AttestationDocument) -> list[str]:
        """The fields that were compared with nothing. The image's PCRs and the nonce count even if they are absent."""
        compared = self.compared
        compared |= {ROLE_PCR} if self.enclave.role_arn is not None else set()
        compared |= {INSTANCE_PCR} if self.enclave.instance_id is not None else set()
        said = set(IMAGE_PCRS) | {index for index, value in document.pcrs.items() if any(value)}
        names = [f"PCR{index}" for index in sorted(said - compared)]
        names += ["module_id"] if self.enclave.enclave_id is None else []
        names += ["nonce"] if self.nonce is None else []
        return names + [name for name in ("user_data", "public_key") if getattr(document, name)]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to ``wgvsock``."""
    attest = subparsers.add_parser("attest", help="read, verify or fetch an attestation document", description=__doc__)
    verbs = attest.add_subparsers(dest="verb", required=True, metavar="show|verify|fetch|own")

    show = verbs.add_parser("show", help="print what a document says, without verifying it")
    _add_common(show)
    show.set_defaults(run=run)

    verify = verbs.add_parser("verify", help="check a document; exit 0 accepted, 5 rejected")
    _add_common(verify)
    verify.add_argument("--at", type=_time, metavar="RFC3339", help="verify as of this time (default: now)")
    verify.add_argument(
        "--nonce",
        type=checked(lambda text: parse_hex(text, "nonce")),
        metavar="HEX",
        help="the nonce that the document has to carry",
    )
    add_policy(verify)
    verify.set_defaults(max_age=None)  # a relay's configuration may set another
    add_identity(verify)
    verify.set_defaults(run=run)
    add_relay(show)
    add_relay(verify)
    verify.add_argument("--enclave", metavar="NAME", help="with -c: the enclave whose policy applies, if they differ")
    attest_fetch.add_parsers(verbs)


def run(args: argparse.Namespace) -> int:
    """Run the command, and return its exit status.

    Raises:
        ConfigurationError: A file cannot be read or contains no document, or an argument is wrong.
        RejectedDocumentError: The document was rejected, and ``--json`` is not set.
    """
    expected = _expected(args) if args.verb == "verify" else None  # reports a wrong argument before any verdict
    source = "standard input" if args.file == "-" else args.file
    kept = kept_document(args)
    found = find_document(read(args.file if kept is None else str(kept)), source)
    note(f"the document was read as {found.form}: {len(found.data)} bytes")
    return _show(found.data, args) if expected is None else _verify(found.data, expected, args)


def _show(data: bytes, args: argparse.Namespace) -> int:
    try:
        document = parse_document(data)
    except RejectedDocumentError as error:
        return _reject(error, {}, args)
    note("these fields were read, not verified")
    fields = _fields(document, DEFAULT_MAX_AGE)
    if args.json:
        print_json({"ok": True, "verified": False, **fields})
    else:
        _print_fields(fields)
    return 0


def _verify(data: bytes, expected: _Expected, args: argparse.Namespace) -> int:
    fields: dict[str, Any] = {}
    beside = None
    try:
        # The verifier parses it again. It is parsed here so that a rejected document's fields can be shown as well.
        document = parse_document(data)
        fields = {**_fields(document, expected.max_age), "not_compared": expected.not_compared(document)}
        beside = expected.beside(document)
        expected.check(data)
    except RejectedDocumentError as error:
        return _reject(error, fields, args, beside)
    _say_what_was_notchecked(expected, fields)
    if args.json:
        print_json({"ok": True, "check": None, **fields})
    else:
        put("accepted")
        _print_fields(fields)
    return 0


def _say_what_was_notchecked(expected: _Expected, fields: Mapping[str, Any]) -> None:
    missing = [f"PCR{index}" for index in IMAGE_PCRS if index not in expected.compared]
    if not expected.sets:
        note("no PCRs were given, so the image was not checked: this may be anyone's enclave (--pcrs, --pcr, -c)")
    elif missing:
        note(f"no value was given for {', '.join(missing)}: fewer than all three PCRs do not identify an image")
    if expected.nonce is None:
        note("no nonce was given, so this may be a replay (--nonce)")
    if fields["debug"]:
        note("the enclave runs in debug mode: it is not measured, and the parent instance can read its console")
    if expected.roots != (AWS_NITRO_ROOT_G1,):
        note("a root other than AWS's G1 was accepted, as configured")
    if fields["not_compared"]:
        note(f"not compared with anything: {', '.join(fields['not_compared'])}")


def _reject(
    error: RejectedDocumentError, fields: Mapping[str, Any], args: argparse.Namespace, beside: Evidence | None = None
) -> int:
    """Print the verdict on stdout. Without ``--json`` the three-line error follows on stderr."""
    if not args.json:
        put(f"rejected: {error.check}")
        if beside is not None and isinstance(error, MeasurementError):
            put_lines(registers_as_text(beside.plain()["registers"]))
        raise error
    compared = {} if beside is None else beside.plain()
    print_json({"ok": False, "check": error.check, "why": error.why, "fix": error.fix, **fields, **compared})
    return error.exit_code


def _fields(document: AttestationDocument, max_age: timedelta) -> dict[str, Any]:
    return {
        "module_id": document.module_id,
        **_region_and_window(document, max_age),
        "timestamp": _rfc3339(document.timestamp_ms),
        "timestamp_ms": document.timestamp_ms,
        "debug": any(not any(document.pcrs.get(index, b"\x01")) for index in IMAGE_PCRS),
        "pcrs": {str(index): document.pcrs[index].hex() for index in sorted(document.pcrs)},
        "nonce": _hex_or_none(document.nonce),
        "user_data": _hex_or_none(document.user_data),
        "public_key": _hex_or_none(document.public_key),
    }


def _region_and_window(document: AttestationDocument, max_age: timedelta) -> dict[str, Any]:
    """The document's region, and the period in which it verifies: while it is fresh and its certificates are valid.

    All are None if the certificates cannot be read. The period is also None if it is empty.
    """
    unknown = {"region": None, "verifies": None, "certificates": None}
    try:
        validity = read_validity(document.cabundle, document.certificate)
    except ChainParseError:
        return unknown
    begins, ends = ((moment - EPOCH) // MILLISECOND for moment in (validity.not_before, validity.not_after))
    first = max(begins, document.timestamp_ms - DEFAULT_MAX_FUTURE // MILLISECOND)
    last = min(ends, document.timestamp_ms + max_age // MILLISECOND)
    # AWS issues the leaf to "<module_id>.<region>.aws".
    region = validity.issued_to.removeprefix(f"{document.module_id}.").removesuffix(".aws")
    known = region.isascii() and region.replace("-", "").isalnum()
    return {
        "region": region if known else None,
        "verifies": {"from": _rfc3339(first), "until": _rfc3339(last)} if first <= last else None,
        "certificates": {"from": _rfc3339(begins), "until": _rfc3339(ends)},
    }


def _print_fields(fields: Mapping[str, Any]) -> None:
    put(f"module_id   {fields['module_id']}")
    put(f"region      {fields['region'] or '-'}")
    put(f"timestamp   {fields['timestamp'] or fields['timestamp_ms']}")
    if fields["certificates"]:
        window = fields["verifies"]
        put(f"verifies    {_span(window) if window else 'never: it is not fresh while its chain is valid'}")
        put(f"chain       {_span(fields['certificates'])}")
    for index, value in fields["pcrs"].items():
        if value != bytes(PCR_SIZE).hex():
            put(f"PCR{index:<9}{value}")
    if fields["debug"]:
        put("debug       PCR0, PCR1 or PCR2 is zero: the enclave runs in debug mode")
    for name in ("nonce", "user_data", "public_key"):
        put(f"{name:<12}{'-' if fields[name] is None else fields[name]}")


def _span(window: Mapping[str, str]) -> str:
    return f"{window['from']} to {window['until']}"


def _expected(args: argparse.Namespace) -> _Expected:
    pcrs, policy = expected_pcrs(args), relay_policy(args)
    given = Expectations(
        user_data=b"", enclave_id=args.enclave_id, instance_id=args.instance_id, role_arn=args.role_arn
    )
    now = args.at or time_kept(args.file) or datetime.now(UTC)
    if policy is None:
        return _Expected(
            sets=[("", pcrs)] if pcrs else [],
            roots=tuple(args.root_sha256 or (AWS_NITRO_ROOT_G1,)),
            nonce=args.nonce,
            enclave=given,
            max_age=DEFAULT_MAX_AGE if args.max_age is None else args.max_age,
            allow_debug=args.allow_debug,
            now=now,
        )
    accepted, known = policy
    return _Expected(
        sets=[("", pcrs)] if pcrs else accepted.allowed_sets(),
        roots=tuple(args.root_sha256 or accepted.accepted_roots),
        nonce=args.nonce,
        enclave=replace(known, **{key: value for key in _OF_ENCLAVE if (value := getattr(given, key)) is not None}),
        max_age=accepted.max_age if args.max_age is None else args.max_age,
        allow_debug=args.allow_debug or accepted.allow_debug,
        now=now,
    )


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        metavar="FILE",
        help="the document: raw bytes, base64, hexadecimal, or JSON or a PEM-like frame that contains one of these. "
        "- is stdin. Or the name under which a relay kept a document that it refused",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = datetime.min  # noqa: DTZ901 - naive, like a time without an offset, and refused below
    if time.tzinfo is None:
        raise argparse.ArgumentTypeError("write a time with its offset, such as 2026-11-23T12:00:00Z")
    return time


def _rfc3339(milliseconds: int) -> str | None:
    if milliseconds > _LAST_MILLISECOND:
        return None
    moment = EPOCH + timedelta(milliseconds=milliseconds)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _hex_or_none(value: bytes | None) -> str | None:
    return None if value is None else value.hex()
