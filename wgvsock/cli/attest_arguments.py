"""Arguments that the verbs of ``wgvsock attest`` share: the accepted images, roots and age."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from wgvsock.attestation.measurements import merge_pcrs, parse_fingerprint, parse_pcr, read_measurements
from wgvsock.attestation.policy import DEFAULT_MAX_AGE
from wgvsock.cli.document_text import MAX_INPUT, decode_text
from wgvsock.errors import ConfigurationError

_T = TypeVar("_T")


def add_policy(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which documents are accepted."""
    parser.add_argument(
        "--pcr", type=_pcr, action="append", default=[], metavar="N=HEX", help="a PCR's value; may be repeated"
    )
    parser.add_argument(
        "--pcrs",
        metavar="FILE",
        help="PCRs as nitro-cli build-enclave or describe-eif prints them (JSON), or lines PCR0=HEX; - is stdin",
    )
    parser.add_argument(
        "--root-sha256",
        type=checked(lambda text: parse_fingerprint(text, "root-sha256")),
        action="append",
        metavar="HEX",
        help="accept this root certificate instead of AWS's G1; may be repeated",
    )
    parser.add_argument("--allow-debug", action="store_true", help="accept an enclave in debug mode")
    parser.add_argument(
        "--max-age",
        type=_seconds,
        default=DEFAULT_MAX_AGE,
        metavar="S",
        help=f"oldest document to accept, in seconds (default: {DEFAULT_MAX_AGE.total_seconds():g})",
    )


def add_identity(parser: argparse.ArgumentParser) -> None:
    """Add the options that identify one of the enclaves that run an image."""
    parser.add_argument(
        "--enclave-id", metavar="ID", help="the EnclaveID that the document must have, as nitro-cli prints it"
    )
    parser.add_argument("--instance-id", metavar="ID", help="the parent instance that PCR4 must measure")
    parser.add_argument("--role-arn", metavar="ARN", help="the parent instance's IAM role that PCR3 must measure")


def expected_pcrs(args: argparse.Namespace) -> dict[int, bytes]:
    """The PCRs that the arguments name, 48 bytes each by index.

    Raises:
        ConfigurationError: A file cannot be read, a value is invalid, or two values differ for one PCR.
    """
    if args.pcrs is None:
        return merge_pcrs(args.pcr)
    if args.pcrs == getattr(args, "file", None) == "-":
        raise ConfigurationError(
            "cannot read both from standard input",
            why="FILE and --pcrs are both -",
            fix="put one of the two into a file",
        )
    return merge_pcrs([*read_pcrs(args.pcrs).items(), *args.pcr])


def read_pcrs(name: str) -> dict[int, bytes]:
    """PCRs from a file or standard input (``-``), 48 bytes each by index.

    Raises:
        ConfigurationError: It cannot be read, is too large, or contains no PCR.
    """
    data = read(name)
    text = decode_text(data) if len(data) <= MAX_INPUT else None
    if text is None:
        raise ConfigurationError(
            f"cannot read PCRs from {name}",
            why=f"it is not text of at most {MAX_INPUT} bytes",
            fix="give the output of nitro-cli build-enclave",
        )
    return read_measurements(text)


def read(name: str) -> bytes:
    """Read a file or standard input (``-``) up to one byte beyond the limit, so that the caller notices an excess.

    Raises:
        ConfigurationError: The file cannot be read.
    """
    try:
        if name == "-":
            return sys.stdin.buffer.read(MAX_INPUT + 1)
        with Path(name).open("rb") as file:
            return file.read(MAX_INPUT + 1)
    except OSError as error:
        raise ConfigurationError(f"cannot read {name}", why=error.strerror or "", fix="name a file, or -") from error


def checked(parse: Callable[[str], _T]) -> Callable[[str], _T]:
    """Wrap a parser for use as an argument's type, so that argparse reports its errors."""

    def parsed(text: str) -> _T:
        try:
            return parse(text)
        except ConfigurationError as error:
            raise argparse.ArgumentTypeError(error.why) from None

    return parsed


def _pcr(text: str) -> tuple[int, bytes]:
    name, _, value = text.partition("=")
    return checked(lambda digest: parse_pcr(name, digest))(value)


def _seconds(text: str) -> timedelta:
    try:
        seconds = timedelta(seconds=float(text))
    except (ValueError, OverflowError):
        seconds = timedelta(-1)
    if seconds < timedelta(0):
        raise argparse.ArgumentTypeError("not a number of seconds")
    return seconds
